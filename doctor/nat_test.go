package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/portmap"
	"github.com/kithproject/kith/link/punch"
)

// knows is an environment in which servers have seen this device.
func knows(seen ...sighting) *Env {
	env := new(Env)
	env.Remember(factSeen, seen)
	env.Remember(factSilent, []stunServer{})
	return env
}

// Probes as they end.
var (
	connectedTLS = tcpProbe{TLS: true, At: place("192.0.2.9:443")}
	connectedTCP = tcpProbe{At: place("192.0.2.9:443")}
	wrongPin     = tcpProbe{TLS: true, TLSErr: hubaddr.ErrPin, At: place("192.0.2.9:443")}
	refusedTCP   = tcpProbe{Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errDeviceRefused)}}
	silentTCP    = tcpProbe{Err: context.DeadlineExceeded}
)

// tcpNet is an environment with servers (host:port), the hubs' with TLS, and what comes of
// connections to them.
func tcpNet(udp string, hubs map[string]tcpProbe, others map[string]tcpProbe) *Env {
	env := new(Env)
	var silent []stunServer
	for name, p := range hubs {
		host, port, _ := splitHostPort(name, 0)
		env.Hubs = append(env.Hubs, hubaddr.Address{Host: host, Port: port, AltPort: port + 1})
		given(env, "tcp "+name+" true", p)
		given(env, "tcp "+hostPort(host, port+1)+" false", others[hostPort(host, port+1)])
		silent = append(silent, stunServer{Name: name, Addr: place(name), Hub: true})
	}
	for name, p := range others {
		env.Media = append(env.Media, Medium{Servers: []string{name}})
		given(env, "tcp "+name+" false", p)
	}
	if udp != "" {
		env.Remember(factSeen, []sighting{sees("192.0.2.9:443", "192.168.1.2:7", udp)})
		silent = nil
	}
	env.Remember(factSilent, silent)
	return env
}

type probes = map[string]tcpProbe

func TestTCP(t *testing.T) {
	deaf := tcpProbe{Err: &net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", IsTimeout: true}}} // its name is not found in time
	named := func(p tcpProbe, addrs ...string) *Env {
		env := tcpNet("203.0.113.7:7", nil, probes{"one.example:1883": p, "two.example:1883": p})
		env.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			i := 0
			if host == "two.example" {
				i = 1
			}
			return []netip.Addr{netip.MustParseAddr(addrs[i])}, nil
		}
		return env
	}
	runCases(t, "nat.tcp", "", map[string]answerCase{
		"nobody":       {new(Env), "unknown", "no server"},
		"out":          {tcpNet("", nil, probes{"192.0.2.1:1883": connectedTCP}), "yes", "connected"},
		"one is down":  {tcpNet("203.0.113.7:7", nil, probes{"192.0.2.1:1883": silentTCP}), "unknown", "no answer"},
		"one refuses":  {tcpNet("203.0.113.7:7", nil, probes{"192.0.2.1:1883": silentTCP, "192.0.2.2:1883": refusedTCP}), "unknown", "refused"},
		"all silent":   {tcpNet("203.0.113.7:7", nil, probes{"192.0.2.1:1883": silentTCP, "192.0.2.2:1883": silentTCP}), "blocked", "no answer"},
		"two names":    {named(silentTCP, "192.0.2.1", "192.0.2.2"), "blocked", "no answer"},
		"one machine":  {named(silentTCP, "192.0.2.1", "192.0.2.1"), "unknown", "no answer"},
		"no DNS":       {named(deaf, "192.0.2.1", "192.0.2.2"), "unknown", "lookup"},
		"UDP, too":     {tcpNet("", nil, probes{"192.0.2.1:1883": silentTCP, "192.0.2.2:1883": silentTCP}), "unknown", "no answer"},
		"one of three": {tcpNet("203.0.113.7:7", nil, probes{"192.0.2.1:1883": silentTCP, "192.0.2.2:1883": silentTCP, "192.0.2.3:80": connectedTCP}), "yes", "connected"},
	})
}

func TestMapping(t *testing.T) {
	v6 := knows(sees("[2001:db8::1]:443", "[2001:db8::2]:7", "[2001:db8::2]:7"))
	v6.Remember(factOutbound, []netip.Addr{netip.MustParseAddr("2001:db8::2")})
	for _, code := range []Code{"nat.mapping", "nat.preserve", "nat.hairpin", "nat.carrier", "nat.double"} {
		runCases(t, code, "", map[string]answerCase{"IPv6 alone": {v6, "yes", "IPv6 alone"}})
	}
	runCases(t, "nat.mapping", "", map[string]answerCase{
		"nobody":      {new(Env), "unknown", "no server"},
		"public":      {knows(sees("192.0.2.9:443", "203.0.113.7:7", "203.0.113.7:7")), "yes", "no NAT"},
		"two ports":   {knows(sees("192.0.2.9:443", "10.0.0.2:7", "203.0.113.7:9"), sees("192.0.2.9:444", "10.0.0.2:7", "203.0.113.7:9")), "yes", "two ports of one server"},
		"two servers": {knows(sees("192.0.2.9:443", "10.0.0.2:7", "203.0.113.7:9"), sees("198.51.100.1:443", "10.0.0.2:7", "203.0.113.7:9")), "yes", "endpoint-independent"},
		"one port":    {knows(sees("192.0.2.9:443", "10.0.0.2:7", "203.0.113.7:9")), "unknown", "one server"},
		"over IPv6":   {knows(sees("[2001:db8::1]:443", "[2001:db8::2]:7", "[2001:db8::2]:7")), "unknown", "IPv4"},
	})
	// Those of a hard NAT ask further.
	far := newFakeSTUN(t, nil)
	hard := knows(sees(far.addr().String(), "10.0.0.2:7", "203.0.113.7:9"), sees("127.0.0.1:4", "10.0.0.2:7", "203.0.113.7:11"))
	runCases(t, "nat.mapping", "", map[string]answerCase{"hard": {hard, "hard", "address-and-port-dependent"}})
	hard.Remember(factVPN, "tun0") // whose NAT it then is, and not the router's
	runCases(t, "nat.mapping", "", map[string]answerCase{"hard, by a VPN": {hard, "hard", "The VPN on tun0 takes another public port"}})
	if b, _ := Fact[punch.Behaviour](hard, factMapping); !b.Hard() {
		t.Errorf("remembered %+v", b)
	}
	six := knows(sees(far.addr().String(), "10.0.0.2:7", "203.0.113.7:9"), sees("127.0.0.1:4", "10.0.0.2:7", "203.0.113.7:11"), sees(over6, own6, own6))
	runCases(t, "nat.mapping", "", map[string]answerCase{"hard, with IPv6": {six, "hard", "devices without IPv6"}})
	runCases(t, "nat.preserve", "", map[string]answerCase{
		"kept":    {knows(sees("192.0.2.9:443", "10.0.0.2:7", "203.0.113.7:7")), "yes", "port 7 is seen as 7"},
		"changed": {knows(sees("192.0.2.9:443", "10.0.0.2:7", "203.0.113.7:9")), "yes", "port 7 is seen as 9"},
		"nobody":  {new(Env), "unknown", ""},
	})
}

func TestFiltering(t *testing.T) {
	t.Parallel()
	at := func(change func(*fakeSTUN)) *Env {
		s := newFakeSTUN(t, nil)
		change(s)
		seen := sees(s.addr().String(), "127.0.0.1:7", "127.0.0.1:7")
		return knows(seen)
	}
	runCases(t, "nat.filtering", "", map[string]answerCase{
		"nobody":      {new(Env), "unknown", ""},
		"other ports": {at(func(s *fakeSTUN) { s.changes.Store(true) }), "yes", "packets from another port of an address come in"},
		"answers":     {at(func(*fakeSTUN) {}), "yes", "packets from another port do not come in"},
		"cannot":      {at(func(s *fakeSTUN) { s.refuses.Store(true) }), "unknown", "no server can"},
	})
}

func TestHairpin(t *testing.T) {
	far := newFakeSTUN(t, nil)
	// What is sent there arrives nowhere.
	nowhere := newFakeSTUN(t, func(netip.AddrPort) netip.AddrPort { return place("127.0.0.1:9") })
	behind := func(s *fakeSTUN, peers ...Peer) *Env {
		x := sees(s.addr().String(), "10.0.0.2:7", "203.0.113.7:7")
		env := knows(x)
		env.Peers = peers
		return env
	}
	peer := func(connected bool, c ...Candidate) Peer {
		return Peer{Name: "laptop", Connected: connected, Candidates: func() []Candidate { return c }}
	}
	public := Candidate{Remote: place("203.0.113.7:99"), Kind: "reflexive", Sent: 5}
	hard := behind(nowhere)
	hard.Remember(factMapping, punch.Behaviour{Mapping: punch.AddressAndPortDependent})
	runCases(t, "nat.hairpin", "", map[string]answerCase{
		"works":                   {behind(far), "yes", "they hear each other"},
		"to nobody's harm":        {behind(nowhere), "yes", "matters to nobody"},
		"elsewhere":               {behind(nowhere, peer(false, Candidate{Remote: place("198.51.100.1:99"), Sent: 5})), "yes", ""},
		"another address answers": {behind(nowhere, peer(false, public, Candidate{Remote: place("192.168.1.3:99"), Kind: "host", Sent: 5, Answered: 2})), "yes", ""},
		"connected":               {behind(nowhere, peer(true, public)), "yes", ""},
		"missing":                 {behind(nowhere, peer(false, public, Candidate{Remote: place("192.168.1.3:99"), Kind: "host", Sent: 5})), "missing", "laptop"},
		"no NAT":                  {knows(sees(far.addr().String(), "203.0.113.7:7", "203.0.113.7:7")), "yes", "no NAT"},
		"hard":                    {hard, "unknown", "hard NAT"},
		"nobody":                  {new(Env), "unknown", ""},
	})
}

// TestSilence has a server that forgets.
func TestSilence(t *testing.T) {
	s := newFakeSTUN(t, nil)
	s.responds.Store(true)
	env := new(Env)
	seen := []sighting{{Server: s.server()}}
	k, err := newKnocker(t.Context(), env, seen)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	one, err := k.sleeper(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	defer one.sock.close()
	if alive, known := k.survives(t.Context(), one, time.Millisecond); !alive || !known {
		t.Errorf("remembered: %v %v", alive, known)
	}
	s.responds.Store(false)
	if alive, known := k.survives(t.Context(), one, time.Millisecond); alive || !known {
		t.Errorf("forgotten: %v %v", alive, known)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, known := k.survives(ctx, one, time.Hour); known {
		t.Error("it knows without waiting")
	}
	for name, change := range map[string]func(*fakeSTUN){
		"refuses":   func(*fakeSTUN) {},
		"overlooks": func(s *fakeSTUN) { s.ignores.Store(true) },
	} {
		old := newFakeSTUN(t, nil)
		change(old)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if _, err := newKnocker(ctx, env, []sighting{{Server: old.server()}}); err == nil {
			t.Errorf("%s: a server that cannot send elsewhere is asked to", name)
		}
		cancel()
	}
	runCases(t, "nat.lifetime", "", map[string]answerCase{"nobody": {new(Env), "unknown", "no server"}})
	runCases(t, "nat.timeout", "", map[string]answerCase{"nobody": {new(Env), "unknown", "no server"}})
}

// TestSlowTime: a slow run has the time that its longest silence takes.
func TestSlowTime(t *testing.T) {
	var table []Check
	for _, c := range Table() {
		if c.Code == "nat.lifetime" || c.Code == "nat.timeout" {
			pause := silence
			if c.Slow {
				pause = timeouts[len(timeouts)-1]
			}
			c.Run = func(ctx context.Context, _ *Env, _ string) Answer { // as long as it takes at worst
				timer := time.NewTimer(pause + 2*knockWait)
				defer timer.Stop()
				select {
				case <-timer.C:
					return OK()
				case <-ctx.Done():
					return Unclear()
				}
			}
			table = append(table, c)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for _, r := range Run(t.Context(), Config{Table: table, Env: new(Env), Slow: true}).Results {
			if r.State != Yes {
				t.Errorf("%s: %s %q", r.Code, r.State, r.Evidence)
			}
		}
	})
}

func TestTrial(t *testing.T) {
	mapped := portmap.Mapping{Protocol: "upnp", Internal: 7, Gateway: netip.MustParseAddr("192.168.1.1"), External: place("203.0.113.7:7")}
	with := func(x trial) *Env {
		env := new(Env)
		given(env, "gateway upnp", x)
		return env
	}
	runCases(t, "nat.upnp", "", map[string]answerCase{
		"absent":     {with(trial{err: portmap.ErrAbsent}), "yes", "no router"},
		"refused":    {with(trial{err: portmap.ErrRefused}), "refused", ""},
		"failed":     {with(trial{err: errors.New("no socket")}), "unknown", "no socket"},
		"works":      {with(trial{mapping: mapped, works: true, checked: true}), "yes", "came in"},
		"lies":       {with(trial{mapping: mapped, checked: true}), "lies", "203.0.113.7:7"},
		"not known":  {with(trial{mapping: mapped, why: "no server"}), "yes", "not found out: no server"},
		"not wanted": {&Env{NoPortMapping: true}, "yes", "not to be asked"},
	})
	for _, code := range []Code{"nat.pcp", "nat.natpmp"} {
		runCases(t, code, "", map[string]answerCase{"no gateway": {&Env{Gateway: func() (gw, self netip.Addr, ok bool) { return }}, "yes", "no router"}})
	}
}

// TestComesIn sends to a port that a router says it has opened.
func TestComesIn(t *testing.T) {
	s := newFakeSTUN(t, nil)
	s.responds.Store(true)
	// Servers say an address of the internet; the loopback's would be none.
	env := knows(sees(s.addr().String(), "10.0.0.2:7", "203.0.113.7:7"))
	sock, err := openSTUN(env, "udp4")
	if err != nil {
		t.Fatal(err)
	}
	defer sock.close()
	open := func(port uint16) portmap.Mapping {
		return portmap.Mapping{External: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), port)}
	}
	if works, checked, why := comesIn(t.Context(), env, sock, open(sock.local.Port())); !works || !checked {
		t.Errorf("an open port: %v %v %s", works, checked, why)
	}
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if works, checked, why := comesIn(t.Context(), env, sock, open(udpAddr(other.LocalAddr()).Port())); works || !checked {
		t.Errorf("a lie: %v %v %s", works, checked, why)
	}
	elsewhere := portmap.Mapping{External: place("192.168.0.4:7"), DoubleNAT: true}
	if _, checked, why := comesIn(t.Context(), env, sock, elsewhere); checked || !strings.Contains(why, "192.168.0.4") {
		t.Errorf("another router's address: %v %s", checked, why)
	}
	if _, checked, _ := comesIn(t.Context(), new(Env), sock, open(7)); checked {
		t.Error("it knows without a server")
	}
	s.responds.Store(false)
	if _, checked, why := comesIn(t.Context(), env, sock, open(7)); checked {
		t.Errorf("a server that cannot: %s", why)
	}
}

// routed is an environment behind a NAT, with what the routers say and do.
func routed(r routeResult, external string, seen ...sighting) *Env {
	if len(seen) == 0 {
		seen = []sighting{sees("192.0.2.9:443", "192.168.1.2:7", "203.0.113.7:7")}
	}
	env := knows(seen...)
	env.Interfaces = interfaces("192.168.1.2/24", "100.70.1.2/10")
	for _, p := range portmap.Protocols() {
		t := trial{err: portmap.ErrAbsent}
		if external != "" && p == "upnp" {
			t = trial{mapping: portmap.Mapping{External: place(external)}}
		}
		given(env, "gateway "+p, t)
	}
	given(env, "route", r)
	return env
}

func via(beyond int, second string) routeResult {
	r := routeResult{route: route{first: netip.MustParseAddr("192.168.1.1"), beyond: beyond}}
	r.second, _ = netip.ParseAddr(second)
	return r
}

func TestCarrierAndDouble(t *testing.T) {
	vpn := routed(via(0, ""), "", sees("192.0.2.9:443", "100.70.1.2:7", "203.0.113.7:7"))
	vpn.Interfaces = func() ([]netmon.Interface, error) {
		return []netmon.Interface{{Name: "tailscale0", Up: true, Virtual: true, Addrs: []netip.Prefix{netip.MustParsePrefix("100.70.1.2/32")}}}, nil
	}
	direct := sees("192.0.2.9:443", "203.0.113.7:7", "203.0.113.7:7")
	// seen by two servers, and over IPv6.
	easy := []sighting{sees("192.0.2.9:443", "192.168.1.2:7", "203.0.113.7:7"), sees("198.51.100.1:443", "192.168.1.2:7", "203.0.113.7:7")}
	hard := []sighting{sees("192.0.2.9:443", "192.168.1.2:7", "203.0.113.7:7"), sees("198.51.100.1:443", "192.168.1.2:7", "203.0.113.7:8")}
	six := sees(over6, own6, own6)
	runCases(t, "nat.carrier", "", map[string]answerCase{
		"one router":           {routed(via(0, "198.51.100.1"), ""), "yes", "the first router is 192.168.1.1"},
		"by UPnP":              {routed(via(0, ""), "203.0.113.7:7"), "yes", "the nearest router has the public address"},
		"shared, by UPnP":      {routed(via(0, ""), "100.64.3.4:7"), "shared", "100.64.3.4"},
		"shared, by the route": {routed(via(1, "100.64.0.1"), ""), "shared", "100.64.0.1"},
		// Providers number their own routers so, too.
		"a shared router alone": {routed(via(0, "100.64.0.1"), ""), "yes", ""},
		"with IPv6":             {routed(via(0, ""), "100.64.3.4:7", append(easy, six)...), "shared", "IPv6 works here"},
		"hard":                  {routed(via(1, "100.64.0.1"), "", hard...), "hard", "100.64.0.1"},
		"hard, by UPnP":         {routed(via(0, ""), "100.64.3.4:7", hard...), "hard", "100.64.3.4"},
		"hard, with IPv6":       {routed(via(0, ""), "100.64.3.4:7", append(hard, six)...), "hard", "devices without IPv6"},
		"hard and public":       {routed(via(0, ""), "203.0.113.7:7", hard...), "yes", "the nearest router has the public address"},
		"a phone":               {routed(via(0, ""), "", sees("192.0.2.9:443", "100.70.1.2:7", "203.0.113.7:7")), "shared", "100.70.1.2"},
		"a VPN":                 {vpn, "yes", ""},
		"several":               {routed(via(0, ""), "", sees("192.0.2.9:443", "192.168.1.2:7", "203.0.113.7:7"), sees("198.51.100.1:443", "192.168.1.2:7", "203.0.113.8:7")), "several", "203.0.113.8"},
		"public":                {routed(via(0, ""), "", direct), "yes", "own"},
		"not known":             {routed(routeResult{err: errHops}, ""), "unknown", errHops.Error()},
		"nobody":                {new(Env), "unknown", ""},
	})
	runCases(t, "nat.double", "", map[string]answerCase{
		"one router":            {routed(via(0, "198.51.100.1"), ""), "yes", ""},
		"by UPnP":               {routed(via(0, ""), "203.0.113.7:7"), "yes", "has the public address"},
		"private, by UPnP":      {routed(via(0, ""), "192.168.178.2:7"), "second", "192.168.178.2"},
		"private, by the route": {routed(via(1, "192.168.178.1"), ""), "second", "192.168.178.1"},
		"with IPv6":             {routed(via(1, "192.168.178.1"), "", append(easy, six)...), "second", "IPv6 works here"},
		"a third one":           {routed(via(2, "198.51.100.1"), ""), "second", ""},
		"hard":                  {routed(via(1, "192.168.178.1"), "", hard...), "hard", "192.168.178.1"},
		"hard, by UPnP":         {routed(via(0, ""), "192.168.178.2:7", hard...), "hard", "192.168.178.2"},
		// The nearest may pass on what is for a device of its own (an exposed host).
		"an exposed host":          {routed(via(1, "198.51.100.1"), ""), "yes", ""},
		"a private router further": {routed(via(0, "10.0.0.1"), ""), "yes", ""},
		"public":                   {routed(via(0, ""), "", direct), "yes", "no NAT"},
		"not known":                {routed(routeResult{err: errHops}, ""), "unknown", ""},
		"nobody":                   {new(Env), "unknown", ""},
	})
}

// over6 is a server that is asked over IPv6, and own6 this device as it is seen there.
const over6, own6 = "[2001:db8::1]:443", "[2001:db8::2]:7"

// TestOrdinaryNAT: what every phone and many homes have is no more than a note, unless its
// mapping is a hard one; then the fix is none that needs the router.
func TestOrdinaryNAT(t *testing.T) {
	easy := []sighting{sees("192.0.2.9:443", "192.168.1.2:7", "203.0.113.7:9"), sees("198.51.100.1:443", "192.168.1.2:7", "203.0.113.7:9")}
	far := newFakeSTUN(t, nil) // of which a hard NAT asks more
	hard := []sighting{sees(far.addr().String(), "192.168.1.2:7", "203.0.113.7:9"), sees("198.51.100.1:443", "192.168.1.2:7", "203.0.113.7:11")}
	var table []Check
	for _, c := range Table() {
		switch c.Code {
		case "nat.mapping", "nat.preserve", "nat.carrier", "nat.double":
			c.Needs = nil
			table = append(table, c)
		}
	}
	for name, test := range map[string]struct {
		env      *Env
		want     string
		severity Severity
	}{
		"carrier":      {routed(via(1, "100.64.0.1"), "", easy...), "nat.carrier/shared", Note},
		"double":       {routed(via(1, "192.168.178.1"), "", easy...), "nat.double/second", Note},
		"hard carrier": {routed(via(1, "100.64.0.1"), "", hard...), "nat.carrier/hard", Limit},
		"hard double":  {routed(via(1, "192.168.178.1"), "", hard...), "nat.double/hard", Limit},
		"hard":         {routed(via(0, ""), "203.0.113.7:9", hard...), "nat.mapping/hard", Limit},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			given(test.env, "housing", housing{})
			r := Run(ctx, Config{Table: table, Env: test.env})
			if len(r.Causes) != 1 || r.Causes[0].Name() != test.want || r.Causes[0].Severity != test.severity {
				t.Fatalf("%+v", r.Causes)
			}
			if fix := r.Causes[0].Fix; test.want == "nat.carrier/hard" && (strings.Contains(fix, "UPnP") || strings.Contains(fix, "forward")) {
				t.Errorf("a phone's user cannot do this: %s", fix)
			}
		})
	}
}

// TestHoused: in a container or virtual machine the second router is the machine itself.
func TestHoused(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	link := func(to string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink} }
	const osrelease, vendor, eth0 = "proc/sys/kernel/osrelease", "sys/class/dmi/id/sys_vendor", "sys/class/net/eth0"
	virtual, card := link("../../devices/virtual/net/eth0"), link("../../devices/pci0000:00/0000:00:19.0/net/eth0")
	none := func(string) string { return "" }
	podman := func(name string) string { return map[string]string{"container": "podman"}[name] }
	for name, test := range map[string]struct {
		system fstest.MapFS
		getenv func(string) string
		own    string
		want   string // in the fix; "" for that of two routers
	}{
		"Docker":                         {fstest.MapFS{".dockerenv": file(""), eth0: virtual}, none, "172.17.0.2", "network_mode: host"},
		"Docker with another network":    {fstest.MapFS{".dockerenv": file(""), eth0: virtual}, none, "192.168.1.2", ""},
		"Docker in the machine's":        {fstest.MapFS{".dockerenv": file(""), eth0: card}, none, "172.17.0.2", ""},
		"Podman":                         {fstest.MapFS{"run/.containerenv": file(""), eth0: virtual}, none, "10.88.0.2", "--network host"},
		"a container that says so":       {fstest.MapFS{eth0: virtual}, podman, "10.88.0.2", "--network host"},
		"WSL 2":                          {fstest.MapFS{osrelease: file("5.15.90.1-microsoft-standard-WSL2\n"), eth0: card}, none, "172.29.16.4", "networkingMode=mirrored"},
		"WSL 2, mirrored":                {fstest.MapFS{osrelease: file("5.15.90.1-microsoft-standard-WSL2\n"), eth0: card}, none, "192.168.1.2", ""},
		"VirtualBox":                     {fstest.MapFS{vendor: file("innotek GmbH\n"), eth0: card}, none, "10.0.2.15", "bridged"},
		"libvirt":                        {fstest.MapFS{vendor: file("QEMU\n"), eth0: card}, none, "192.168.122.7", "bridged"},
		"a virtual machine at a company": {fstest.MapFS{vendor: file("QEMU\n"), eth0: card}, none, "10.1.2.3", ""},
		"a machine":                      {fstest.MapFS{osrelease: file("6.8.0\n"), vendor: file("LENOVO\n"), eth0: card}, none, "172.17.0.2", ""},
		"no Linux":                       {fstest.MapFS{}, none, "172.17.0.2", ""},
	} {
		env := routed(via(1, "192.168.178.1"), "", sees("192.0.2.9:443", test.own+":7", "203.0.113.7:7"))
		given(env, "housing", housingOf(test.system, test.getenv, "eth0"))
		a := checkDouble(t.Context(), env, "")
		if a.Finding != "second" || (a.Fix == "") != (test.want == "") || !strings.Contains(a.Fix, test.want) {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
