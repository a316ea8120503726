package doctor

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kithproject/kith/hub/hubaddr"
)

// dnsConf are files that name DNS servers.
func dnsConf(servers ...string) func(string) ([]byte, error) {
	text := ""
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	return deviceFiles(map[string]string{"/etc/resolv.conf": text})
}

// TestDeviceDNSEmpty: a DNS server that says of every name that there is none is at fault if the
// internet is there, and nobody is where it is not, or where other names are found.
func TestDeviceDNSEmpty(t *testing.T) {
	truth := netip.MustParseAddr("11.0.0.2")
	knows := func(names ...string) dnsServer {
		return func(b []byte) []byte {
			code := dnsmessage.RCodeNameError
			if slices.Contains(names, strings.TrimSuffix(dnsName(t, b), ".")) {
				code = dnsmessage.RCodeSuccess
			}
			return dnsAnswer(t, b, code, truth, false)
		}
	}
	const hub, other = "hub.test", "other.test"
	for name, test := range map[string]struct {
		hubs  []string
		found []string // by the system
		says  []dnsServer
		line  string // a router on the way; "": none answers
		want  string
		holds string
	}{
		"and the internet is there":  {[]string{hub}, nil, []dnsServer{knows()}, "11.0.0.1", "refuses", "192.168.1.1 knows no names, not even example.com."},
		"and it is not":              {[]string{hub}, nil, []dnsServer{knows()}, "", "unclear", "nothing of the internet"},
		"behind a second router":     {[]string{hub}, nil, []dnsServer{knows()}, "10.7.0.1", "unclear", "nothing of the internet"},
		"with a hub by address":      {[]string{hub, "192.0.2.1"}, nil, []dnsServer{knows()}, "11.0.0.1", "partly", "set by their addresses."},
		"and nothing else is needed": {[]string{"192.0.2.1"}, nil, []dnsServer{knows()}, "11.0.0.1", "ok", ""},
		"of a network of its own":    {[]string{hub}, []string{hub}, []dnsServer{knows(hub)}, "11.0.0.1", "ok", ""},
		"of which one is mistyped":   {[]string{hub, other}, []string{other}, []dnsServer{knows(other)}, "11.0.0.1", "ok", ""},
		"found in a file":            {[]string{hub}, []string{hub}, []dnsServer{knows()}, "11.0.0.1", "ok", ""},
		"one is mistyped":            {[]string{hub}, nil, []dnsServer{knows("example.com")}, "11.0.0.1", "ok", ""},
		"before one that knows":      {[]string{hub}, nil, []dnsServer{knows(), knows("example.com", hub)}, "", "refuses", "192.168.1.1 knows no names"},
		"before one that does not":   {[]string{hub}, nil, []dnsServer{knows(), knows("example.com")}, "11.0.0.1", "ok", ""},
		"after one that knows":       {[]string{hub}, []string{hub}, []dnsServer{knows("example.com", hub), knows()}, "11.0.0.1", "ok", ""},
		"before a dead one":          {[]string{hub}, nil, []dnsServer{knows(), nil}, "11.0.0.1", "refuses", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), strangersEnv()
			d.read = dnsConf([]string{"192.168.1.1", "192.168.1.2"}[:len(test.says)]...)
			for _, h := range test.hubs {
				env.Hubs = append(env.Hubs, hubaddr.Address{Host: h, Port: 443})
			}
			env.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
				if slices.Contains(test.found, host) {
					return []netip.Addr{truth}, nil
				}
				return zone(nil)(ctx, host)
			}
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				if to.Port() != 53 {
					if test.line == "" {
						return deviceAnswer{}
					}
					return deviceAnswer{Hop: netip.MustParseAddr(test.line), Expired: true}
				}
				if says := test.says[to.Addr().As4()[3]-1]; says != nil {
					return deviceAnswer{Data: says(packet)}.fitting(how)
				}
				return deviceAnswer{}
			}
			a := deviceExpect(t, d.dnsCheck(), env, test.want)
			if text := a.Cause + strings.Join(a.Evidence, " "); !strings.Contains(text, test.holds) {
				t.Errorf("%q is not in %q", test.holds, text)
			}
		})
	}
	// A STUN server of the internet shows that this is there.
	seeing := testDevice()
	for server, want := range map[string]bool{"11.0.0.9:3478": true, "192.168.1.9:3478": false} {
		env := strangersEnv()
		env.Remember(factSeen, []sighting{sees(server, "192.168.1.20:1", "11.0.0.8:1")})
		if line := seeing.onInternet(t.Context(), env); (line != "") != want {
			t.Errorf("%s: %q", server, line)
		}
	}
	// A system that does not tell its servers.
	for line, want := range map[string]string{"11.0.0.1": "refuses", "": "unclear"} {
		d, env := testDevice(), strangersEnv()
		env.Hubs, env.lookup = []hubaddr.Address{{Host: hub, Port: 443}}, zone(nil)
		d.ask = func(context.Context, *Env, netip.AddrPort, []byte, deviceAsk) deviceAnswer {
			a, err := netip.ParseAddr(line)
			return deviceAnswer{Hop: a, Expired: err == nil}
		}
		deviceExpect(t, d.dnsCheck(), env, want)
	}
	// Whose name is not found is told once, and other servers are accused all the same.
	d, env := testDevice(), strangersEnv()
	d.read = dnsConf("192.168.1.1")
	env.Hubs, env.lookup = []hubaddr.Address{{Host: hub, Port: 443}}, zone(nil)
	env.Media = []Medium{{Name: "hub " + hub, Servers: []string{hub + ":443"}}, {Name: "mqtt " + other, Servers: []string{other + ":1883"}}}
	name := checkRelayResolve(t.Context(), env, "hub "+hub+":443")
	results := []Result{
		resultOf(t, "relays.resolve", "hub "+hub+":443", name),
		resultOf(t, "meeting.broker", "hub "+hub, Fails("name")), resultOf(t, "meeting.broker", "mqtt "+other, Fails("name")),
		resultOf(t, "meeting.echo", "hub "+hub, Fails("second")),
	}
	explain(Table(), results)
	if got := causes(env, results); len(got) != 2 || got[0].Code != "relays.resolve" || got[1].Subject != "mqtt "+other {
		t.Errorf("%+v", got)
	}
}

// resultOf is what a check of the table that gave an answer comes to in a report.
func resultOf(t *testing.T, code Code, subject string, a Answer) Result {
	t.Helper()
	table := Table()
	i := slices.IndexFunc(table, func(c Check) bool { return c.Code == code })
	r := Result{Code: code, Subject: subject}
	r.take(table[i], a)
	if r.State != No {
		t.Fatalf("%s: %+v", code, a)
	}
	return r
}

// TestDeviceDNSLies: servers that are looked for at the address that every name gets are accused
// of nothing, and others, and those that prove to be there, are as before.
func TestDeviceDNSLies(t *testing.T) {
	router := netip.MustParseAddr("192.168.1.1")
	const hub = "hub.test"
	addr := netip.MustParseAddr("11.0.0.2")
	proved := newFakeHub(t, nil).addr
	for name, test := range map[string]struct {
		hubs  []hubaddr.Address
		known map[string]netip.Addr // what the system finds; every other name is the router's
		want  string
		holds string
		about []string
	}{
		"about the hub": {[]hubaddr.Address{{Host: hub, Port: 1}}, nil, "lies", "also for hub.test.", []string{"hub hub.test:1"}},
		"about one of two": {
			[]hubaddr.Address{{Host: hub, Port: 1}, {Host: "other.test", Port: 1}}, map[string]netip.Addr{"other.test": addr},
			"lies-partly", "also for hub.test.", []string{"hub hub.test:1"},
		},
		"about two":           {[]hubaddr.Address{{Host: hub, Port: 1}, {Host: "other.test", Port: 1}}, nil, "lies", "hub.test, other.test.", []string{"hub hub.test:1", "hub other.test:1"}},
		"and one by address":  {[]hubaddr.Address{{Host: hub, Port: 1}, {Host: "127.0.0.9", Port: 1}}, nil, "lies-partly", "", []string{"hub hub.test:1"}},
		"not about the hub":   {[]hubaddr.Address{{Host: hub, Port: 1}}, map[string]netip.Addr{hub: addr}, "hijack", "", nil},
		"of no name's matter": {[]hubaddr.Address{{Host: "127.0.0.9", Port: 1}}, nil, "hijack", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, system := range []bool{false, true} {
				d, env := testDevice(), strangersEnv()
				d.read, env.Hubs = dnsConf("192.168.1.1"), test.hubs
				want := test.want
				if system { // it does not tell its servers, and so of no lies that do no harm
					d.read = deviceFiles(nil)
					want = strings.Replace(want, "hijack", "ok", 1)
				}
				env.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
					if a, ok := test.known[host]; ok {
						return []netip.Addr{a}, nil
					}
					return []netip.Addr{router}, nil
				}
				d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
					if to.Port() != 53 {
						return deviceAnswer{}
					}
					return deviceAnswer{Data: dnsAnswer(t, packet, 0, router, true)}.fitting(how)
				}
				for _, h := range test.hubs { // nobody is there, and nothing is sent
					given(env, "tcp "+hostPort(h.Host, h.Port)+" true", tcpProbe{Err: refusedTCP.Err})
				}
				a := deviceExpect(t, d.dnsCheck(), env, want)
				if text := a.Cause + strings.Join(a.Evidence, " "); !strings.Contains(text, test.holds) {
					t.Errorf("%q is not in %q", test.holds, text)
				}
				if !slices.Equal(a.About, test.about) {
					t.Errorf("it explains what is found of %q", a.About)
				}
			}
		})
	}
	// The hub is the machine that has every name, as in a network without internet.
	d, env := testDevice(), strangersEnv()
	d.read, env.Hubs = dnsConf("192.168.1.1"), []hubaddr.Address{{Host: hub, Port: proved.Port}}
	env.lookup = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{router}, nil }
	d.ask = func(_ context.Context, _ *Env, _ netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
		return deviceAnswer{Data: dnsAnswer(t, packet, 0, router, true)}.fitting(how)
	}
	given(env, "tcp "+hostPort(hub, proved.Port)+" true", tcpProbe{TLS: true})
	deviceExpect(t, d.dnsCheck(), env, "hijack")

	// What is found at the false address is no fault of the hub, and that of another one is.
	lie := resultOf(t, "device.dns", "", Answer{State: No, Finding: "lies", About: []string{"hub hub.test:1", "hub hub.test"}})
	results := []Result{
		lie,
		resultOf(t, "meeting.broker", "hub hub.test", Fails("refused")), resultOf(t, "meeting.broker", "mqtt 192.0.2.1:1883", Fails("silent")),
		resultOf(t, "relays.tcp", "hub hub.test:1", Fails("hub")), resultOf(t, "relays.tls", "hub 192.0.2.2:1", Fails("pin")),
	}
	explain(Table(), results)
	var got []string
	for _, r := range causes(env, results) {
		got = append(got, r.Name()+" "+r.Subject)
	}
	if want := []string{"device.dns/lies ", "meeting.broker/silent mqtt 192.0.2.1:1883", "relays.tls/pin hub 192.0.2.2:1"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
