package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/rendezvous"
)

// literal is a hub at an address.
func literal(host string) []hubaddr.Address { return []hubaddr.Address{{Host: host, Port: 443}} }

func TestDeviceOutside(t *testing.T) {
	const hop, hop6, far = "11.0.0.2:33434", "[2a0e:fade:1::2]:33434", "9.9.9.9:33434"
	answer := deviceAnswer{Data: []byte{1}}
	expired := deviceAnswer{Hop: netip.MustParseAddr("11.0.0.1"), Expired: true}
	noWay := deviceAnswer{Hop: netip.MustParseAddr("192.168.1.1"), NoWay: true}
	hub, other := []string{"11.0.0.2:443"}, []string{"11.0.0.2:3478", "11.0.0.3:3478"}
	only6 := deviceWays(netip.Addr{}, testSelf6)
	for name, test := range map[string]struct {
		hubs, stun, ntp []string
		resolver        string
		ways            func(netip.Addr) (netip.Addr, error)
		says            map[string]deviceAnswer
		want            string
		line            string
	}{
		"a server answers":       {stun: other, says: map[string]deviceAnswer{"11.0.0.2:3478": answer}, want: "ok", line: "11.0.0.2:3478 answers over UDP"},
		"a hub is down":          {hubs: hub, says: map[string]deviceAnswer{hop: expired}, want: "ok", line: "11.0.0.1, a router on the way"},
		"two servers are silent": {stun: other, want: "nothing", line: "11.0.0.3:3478 is silent"},
		"no way on":              {hubs: hub, says: map[string]deviceAnswer{hop: noWay, far: noWay}, want: "nothing", line: "192.168.1.1 says that it knows no way on"},
		"no way on, and the time": {
			hubs: hub, ntp: []string{"11.0.9.1"}, says: map[string]deviceAnswer{hop: noWay, far: noWay, "11.0.9.1:123": answer}, want: "ok", line: "11.0.9.1:123, which is no server of kith's",
		},
		"no way to the hub":        {hubs: hub, says: map[string]deviceAnswer{hub[0]: noWay, hop: noWay}, want: "unclear", line: "11.0.0.2:443 is silent"},
		"no way but to the hub":    {hubs: hub, says: map[string]deviceAnswer{far: noWay}, want: "unclear"},
		"no way, and names":        {stun: []string{"stun.example.com:3478"}, says: map[string]deviceAnswer{far: noWay, "193.0.14.129:33434": noWay}, want: "nothing"},
		"only at home":             {stun: []string{"192.168.1.5:3478", "192.168.1.6:3478"}, want: "unclear"},
		"only at home, no way on":  {stun: []string{"192.168.1.5:3478"}, says: map[string]deviceAnswer{far: noWay, "193.0.14.129:33434": noWay}, want: "unclear"},
		"no server":                {want: "unclear"},
		"no name":                  {stun: []string{"stun.example.com:3478"}, want: "unclear"},
		"one hub, routers mute":    {hubs: hub, want: "unclear", line: "more of the servers"},
		"two hubs, routers mute":   {hubs: []string{"11.0.0.2:443", "11.0.0.3:443"}, want: "unclear"},
		"a hub and its machine":    {hubs: hub, stun: []string{"11.0.0.2:3478", "11.0.0.4:3478"}, want: "unclear"},
		"one machine, two ports":   {stun: []string{"11.0.0.2:3478", "11.0.0.2:3479"}, want: "unclear"},
		"a hub and the time":       {hubs: hub, ntp: []string{"11.0.9.1", "11.0.9.2"}, want: "nothing", line: "11.0.9.2:123 is silent"},
		"the hub alone, by time":   {hubs: hub, ntp: []string{"11.0.9.1", "11.0.9.2"}, says: map[string]deviceAnswer{"11.0.9.2:123": answer}, want: "ok", line: "11.0.9.2:123, which is no server of kith's"},
		"none may be asked":        {hubs: hub, ntp: []string{"11.0.9.1", "11.0.9.2"}, says: map[string]deviceAnswer{"11.0.9.2:123": answer}, want: "unclear"},
		"the hub alone, by DNS":    {hubs: hub, resolver: "11.0.9.53", says: map[string]deviceAnswer{"11.0.9.53:53": answer}, want: "ok", line: "11.0.9.53:53"},
		"the LAN's DNS fails, too": {hubs: hub, resolver: "192.168.1.1", says: map[string]deviceAnswer{"192.168.1.1:53": {Data: []byte("servfail")}}, want: "nothing", line: "cannot look up any name"},
		"the router's DNS refuses": {hubs: hub, resolver: "192.168.1.1", says: map[string]deviceAnswer{"192.168.1.1:53": {Data: []byte("refused")}}, want: "nothing", line: "cannot look up any name"},
		"a company's DNS refuses":  {hubs: hub, resolver: "192.168.1.5", says: map[string]deviceAnswer{"192.168.1.5:53": {Data: []byte("refused")}}, want: "unclear"},
		"the hub and a public DNS": {hubs: hub, resolver: "11.0.9.53", want: "nothing", line: "11.0.9.53:53 is silent"},
		"a public DNS, twice":      {stun: []string{"11.0.9.53:3478"}, resolver: "11.0.9.53\nnameserver 11.0.9.53", want: "unclear"},
		"a public DNS alone":       {stun: []string{"192.168.1.5:3478"}, resolver: "11.0.9.53", want: "unclear"},
		"a hub and a time alone":   {hubs: hub, ntp: []string{"11.0.9.1"}, want: "unclear"},
		"a public DNS fails":       {hubs: hub, resolver: "9.9.9.9", says: map[string]deviceAnswer{"9.9.9.9:53": {Data: []byte("servfail")}}, want: "ok"},
		"the LAN's DNS":            {hubs: hub, resolver: "192.168.1.1", says: map[string]deviceAnswer{"192.168.1.1:53": answer}, want: "unclear"},
		"a public LAN's DNS":       {hubs: hub, resolver: "12.0.0.1", says: map[string]deviceAnswer{"12.0.0.1:53": answer}, want: "unclear"},
		"IPv6 alone, IPv4 hub":     {hubs: hub, ways: only6, says: map[string]deviceAnswer{"[2001:7fd::1]:33434": expired}, want: "ok"},
		"IPv6 alone, two IPv4":     {stun: other, ways: only6, want: "unclear", line: "none of the servers"},
		"IPv6 alone, its hub down": {hubs: []string{"[2a0e:fade:1::2]:443"}, ways: only6, says: map[string]deviceAnswer{hop6: expired}, want: "ok"},
		"IPv6 alone, nothing":      {stun: []string{"[2a0e:fade:1::2]:3478", "[2a0e:fade:2::2]:3478"}, ways: only6, want: "nothing"},
		"IPv4 unknown, IPv6 cut": {hubs: hub, ways: deviceWays(testSelf4, testSelf6), want: "unclear", says: map[string]deviceAnswer{
			"[2001:7fd::1]:33434": noWay, "[2620:fe::fe]:33434": noWay,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), deviceEnv(deviceIface("eth0", "192.168.1.20/24", "12.0.0.7/24", "fe80::7/64"))
			for _, text := range test.hubs {
				env.Hubs = append(env.Hubs, literal(place(text).Addr().String())...)
			}
			env.STUN, env.NTP, env.Strangers = test.stun, test.ntp, name != "none may be asked"
			d.read = deviceFiles(map[string]string{"/etc/resolv.conf": "nameserver " + test.resolver + "\n"})
			if test.ways != nil {
				d.outbound = test.ways
			}
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				a := test.says[to.String()]
				if code, ok := map[string]dnsmessage.RCode{"servfail": dnsmessage.RCodeServerFailure, "refused": dnsmessage.RCodeRefused}[string(a.Data)]; ok {
					a.Data = dnsAnswer(t, packet, code, to.Addr(), false)
					how.fits(a.Data)
					return a
				}
				if _, err := d.outbound(to.Addr()); err != nil {
					return deviceAnswer{Err: err}
				}
				if a.Data != nil && to.Port() == 123 && !how.fits(ntpAnswer(packet, time.Now())) || a.Data != nil && to.Port() == 53 && !how.fits(dnsAnswer(t, packet, 0, to.Addr(), true)) {
					t.Errorf("%v: its answer does not fit", to)
				}
				return a
			}
			d.dial = func(_ context.Context, _ *Env, to netip.AddrPort) error {
				if _, err := d.outbound(to.Addr()); err != nil {
					return err
				}
				return context.DeadlineExceeded
			}
			if a := deviceExpect(t, d.outsideCheck(), env, test.want); !strings.Contains(strings.Join(a.Evidence, "\n"), test.line) {
				t.Errorf("evidence %q", a.Evidence)
			}
		})
	}
}

// TestDeviceOutsideProxy: a network that lets programs out by its proxy alone is not one whose
// cable is loose.
func TestDeviceOutsideProxy(t *testing.T) {
	d, env := testDevice(), deviceEnv()
	env.STUN = []string{"11.0.0.2:3478", "11.0.0.3:3478"}
	if a := deviceExpect(t, d.outsideCheck(), env, "nothing"); a.Cause != "" {
		t.Errorf("without a proxy: %q", a.Cause)
	}
	d.getenv = func(name string) string { return map[string]string{"HTTPS_PROXY": "http://proxy:3128"}[name] }
	a := deviceExpect(t, d.outsideCheck(), &Env{STUN: env.STUN, Interfaces: env.Interfaces}, "nothing")
	if !strings.Contains(a.Cause, "proxy") || strings.Contains(a.Fix, "cable") {
		t.Errorf("%q %q", a.Cause, a.Fix)
	}
}

// TestDeviceHopLimit: where a system has no hop limit, nothing is found out by one.
func TestDeviceHopLimit(t *testing.T) {
	d, env := testDevice(), deviceEnv()
	env.Hubs = literal("11.0.0.2")
	d.ask = func(_ context.Context, _ *Env, _ netip.AddrPort, _ []byte, how deviceAsk) deviceAnswer {
		if how.ttl > 0 || how.whole {
			return deviceAnswer{Err: fmt.Errorf("dial: %w", errors.ErrUnsupported)}
		}
		return deviceAnswer{}
	}
	deviceExpect(t, d.outsideCheck(), env, "unclear")
}

// TestDeviceOutsideExplains: where nothing beyond the router answers, no hub is accused.
func TestDeviceOutsideExplains(t *testing.T) {
	table := []Check{testDevice().outsideCheck(), {Code: "relays.tcp", Findings: []Finding{{ID: "hub-silent", Severity: Limit}, {ID: "silent", Severity: Limit}}}}
	for _, id := range []string{"hub-silent", "silent"} {
		results := []Result{
			{Code: "device.outside", State: No, Finding: "nothing", Severity: Fault},
			{Code: "relays.tcp", State: No, Finding: id, Severity: Limit},
		}
		explain(table, results)
		if got := codes(causes(new(Env), results)); !slices.Equal(got, []string{"device.outside/nothing"}) {
			t.Errorf("causes %q", got)
		}
	}
}

// TestDeviceOutsidePeer: a device on the internet that answers is beyond the router.
func TestDeviceOutsidePeer(t *testing.T) {
	for want, addr := range map[string]string{"ok": "11.7.0.1:41641", "nothing": "192.168.1.9:41641"} {
		d, env := testDevice(), deviceEnv()
		env.STUN = []string{"11.0.0.2:3478", "11.0.0.3:3478"}
		d.ask = func(context.Context, *Env, netip.AddrPort, []byte, deviceAsk) deviceAnswer { return deviceAnswer{} }
		env.Peers = []Peer{{Name: "laptop", Connected: true, Candidates: func() []Candidate {
			return []Candidate{{Remote: netip.MustParseAddrPort(addr), Usable: true, Selected: true}}
		}}}
		deviceExpect(t, d.outsideCheck(), env, want)
	}
}

// TestDeviceOutsideSecond: where the router behind the router knows no way on, the cable of the
// first one is not blamed.
func TestDeviceOutsideSecond(t *testing.T) {
	for by, want := range map[string]string{"192.168.1.1": "", "25.0.113.1": "25.0.113.1"} {
		d, env := testDevice(), deviceEnv()
		env.STUN = []string{"stun.example.com:3478"}
		d.ask = deviceCut(by)
		if a := deviceExpect(t, d.outsideCheck(), env, "nothing"); (a.Cause == "") != (want == "") || !strings.Contains(a.Cause, want) || strings.Contains(a.Fix, "cable") {
			t.Errorf("%s: %q %q", by, a.Cause, a.Fix)
		}
	}
}

// deviceCut is a network in which a router knows no way on.
func deviceCut(by string) func(context.Context, *Env, netip.AddrPort, []byte, deviceAsk) deviceAnswer {
	return func(context.Context, *Env, netip.AddrPort, []byte, deviceAsk) deviceAnswer {
		return deviceAnswer{Hop: netip.MustParseAddr(by), NoWay: true}
	}
}

// A foundTable is a distributed hash table that has found nodes after a while.
type foundTable struct {
	rendezvous.Exchange
	since time.Time
	nodes []netip.AddrPort
}

func (f foundTable) Name() string { return dhtDriver }

func (f foundTable) Nodes(n int) []netip.AddrPort {
	if time.Since(f.since) < 2*time.Second {
		return nil
	}
	return f.nodes[:min(n, len(f.nodes))]
}

// TestDeviceOutsideProof: a network without internet that has a node of the DHT, a server or a
// device of its own beyond the router is not dead, whatever a router says; one in the own
// network proves nothing.
func TestDeviceOutsideProof(t *testing.T) {
	const far, private, home = "25.0.113.7:6881", "10.44.0.7:6881", "192.168.1.9:6881"
	at := func(text string) []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(text)} }
	peer := func(addr, kind string, after time.Duration) func(since time.Time) Peer {
		return func(since time.Time) Peer {
			p := Peer{Name: "laptop", Finished: true, Path: kind + " " + addr, Candidates: func() []Candidate {
				return []Candidate{{Remote: netip.MustParseAddrPort(addr), Path: kind, Usable: true, Selected: true}}
			}}
			then := p
			then.Connected = true
			p.Now = func() Peer {
				if time.Since(since) < after {
					return p
				}
				return then
			}
			return p
		}
	}
	for name, test := range map[string]struct {
		nodes []netip.AddrPort
		stun  int // servers, of which the last one answers if it is asked
		alive string
		peer  func(since time.Time) Peer
		want  string
		line  string
	}{
		"a node of the DHT":           {nodes: at(far), alive: far, want: "ok", line: far + " answers over UDP"},
		"one with a private address":  {nodes: at(private), alive: private, want: "ok", line: private},
		"one in the own network":      {nodes: at(home), alive: home, want: "nothing"},
		"one that is silent":          {nodes: at(far), want: "nothing"},
		"one server too many":         {stun: 8, alive: "25.0.114.8:3478", want: "ok", line: "25.0.114.8:3478"},
		"a device connects":           {peer: peer(far, "direct", 3*time.Second), want: "ok", line: "laptop answers at " + far},
		"a device connects near by":   {peer: peer(home, "lan", 3*time.Second), want: "near"},
		"a device through a VPN":      {peer: peer(private, "virtual", 0), want: "nothing"},
		"a device that never does":    {peer: peer(far, "direct", time.Hour), want: "nothing"},
		"nobody, and nothing to wait": {want: "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, env := testDevice(), deviceEnv()
				env.STUN = []string{"stun.example.com:3478"}
				for i := range test.stun {
					env.STUN = append(env.STUN, fmt.Sprintf("25.0.114.%d:3478", i+1))
				}
				if test.nodes != nil {
					env.Media = []Medium{{Name: dhtDriver, Exchange: foundTable{since: time.Now(), nodes: test.nodes}}}
				}
				if test.peer != nil {
					env.Peers = []Peer{test.peer(time.Now())}
				}
				cut := deviceCut("25.0.113.1")
				d.ask = func(ctx context.Context, env *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
					if to.String() == test.alive && how.ttl == 0 {
						return deviceAnswer{Data: []byte{1}}
					}
					return cut(ctx, env, to, packet, how)
				}
				began := time.Now()
				if a := deviceExpect(t, d.outsideCheck(), env, test.want); !strings.Contains(strings.Join(a.Evidence, "\n"), test.line) {
					t.Errorf("evidence %q", a.Evidence)
				}
				if took := time.Since(began); took > beyondLimit {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// TestDeviceOutsideNear: where all paired devices are connected in the own network, that there
// is no internet is no fault, and what follows from it is none either.
func TestDeviceOutsideNear(t *testing.T) {
	here := Peer{Name: "laptop", Finished: true, Connected: true, Path: "lan 192.168.1.9:41641"}
	gone := Peer{Name: "phone", Finished: true}
	for name, test := range map[string]struct {
		peers []Peer
		want  string
	}{
		"all are here":           {[]Peer{here, {Name: "old", Finished: true, Ended: true}, {Name: "foe", Finished: true, Blocked: true}}, "near"},
		"one is not":             {[]Peer{here, gone}, "nothing"},
		"nobody is paired":       {nil, "nothing"},
		"one is through a relay": {[]Peer{{Name: "laptop", Finished: true, Connected: true, Path: "relay via 192.168.1.5"}}, "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, env := testDevice(), deviceEnv()
				env.STUN, env.Peers = []string{"11.0.0.2:3478", "11.0.0.3:3478"}, test.peers
				deviceExpect(t, d.outsideCheck(), env, test.want)
			})
		})
	}
	results := []Result{
		{Code: "device.outside", State: No, Finding: "near", Severity: Note},
		{Code: "device.dns", State: No, Finding: "silent", Severity: Fault},
		{Code: "relays.tcp", State: No, Finding: "hub-silent", Severity: Limit},
	}
	explain(Table(), results)
	if got := codes(causes(new(Env), results)); !slices.Equal(got, []string{"device.outside/near"}) {
		t.Errorf("causes %q", got)
	}
}
