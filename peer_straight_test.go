package kith

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

// TestWhyRelayed accuses no network of which nothing bad is known.
func TestWhyRelayed(t *testing.T) {
	at := func(kind signaling.Kind, addr string) signaling.Candidate {
		return signaling.Candidate{Kind: kind, Addr: netip.MustParseAddrPort(addr)}
	}
	home := at(signaling.Host, "192.168.1.20:1")
	inside, outside := []signaling.Candidate{home}, []signaling.Candidate{home, at(signaling.Reflexive, "203.0.113.7:1")}
	easy := punch.Behaviour{Public: netip.MustParseAddr("203.0.113.7")} // as one hub shows it
	hard := punch.Behaviour{Public: easy.Public, Mapping: punch.AddressDependent, Pooled: true}
	for name, test := range map[string]struct {
		policy RelayPolicy
		inVain bool
		self   punch.Behaviour
		nat    punch.Behaviour
		named  []signaling.Candidate
		want   string
	}{
		"two easy NATs and one hub":             {self: easy, nat: easy, named: outside, want: "no hole"},
		"servers are still asked":               {nat: easy, named: outside, want: "no hole"},
		"UDP is blocked here":                   {inVain: true, nat: easy, named: outside, want: "of this network"},
		"UDP is blocked there":                  {self: easy, named: inside, want: "of its network"},
		"only its addresses tell":               {self: easy, named: outside, want: "no hole"},
		"a public address there":                {self: easy, named: []signaling.Candidate{at(signaling.Host, "[2001:db8::1]:1")}, want: "no hole"},
		"its port is mapped":                    {self: easy, named: []signaling.Candidate{home, at(signaling.Mapped, "203.0.113.7:2")}, want: "no hole"},
		"not heard yet":                         {self: easy, want: "no hole"},
		"relays alone there":                    {self: easy, named: []signaling.Candidate{at(signaling.Relayed, "198.51.100.1:3")}, want: "other device allows relays"},
		"relays alone here":                     {policy: RelayAlways, inVain: true, want: "kith config relay always"},
		"a NAT that is as bad as it is told":    {self: hard, nat: easy, named: outside, want: "changes the public address"},
		"blocked there, with a relay's address": {self: easy, named: []signaling.Candidate{home, at(signaling.Relayed, "198.51.100.1:3")}, want: "of its network"},
	} {
		got := whyRelayed(test.policy, test.inVain, test.self, said{nat: test.nat, where: whereaboutsOf(test.named)})
		if !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// TestDescribeNAT shows an outside address whenever one is known.
func TestDescribeNAT(t *testing.T) {
	four, six := netip.MustParseAddr("203.0.113.7"), []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::7]:1")}
	for want, b := range map[string]punch.Behaviour{
		"":                    {},
		"203.0.113.7, a NAT":  {Public: four},
		"203.0.113.7, no NAT": {Public: four, Mapping: punch.None},
		"203.0.113.7, a NAT that keeps one port for all (easy)": {Public: four, Mapping: punch.EndpointIndependent},
	} {
		if got := describeNAT(b, nil); got != want {
			t.Errorf("%+v: %q, want %q", b, got, want)
		}
	}
	if got := describeNAT(punch.Behaviour{}, six); got != "2001:db8::7" {
		t.Errorf("IPv6 alone: %q", got)
	}
}
