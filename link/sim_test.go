package link

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/internal/netmon"
)

// A simNet joins checkers without sockets or clock: packets are events in a
// queue, and time is what the next event says.
type simNet struct {
	t     *testing.T
	now   time.Time
	queue []simPacket
	nodes []*simNode
	// pass says whether a packet arrives, and after how long.
	pass func(p simPacket) (time.Duration, bool)
	// mangle may change the address a packet seems to come from.
	mangle func(p *simPacket)
}

type simPacket struct {
	at   time.Time
	src  netip.AddrPort
	dst  netip.AddrPort
	p    probe
	size int
}

// A simNode is a checker with its outlet.
type simNode struct {
	*checker
	net      *simNet
	name     string
	addrs    []netip.AddrPort
	events   []simEvent
	admitted map[place]bool // value: proven
	data     *candidate     // where data goes
	pings    int
	pongs    int
	bytes    int
	answers  int
	sendErr  func(to place, via conn.Endpoint) error
}

type simEvent struct {
	at   time.Duration // since the start of the simulation
	kind EventKind
	path Path
}

var simStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newSim(t *testing.T) *simNet {
	return &simNet{t: t, now: simStart, pass: func(simPacket) (time.Duration, bool) { return 5 * time.Millisecond, true }}
}

// add makes a node with addresses "ip:port" and interfaces "name ip/bits".
func (n *simNet) add(name string, addrs []string, ifs ...netmon.Interface) *simNode {
	node := &simNode{net: n, name: name, admitted: make(map[place]bool)}
	for _, a := range addrs {
		node.addrs = append(node.addrs, netip.MustParseAddrPort(a))
	}
	seed := [32]byte{byte(len(n.nodes) + 1)}
	node.checker = newChecker(node, rand.NewChaCha8(seed), DefaultDataSize)
	node.port = node.addrs[0].Port()
	node.setNetworks(n.now, ifs)
	n.nodes = append(n.nodes, node)
	return node
}

func iface(name, prefix string) netmon.Interface {
	return netmon.Interface{Name: name, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix(prefix)}}
}

// source is the address a node sends from: of the same family and, if it has
// one, with the same first 8 bits.
func (n *simNode) source(to netip.AddrPort) netip.AddrPort {
	var best netip.AddrPort
	for _, a := range n.addrs {
		if a.Addr().Is4() == to.Addr().Is4() && (!best.IsValid() || a.Addr().AsSlice()[0] == to.Addr().AsSlice()[0]) {
			best = a
		}
	}
	return best
}

// relayAddr is where a node is reached through one of its relays.
func (n *simNode) relayAddr(number int) netip.AddrPort {
	for _, i := range n.carriers {
		if i.id == number {
			return i.addr
		}
	}
	return netip.AddrPort{}
}

func (n *simNode) send(to place, via conn.Endpoint, p probe, size int) error {
	if n.sendErr != nil {
		if err := n.sendErr(to, via); err != nil {
			return err
		}
	}
	if p.kind == ping {
		n.pings++
	} else {
		n.pongs++
	}
	n.bytes += size
	pkt := simPacket{src: n.source(to.addr), dst: to.addr, p: p, size: size}
	if to.carrier != 0 {
		pkt.src = n.relayAddr(to.carrier)
	}
	if !pkt.src.IsValid() {
		return fmt.Errorf("no route to %s", to.addr)
	}
	delay, ok := n.net.pass(pkt)
	if !ok {
		return nil
	}
	if n.net.mangle != nil {
		n.net.mangle(&pkt)
	}
	pkt.at = n.net.now.Add(delay)
	n.net.queue = append(n.net.queue, pkt)
	slices.SortStableFunc(n.net.queue, func(a, b simPacket) int { return a.at.Compare(b.at) })
	return nil
}

func (n *simNode) use(c *candidate) {
	n.data = nil
	if c != nil {
		copied := *c
		n.data = &copied
	}
}

func (n *simNode) admit(a place, proven bool) { n.admitted[a] = proven || n.admitted[a] }
func (n *simNode) forget(a place)             { delete(n.admitted, a) }
func (n *simNode) answered()                  { n.answers++ }
func (n *simNode) event(kind EventKind, p Path) {
	n.events = append(n.events, simEvent{n.net.now.Sub(simStart), kind, p})
}

func (n *simNode) remotes(addrs ...string) {
	var list []namedAddr
	for i, a := range addrs {
		list = append(list, namedAddr{addr: netip.MustParseAddrPort(a), priority: uint32(1000 - i)})
	}
	n.setRemote(n.net.now, list)
}

// data tells the node that data was sent now and nothing came back since.
func (n *simNode) dataSent() {
	since := n.waiting
	if since.IsZero() {
		since = n.net.now
	}
	n.traffic(n.net.now, true, since)
}

// run lets d pass.
func (n *simNet) run(d time.Duration) {
	n.t.Helper()
	end := n.now.Add(d)
	for still := 0; ; {
		at := end
		if len(n.queue) > 0 && n.queue[0].at.Before(at) {
			at = n.queue[0].at
		}
		for _, node := range n.nodes {
			if next := node.next(n.now); !next.IsZero() && next.Before(at) {
				at = next
			}
		}
		if !at.After(n.now) {
			if still++; still > 2000 {
				n.t.Fatalf("time stands still at %s", n.now.Sub(simStart))
			}
		} else {
			n.now, still = at, 0
		}
		if len(n.queue) > 0 && !n.queue[0].at.After(n.now) {
			pkt := n.queue[0]
			n.queue = n.queue[1:]
			n.deliver(pkt)
		}
		for _, node := range n.nodes {
			node.tick(n.now)
			node.check(n.t)
		}
		if n.now.Equal(end) && (len(n.queue) == 0 || n.queue[0].at.After(end)) && !slices.ContainsFunc(n.nodes, func(node *simNode) bool {
			next := node.next(n.now)
			return !next.IsZero() && !next.After(end)
		}) {
			return
		}
	}
}

func (n *simNet) deliver(pkt simPacket) {
	for _, node := range n.nodes {
		from := onSocket(pkt.src)
		var ep conn.Endpoint = &udpEndpoint{remote: pkt.src, local: pkt.dst.Addr()}
		if i := slices.IndexFunc(node.carriers, func(i carrierInfo) bool { return i.addr == pkt.dst }); i >= 0 {
			from.carrier, ep = node.carriers[i].id, nil
		} else if !slices.Contains(node.addrs, pkt.dst) {
			continue
		}
		if pkt.p.kind == ping {
			node.onPing(n.now, from, ep, pkt.p)
		} else {
			node.onPong(n.now, from, ep, pkt.p)
		}
		node.check(n.t)
	}
}

// check holds what must be true of a checker at any time.
func (n *simNode) check(t interface {
	Helper()
	Fatalf(string, ...any)
}) {
	t.Helper()
	named, learned := 0, 0
	for p, cand := range n.all {
		if p != cand.place {
			t.Fatalf("%s: candidate %v filed as %v", n.name, cand.place, p)
		}
		if cand.named {
			named++
		} else if cand != n.selected {
			learned++
		}
		if cand.usable && cand.lastPong.IsZero() {
			t.Fatalf("%s: %v is usable and never answered", n.name, p)
		}
		if len(cand.pending) > maxPending {
			t.Fatalf("%s: %d pending pings", n.name, len(cand.pending))
		}
	}
	if named > maxRemote+maxZones+maxThrough*len(n.carriers) || learned > maxLearned || len(n.replays.sessions) > maxSessions {
		t.Fatalf("%s: %d named, %d learned candidates, %d sessions", n.name, named, learned, len(n.replays.sessions))
	}
	if sel := n.selected; sel != nil && (!sel.usable || n.all[sel.place] != sel || n.data == nil || n.data.place != sel.place) {
		t.Fatalf("%s: selected %+v, data goes to %+v", n.name, sel, n.data)
	}
	if (n.selected != nil) != n.up || (n.selected == nil) != (n.data == nil) {
		t.Fatalf("%s: selected %v, up %v, data %v", n.name, n.selected, n.up, n.data)
	}
	for a := range n.admitted {
		if n.all[a] == nil {
			t.Fatalf("%s: %v is admitted and no candidate", n.name, a)
		}
	}
	up := false
	for _, ev := range n.events {
		if ev.kind == Silent || ev.kind == Waking {
			continue
		}
		if (ev.kind == Up) == up {
			t.Fatalf("%s: events out of order: %v", n.name, n.events)
		}
		up = ev.kind != Down
	}
}

func (n *simNode) selectedAddr() string {
	if n.selected == nil {
		return "none"
	}
	return n.selected.place.addr.String()
}

// last returns the last event.
func (n *simNode) last() simEvent {
	if len(n.events) == 0 {
		return simEvent{}
	}
	return n.events[len(n.events)-1]
}
