package dht

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	foreign "github.com/anacrolix/dht/v2"
	"github.com/anacrolix/dht/v2/krpc"
	"github.com/anacrolix/log"
	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) {
	log.Default.Handlers = nil // the other implementation's
	foreign.DefaultSendLimiter.SetLimit(1e6)
	foreign.DefaultSendLimiter.SetBurst(1e6)
	goleak.VerifyTestMain(m)
}

// socket opens a UDP socket at an address of the loopback network that no other
// node of the test has.
func socket(t testing.TB, i int) net.PacketConn {
	t.Helper()
	ip := net.IPv4(127, 77, byte(i>>8), byte(i))
	if runtime.GOOS != "linux" && runtime.GOOS != "windows" {
		ip = net.IPv4(127, 0, 0, 1) // others have one loopback address
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A testNet is a private DHT on loopback.
type testNet struct {
	own     []*Node
	foreign []*foreign.Server
	addrs   []netip.AddrPort
	next    int // number of the next socket
}

// startNet starts a DHT of own nodes, and of nodes of another implementation.
func startNet(t testing.TB, own, others int) *testNet {
	t.Helper()
	n := &testNet{}
	for range own {
		n.addOwn(t)
	}
	for range others {
		n.addForeign(t)
	}
	for _, o := range n.own {
		await(t, "nodes of our own", func() bool { return o.Stats().Good >= min(own+others-1, 8) })
	}
	return n
}

func (n *testNet) conn(t testing.TB) net.PacketConn {
	n.next++
	return socket(t, n.next)
}

func (n *testNet) boot() []string {
	var out []string
	for i := 0; i < len(n.addrs) && i < 2; i++ {
		out = append(out, n.addrs[i].String())
	}
	return out
}

func (n *testNet) addOwn(t testing.TB) *Node {
	t.Helper()
	o, err := NewNode(Config{Conn: n.conn(t), Private: true, Bootstrap: n.boot(), Rate: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	n.own, n.addrs = append(n.own, o), append(n.addrs, o.Addr())
	return o
}

func (n *testNet) addForeign(t testing.TB) *foreign.Server {
	t.Helper()
	cfg := foreign.NewDefaultServerConfig()
	boot := n.boot()
	cfg.Conn, cfg.Logger, cfg.StartingNodes = n.conn(t), log.Logger{}, func() (out []foreign.Addr, _ error) {
		for _, text := range boot {
			out = append(out, foreign.NewAddr(net.UDPAddrFromAddrPort(netip.MustParseAddrPort(text))))
		}
		return out, nil
	}
	cfg.Logger = log.NewLogger("quiet").FilterLevel(log.Critical)
	cfg.DefaultWant = []krpc.Want{krpc.WantNodes}
	s, err := foreign.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if len(boot) > 0 {
		if _, err := s.Bootstrap(); err != nil {
			t.Fatal(err)
		}
	}
	n.foreign, n.addrs = append(n.foreign, s), append(n.addrs, addrPort(s.Addr()))
	return s
}

// device is an exchange of a device that uses the net.
func (n *testNet) device(t testing.TB, change func(*Config)) *Exchange {
	t.Helper()
	cfg := Config{Conn: n.conn(t), Private: true, Bootstrap: n.boot(), Rate: 200}
	if change != nil {
		change(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// sided makes every session both ways that of the joiner.
type sided struct{ *Exchange }

func (s sided) Join(ctx contextT, p rendezvous.Point) (rendezvous.Session, error) {
	if p.Mode == rendezvous.Both {
		p.Side = 1
	}
	return s.Exchange.Join(ctx, p)
}

func suite(t *testing.T, own, others int, change func(*Config)) {
	t.Parallel()
	n := startNet(t, own, others)
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		return n.device(t, change), sided{n.device(t, change)}
	})
}

func TestSuite(t *testing.T) { suite(t, 20, 20, nil) }

func TestSuiteMailboxOnly(t *testing.T) {
	suite(t, 40, 0, func(c *Config) { c.NoShortcut = true })
}

func TestSuiteForeignNodes(t *testing.T) {
	suite(t, 0, 40, func(c *Config) { c.NoShortcut = true })
}
