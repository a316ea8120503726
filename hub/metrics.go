package hub

import (
	"fmt"
	"sync/atomic"

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
