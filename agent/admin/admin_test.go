package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
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

// TestReadyWhileDraining: only who asks for it is told 404, and only of draining.
func TestReadyWhileDraining(t *testing.T) {
	draining := errors.New("draining")
	var reason error
	s := New(Options{Metrics: prometheus.NewRegistry(), Draining: draining, Ready: func() error { return reason }})
	for _, tt := range []struct {
		reason error
		path   string
		want   int
	}{
		{draining, "/ready", http.StatusServiceUnavailable},
		{draining, "/ready?draining=404", http.StatusNotFound},
		{errors.New("waiting"), "/ready?draining=404", http.StatusServiceUnavailable},
		{nil, "/ready?draining=404", http.StatusOK},
	} {
		reason = tt.reason
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, tt.path, nil))
		if w.Code != tt.want {
			t.Errorf("%s, not ready because %v: %d, want %d", tt.path, tt.reason, w.Code, tt.want)
		}
	}
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
