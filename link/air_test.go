package link

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"golang.zx2c4.com/wireguard/conn"
)

// An airPacket is a datagram on its way to an airBind.
type airPacket struct {
	after time.Duration
	from  netip.AddrPort
	raw   []byte
}

// An airBind is a network without sockets, for tests in a synctest bubble: what
// is sent goes to answer, which says what comes back.
type airBind struct {
	answer func(raw []byte, to netip.AddrPort) []airPacket
	in     chan airPacket
	over   chan struct{}
}

func (b *airBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case p := <-b.in:
			sizes[0], eps[0] = copy(bufs[0], p.raw), newEndpoint(p.from, netip.Addr{})
			return 1, nil
		case <-b.over:
			return 0, net.ErrClosed
		}
	}}, 41641, nil
}

func (b *airBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, raw := range bufs {
		for _, p := range b.answer(raw, sourceOf(ep)) {
			time.AfterFunc(p.after, func() {
				select {
				case b.in <- p:
				case <-b.over:
				}
			})
		}
	}
	return nil
}

func (b *airBind) Close() error         { close(b.over); return nil }
func (b *airBind) SetMark(uint32) error { return nil }
func (b *airBind) BatchSize() int       { return 1 }
func (b *airBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	return new(udpBind).ParseEndpoint(s)
}

// An airSocket is a Socket in a bubble, and what it did.
type airSocket struct {
	*Socket
	mu      sync.Mutex
	changed []time.Duration // when Changed was called, since the start
	asked   map[netip.AddrPort][]time.Duration
	close   func()
}

// onAir opens a Socket whose STUN servers are functions; others are silent.
func onAir(t *testing.T, servers map[string]func(m *stun.Message) []airPacket) *airSocket {
	t.Helper()
	start := time.Now()
	a := &airSocket{asked: make(map[netip.AddrPort][]time.Duration)}
	bind := &airBind{in: make(chan airPacket), over: make(chan struct{})}
	bind.answer = func(raw []byte, to netip.AddrPort) []airPacket {
		if isKRPC(raw) { // a node of the DHT, which answers after 20 ms
			a.note(to, time.Since(start))
			_, tx, _ := strings.Cut(string(raw), "1:t12:")
			return []airPacket{{from: to, after: 20 * time.Millisecond, raw: []byte(nodeAnswer(tx[:12], "6:\xcb\x00\x71\x07\x1a\xe1"))}}
		}
		m := &stun.Message{Raw: slices.Clone(raw)}
		if err := m.Decode(); err != nil {
			t.Errorf("%d bytes that are not STUN to %s", len(raw), to)
			return nil
		}
		a.note(to, time.Since(start))
		if f := servers[to.String()]; f != nil {
			out := f(m)
			for i := range out {
				if !out[i].from.IsValid() {
					out[i].from = to
				}
			}
			return out
		}
		return nil
	}
	a.Socket = NewSocket(SocketConfig{Bind: bind, Changed: func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.changed = append(a.changed, time.Since(start))
	}})
	fns, _, err := a.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() {
			r := newReader(1)
			for {
				if _, err := fn(r.bufs, r.sizes, r.eps); err != nil {
					return
				}
			}
		})
	}
	a.close = func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
	return a
}

// note remembers that a server was asked.
func (a *airSocket) note(to netip.AddrPort, at time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked[to] = append(a.asked[to], at)
}

func (a *airSocket) told() []time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.changed)
}

func (a *airSocket) requests(to string) []time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked[netip.MustParseAddrPort(to)])
}

// ask asks servers once, and returns how long that took.
func (a *airSocket) ask(t *testing.T, servers ...string) time.Duration {
	t.Helper()
	a.stun.mu.Lock()
	a.stun.servers = nil
	for _, s := range servers {
		a.stun.servers = append(a.stun.servers, netip.MustParseAddrPort(s))
	}
	a.stun.mu.Unlock()
	start := time.Now()
	a.stun.round(t.Context())
	return time.Since(start)
}

// success is a server's answer that says mapped.
func success(m *stun.Message, mapped string, more ...stun.Setter) []byte {
	addr := netip.MustParseAddrPort(mapped)
	set := []stun.Setter{
		stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: addr.Addr().AsSlice(), Port: int(addr.Port())},
	}
	return stun.MustBuild(append(set, more...)...).Raw
}

// sees is a server that sees us at an address.
func sees(mapped string, after time.Duration) func(*stun.Message) []airPacket {
	return func(m *stun.Message) []airPacket { return []airPacket{{after: after, raw: success(m, mapped)}} }
}

const (
	goodSTUN, otherSTUN, deadSTUN = "198.51.100.1:3478", "198.51.100.2:3478", "198.51.100.3:3478"
	usOutside, usElse             = "203.0.113.7:41641", "203.0.113.7:52000"
)

// stunSchedule is when a server is asked that does not answer.
var stunSchedule = []time.Duration{0, 150 * time.Millisecond, 450 * time.Millisecond, 1050 * time.Millisecond, 2250 * time.Millisecond}

const stunPatience = 4650 * time.Millisecond

func addrPorts(text ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range text {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}
