package link

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"pgregory.net/rapid"

	"github.com/kithproject/kith/signaling"
)

// Bounds of what a hostile peer can have us send to somebody who never answered.
const (
	mostPackets = 10 // pings and pongs, in any second, to one address
	mostNamed   = 20 // addresses of one list
)

// A strangersOutlet keeps a record of what goes to addresses that never answered.
type strangersOutlet struct {
	*simNode
	proved map[place]bool
	sent   map[netip.AddrPort][]time.Time
	asked  map[netip.AddrPort]bool // pinged since the peer named its addresses
	fail   func(format string, args ...any)
}

func (o *strangersOutlet) send(to place, _ conn.Endpoint, p probe, _ int) error {
	if o.proved[to] {
		return nil
	}
	now := o.net.now
	// A window is open at one end.
	recent := slices.DeleteFunc(o.sent[to.addr], func(at time.Time) bool { return now.Sub(at) >= time.Second })
	o.sent[to.addr] = append(recent, now)
	if len(recent) >= mostPackets {
		o.fail("packet number %d within a second to %v: %v", len(recent)+1, to, o.sent[to.addr])
	}
	if p.kind == ping {
		o.asked[to.addr] = true
	}
	if ip := to.addr.Addr(); ip.IsLoopback() && !o.loopback {
		o.fail("sent to %v", to)
	}
	return nil
}

// hostility is a peer that has us send as much as it can.
func hostility(t *rapid.T, steps int, pings bool) {
	net := &simNet{now: simStart}
	node := &simNode{net: net, name: "x", admitted: make(map[place]bool)}
	out := &strangersOutlet{
		simNode: node, proved: make(map[place]bool), sent: make(map[netip.AddrPort][]time.Time),
		asked: make(map[netip.AddrPort]bool), fail: t.Fatalf,
	}
	c := newChecker(out, rand.NewChaCha8([32]byte{2}), DefaultDataSize)
	node.checker = c
	c.setNetworks(net.now, networks{iface("eth0", "192.168.1.1/24")})
	c.setLazy(net.now, rapid.Bool().Draw(t, "lazy"))
	if rapid.Bool().Draw(t, "relay") {
		c.setCarriers(net.now, []carrierInfo{relayInfo(1, "one", relayA)})
	}
	friend := onSocket(netip.MustParseAddrPort("203.0.113.200:1"))
	if rapid.Bool().Draw(t, "a path is up") {
		out.proved[friend] = true
		c.guess(net.now, friend.addr)
		for tx := range c.blind.sent {
			c.onPong(net.now, friend, nil, probe{kind: pong, tx: tx})
		}
	}
	victims := make([]netip.AddrPort, 50)
	for i := range victims {
		victims[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 9)
	}
	victims[0], victims[1] = netip.MustParseAddrPort("127.0.0.1:9"), netip.MustParseAddrPort("[::1]:9")
	// A peer that means one of them harm names it again and again.
	victim := rapid.OneOf(rapid.Just(victims[2]), rapid.SampledFrom(victims))
	var named []netip.AddrPort
	heard := make(map[netip.AddrPort]bool)
	var seq uint64
	name := func(most int) {
		named = rapid.SliceOfNDistinct(victim, 0, most, rapid.ID).Draw(t, "names")
		clear(out.asked)
		var list []namedAddr
		for i, a := range named {
			list = append(list, namedAddr{addr: a, kind: signaling.Host, priority: uint32(i)})
		}
		c.setRemote(net.now, list)
	}
	for range rapid.IntRange(1, steps).Draw(t, "steps") {
		switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
		case what == 0:
			name(40)
		case what == 1:
			name(1)
		case what == 2:
			c.probe(net.now)
		case what == 3:
			c.traffic(net.now, true, rapid.SampledFrom([]time.Time{{}, net.now.Add(-2 * time.Second)}).Draw(t, "waiting"))
		case what <= 7 && pings:
			from := victim.Filter(func(a netip.AddrPort) bool { return !a.Addr().IsLoopback() }).Draw(t, "from") // none comes from there
			heard[from] = true
			for range rapid.IntRange(1, 30).Draw(t, "pings") {
				seq++
				c.onPing(net.now, onSocket(from), nil, probe{kind: ping, session: 1 + seq%5, seq: seq, flags: flagSelected})
			}
		default:
			step := time.Duration(rapid.Int64Range(0, int64(300*time.Millisecond)).Draw(t, "time"))
			passTime(t, c, net, net.now.Add(step))
		}
		node.check(t)
		c.tick(net.now)
		asked := 0
		for a := range out.asked {
			if heard[a] {
				continue
			}
			if asked++; asked > mostNamed {
				t.Fatalf("%d addresses pinged that never spoke", asked)
			}
			if !slices.Contains(named, a) {
				t.Fatalf("%v is pinged and not named", a)
			}
		}
	}
}

func TestHostilePeerNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { hostility(t, 60, false) })
}

func TestHostilePeerNamesAndPings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { hostility(t, 60, true) })
}

// TestNewcomers holds that a peer which names other addresses again and again, also
// as a new run of itself, has us send to few new ones.
func TestNewcomers(t *testing.T) {
	now := time.Unix(1e9, 0)
	var shared bucket
	strangers := make(map[netip.AddrPort]bool)
	count := func() *checker {
		c := newChecker(nil, rand.NewChaCha8([32]byte{}), DefaultDataSize) // it sends nothing
		c.newcomers = &shared
		return c
	}
	c := count()
	for i := range 2000 {
		if i%200 == 199 {
			c = count()
		}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 9)
		if ok, at := c.allow(now, to); ok {
			strangers[to] = true
		} else if !at.After(now) {
			t.Fatalf("refused until %v, which is now", at)
		}
		now = now.Add(10 * time.Millisecond)
	}
	if got, want := len(strangers), newcomerBurst+20; got < want-1 || got > want+1 {
		t.Errorf("%d new addresses in 20 s, want %d", got, want)
	}
}
