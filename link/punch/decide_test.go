package punch

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestDecideEveryPair is the table of roles: who does what, kind by kind. It also
// proves by simulation that plain punching works exactly where RoleNone says so.
func TestDecideEveryPair(t *testing.T) {
	group := map[string]string{
		"none": "open", "full cone": "open", "firewalled": "easy", "easy": "easy", "restricted": "restricted",
		"random": "random", "random adm": "random",
		"sequential": "guessable", "down by two": "guessable", "sequential adm": "guessable", "block 512": "guessable", "block 1024": "guessable",
	}
	want := map[[2]string]Role{
		{"open", "open"}: RoleNone, {"open", "easy"}: RoleNone, {"open", "restricted"}: RoleNone, {"open", "random"}: RoleNone, {"open", "guessable"}: RoleNone,
		{"easy", "easy"}: RoleNone, {"easy", "restricted"}: RoleNone, {"easy", "random"}: RoleProber, {"easy", "guessable"}: RoleProber,
		{"restricted", "restricted"}: RoleNone, {"restricted", "random"}: RoleNone, {"restricted", "guessable"}: RoleNone,
		{"random", "random"}: RoleHopeless, {"random", "guessable"}: RoleHopeless,
		{"guessable", "guessable"}: RoleBoth,
	}
	for i, ka := range natKinds {
		for _, kb := range natKinds[i:] {
			t.Run(ka+" with "+kb, func(t *testing.T) {
				ga, gb := group[ka], group[kb]
				role, ok := want[[2]string{ga, gb}]
				if !ok {
					role = mirror(want[[2]string{gb, ga}])
				}
				for seed := range uint64(30) {
					rng := rand.New(rand.NewPCG(seed, 5))
					a, b := natOf(ka, publicA, rng), natOf(kb, publicB, rng)
					ba, bb := Classify(a.sample()), Classify(b.sample())
					if strings.HasPrefix(ka, "block") && ba.block() == 0 || strings.HasPrefix(kb, "block") && bb.block() == 0 {
						continue // too few samples to tell: 1 in 20
					}
					p, q := Decide(ba, bb), Decide(bb, ba)
					if p.Role == RoleHopeless && p.Role != role && role == RoleBoth && (ba.block() > 800 || bb.block() > 800) {
						continue // the block was taken for a larger one, beyond what is worth it
					}
					if p.Role != role || q.Role != mirror(role) {
						t.Fatalf("%v and %v (%s), want %v\n%+v\n%+v", p.Role, q.Role, p.Reason, role, ba, bb)
					}
					if works := plain(a, b); works != (role == RoleNone) {
						t.Fatalf("plain punching works: %v, but the role is %v", works, role)
					}
				}
			})
		}
	}
}

func mirror(r Role) Role {
	switch r {
	case RoleOpener:
		return RoleProber
	case RoleProber:
		return RoleOpener
	}
	return r
}

func TestDecideByHand(t *testing.T) {
	easy := Behaviour{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent, Public: publicA, LastPort: 4000}
	random := Behaviour{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Public: publicB, LastPort: 5000}
	with := func(b Behaviour, f func(*Behaviour)) Behaviour { f(&b); return b }
	for _, c := range []struct {
		name       string
		self, peer Behaviour
		want       Plan
	}{
		{"nothing known", Behaviour{}, Behaviour{}, Plan{Role: RoleNone, Plain: true}},
		{"opener", random, easy, Plan{Role: RoleOpener, Sockets: 256, Target: netip.MustParseAddrPort("198.51.100.7:4000"), Chance: Chance(256, anyPorts, AttemptProbes)}},
		{"prober", easy, random, Plan{Role: RoleProber, Target: netip.AddrPortFrom(publicB, 0), Chance: Chance(256, anyPorts, AttemptProbes)}},
		{"the peer never sampled", random, Behaviour{}, Plan{Role: RoleOpener, Sockets: 256, Plain: true, Chance: Chance(256, anyPorts, AttemptProbes)}},
		{"unknown filter", with(easy, func(b *Behaviour) { b.Filtering = Unknown }), random,
			Plan{Role: RoleProber, Plain: true, Target: netip.AddrPortFrom(publicB, 0), Chance: Chance(256, anyPorts, AttemptProbes)}},
		{"no address to probe", easy, with(random, func(b *Behaviour) { b.Public = netip.Addr{} }), Plan{Role: RoleHopeless}},
		{"many addresses", easy, with(random, func(b *Behaviour) { b.Pooled = true }), Plan{Role: RoleHopeless}},
		{"many addresses, but open", with(easy, func(b *Behaviour) { b.Filtering = EndpointIndependent }), with(random, func(b *Behaviour) { b.Pooled = true }), Plan{Role: RoleNone, Chance: 1}},
		{"many addresses, filter by address", with(easy, func(b *Behaviour) { b.Filtering = AddressDependent }), with(random, func(b *Behaviour) { b.Pooled = true }), Plan{Role: RoleHopeless}},
		{"hard, but open", random, with(random, func(b *Behaviour) { b.Filtering = EndpointIndependent }), Plan{Role: RoleNone, Chance: 1}},
		{"blocks too large", with(random, func(b *Behaviour) { b.BlockLow, b.BlockHigh = 2048, 4095 }), with(random, func(b *Behaviour) { b.BlockLow, b.BlockHigh = 4096, 6143 }), Plan{Role: RoleHopeless}},
		{"fewer sockets in a block", with(random, func(b *Behaviour) { b.BlockLow, b.BlockHigh = 2048, 2303 }), easy,
			Plan{Role: RoleOpener, Sockets: 32, Target: netip.MustParseAddrPort("198.51.100.7:4000"), Chance: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Decide(c.self, c.peer)
			if got.Reason == "" {
				t.Error("no reason given")
			}
			got.Reason, got.self, got.peer = "", Behaviour{}, Behaviour{}
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
	if got := Decide(random, random).Reason; got != "both sides are behind NATs that choose a random port per destination" {
		t.Errorf("hopeless: %q", got)
	}
}

// anyBehaviour draws a behaviour that can be encoded.
func anyBehaviour(t *rapid.T, label string) Behaviour {
	b := Behaviour{
		Mapping:      Rule(rapid.IntRange(0, int(rules)-1).Draw(t, label+" mapping")),
		Filtering:    Rule(rapid.IntRange(0, int(rules)-1).Draw(t, label+" filtering")),
		Preserves:    rapid.Bool().Draw(t, label+" preserves"),
		Pooled:       rapid.IntRange(0, 9).Draw(t, label+" pooled") == 0,
		Delta:        rapid.OneOf(rapid.Just(0), rapid.IntRange(-MaxDelta, MaxDelta)).Draw(t, label+" delta"),
		LastPort:     rapid.Uint16().Draw(t, label+" last"),
		SampledPorts: rapid.Uint8().Draw(t, label+" sampled"),
	}
	if rapid.Bool().Draw(t, label+" has block") {
		b.BlockLow = rapid.Uint16Range(1, 65535).Draw(t, label+" low")
		b.BlockHigh = rapid.Uint16Range(b.BlockLow, 65535).Draw(t, label+" high")
	}
	if rapid.IntRange(0, 9).Draw(t, label+" has address") > 0 {
		b.Public = netip.AddrFrom4([4]byte{198, 51, 100, rapid.Byte().Draw(t, label+" address")})
	}
	return b
}

// TestRolesFit holds that both sides decide on roles that fit, that a plan that
// shoots can be carried out, and that an attempt keeps to its bounds.
func TestRolesFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyBehaviour(t, "a"), anyBehaviour(t, "b")
		p, q := Decide(a, b), Decide(b, a)
		if q.Role != mirror(p.Role) || p.Flows != q.Flows || p.Chance != q.Chance || p.Plain != q.Plain || p.Reason != q.Reason {
			t.Fatalf("%+v\n%+v", p, q)
		}
		if p.Reason == "" || p.Chance < 0 || p.Chance > 1 {
			t.Fatalf("%+v", p)
		}
		attempt, err := NewAttempt(p, NewPorts(b, 1), 2, epoch)
		switch p.Role {
		case RoleNone, RoleHopeless:
			if err == nil {
				t.Fatalf("an attempt for role %v", p.Role)
			}
			return
		case RoleOpener:
			if (err == nil) != p.Target.IsValid() {
				t.Fatalf("target %v: %v", p.Target, err)
			}
		default:
			if err != nil {
				t.Fatal(err)
			}
		}
		if err == nil {
			checkAttempt(t, attempt, p)
		}
	})
}
