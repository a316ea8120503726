package doctor

import (
	"strings"
	"testing"

	"github.com/kithproject/kith/hub/hubaddr"
)

// TestFulfilled: where what a finding asks for is there already, its fix says that nothing
// has to be done.
func TestFulfilled(t *testing.T) {
	at := func(port uint16) []hubaddr.Address { return []hubaddr.Address{{Host: "hub.example", Port: port}} }
	web, other := at(443), at(8443)
	echo := func(state State, name string) Result { return Result{Code: "relays.echo", Subject: name, State: state} }
	medium := func(state State) Result {
		return Result{Code: "meeting.echo", Subject: "hub hub.example", State: state}
	}
	for name, c := range map[string]struct {
		env   *Env
		found string
		other Result
		want  string // "": as it stands in the table
	}{
		"a hard NAT, and a relay":          {&Env{Hubs: web}, "nat.mapping/hard", echo(Yes, "hub hub.example:443"), "Nothing has to be done, as the hub hub.example:443 relays already; for straight connections turn on UPnP or forward kith's UDP port in the router, turn off what it calls symmetric NAT or strict NAT, or use IPv6."},
		"a hard NAT, and a relay at 8443":  {&Env{Hubs: other}, "nat.mapping/hard", echo(Yes, "hub hub.example:8443"), "Nothing has to be done, as the hub hub.example:8443 relays already; "},
		"a relay, and one is away":         {&Env{Hubs: web, Peers: []Peer{{Name: "laptop"}}}, "nat.mapping/hard", echo(Yes, "hub hub.example:443"), "Leave it to the hub hub.example:443, which relays already; for straight connections turn on"},
		"the web, and one is away":         {&Env{Hubs: web, Peers: []Peer{{Name: "laptop"}}}, "nat.web/only443", echo(Yes, "hub hub.example:443"), "Leave it to the hub hub.example:443, which carries everything already; to have it faster"},
		"a hard NAT, and a deaf relay":     {&Env{Hubs: web}, "nat.mapping/hard", echo(No, "hub hub.example:443"), ""},
		"a hard NAT, and perhaps a relay":  {&Env{Hubs: web}, "nat.mapping/hard", echo(Unknown, "hub hub.example:443"), ""},
		"a hard NAT, and relays never":     {&Env{Hubs: web, Relay: "never"}, "nat.mapping/hard", echo(Yes, "hub hub.example:443"), ""},
		"a hard carrier NAT, and a relay":  {&Env{Hubs: web}, "nat.carrier/hard", echo(Yes, "hub hub.example:443"), "; for straight connections ask the provider for a public IPv4 address or for IPv6, or use another network."},
		"two hard NATs, and a relay":       {&Env{Hubs: web}, "nat.double/hard", echo(Yes, "hub hub.example:443"), "; for straight connections put one of the two routers into bridge mode, or turn off what they call symmetric NAT or strict NAT."},
		"the web alone, and a hub there":   {&Env{Hubs: web}, "nat.web/only443", echo(Yes, "hub hub.example:443"), "Nothing has to be done, as the hub hub.example:443 carries everything already; "},
		"the web alone, and another relay": {&Env{Hubs: other}, "nat.web/only443", echo(Yes, "hub hub.example:8443"), ""},
		"no multicast, and a hub":          {&Env{Peers: []Peer{{Name: "laptop", Connected: true}}}, "meeting.lan.multicast/dropped", medium(Yes), "Nothing has to be done, as devices meet elsewhere already (hub hub.example); "},
		"no multicast, and a hub is down":  {&Env{}, "meeting.lan.multicast/dropped", medium(Skipped), ""},
		"no multicast, and one is away":    {&Env{Peers: []Peer{{Name: "laptop"}}}, "meeting.lan.multicast/dropped", medium(Yes), ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, id, _ := strings.Cut(c.found, "/")
			r := Result{Code: Code(code), State: No, Finding: id}
			r.Fix = findingOf(Table(), r).Fix
			results := []Result{r, c.other}
			fulfil(Table(), c.env, results)
			got := results[0].Fix
			if c.want == "" && got != r.Fix || !strings.Contains(got, c.want) {
				t.Errorf("%q", got)
			}
			if !strings.HasSuffix(got, ".") || strings.Contains(got, ". ") {
				t.Errorf("not one sentence: %q", got)
			}
		})
	}
}

// TestHardFixes: all fixes that relaysAlready shortens end as it expects.
func TestHardFixes(t *testing.T) {
	for _, c := range Table() {
		for _, f := range c.Findings {
			if f.Severity == Limit && strings.Contains(f.Fix, orElse) && (f.Settled == nil || !strings.HasSuffix(f.Fix, ", "+orElse)) {
				t.Errorf("%s/%s: %q", c.Code, f.ID, f.Fix)
			}
		}
	}
}
