package doctor

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kithproject/kith/hub/hubaddr"
)

// A dnsServer is what a DNS server of a test says to a query; nil: nothing.
type dnsServer func(query []byte) []byte

func TestDeviceDNS(t *testing.T) {
	truth := netip.MustParseAddr("11.0.0.2")
	answer := func(code dnsmessage.RCode, lie bool) dnsServer {
		return func(b []byte) []byte { return dnsAnswer(t, b, code, truth, lie) }
	}
	stub := func(b []byte) []byte { // it answers itself for domains that cannot exist, and asks a liar for others
		return dnsAnswer(t, b, 0, truth, !strings.HasSuffix(dnsName(t, b), ".invalid."))
	}
	inside := func(b []byte) []byte { // a company's: it knows its own names
		code := dnsmessage.RCodeRefused
		if strings.HasSuffix(dnsName(t, b), ".example.org.") {
			code = dnsmessage.RCodeSuccess
		}
		return dnsAnswer(t, b, code, truth, false)
	}
	outside := func(b []byte) []byte { // it fails for the hub's domain alone
		code := dnsmessage.RCodeSuccess
		if strings.HasSuffix(dnsName(t, b), ".example.org.") {
			code = dnsmessage.RCodeServerFailure
		}
		return dnsAnswer(t, b, code, truth, false)
	}
	unknown := func(b []byte) []byte { // there is no such hub
		code := dnsmessage.RCodeSuccess
		if strings.HasSuffix(dnsName(t, b), ".example.org.") {
			code = dnsmessage.RCodeNameError
		}
		return dnsAnswer(t, b, code, truth, false)
	}
	refuses, fails := answer(dnsmessage.RCodeRefused, false), answer(dnsmessage.RCodeServerFailure, false)
	good, liar := answer(0, false), answer(0, true)
	const one, two, three = "nameserver 127.0.0.1\n", "nameserver 127.0.0.1\nnameserver 127.0.0.2\n", "nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\n"
	for name, test := range map[string]struct {
		conf      string
		needed    bool
		strangers bool
		hosts     bool         // the system finds names by a file of hosts
		says      [3]dnsServer // of 127.0.0.1, .2 and .3
		want      string
		holds     string // in the cause or the evidence
	}{
		"answers":                        {one, true, true, false, [3]dnsServer{good}, "ok", "answers after"},
		"says there is no such name":     {one, true, true, false, [3]dnsServer{unknown}, "ok", ""},
		"knows no names":                 {one, true, true, false, [3]dnsServer{answer(dnsmessage.RCodeNameError, false)}, "unclear", "no example.com"}, // as in a network without internet
		"dead":                           {one, true, true, false, [3]dnsServer{}, "silent", "does not answer"},
		"dead, and not needed":           {one, false, true, false, [3]dnsServer{}, "idle", ""},
		"all fail":                       {one, true, true, false, [3]dnsServer{fails}, "refuses", "ServerFailure"},
		"all refuse":                     {two, true, true, false, [3]dnsServer{refuses, refuses}, "refuses", "Refused"},
		"all refuse, and not needed":     {one, false, true, false, [3]dnsServer{refuses}, "idle", "answer, but look no names up"},
		"one refuses, the other is dead": {two, true, true, false, [3]dnsServer{refuses}, "refuses", ""},
		"the first refuses":              {two, true, true, false, [3]dnsServer{refuses, good}, "ok", "Refused"},
		"knows its own alone":            {one, true, true, false, [3]dnsServer{inside}, "ok", ""},
		"cannot look up the hub alone":   {one, true, true, false, [3]dnsServer{outside}, "ok", ""}, // relays.resolve says it
		"three":                          {three, true, true, false, [3]dnsServer{good, good, good}, "ok", ""},
		"the second is dead":             {two, true, true, false, [3]dnsServer{good}, "ok", ""},
		"the first is dead":              {two, true, true, false, [3]dnsServer{nil, good}, "slow", ""},
		"the second of three is dead":    {three, true, true, false, [3]dnsServer{refuses, nil, good}, "slow", ""},
		"lies":                           {one, true, true, false, [3]dnsServer{liar}, "hijack", ""},
		"lies behind a stub":             {one, true, true, false, [3]dnsServer{stub}, "hijack", ""},
		"none is set":                    {"search lan\n", true, true, false, [3]dnsServer{}, "silent", ""},
		"dead, and found in a file":      {one, true, true, true, [3]dnsServer{}, "idle", "does not answer"},
		"refuses, and found in a file":   {one, true, true, true, [3]dnsServer{refuses}, "idle", "found without them"},
		"none is set, found in a file":   {"", true, true, true, [3]dnsServer{}, "idle", "no DNS server is set"},
		"none is set, and not needed":    {"", false, true, false, [3]dnsServer{}, "unclear", ""},
		"no strangers":                   {one, true, false, false, [3]dnsServer{good}, "ok", ""},
		"no strangers, no lies":          {one, true, false, false, [3]dnsServer{liar}, "ok", ""},
		"no strangers, no names":         {one, false, false, false, [3]dnsServer{}, "nothing", ""},
		"no strangers, refused":          {one, true, false, false, [3]dnsServer{outside}, "refuses", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, env := testDevice(), deviceEnv()
			d.read, env.Strangers = deviceFiles(map[string]string{"/etc/resolv.conf": test.conf}), test.strangers
			if test.needed {
				env.STUN = []string{"stun.example.org:3478"}
			}
			env.lookup = func(context.Context, string) ([]netip.Addr, error) {
				if test.hosts {
					return []netip.Addr{truth}, nil
				}
				return nil, &net.DNSError{IsTimeout: true}
			}
			var mu sync.Mutex
			var names []string
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				if to.Port() != 53 {
					return deviceAnswer{}
				}
				mu.Lock()
				names = append(names, dnsName(t, packet))
				mu.Unlock()
				says := test.says[to.Addr().As4()[3]-1]
				if says == nil {
					return deviceAnswer{}
				}
				if out := says(packet); how.fits(out) {
					return deviceAnswer{Data: out}
				}
				return deviceAnswer{}
			}
			a := deviceExpect(t, d.dnsCheck(), env, test.want)
			if test.want == "silent" || test.want == "refuses" { // a hub that is found without DNS
				env.Hubs = []hubaddr.Address{{Host: "192.0.2.1", Port: 443}}
				deviceExpect(t, d.dnsCheck(), env, "partly")
			}
			if text := a.Cause + strings.Join(a.Evidence, " "); !strings.Contains(text, test.holds) {
				t.Errorf("%q is not in %q", test.holds, text)
			}
			if !test.strangers && slices.ContainsFunc(names, func(n string) bool { return n != "stun.example.org." }) {
				t.Errorf("it asks for %q", names)
			}
		})
	}
	// A router whose line is dead refuses, too: other DNS servers would not help.
	for name, test := range map[string]struct {
		server string
		line   string // what answers of a server in the internet; "": nothing
		holds  string // in the fix
	}{
		"nothing is heard":      {"192.168.1.1", "", "router has internet access"},
		"somebody answers":      {"192.168.1.1", "9.9.9.9:33434", "ask those who run"},
		"a server far away":     {"11.0.9.53", "", "ask those who run"},
		"the system's own stub": {"127.0.0.53", "", "router has internet access"},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), deviceEnv()
			d.read, env.STUN = deviceFiles(map[string]string{"/etc/resolv.conf": "nameserver " + test.server + "\n"}), []string{"stun.example.org:3478"}
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				switch {
				case to.String() == test.line:
					return deviceAnswer{Hop: netip.MustParseAddr("11.0.0.1"), Expired: true}
				case to.Port() == 53:
					return deviceAnswer{Data: fails(packet)}.fitting(how)
				}
				return deviceAnswer{}
			}
			deviceWord(t, d.outsideCheck(), env)
			if word, a := deviceWord(t, d.dnsCheck(), env); word != "refuses" || !strings.Contains(fixOf(d.dnsCheck(), a), test.holds) {
				t.Errorf("%s: %q", word, a.Fix)
			}
		})
	}
	// What the user mistyped is no fault of DNS.
	d, env := testDevice(), deviceEnv()
	d.read, env.STUN = deviceFiles(map[string]string{"/etc/resolv.conf": one}), []string{"stun..example:3478"}
	deviceExpect(t, d.dnsCheck(), env, "nothing")
}

// fitting has the question look at the answer, as it reads it so.
func (a deviceAnswer) fitting(how deviceAsk) deviceAnswer {
	if !how.fits(a.Data) {
		return deviceAnswer{}
	}
	return a
}

// fixOf is the fix of an answer, or that of the table.
func fixOf(c Check, a Answer) string {
	i := slices.IndexFunc(c.Findings, func(f Finding) bool { return f.ID == a.Finding })
	if a.Fix != "" || i < 0 {
		return a.Fix
	}
	return c.Findings[i].Fix
}

// dnsName is the name that a query asks for.
func dnsName(t *testing.T, query []byte) string {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		t.Errorf("a query for %d names: %v", len(m.Questions), err)
		return ""
	}
	return m.Questions[0].Name.String()
}

// dnsAnswer answers a query; a liar has an address for every name.
func dnsAnswer(t *testing.T, query []byte, code dnsmessage.RCode, addr netip.Addr, lie bool) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		t.Error(err)
		return nil
	}
	m.Response, m.RCode = true, code
	name := m.Questions[0].Name
	if code == 0 && (lie || !strings.HasPrefix(name.String(), "kith-")) {
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: addr.As4()}}}
	} else if code == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
	out, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return out
}

// TestDeviceSystemDNS is for systems without resolv.conf.
func TestDeviceSystemDNS(t *testing.T) {
	for want, err := range map[string]error{
		"ok": &net.DNSError{IsNotFound: true}, "idle": &net.DNSError{IsTimeout: true}, "unclear": errDeviceNone,
	} {
		env := strangersEnv()
		env.lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, err }
		deviceExpect(t, testDevice().dnsCheck(), env, want)
	}
	d, env := testDevice(), strangersEnv()
	env.lookup = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{testSelf4}, nil }
	deviceExpect(t, d.dnsCheck(), env, "ok")
	env = deviceEnv()
	env.lookup = func(context.Context, string) ([]netip.Addr, error) {
		t.Error("a stranger's name is looked up")
		return nil, errDeviceNone
	}
	deviceExpect(t, d.dnsCheck(), env, "nothing")
}

// strangersEnv is one whose run may ask strangers.
func strangersEnv() *Env {
	env := deviceEnv()
	env.Strangers = true
	return env
}
