package hub

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// meters are the metrics of one hub, in a set of its own.
type meters struct {
	set       *metrics.Set
	published *metrics.Counter
	delivered *metrics.Counter
	bindings  *metrics.Counter
	toPeer    *metrics.Counter
	toClient  *metrics.Counter
	authOK    *metrics.Counter
	authBad   *metrics.Counter
	clients   atomic.Int64 // of the broker, logged in
}

func newMeters() *meters {
	s := metrics.NewSet()
	return &meters{
		set:       s,
		published: s.NewCounter("kith_hub_publishes_total"),
		delivered: s.NewCounter("kith_hub_deliveries_total"),
		bindings:  s.NewCounter("kith_hub_stun_answers_total"),
		toPeer:    s.NewCounter(`kith_hub_relayed_bytes_total{to="peer"}`),
		toClient:  s.NewCounter(`kith_hub_relayed_bytes_total{to="client"}`),
		authOK:    s.NewCounter(`kith_hub_turn_logins_total{result="ok"}`),
		authBad:   s.NewCounter(`kith_hub_turn_logins_total{result="refused"}`),
	}
}

// drop counts something that was refused. Reasons are constants of this program.
func (m *meters) drop(reason string) {
	m.set.GetOrCreateCounter(fmt.Sprintf("kith_hub_drops_total{reason=%q}", reason)).Inc()
}

// connect counts a TCP connection whose protocol was told.
func (m *meters) connect(protocol, via string) {
	m.set.GetOrCreateCounter(fmt.Sprintf("kith_hub_connects_total{protocol=%q,via=%q}", protocol, via)).Inc()
}

// watch adds what is counted elsewhere.
func (m *meters) watch(h *Hub) {
	m.set.NewGauge("kith_hub_clients", func() float64 { return float64(m.clients.Load()) })
	m.set.NewGauge("kith_hub_connections", func() float64 { return float64(h.mux.count()) })
	m.set.NewGauge("kith_hub_allocations", func() float64 { return float64(h.turn.quota.total()) })
}

func (h *Hub) startMetrics(ctx context.Context) error {
	if h.cfg.Metrics == "" {
		return nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", h.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("%w for metrics: %w", ErrListen, err)
	}
	handler := http.NewServeMux()
	handler.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		h.WriteMetrics(w)
	})
	h.metrics = &http.Server{
		Addr: ln.Addr().String(), Handler: handler, ReadTimeout: sniffTimeout, WriteTimeout: sniffTimeout, IdleTimeout: time.Minute,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	h.wg.Go(func() { _ = h.metrics.Serve(ln) }) // ends with Close
	return nil
}

// MetricsAddr returns the host:port of the metrics, or "" if there are none.
func (h *Hub) MetricsAddr() string {
	if h.metrics == nil {
		return ""
	}
	return h.metrics.Addr
}

// WriteMetrics writes all metrics as Prometheus text.
func (h *Hub) WriteMetrics(w io.Writer) { h.m.set.WritePrometheus(w) }
