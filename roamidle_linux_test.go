package kith_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// An idlePair is two connected devices that have nothing to say.
type idlePair struct {
	name string
	a, b nettest.NAT
	lazy bool
}

func idlePairs() []idlePair {
	return []idlePair{
		{"straight", nettest.NATEasy, nettest.NATEasy, false},
		{"straight, with a mapped port", nettest.NATUPnP, nettest.NATEasy, false},
		{"relayed", nettest.NATHard, nettest.NATHard, false},
		{"straight, lazy", nettest.NATEasy, nettest.NATEasy, true},
	}
}

const (
	// idleUnit is what counts are given for: the keepalive of a path.
	idleUnit = 25 * time.Second
	// idleQuiet is how long two devices are left alone before they are watched:
	// longer than a relay is kept that nobody needs, and than a lazy path goes on.
	idleQuiet = 75 * time.Second
	// idleWatch is how long they are watched.
	idleWatch = 8 * idleUnit
)

const idleHead = `
## What an idle pair sends

What one of two connected devices sends in 25 s while there is nothing to carry, as
packets / bytes with IP headers, watched in its LAN for 200 s. *Path* is UDP to the other
device, *relay* TURN and what goes through it, *STUN* questions for the own address, *hub*
the connection of rendezvous (its acknowledgements of what came, too), *router* the port
mapping.

| connection | path | relay | STUN | hub | router | all | all received |
|---|---|---|---|---|---|---|---|
`

// A load is packets that were sent.
type load struct{ packets, bytes int }

func (l *load) add(p nettest.Packet) {
	l.packets++
	l.bytes += p.Size
}

// String is what of it falls to an idleUnit.
func (l load) String() string {
	if l.packets == 0 {
		return "0"
	}
	const units = float64(idleWatch) / float64(idleUnit)
	return fmt.Sprintf("%.1f / %.0f", float64(l.packets)/units, float64(l.bytes)/units)
}

// measureIdle watches a pair and returns a row of the table.
func measureIdle(t *testing.T, c idlePair) string {
	ctx, cancel := context.WithTimeout(t.Context(), idleQuiet+idleWatch+netTimeout)
	defer cancel()
	r := &roamLab{reachLab: newReachLab(ctx, t, c.a, c.b)}
	if c.lazy {
		for _, s := range r.nodes {
			s.run(ctx, "config", "lazy", "on")
			s.up.Stop()
			s.daemon(ctx)
		}
	}
	r.settle(ctx, t, change{a: c.a})
	rest(ctx, t, idleQuiet)
	rec := r.sites[0].LAN.Record()
	rest(ctx, t, idleWatch)
	frames := rec.Stop()
	own, other, router := r.nodes[0].host.Addrs()[0], r.sites[1].Public(), r.sites[0].Gateway()
	hub := make(map[netip.Addr]bool)
	for _, a := range r.hub.host.Addrs() {
		hub[a] = true
	}
	var path, relay, stun, media, mapping, all, received load
	for _, f := range frames {
		p, ok := nettest.ParseFrame(f)
		if !ok {
			continue
		}
		if p.Dst.Addr() == own {
			received.add(p)
		}
		if p.Src.Addr() != own {
			continue
		}
		all.add(p)
		to := p.Dst.Addr()
		switch {
		case to == other:
			path.add(p)
		case hub[to] && p.Protocol == nettest.TCP:
			media.add(p)
		case hub[to] && isBinding(p.Payload):
			stun.add(p)
		case hub[to]:
			relay.add(p)
		case to == router || to.IsMulticast():
			mapping.add(p)
		}
	}
	// A keepalive of ours, and the answer to one of the other's. Of a relayed pair each of
	// the other's outside addresses, three at most, is asked once in 20 s at most.
	most := 2 * int(idleWatch/idleUnit)
	if c.name == "relayed" {
		most += 3 * int(idleWatch/(20*time.Second))
	}
	if path.packets > most {
		t.Errorf("%d packets on the path in %v, more than %d", path.packets, idleWatch, most)
	}
	if c.lazy && path.packets > 0 {
		t.Errorf("%d packets on the path of a lazy device", path.packets)
	}
	r.nodes[0].run(ctx, "ping", "-c", "1", "--wait", "10s", r.nodes[1].host.Name) // it is still there
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s |\n", c.name, path, relay, stun, media, mapping, all, received)
}

// isBinding reports whether a packet asks a STUN server for the own address (RFC
// 8489 section 5).
func isBinding(b []byte) bool {
	return len(b) >= 20 && b[0] == 0 && b[1] == 1 && b[4] == 0x21 && b[5] == 0x12 && b[6] == 0xa4 && b[7] == 0x42
}

func rest(ctx context.Context, t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
}
