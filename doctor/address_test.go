package doctor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/doctor/dialback"
	"github.com/kithproject/kith/internal/netmon"
)

// interfaces lists one interface with addresses.
func interfaces(addrs ...string) func() ([]netmon.Interface, error) {
	i := netmon.Interface{Name: "eth0", Up: true}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
	}
	return func() ([]netmon.Interface, error) {
		return []netmon.Interface{{Name: "lo", Up: true, Loopback: true}, i}, nil
	}
}

func TestPrivate(t *testing.T) {
	runCases(t, "address.private", "", map[string]answerCase{
		"all":          {&Env{Interfaces: interfaces("127.0.0.1/8", "127.0.0.2/8")}, "yes", "127.0.0.2 (eth0"},
		"one is gone":  {&Env{Interfaces: interfaces("127.0.0.1/8", "192.0.2.1/24")}, "some", "192.0.2.1 (eth0, public): cannot"},
		"none":         {&Env{Interfaces: interfaces("192.0.2.1/24", "2001:db8::1/64")}, "none", "2001:db8::1"},
		"no address":   {&Env{Interfaces: interfaces()}, "unknown", "no address"},
		"no interface": {&Env{Interfaces: func() ([]netmon.Interface, error) { return nil, errors.New("forbidden") }}, "unknown", "forbidden"},
	})
}

func TestDiscovery(t *testing.T) {
	far := newFakeSTUN(t, func(netip.AddrPort) netip.AddrPort { return place("203.0.113.7:4711") })
	mute := newFakeSTUN(t, nil)
	mute.mute.Store(true)
	both := &Env{STUN: []string{far.addr().String(), mute.addr().String()}}
	runCases(t, "address.discovery", "", map[string]answerCase{
		"seen":      {&Env{STUN: []string{far.addr().String()}}, "yes", "sees 203.0.113.7:4711"},
		"one alone": {both, "yes", mute.addr().String() + " does not answer"},
		"nobody":    {new(Env), "unknown", "no hub and no STUN server"},
		"bad name":  {&Env{STUN: []string{"no port"}}, "unknown", "not HOST:PORT"},
	})
	if seen := seenBy(both, true); len(seen) != 1 || seen[0].Mapped != place("203.0.113.7:4711") || seen[0].Local.Addr() != far.addr().Addr() {
		t.Errorf("remembered %+v", seen)
	}
	if !behindNAT(both) {
		t.Error("a foreign address is no NAT")
	}
	if a, ok := public(both); !ok || a != netip.MustParseAddr("203.0.113.7") {
		t.Errorf("public address %v", a)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	env := &Env{STUN: []string{mute.addr().String()}}
	if a := checkDiscovery(ctx, env, ""); a.State != Unknown {
		t.Errorf("a silent server: %+v", a)
	}
	if silent, _ := Fact[[]stunServer](env, factSilent); len(silent) != 1 {
		t.Errorf("silent: %v", silent)
	}
}

// dialsBack is a hub that does what it is asked for, and says that it sees the device at
// an address.
func dialsBack(t *testing.T, seenAs string) *fakeHub {
	return newFakeHub(t, func(r dialback.Request, client netip.AddrPort) (dialback.Answer, bool) {
		outcome, _ := dialback.Dial(t.Context(), netip.AddrPortFrom(client.Addr(), r.Port), r.Code, r.Pin)
		return dialback.Answer{Outcome: outcome, Client: netip.AddrPortFrom(netip.MustParseAddr(seenAs), client.Port())}, true
	})
}

func says(t *testing.T, outcome dialback.Outcome, seenAs string) *fakeHub {
	return newFakeHub(t, func(dialback.Request, netip.AddrPort) (dialback.Answer, bool) {
		return dialback.Answer{Outcome: outcome, Client: netip.AddrPortFrom(netip.MustParseAddr(seenAs), 9)}, true
	})
}

// peerThat is an environment with a paired device that answers so.
func peerThat(answer func(ctx context.Context, q Question) (string, error)) *Env {
	env := &Env{NoPortMapping: true, Peers: []Peer{
		{Name: "away", Ask: func(context.Context, Question) (Reply, error) { panic("it is not connected") }},
		{Name: "laptop", Connected: true, Ask: func(ctx context.Context, q Question) (Reply, error) {
			if q.DialBack.Addr() != netip.MustParseAddr("203.0.113.7") || q.Secret == [16]byte{} || q.Pin == [32]byte{} {
				return Reply{}, errors.New("a bad question")
			}
			said, err := answer(ctx, q)
			return Reply{DialBack: said}, err
		}},
	}}
	env.Remember(factSeen, []sighting{sees("192.0.2.9:443", "192.168.1.2:7", "203.0.113.7:7")})
	return env
}

// peerSays is one with a device that says so, whatever it was asked.
func peerSays(reply string, err error) *Env {
	return peerThat(func(context.Context, Question) (string, error) { return reply, err })
}

// peerDials is one with a device that connects, as if the address led to this machine.
func peerDials(ctx context.Context, q Question) (string, error) {
	outcome, _ := dialback.Dial(ctx, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), q.DialBack.Port()), q.Secret, q.Pin)
	return outcome.String(), nil
}

func TestDialBack(t *testing.T) {
	silent := newFakeHub(t, nil)
	runCases(t, "address.dialback", "", map[string]answerCase{
		"a hub gets through":     {dialsBack(t, "203.0.113.7").env(), "yes", "has connected to 203.0.113.7"},
		"one in this network":    {dialsBack(t, "192.168.1.2").env(), "yes", onlyInside},
		"a hub that lies":        {says(t, dialback.OK, "203.0.113.7").env(), "unknown", "but nothing has come here"},
		"refused":                {says(t, dialback.Refused, "203.0.113.7").env(), "yes", onlyAnswers},
		"no answer":              {says(t, dialback.Silent, "203.0.113.7").env(), "yes", onlyAnswers},
		"somebody else":          {says(t, dialback.Other, "203.0.113.7").env(), "yes", onlyAnswers},
		"not dialed":             {says(t, dialback.Forbidden, "192.168.1.2").env(), "unknown", "not one that is dialed"},
		"an older hub":           {silent.env(), "unknown", "was not asked"},
		"nobody":                 {new(Env), "unknown", noneCouldTry},
		"a device":               {peerThat(peerDials), "yes", "laptop says that it has connected to 203.0.113.7"},
		"a device here":          {peerThat(peerDials), "yes", onlyInside},
		"a device that lies":     {peerSays("ok", nil), "unknown", "but nothing has come here"},
		"a device fails":         {peerSays("no answer", nil), "yes", onlyAnswers},
		"a device says nonsense": {peerSays("\x1b[2J", nil), "unknown", "laptop does not dial back"},
		"a device is silent":     {peerSays("", context.DeadlineExceeded), "unknown", "did not answer"},
	})
}

// TestDialBackAsksNobody: with relays alone, no paired device is told this device's
// address, and no port is opened for it.
func TestDialBackAsksNobody(t *testing.T) {
	env := peerThat(func(context.Context, Question) (string, error) {
		t.Error("a device was asked")
		return "", nil
	})
	env.Relay, env.NoPortMapping = "always", false
	env.Gateway = func() (gw, self netip.Addr, ok bool) {
		t.Error("the router was asked for a port")
		return
	}
	if a := checkDialBack(t.Context(), env, ""); a.State != Unknown {
		t.Errorf("%+v", a)
	}
}

// TestDialBackPort: the port that is asked for is kith's own, which a router may forward.
func TestDialBackPort(t *testing.T) {
	free, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	own := tcpAddr(free.Addr()).Port()
	for _, taken := range []bool{true, false} {
		var asked uint16
		env := peerThat(func(_ context.Context, q Question) (string, error) {
			asked = q.DialBack.Port()
			return "no answer", nil
		})
		env.Port = own
		checkDialBack(t.Context(), env, "")
		if asked == 0 || (asked == own) == taken {
			t.Errorf("the port %d is taken: %v, and %d was asked for", own, taken, asked)
		}
		_ = free.Close()
	}
}

// TestNear: who connects from this network shows nothing of the internet.
func TestNear(t *testing.T) {
	env := &Env{Interfaces: interfaces("192.168.1.2/24", "2a00:1:2:3::5/64")}
	for addr, want := range map[string]bool{
		"192.168.1.1": true, "10.1.1.1": true, "2a00:1:2:3::9": true, "2a00:1:2:4::9": false, "203.0.113.7": false,
	} {
		if got := near(env, netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// TestNoProofByOneself: no text of the group calls it a proof that the device reaches itself.
func TestNoProofByOneself(t *testing.T) {
	bad := regexp.MustCompile(`(?i)\b(proof|proves?|proven|reachable|reached|accessible|open)\b`)
	a := checkPrivate(t.Context(), &Env{Interfaces: interfaces("127.0.0.1/8")}, "")
	for _, line := range a.Evidence {
		if bad.MatchString(line) || !strings.Contains(line, "says nothing of whether others get there") {
			t.Errorf("a listener of this device's own: %q", line)
		}
	}
	if a.State != Yes || len(a.Evidence) == 0 {
		t.Error("nothing was said")
	}
	for _, c := range addressChecks() {
		if c.Code == "address.dialback" {
			continue
		}
		for _, f := range c.Findings {
			if c.Code == "address.private" && bad.MatchString(f.Cause) || bad.MatchString(c.Asks) {
				t.Errorf("%s: %q %q", c.Code, c.Asks, f.Cause)
			}
		}
	}
	if judgeDialBack(nil).State != Unknown {
		t.Error("without another machine an address counts as proved")
	}
}

func TestScope(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1": scopeLoop, "::1": scopeLoop, "169.254.1.1": scopeLink, "fe80::1": scopeLink, "10.1.1.1": scopePrivate,
		"192.168.0.1": scopePrivate, "fd00::1": scopePrivate, "0.0.0.0": scopePrivate, "100.64.0.1": scopeShared, "100.128.0.1": scopePublic,
		"8.8.8.8": scopePublic, "2a00::1": scopePublic, "::ffff:10.0.0.1": scopePrivate,
	} {
		if got := scope(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
}

func FuzzSTUN(f *testing.F) {
	f.Add([]byte("\x01\x01\x00\x0c!\x12\xa4Baaaaaaaaaaaa\x00 \x00\x08\x00\x01\x32\x43\x5e\x12\xa4\x43"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, a, ok := parseSTUN(b)
		if ok && a.Code == 0 && (!a.Mapped.IsValid() || a.Mapped.Port() == 0) {
			t.Fatalf("%x: %+v", b, a)
		}
	})
}
