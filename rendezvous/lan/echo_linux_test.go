package lan

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// ways asks until every way of want was seen, or not one more can come, and returns
// what was: "asked-came".
func (d *device) ways(want []string, to ...netip.Addr) []string {
	d.t.Helper()
	var seen []string
	for range 20 {
		ctx, cancel := context.WithTimeout(d.t.Context(), 150*time.Millisecond)
		answers, err := d.Echo(ctx, to...)
		cancel()
		if err != nil {
			d.t.Fatal(err)
		}
		for _, a := range answers {
			if way := fmt.Sprintf("%v-%v", a.Asked, a.Came); !a.Own && !slices.Contains(seen, way) {
				seen = append(seen, way)
			}
			if a.Asked == ByMulticast && a.HopsThere != 1 || a.Came == ByMulticast && a.HopsHere != 1 || a.Interface != "eth0" || a.Took <= 0 {
				d.t.Errorf("%+v", a)
			}
		}
		if missing := slices.DeleteFunc(slices.Clone(want), func(w string) bool { return slices.Contains(seen, w) }); len(missing) == 0 && len(want) > 0 {
			break
		}
	}
	slices.Sort(seen)
	return seen
}

// TestEcho asks on networks that let only some ways pass.
func TestEcho(t *testing.T) {
	all := []string{"broadcast-multicast", "broadcast-unicast", "multicast-multicast", "multicast-unicast", "unicast-multicast", "unicast-unicast"}
	for name, c := range map[string]struct {
		rules [2]string
		want  []string
	}{
		"all":          {want: all},
		"no multicast": {[2]string{dropGroups, dropGroups}, []string{"broadcast-unicast", "unicast-unicast"}},
		"the asker hears none": {
			[2]string{dropGroups, ""},
			[]string{"broadcast-unicast", "multicast-unicast", "unicast-unicast"},
		},
		"the other hears none": {
			[2]string{"", dropGroups},
			[]string{"broadcast-multicast", "broadcast-unicast", "unicast-multicast", "unicast-unicast"},
		},
		"nothing passes": {[2]string{"table inet f { chain in { type filter hook input priority 0; meta l4proto udp drop; }; }", ""}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := nettest.New(t)
			br := l.Bridge("lan")
			var d [2]*device
			for i := range d {
				h := l.Host(fmt.Sprint("h", i)).Attach(br, fmt.Sprintf("10.0.0.%d/24", i+1))
				if c.rules[i] != "" {
					h.Nft(c.rules[i])
				}
				d[i] = open(t, h, Config{})
			}
			if got := d[0].ways(c.want, netip.MustParseAddr("10.0.0.2")); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestEchoFarAway: who is not on the link is not answered.
func TestEchoFarAway(t *testing.T) {
	l := nettest.New(t)
	here, there := l.Bridge("here"), l.Bridge("there")
	l.Host("r").Router().Attach(here, "10.0.0.254/24").Attach(there, "10.0.1.254/24")
	open(t, l.Host("a").Attach(here, "10.0.0.1/24").Route("default", "via", "10.0.0.254"), Config{})
	near := open(t, l.Host("b").Attach(here, "10.0.0.2/24").Route("default", "via", "10.0.0.254"), Config{})
	far := open(t, l.Host("c").Attach(there, "10.0.1.1/24").Route("default", "via", "10.0.1.254"), Config{})
	asked := netip.MustParseAddr("10.0.0.1")
	if got := near.ways([]string{"unicast-unicast"}, asked); !slices.Contains(got, "unicast-unicast") {
		t.Fatalf("not answered on the link: %q", got)
	}
	if got := far.ways(nil, asked); len(got) > 0 {
		t.Errorf("answered beyond the router: %q", got)
	}
}

// dropGroups drops what comes to groups.
const dropGroups = `table inet f { chain in { type filter hook input priority 0; ip daddr 224.0.0.0/4 drop; ip6 daddr ff00::/8 udp dport 27491 drop; }; }`

// TestMDNSHeard: what another host says by mDNS counts.
func TestMDNSHeard(t *testing.T) {
	l := nettest.New(t)
	br := l.Bridge("lan")
	a := open(t, l.Host("a").Attach(br, "10.0.0.1/24"), Config{})
	b := open(t, l.Host("b").Attach(br, "10.0.0.2/24"), Config{})
	a.await("hears mDNS", func() bool {
		b.AskMDNS()
		return slices.ContainsFunc(a.MDNS(), func(m Membership) bool {
			return m.Received > 0 && len(m.HopsSeen) > 0 && m.HopsSeen[0].Last == mdnsHops
		})
	})
}
