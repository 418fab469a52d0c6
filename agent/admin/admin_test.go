package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// get asks for a page and gives its status and text.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestEndpoints(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_things_total", Help: "Things."})
	reg.MustRegister(c)
	c.Add(3)
	var notReady atomic.Bool
	notReady.Store(true)
	s := New(Options{Listen: "127.0.0.1:0", Metrics: reg, Ready: func() error {
		if notReady.Load() {
			return errors.New("waiting for the bucket")
		}
		return nil
	}})
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	base := "http://" + s.Addr().String()

	if code, text := get(t, base+"/ready"); code != http.StatusServiceUnavailable || !strings.Contains(text, "waiting for the bucket") {
		t.Errorf("not ready: %d %q", code, text)
	}
	notReady.Store(false)
	for path, want := range map[string]string{
		"/ready": "ready", "/live": "live", "/metrics": "skein_things_total 3", "/debug/pprof/goroutine?debug=1": "goroutine profile",
	} {
		if code, text := get(t, base+path); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d, without %q in %.100q", path, code, want, text)
		}
	}
	if code, _ := get(t, base+"/nothing"); code != http.StatusNotFound {
		t.Errorf("unknown page: %d", code)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := New(Options{}).Run(ctx); err == nil {
		t.Error("Run without Listen succeeded")
	}
}
