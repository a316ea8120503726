package doctor

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kithproject/kith/link/punch"
)

// TestWay: how far packets get is told as far as it is known.
func TestWay(t *testing.T) {
	at := func(ttl int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(ttl)}) }
	for name, c := range map[string]struct {
		hops hopper
		want string
		asks int32 // routers that were asked for
	}{
		"nobody tells": {func(context.Context, *Env, netip.AddrPort, int) netip.Addr { return netip.Addr{} }, "no router tells of itself", wayAtOnce},
		"five": {func(_ context.Context, _ *Env, _ netip.AddrPort, ttl int) netip.Addr {
			if ttl > 5 {
				return netip.Addr{}
			}
			return at(ttl)
		}, "198.51.100.1, 198.51.100.2, 198.51.100.3, 198.51.100.4, 198.51.100.5, then silence", 3 * wayAtOnce},
		"without end": {func(_ context.Context, _ *Env, _ netip.AddrPort, ttl int) netip.Addr { return at(ttl) }, "198.51.100.16, and further on it was not looked at", wayLongest},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			count := func(ctx context.Context, env *Env, to netip.AddrPort, ttl int) netip.Addr {
				asked.Add(1)
				return c.hops(ctx, env, to, ttl)
			}
			p := Peer{Named: true, Candidates: func() []Candidate { return []Candidate{{Remote: addrPort(2), Kind: "reflexive"}} }}
			got := hopper(count).ways(t.Context(), new(Env), p)
			if len(got) != 1 || !strings.HasPrefix(got[0], "the way to 192.0.2.2: ") || !strings.HasSuffix(got[0], c.want) || asked.Load() != c.asks {
				t.Errorf("%q after %d", got, asked.Load())
			}
		})
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if got, whole := hopper(routers).way(over, new(Env), addrPort(2)); whole || len(got) > 0 {
		t.Errorf("without time: %v, %v", got, whole)
	}
}

// TestFarOf: only addresses of the internet are looked at, one of a family.
func TestFarOf(t *testing.T) {
	env := &Env{Behaviour: func() punch.Behaviour { return punch.Behaviour{Public: netip.MustParseAddr("203.0.113.9")} }}
	got := farOf(env, []Candidate{
		{Remote: place("192.168.1.7:1"), Kind: "host"}, {Remote: place("100.64.0.7:1"), Kind: "host"}, {Remote: place("[fe80::1]:1"), Kind: "host"},
		{Remote: place("203.0.113.9:1"), Kind: "reflexive"}, {Remote: place("203.0.113.1:1"), Kind: "relayed"},
		{Remote: place("203.0.113.2:1"), Kind: "reflexive", Via: "relay.example"}, {Remote: place("203.0.113.3:1"), Kind: "host", Path: "virtual"},
		{Remote: place("203.0.113.4:1"), Kind: "reflexive"}, {Remote: place("203.0.113.5:1"), Kind: "mapped"}, {Remote: place("[2001:db8::1]:1"), Kind: "host"},
	})
	if want := []netip.AddrPort{place("203.0.113.4:1"), place("[2001:db8::1]:1")}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestWaysOf: a run about no device in particular looks at few ways, and at none that is
// straight.
func TestWaysOf(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Peer)
		named  bool
		want   int
	}{
		"straight":                       {want: 0},
		"through a relay":                {change: byRelay, want: wayUnasked},
		"through a relay, and asked for": {change: byRelay, named: true, want: 5},
	} {
		t.Run(name, func(t *testing.T) {
			env := new(Env)
			for i := range 5 {
				p := healthy()
				p.Name, p.Named = strings.Repeat("x", i+1), c.named
				if c.change != nil {
					c.change(&p)
				}
				env.Peers = append(env.Peers, p)
			}
			n := 0
			for _, p := range env.Peers {
				if a := hopper(routers).checkCandidates(t.Context(), env, p.Name); strings.Contains(strings.Join(a.Evidence, " "), "the way to") {
					n++
				}
			}
			if n != c.want {
				t.Errorf("%d ways, want %d", n, c.want)
			}
		})
	}
}

func byRelay(p *Peer) {
	all := []Candidate{{Remote: addrPort(2), Kind: "reflexive", Sent: 9}, {Remote: addrPort(3), Kind: "relayed", Path: "relay", Selected: true, Usable: true}}
	p.Candidates = func() []Candidate { return all }
}
