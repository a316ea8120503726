package doctor

import (
	"net/netip"
	"testing"

	"github.com/kithproject/kith/internal/nettest"
)

// TestHop sees which router drops a packet.
func TestHop(t *testing.T) {
	inet := nettest.New(t).Internet()
	far := inet.Server("far").Addrs()[0]
	site := inet.Site("home", nettest.NATCGN)
	home := site.Host("desk")
	for _, test := range []struct {
		to   netip.Addr
		ttl  int
		want string
	}{
		{far, 1, site.Gateway().String()},
		{far, 2, "100.64.2.1"},
		{site.Public(), 1, site.Gateway().String()},
		{site.Public(), 2, "invalid IP"}, // it is the carrier's router itself
	} {
		var got netip.Addr
		home.Do(func() { got = hop(t.Context(), new(Env), netip.AddrPortFrom(test.to, ownedPort), test.ttl) })
		if got.String() != test.want {
			t.Errorf("%d hops to %s: %s, want %s", test.ttl, test.to, got, test.want)
		}
	}
}
