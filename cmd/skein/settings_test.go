package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
)

// inProcess runs a command line in this process.
func inProcess(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := &process{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errs, signals: make(chan os.Signal),
		exit: func(int) { t.Error("exit called") },
	}
	code = run(context.Background(), p, args)
	return code, out.String(), errs.String()
}

// withFile writes a configuration file.
func withFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "skein.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// settingsOf reads the settings of a command line of the agent.
func settingsOf(t *testing.T, s scope, args ...string) (*settings, error) {
	t.Helper()
	cmd := &cobra.Command{Use: "test"}
	addFlags(cmd, s)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return readSettings(cmd.Flags(), s)
}

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	file := withFile(t, "linger: 10ms\nsegment-bytes: 1MiB\nput-budget: 3\nhedge: false\nroles: [proxy]\nuploads:\n")
	t.Setenv("SKEIN_LINGER", "20ms")
	t.Setenv("SKEIN_SEGMENT_BYTES", "2MiB")
	t.Setenv("SKEIN_UPLOADS", "") // empty is unset
	s, err := settingsOf(t, inAgent, "--config", file, "--linger", "30ms")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		name, text string
		source     source
	}{
		{"linger", "30ms", fromFlag}, {"segment-bytes", "2MiB", fromEnv}, {"put-budget", "3", fromFile},
		{"hedge", "false", fromFile}, {"roles", "proxy", fromFile}, {"uploads", "8", fromDefault}, {"commit-budget", "50", fromDefault},
	} {
		if got := s.byName[want.name]; got.text != want.text || got.source != want.source {
			t.Errorf("%s = %q from %s, want %q from %s", want.name, got.text, got.source, want.text, want.source)
		}
	}
	if s.size("segment-bytes") != 2<<20 || s.rate("put-budget") != 3 || s.on("hedge") {
		t.Errorf("typed values are %v %v %v", s.size("segment-bytes"), s.rate("put-budget"), s.on("hedge"))
	}
}

func TestDevHasDefaultsOfItsOwn(t *testing.T) {
	s, err := settingsOf(t, inDev)
	if err != nil {
		t.Fatal(err)
	}
	if s.rate("put-budget") != 0 || s.str("listen") != "127.0.0.1:9092" || s.dur("max-connection-age") != 0 {
		t.Errorf("put-budget %v, listen %v, max-connection-age %v", s.rate("put-budget"), s.str("listen"), s.dur("max-connection-age"))
	}
}

// TestEveryOptionByFlagFileAndEnvironment sets each option of the servers to its default in each of the three ways.
func TestEveryOptionByFlagFileAndEnvironment(t *testing.T) {
	sample := map[kind]string{kindString: "x", kindAddress: "127.0.0.1:1", kindURL: "mem:", kindList: "x=127.0.0.1:1"}
	for _, o := range optionTable() {
		if o.scope&(inServers|inMigrate) == 0 || o.flagOnly {
			continue
		}
		s := inAgent
		if o.scope&inAgent == 0 {
			s = inDev
		}
		text := o.defaultFor(s)
		if text == "" {
			text = sample[o.kind]
		}
		t.Run(o.name, func(t *testing.T) {
			got, err := settingsOf(t, s, "--"+o.name+"="+text)
			if err != nil || got.byName[o.name].source != fromFlag || got.str(o.name) != text {
				t.Errorf("flag: %+v, %v", got, err)
			}
			got, err = settingsOf(t, s, "--config", withFile(t, o.name+": '"+text+"'\n"))
			if err != nil || got.byName[o.name].source != fromFile || got.str(o.name) != text {
				t.Errorf("file: %+v, %v", got, err)
			}
			t.Setenv(o.env(), text)
			got, err = settingsOf(t, s)
			if err != nil || got.byName[o.name].source != fromEnv || got.str(o.name) != text {
				t.Errorf("environment: %+v, %v", got, err)
			}
		})
	}
}

func TestWrongConfigurationExits2WithOneLine(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  [2]string
		args []string
		want string
	}{
		{name: "unknown key", file: "lingr: 1s", want: `unknown key "lingr"; did you mean linger?`},
		{name: "unknown key without a value", file: "lingr:", want: `unknown key "lingr"`},
		{name: "nested key", file: "linger: {max: 1s}", want: `key "linger" wants one value`},
		{name: "key of another command", file: "data: /x", want: `key "data" is not an option of this command`},
		{name: "flag-only key", file: "print-config: true", want: `unknown key "print-config"`},
		{name: "not YAML", file: "linger: [", want: "--config"},
		{name: "bad value in file", file: "linger: 5", want: "linger in "},
		{name: "unknown variable", env: [2]string{"SKEIN_PUT_BUGDET", "1"}, want: "unknown environment variable SKEIN_PUT_BUGDET; did you mean SKEIN_PUT_BUDGET?"},
		{name: "bad value in variable", env: [2]string{"SKEIN_SEGMENT_BYTES", "huge"}, want: `SKEIN_SEGMENT_BYTES: "huge" is not a size`},
		{name: "unknown flag", args: []string{"--lingr=1s"}, want: "did you mean --linger?"},
		{name: "bad size", args: []string{"--segment-bytes=8Mi"}, want: `"8Mi" is not a size`},
		{name: "size above its bound", args: []string{"--segment-bytes=1GiB"}, want: "1GiB is above the most, 128MiB"},
		{name: "bad duration", args: []string{"--linger=5"}, want: `"5" is not a duration`},
		{name: "negative rate", args: []string{"--put-budget=-1"}, want: "below the least"},
		{name: "bad choice", args: []string{"--compression=lzma"}, want: `"lzma" is not one of auto, none, zstd`},
		{name: "bad address", args: []string{"--listen=9092"}, want: `"9092" is not host:port`},
		{name: "missing file", args: []string{"--config=/nonexistent/skein.yaml"}, want: "/nonexistent/skein.yaml"},
		{name: "argument", args: []string{"now"}, want: `unexpected argument "now"`},
		{name: "nothing", want: "missing --listen, --advertise, --http, --metadata, --bucket"},
		{name: "topology direct", args: required("--topology=direct"), want: "--topology direct needs a Postgres database"},
		{name: "no role", args: required("--roles="), want: "--roles is empty"},
		{name: "unknown role", args: required("--roles=broker"), want: `"broker" is not one of proxy, compactor`},
		{name: "compactor alone", args: []string{"--roles=compactor"}, want: "missing --http, --metadata, --bucket"},
		{name: "groups", args: required("--group-min-session-timeout=1h"), want: "group session timeouts from 1h0m0s to 30m0s"},
		{name: "disk cache of no size", args: required("--cache-dir=/tmp/x"), want: "cache-dir and cache-disk-bytes go together"},
		{name: "disk cache nowhere", args: required("--cache-disk-bytes=1GiB"), want: "cache-dir and cache-disk-bytes go together"},
		{name: "small disk cache", args: required("--cache-dir=/tmp/x", "--cache-disk-bytes=1MiB"), want: "1MiB is below the least, 64MiB"},
		{name: "bounds of two options", args: required("--produce-buffer-bytes=8MiB", "--max-request-bytes=9MiB"), want: "max-request-bytes (9MiB) is above produce-buffer-bytes (8MiB)"},
		{name: "database without a scheme", args: required("--metadata=/x.db"), want: "has no scheme"},
		{name: "database of another kind", args: required("--metadata=mysql://h/d"), want: `unknown scheme "mysql"`},
		{name: "bucket of another kind", args: required("--bucket=gs://b"), want: `unknown scheme "gs"`},
		{name: "advertised wildcard", args: required("--advertise=0.0.0.0:9092"), want: "want a host that clients can connect to"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"agent"}, tt.args...)
			if tt.file != "" {
				args = append(args, "--config", withFile(t, tt.file))
			}
			if tt.env[0] != "" {
				t.Setenv(tt.env[0], tt.env[1])
			}
			code, stdout, stderr := inProcess(t, args...)
			if code != exitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit %d, stdout %q, stderr %q; want exit 2 and one line with %q", code, stdout, stderr, tt.want)
			}
		})
	}
}

// required is a complete command line of an agent with more at its end.
func required(more ...string) []string {
	return append([]string{
		"--listen=127.0.0.1:0", "--advertise=127.0.0.1:9092", "--http=127.0.0.1:0", "--metadata=sqlite:/nonexistent/x.db", "--bucket=mem:",
	}, more...)
}

func TestForeignVariablesAreLeftAlone(t *testing.T) {
	err := checkEnvironment([]string{
		"SKEIN_TEST_POSTGRES_URL=x", "SKEIN_MINIO_BIN=x", "SKEIN_TOOLS=x", "SKEIN_SERVICE_HOST=10.0.0.1", "SKEIN_SERVICE_PORT=9092",
		"SKEIN_SERVICE_PORT_KAFKA=9092", "SKEIN_PORT=tcp://10.0.0.1:9092", "SKEIN_PORT_9092_TCP_ADDR=10.0.0.1",
		"SKEIN_AGENT_SERVICE_HOST=10.0.0.1", "SKEIN_AGENT_PORT_9092_TCP=x", "SKEIN_BOOTSTRAP=x", "SKEIN_CONFIG=x", "PATH=/bin",
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPrintConfig(t *testing.T) {
	file := withFile(t, "metadata: postgres://skein:hunter2@db:5432/skein?sslmode=disable&sslpassword=hunter3\nput-budget: 2.5\n")
	t.Setenv("SKEIN_BUCKET", "s3://b/p?region=eu&endpoint=http://127.0.0.1:9000")
	code, stdout, stderr := inProcess(t, "agent", "--print-config", "--config", file, "--linger", "1s")
	if code != exitOK || stderr != "" {
		t.Fatalf("exit %d, %s", code, stderr)
	}
	if strings.Contains(stdout, "hunter") {
		t.Errorf("a password is shown:\n%s", stdout)
	}
	for _, want := range []string{
		"# flag --linger\n", "# file " + file + "\n", "# environment SKEIN_BUCKET\n", "# default\n", "# default, required\n",
		"metadata: postgres://skein:xxxxx@db:5432/skein?sslmode=disable&sslpassword=xxxxx ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
	// What is printed is a configuration file, but for the secrets.
	v := viper.New()
	v.SetConfigType("yaml")
	if err := v.ReadConfig(strings.NewReader(stdout)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"linger": "1s", "put-budget": "2.5", "segment-bytes": "8MiB", "roles": "proxy,compactor"} {
		if got := v.GetString(name); got != want {
			t.Errorf("%s is printed as %q, want %q", name, got, want)
		}
	}
}

func TestHideSecrets(t *testing.T) {
	for text, want := range map[string]string{
		"postgres://u:p@h/d":                      "postgres://u:xxxxx@h/d",
		"postgres://u@h/d?password=p&x=1":         "postgres://u@h/d?password=xxxxx&x=1",
		"s3://b?secret_key=p&region=x":            "s3://b?secret_key=xxxxx&region=x",
		"postgres://u:p%zz@h/d":                   "postgres:xxxxx",
		"127.0.0.1:9092":                          "127.0.0.1:9092",
		"file:///a/b":                             "file:///a/b",
		"minio://h:9000/b?secure=false":           "minio://h:9000/b?secure=false",
		"postgres://u@h/d?sslkey=/path&PASSFILE=": "postgres://u@h/d?sslkey=xxxxx&PASSFILE=xxxxx",
	} {
		if got := hideSecrets(text); got != want {
			t.Errorf("hideSecrets(%q) = %q, want %q", text, got, want)
		}
	}
}
