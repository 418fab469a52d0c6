package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/internal/testenv"
)

// startHAProxy runs HAProxy with a configuration and waits until it sends to an agent. It gives its address for clients.
func startHAProxy(t *testing.T, config string, env ...string) string {
	t.Helper()
	address, web := testenv.FreeAddress(t), testenv.FreeAddress(t)
	cmd := exec.Command(testenv.HAProxy(t), "-db", "-f", config)
	cmd.Env = append(append(os.Environ(), "LB_BIND="+address, "LB_HTTP="+web), env...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
		if t.Failed() {
			t.Logf("HAProxy says:\n%s", out.String())
		}
	})
	for deadline := time.Now().Add(commandTimeout); time.Now().Before(deadline); {
		select {
		case <-ended:
			t.Fatalf("HAProxy ended: %s", out.String())
		default:
		}
		r, err := http.Get("http://" + web + "/ready")
		if err != nil {
			continue
		}
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			return address
		}
	}
	t.Fatal("HAProxy has no agent to send to")
	return ""
}

// behind are the variables of deploy/haproxy.cfg for agents.
func behind(t *testing.T, agents ...*server) (env []string) {
	t.Helper()
	for n := range 4 {
		kafka, web := "127.0.0.1:1", "1" // nobody
		if n < len(agents) {
			_, port, err := net.SplitHostPort(strings.TrimPrefix(agents[n].http, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			kafka, web = agents[n].kafka, port
		}
		env = append(env, fmt.Sprintf("AGENT_%d=%s", n+1, kafka), fmt.Sprintf("AGENT_%d_HTTP=%s", n+1, web))
	}
	return env
}

// lbAgent starts an agent that expects the PROXY protocol and advertises a load balancer's address.
func lbAgent(t *testing.T, database, bucket, lb string, more ...string) *server {
	t.Helper()
	s := start(t, nil, append(agentFlags(database, bucket, "--advertise", lb, "--proxy-protocol", "--log-level=debug"), more...)...)
	s.ready(t)
	return s
}

// TestBehindHAProxy runs two agents behind the load balancer of deploy/, which speaks the PROXY protocol: clients are
// served, also while an agent drains, and the agents see the clients' addresses; its checks do no harm.
func TestBehindHAProxy(t *testing.T) {
	database, bucket := testenv.PostgresDatabase(t), "file://"+t.TempDir()
	// The agents advertise the load balancer, which is started when their ports are known; a relay of its own address is not
	// worth it: the client dials it whatever it is told.
	one, two := lbAgent(t, database, bucket, "lb:1"), lbAgent(t, database, bucket, "lb:1")
	lb := startHAProxy(t, "../../deploy/haproxy.cfg", append(behind(t, one, two), "LB_PROXY=v2")...)
	const source = "127.0.0.7"
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	client, err := kgo.NewClient(kgo.SeedBrokers(lb), kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("t"), kgo.ConsumeTopics("t"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(10*time.Millisecond),
		kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, lb)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	write := func(n int) {
		t.Helper()
		for i := range n {
			if err := client.ProduceSync(ctx, kgo.StringRecord(fmt.Sprint(i))).FirstErr(); err != nil {
				t.Fatalf("produce: %v", err)
			}
		}
	}
	write(10)
	for _, s := range []*server{one, two} {
		if strings.Contains(s.text(), "PROXY protocol's header") {
			t.Errorf("a connection of HAProxy had no header:\n%s", s.text())
		}
	}
	// One agent leaves: its clients are moved, and nothing fails.
	if code := one.end(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
	write(10)
	seen := 0
	for seen < 20 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatalf("consumed %d of 20 records: %v", seen, err)
		}
		seen += fetches.NumRecords()
	}
	// Who comes without a header is closed, and the log says so.
	if code, _, _ := skein(t, nil, "topic", "list", "--bootstrap", two.kafka); code != exitFailed {
		t.Errorf("a client that bypasses the load balancer: exit %d", code)
	}
	client.Close()
	for deadline := time.Now().Add(commandTimeout); !strings.Contains(two.text(), "remote="+source+":"); {
		if time.Now().After(deadline) {
			t.Fatal("the log does not show the client's address")
		}
		two.get(t, "/live")
	}
	if !strings.Contains(two.text(), "PROXY protocol's header") {
		t.Error("the log does not say that a connection had no header")
	}
	two.awaitMetric(t, `skein_connections_closed_total\{reason="proxy_header"\}`, func(v float64) bool { return v > 0 })
}

// TestHAProxyChecksTheKafkaPort: checks at the Kafka port carry a header that says they are the load balancer's own
// (LOCAL), and are reset when they have connected.
func TestHAProxyChecksTheKafkaPort(t *testing.T) {
	s := lbAgent(t, "sqlite:"+t.TempDir()+"/metadata.db", "mem:", "lb:1")
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := "defaults\n mode tcp\n timeout connect 2s\n timeout client 10s\n timeout server 10s\n" +
		"listen kafka\n bind \"${LB_BIND}\"\n server a " + s.kafka + " check inter 50ms check-send-proxy send-proxy-v2\n" +
		"frontend state\n mode http\n bind \"${LB_HTTP}\"\n monitor-uri /ready\n monitor fail if { nbsrv(kafka) lt 1 }\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startHAProxy(t, config)
	s.awaitMetric(t, `skein_connections_accepted_total`, func(v float64) bool { return v >= 5 })
	_, metrics := s.get(t, "/metrics")
	if m := regexp.MustCompile(`skein_connections_closed_total\{reason="proxy_header"\} [1-9]`).FindString(metrics); m != "" ||
		strings.Contains(s.text(), "PROXY protocol's header") {
		t.Errorf("checks count as connections without a header: %s\n%s", m, s.text())
	}
}
