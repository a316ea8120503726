package doctor

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kithproject/kith/hub/hubaddr"
)

// TestDeviceDNSFar: where UDP does not get out, DNS servers beyond the router cannot answer, and
// one at the router that does not is a fault of its own.
func TestDeviceDNSFar(t *testing.T) {
	const far, gate = "8.8.8.8", "192.168.1.1"
	for name, test := range map[string]struct {
		servers  []string
		upstream string // that the stub at 127.0.0.53 asks
		refuses  bool   // and do not keep silent
		names    []string
		want     string
		own      bool // it is a cause beside blocked UDP
	}{
		"far":                                {[]string{far}, "", false, []string{"hub.test"}, "silent", false},
		"two far":                            {[]string{far, "9.9.9.9"}, "", false, []string{"hub.test", "192.0.2.1"}, "partly", false},
		"not needed":                         {[]string{far}, "", false, []string{"192.0.2.1"}, "idle", false},
		"at the router":                      {[]string{gate}, "", false, []string{"hub.test"}, "silent", true},
		"both":                               {[]string{far, gate}, "", false, []string{"hub.test", "192.0.2.1"}, "partly", true},
		"a far one that refuses":             {[]string{far}, "", true, []string{"hub.test"}, "refuses", true},
		"none":                               {nil, "", false, []string{"hub.test"}, "silent", true},
		"a stub that asks far ones":          {[]string{"127.0.0.53"}, far, true, []string{"hub.test"}, "refuses", false},
		"a stub that asks the router":        {[]string{"127.0.0.53"}, gate, true, []string{"hub.test"}, "refuses", true},
		"a stub that asks nobody knows whom": {[]string{"127.0.0.53"}, "", false, []string{"hub.test"}, "silent", true},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), strangersEnv()
			read := dnsConf(test.servers...)
			d.read = func(path string) ([]byte, error) {
				if path == stubServers && test.upstream != "" {
					return []byte("nameserver " + test.upstream + "\n"), nil
				}
				return read(path)
			}
			for _, h := range test.names {
				env.Hubs = append(env.Hubs, hubaddr.Address{Host: h, Port: 443})
			}
			env.lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, &net.DNSError{IsTimeout: true} }
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				if !test.refuses || to.Port() != 53 {
					return deviceAnswer{}
				}
				return deviceAnswer{Data: dnsAnswer(t, packet, dnsmessage.RCodeServerFailure, netip.Addr{}, false)}.fitting(how)
			}
			a := deviceExpect(t, d.dnsCheck(), env, test.want)
			for _, blocked := range []Result{resultOf(t, "nat.udp", "", Fails("blocked")), resultOf(t, "nat.web", "", Fails("only443"))} {
				results := []Result{resultOf(t, "device.dns", "", a), blocked}
				explain(Table(), results)
				if own := results[0].Because == ""; own != test.own {
					t.Errorf("beside %s: because %q", blocked.Name(), results[0].Because)
				}
			}
		})
	}
}
