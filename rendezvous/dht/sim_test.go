package dht

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// A simNet is an internet in memory, for testing/synctest: packets take half of
// rtt, some are lost, and NATs let in only what was asked for.
type simNet struct {
	rtt  time.Duration
	loss float64

	mu    sync.Mutex
	conns map[netip.AddrPort]*simConn
	rng   *rand.Rand
	bytes map[netip.AddrPort]int64 // in and out, with headers
	off   map[netip.AddrPort]bool  // are dead
}

func newSimNet(rtt time.Duration, loss float64) *simNet {
	return &simNet{
		rtt: rtt, loss: loss, conns: make(map[netip.AddrPort]*simConn), rng: rand.New(rand.NewPCG(1, 2)), //nolint:gosec // a simulation
		bytes: make(map[netip.AddrPort]int64), off: make(map[netip.AddrPort]bool),
	}
}

type simPacket struct {
	b    []byte
	from netip.AddrPort
}

type simConn struct {
	net    *simNet
	addr   netip.AddrPort
	in     chan simPacket
	done   chan struct{}
	once   sync.Once
	nat    bool
	opened sync.Map // addresses that may send to a NATed one
	drop   atomic.Bool
	loses  float64 // share of the packets from and to here, besides loss; net.mu guards it
}

func (n *simNet) listen(addr string, nat bool) *simConn {
	c := &simConn{net: n, addr: netip.MustParseAddrPort(addr), in: make(chan simPacket, 4096), done: make(chan struct{}), nat: nat}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[c.addr] = c
	return c
}

func (c *simConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-c.in:
		return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
	case <-c.done:
		return 0, nil, net.ErrClosed
	}
}

func (c *simConn) WriteTo(b []byte, to net.Addr) (int, error) {
	p := addrPort(to)
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bytes[c.addr] += int64(len(b)) + 28
	c.opened.Store(p, true)
	if c.drop.Load() || n.off[c.addr] || n.rng.Float64() < n.loss || n.rng.Float64() < c.loses {
		return len(b), nil
	}
	packet := simPacket{append([]byte(nil), b...), c.addr}
	wait := n.rtt/2*4/5 + time.Duration(n.rng.Int64N(int64(n.rtt/5)+1))
	time.AfterFunc(wait, func() { n.deliver(packet, p) })
	return len(b), nil
}

func (n *simNet) deliver(p simPacket, to netip.AddrPort) {
	n.mu.Lock()
	c := n.conns[to]
	if c == nil || n.off[to] || c.drop.Load() || n.rng.Float64() < c.loses {
		n.mu.Unlock()
		return
	}
	if _, ok := c.opened.Load(p.from); c.nat && !ok {
		n.mu.Unlock()
		return
	}
	n.bytes[to] += int64(len(p.b)) + 28
	n.mu.Unlock()
	select {
	case c.in <- p:
	default:
	}
}

func (c *simConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.addr) }
func (c *simConn) Close() error {
	c.once.Do(func() {
		c.net.mu.Lock()
		delete(c.net.conns, c.addr)
		c.net.mu.Unlock()
		close(c.done)
	})
	return nil
}
func (*simConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*simConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*simConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// publicAddr is the ith address of the simulated internet, each in its own
// network.
func publicAddr(i int) string { return fmt.Sprintf("%d.%d.7.9:6881", 11+i%80, 3+i/80) }

// A sim is a DHT in a simulated internet.
type sim struct {
	t     *testing.T
	net   *simNet
	nodes []*Node
	boot  []string
	next  int
}

func newSim(t *testing.T, nodes int, rtt time.Duration, loss float64) *sim {
	t.Helper()
	s := &sim{t: t, net: newSimNet(rtt, loss)}
	for i := range nodes {
		n, err := NewNode(Config{Conn: s.net.listen(publicAddr(i), false), Bootstrap: s.boot, Rate: 1000})
		if err != nil {
			t.Fatal(err)
		}
		s.nodes = append(s.nodes, n)
		if i < 3 {
			s.boot = append(s.boot, publicAddr(i))
		}
	}
	s.next = nodes
	return s
}

func (s *sim) close() {
	for _, n := range s.nodes {
		if err := n.Close(); err != nil {
			s.t.Error(err)
		}
	}
}

// device starts a device behind an easy NAT of its own.
func (s *sim) device(change func(*Config)) *Exchange {
	s.t.Helper()
	s.next++
	cfg := Config{Conn: s.net.listen(publicAddr(s.next), true), Bootstrap: s.boot}
	if change != nil {
		change(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

// kill ends a share of the nodes, but for the bootstrap nodes and for one that keeps
// frames, if any does: what nobody keeps any more cannot be found.
func (s *sim) kill(share float64) (killed int) {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	spared := false
	for _, i := range s.net.rng.Perm(len(s.nodes) - 3) {
		if killed == int(share*float64(len(s.nodes))) {
			break
		}
		if !spared && s.nodes[i+3].keeps() {
			spared = true
			continue
		}
		s.net.off[netip.MustParseAddrPort(publicAddr(i+3))] = true
		killed++
	}
	return killed
}

// keeps reports whether a node keeps frames.
func (n *Node) keeps() bool {
	return slices.ContainsFunc(n.e.engines, func(e *engine) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.store.items) > 0
	})
}

func (s *sim) used(e *Exchange) int64 {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	return s.net.bytes[e.Addrs()[0]]
}

func (s *sim) publish(from rendezvous.Session, f []byte) {
	s.t.Helper()
	if err := from.Publish(s.t.Context(), f); err != nil && !isUnreachable(err) {
		s.t.Fatal(err)
	}
}

func simAddr(text string) net.Addr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(text)) }
