package doctor

import (
	"context"
	"net/netip"
	"regexp"
	"testing"

	"github.com/kithproject/kith/internal/nettest"
)

// TestWayReal follows packets to a device behind another router.
func TestWayReal(t *testing.T) {
	inet := nettest.New(t).Internet()
	home, away := inet.Site("home", nettest.NATCGN), inet.Site("away", nettest.NATEasy)
	desk := home.Host("desk")
	p := Peer{Named: true, Candidates: func() []Candidate {
		return []Candidate{{Remote: netip.AddrPortFrom(away.Public(), 4000), Kind: "reflexive"}}
	}}
	got := hopper(func(ctx context.Context, env *Env, to netip.AddrPort, ttl int) (router netip.Addr) {
		desk.Do(func() { router = hop(ctx, env, to, ttl) })
		return router
	}).ways(t.Context(), &Env{Pacer: NewPacer()}, p)
	// The carrier's router, and one of the internet.
	want := regexp.MustCompile(`^the way to ` + away.Public().String() + ": " + home.Gateway().String() + `, 100\.64\.\d+\.1, 11\.\d+\.\d+\.\d+, then silence$`)
	if len(got) != 1 || !want.MatchString(got[0]) {
		t.Errorf("%q, want %v", got, want)
	}
}
