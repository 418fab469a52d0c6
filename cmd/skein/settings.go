package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// source is where a value came from: flag beats environment beats file beats default.
type source string

// Sources of values.
const (
	fromDefault source = "default"
	fromFile    source = "file"
	fromEnv     source = "environment"
	fromFlag    source = "flag"
)

// setting is an option's effective value.
type setting struct {
	option option
	text   string
	value  any
	source source
	detail string // the flag, variable or file that it came from
}

// settings are the effective values of a command's options.
type settings struct {
	scope  scope
	list   []setting
	byName map[string]*setting
}

// flagValue is a pflag.Value that checks an option's value as it is set.
type flagValue struct {
	option option
	text   string
}

func (f *flagValue) String() string { return f.text }
func (f *flagValue) Type() string   { return string(f.option.kind) }
func (f *flagValue) Set(text string) error {
	if _, err := f.option.parse(text); err != nil {
		return err
	}
	f.text = text
	return nil
}

// addFlags makes a flag of every option of the scope.
func addFlags(cmd *cobra.Command, s scope) {
	for _, o := range optionsOf(s) {
		f := cmd.Flags().VarPF(&flagValue{option: o, text: o.defaultFor(s)}, o.name, "", o.usage())
		if o.kind == kindSwitch {
			f.NoOptDefVal = "true"
		}
	}
}

// usage is the option's line in --help.
func (o *option) usage() string {
	text := strings.ReplaceAll(o.help, "`", "")
	if len(o.choices) > 0 {
		text += " (" + strings.Join(o.choices, "|") + ")"
	}
	return text
}

// readSettings merges flags, environment, configuration file and defaults. Every error is a usageError.
func readSettings(flags *pflag.FlagSet, s scope) (*settings, error) {
	if err := checkEnvironment(os.Environ()); err != nil {
		return nil, err
	}
	v := viper.New()
	out := &settings{scope: s, byName: map[string]*setting{}}
	options := optionsOf(s)
	for _, o := range options {
		v.SetDefault(o.name, o.defaultFor(s))
		if err := v.BindPFlag(o.name, flags.Lookup(o.name)); err != nil {
			return nil, fmt.Errorf("bind --%s: %w", o.name, err)
		}
		if o.hasEnv() {
			if err := v.BindEnv(o.name, o.env()); err != nil {
				return nil, fmt.Errorf("bind %s: %w", o.env(), err)
			}
		}
	}
	file := ""
	if flags.Lookup("config") != nil {
		file = v.GetString("config")
	}
	var inFile map[string]any
	if file != "" {
		var err error
		if inFile, err = readFile(v, file, s); err != nil {
			return nil, err
		}
	}
	for _, o := range options {
		x := setting{option: o, text: textOf(v.Get(o.name))}
		x.source, x.detail = origin(flags, &o, inFile, file)
		value, err := o.parse(x.text)
		if err != nil {
			return nil, usagef("%s: %w", x.place(), err)
		}
		x.value = value
		out.list = append(out.list, x)
	}
	for i := range out.list {
		out.byName[out.list[i].option.name] = &out.list[i]
	}
	return out, nil
}

// origin says where viper took an option's value from.
func origin(flags *pflag.FlagSet, o *option, inFile map[string]any, file string) (source, string) {
	if flags.Changed(o.name) {
		return fromFlag, "--" + o.name
	}
	if o.hasEnv() && os.Getenv(o.env()) != "" {
		return fromEnv, o.env()
	}
	if _, ok := inFile[o.name]; ok {
		return fromFile, file
	}
	return fromDefault, ""
}

// place names the setting as the user wrote it.
func (x *setting) place() string {
	switch x.source {
	case fromEnv:
		return x.detail
	case fromFile:
		return x.option.name + " in " + x.detail
	}
	return "--" + x.option.name
}

// textOf is a value of a file as it would be written on the command line.
func textOf(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []any:
		parts := make([]string, len(v))
		for i, p := range v {
			parts[i] = textOf(p)
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(v)
}

// readFile reads a configuration file into v, refuses keys that the command does not have, and gives those that have a
// value: a key without one is as good as absent, like an empty environment variable.
func readFile(v *viper.Viper, file string, s scope) (map[string]any, error) {
	switch ext := filepath.Ext(file); ext {
	case ".yaml", ".yml":
	default:
		return nil, usagef("--config %s: want a file named .yaml or .yml", file)
	}
	v.SetConfigFile(file)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		return nil, usagef("--config %s: %w", file, err)
	}
	only := viper.NewWithOptions(viper.KeyDelimiter("\x00"))
	only.SetConfigFile(file)
	only.SetConfigType("yaml")
	if err := only.ReadInConfig(); err != nil {
		return nil, usagef("--config %s: %w", file, err)
	}
	settings := only.AllSettings()
	keys := only.AllKeys() // unlike AllSettings with those that have no value
	slices.Sort(keys)
	for _, key := range keys {
		key, _, nested := strings.Cut(key, "\x00")
		if err := checkFileKey(key, nested, file, s); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

func checkFileKey(key string, nested bool, file string, s scope) error {
	// One file may serve `skein migrate` and `skein agent`: migrate passes over what only agents need.
	if s == inMigrate {
		s |= inAgent
	}
	var names []string
	for _, o := range optionTable() {
		if o.flagOnly || o.scope&(inServers|inMigrate) == 0 {
			continue
		}
		if o.name == key {
			if o.scope&s == 0 {
				return usagef("%s: key %q is not an option of this command", file, key)
			}
			if nested {
				return usagef("%s: key %q wants one value", file, key)
			}
			return nil
		}
		names = append(names, o.name)
	}
	return usagef("%s: unknown key %q%s", file, key, didYouMean(nearest(key, names)))
}

func didYouMean(name string) string {
	if name == "" {
		return "; see --help"
	}
	return "; did you mean " + name + "?"
}

// foreignVariables are variables that start with our prefix and are not configuration: of the tests and their tools, and
// those that Kubernetes sets in every pod of a namespace with a service named skein or skein-….
var foreignVariables = regexp.MustCompile(`^SKEIN_(TEST_.*|MINIO_BIN|TOOLS|([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?))$`)

// checkEnvironment refuses SKEIN_ variables that no command knows: a misspelt one would be ignored in silence.
func checkEnvironment(environ []string) error {
	var known []string
	for _, o := range optionTable() {
		if o.hasEnv() {
			known = append(known, o.env())
		}
	}
	slices.Sort(environ)
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(known, name) || foreignVariables.MatchString(name) {
			continue
		}
		return usagef("unknown environment variable %s%s", name, didYouMean(nearest(name, known)))
	}
	return nil
}

// checkRequired names every required option that has no value.
func (s *settings) checkRequired(command string) error {
	var missing []string
	for i := range s.list {
		x := &s.list[i]
		needed := x.option.required && (x.option.role == "" || slices.Contains(s.names("roles"), x.option.role))
		if needed && x.text == "" {
			missing = append(missing, "--"+x.option.name)
		}
	}
	if len(missing) > 0 {
		return usagef("%s: missing %s (flag, key of --config, or %s… variable)", command, strings.Join(missing, ", "), envPrefix)
	}
	return nil
}

// print writes the effective values as a configuration file, each with its source. Secrets are hidden.
func (s *settings) print(w io.Writer) error {
	width := 0
	lines := make([]string, 0, len(s.list))
	var shown []*setting
	for i := range s.list {
		x := &s.list[i]
		if x.option.flagOnly && x.option.name != "config" {
			continue
		}
		line := x.option.name + ": " + yamlScalar(hideSecrets(x.text))
		if x.option.name == "config" {
			line = "# " + line
		}
		lines, shown = append(lines, line), append(shown, x)
		width = max(width, len(line))
	}
	for i, x := range shown {
		from := string(x.source)
		if x.detail != "" {
			from += " " + x.detail
		}
		if x.option.required && x.text == "" {
			from += ", required"
		}
		if _, err := fmt.Fprintf(w, "%-*s  # %s\n", width, lines[i], from); err != nil {
			return err
		}
	}
	return nil
}

// plainScalar is what YAML takes as it stands, without quotes, for the values that options have.
var plainScalar = regexp.MustCompile(`^[A-Za-z0-9./][A-Za-z0-9_./:?&=@%,+-]*$`)

func yamlScalar(text string) string {
	if plainScalar.MatchString(text) && !strings.HasSuffix(text, ":") {
		return text
	}
	return strconv.Quote(text)
}

// hidden stands for a secret.
const hidden = "xxxxx"

// secretParameter are query parameters of URLs that carry secrets.
var secretParameter = regexp.MustCompile(`(?i)(pass|secret|token|key|credential|signature)`)

// hideSecrets hides the passwords and keys of a URL. What is no URL is given back.
func hideSecrets(text string) string {
	scheme, rest, ok := strings.Cut(text, ":")
	if !ok || scheme == "" {
		return text
	}
	u, err := url.Parse(text)
	if err != nil {
		if strings.Contains(rest, "@") || strings.Contains(rest, "?") {
			return scheme + ":" + hidden // it cannot be told what of it is secret
		}
		return text
	}
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword(u.User.Username(), hidden)
		text = u.String()
	}
	base, query, ok := strings.Cut(text, "?")
	if !ok {
		return text
	}
	parts := strings.Split(query, "&")
	for i, p := range parts {
		if name, _, ok := strings.Cut(p, "="); ok && secretParameter.MatchString(name) {
			parts[i] = name + "=" + hidden
		}
	}
	return base + "?" + strings.Join(parts, "&")
}

// The typed values. They panic on a name that the command's table does not have with that type, which is a mistake in
// the program, not in its input.

func (s *settings) str(name string) string        { return s.byName[name].text }
func (s *settings) size(name string) int64        { return s.byName[name].value.(int64) }
func (s *settings) count(name string) int         { return int(s.byName[name].value.(int64)) }
func (s *settings) rate(name string) float64      { return s.byName[name].value.(float64) }
func (s *settings) on(name string) bool           { return s.byName[name].value.(bool) }
func (s *settings) names(name string) []string    { return s.byName[name].value.([]string) }
func (s *settings) dur(name string) time.Duration { return s.byName[name].value.(time.Duration) }

// integer gives a number, size or duration as an integer of its own unit.
func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case time.Duration:
		return int64(v), true
	case float64:
		return int64(max(-1, min(v, 1<<62))), true // only its sign and order matter
	}
	return 0, false
}

// format writes a bound in the option's unit.
func (o *option) format(n int64) string {
	switch o.kind {
	case kindSize:
		return formatSize(n)
	case kindDuration:
		return time.Duration(n).String()
	}
	return strconv.FormatInt(n, 10)
}
