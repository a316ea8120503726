package lan

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

func testTopic() (topic rendezvous.Topic) {
	for i := range topic {
		topic[i] = byte(i)
	}
	return topic
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// vector is testdata/vectors.json; docs/protocol.md has the same numbers.
type vector struct {
	Topic      string              `json:"topic"`
	Seed       string              `json:"seed"`
	Interfaces []string            `json:"interface_addresses"`
	Groups     map[string][]string `json:"groups"`
}

func TestGroupVector(t *testing.T) {
	raw, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	topic := testTopic()
	seed := seedOf(topic)
	if got := hex.EncodeToString(topic[:]); got != v.Topic {
		t.Errorf("topic %s, want %s", got, v.Topic)
	}
	if got := hex.EncodeToString(seed[:]); got != v.Seed {
		t.Errorf("seed %s, want %s", got, v.Seed)
	}
	i := netmon.Interface{Name: "eth0", Addrs: prefixes(v.Interfaces...)}
	for _, scope := range []Scope{ScopeLink, ScopeSite, ScopeOrganisation} {
		var got []string
		for _, g := range seed.groups(scope, i) {
			got = append(got, g.String())
		}
		if !slices.Equal(got, v.Groups[scope.String()]) {
			t.Errorf("%v: %q, want %q", scope, got, v.Groups[scope.String()])
		}
	}
}

// TestGroupsByTheBook holds what the RFCs say of the addresses, for many topics.
func TestGroupsByTheBook(t *testing.T) {
	i := netmon.Interface{Addrs: prefixes("10.0.0.1/8", "2001:db8:1:2::3/64", "fd01:2:3:4::5/64", "fe80::1/64")}
	scopes := map[Scope]netip.Prefix{
		ScopeLink: netip.MustParsePrefix("239.255.0.0/16"), ScopeSite: netip.MustParsePrefix("239.255.0.0/16"),
		ScopeOrganisation: netip.MustParsePrefix("239.192.0.0/14"),
	}
	seen := make(map[netip.Addr]bool)
	for range 3000 {
		topic := randomTopic(t)
		for scope, v4 := range scopes {
			for _, g := range seedOf(topic).groups(scope, i) {
				b := g.As16()
				switch {
				case !g.IsMulticast():
					t.Fatalf("%v is no group", g)
				case g.Is4() && (!v4.Contains(g) || g.As4()[2] == 255):
					t.Fatalf("%v of scope %v: not in %v, or reserved (RFC 2365)", g, scope, v4)
				case g.Is4():
				case b[0] != 0xff || b[1]&15 != byte(scope) || b[12] < 0x80:
					t.Fatalf("%v of scope %v: RFC 4291 or 3307", g, scope)
				case b[1]>>4 == 3 && (b[2] != 0 || (b[3] != 64 && b[3] != 48) || (b[3] == 48 && (b[10] != 0 || b[11] != 0))):
					t.Fatalf("%v: RFC 3306", g)
				case b[1]>>4 != 1 && b[1]>>4 != 3:
					t.Fatalf("%v: flags", g)
				case seen[g]:
					t.Fatalf("%v a second time", g)
				}
				seen[g] = g.Is6()
			}
		}
	}
}

func TestUnicastPrefixes(t *testing.T) {
	for _, c := range []struct{ addrs, want string }{
		{"10.0.0.1/8 fe80::1/64", ""},
		{"2001:db8:1:2::3/128", "2001:db8:1:2::/64"},
		{"2001:db8:1:2::3/64 2001:db8:1:2::4/64", "2001:db8:1:2::/64"},
		{"fd01:2:3:4::5/64 fd01:2:3:9::5/64", "fd01:2:3::/48"},
		{"fd01:2:3:4::5/64 2001:db8::1/64 2001:db8:1::1/64", "2001:db8::/64 2001:db8:1::/64"}, // the first two
	} {
		i := netmon.Interface{Addrs: prefixes(strings.Fields(c.addrs)...)}
		var got []string
		for _, p := range unicastPrefixes(i) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.addrs, got, c.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		in     Config
		groups Groups
		scope  Scope
		hops   int
	}{
		{"nothing", Config{}, GroupsFixed, ScopeLink, 1},
		{"multicast only", Config{MulticastOnly: true}, GroupsBoth, ScopeLink, 1},
		{"hops", Config{HopLimit: 3}, GroupsBoth, ScopeSite, 3},
		{"too many hops", Config{HopLimit: 1000}, GroupsBoth, ScopeSite, 255},
		{"no hops", Config{HopLimit: -1}, GroupsFixed, ScopeLink, 1},
		{"scope", Config{Scope: ScopeOrganisation}, GroupsBoth, ScopeOrganisation, 1},
		{"chosen", Config{Groups: GroupsFixed, HopLimit: 3}, GroupsFixed, ScopeSite, 3},
	} {
		got, err := c.in.withDefaults()
		if err != nil || got.Groups != c.groups || got.Scope != c.scope || got.HopLimit != c.hops {
			t.Errorf("%s: groups %v, scope %v, %d hops, %v", c.name, got.Groups, got.Scope, got.HopLimit, err)
		}
	}
	for _, bad := range []Config{{MulticastOnly: true, DisableMulticast: true}, {Scope: 3}} {
		if e, err := New(bad); err == nil {
			e.Close()
			t.Errorf("%+v is taken", bad)
		}
	}
}

// TestHopTable holds that the table of senders stays small and keeps the newest.
func TestHopTable(t *testing.T) {
	table := hopTable{}
	start := time.Unix(0, 0)
	key := func(n int) hopKey {
		return hopKey{1, Group4(), netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})}
	}
	for n := range 1000 {
		table.add(key(n), n%5, start.Add(time.Duration(n)*time.Second))
		table.add(key(0), 7+n%3, start.Add(time.Duration(n)*time.Second+1)) // one that is heard again and again
	}
	if len(table) != maxHops {
		t.Errorf("%d senders, want %d", len(table), maxHops)
	}
	if h := table[key(0)]; h.Most != 9 || h.Least != 0 || h.Last != 7 {
		t.Errorf("%+v", h)
	}
	if _, ok := table[key(999)]; !ok {
		t.Error("the newest is not there")
	}
	if _, ok := table[key(500)]; ok {
		t.Error("an old one is there")
	}
}

// TestDeafness holds when a group is joined again that gives nothing back.
func TestDeafness(t *testing.T) {
	g := newGroups(1, 1, 1, Group4(), Group6(), nil, nil)
	c, err := openConn(false, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.udp.Close()
	c.tells = true
	now := time.Unix(1000, 0)
	m := &member{conn: c}
	c2 := &conn{udp: c.udp, p4: c.p4} // of a platform that does not tell what comes back
	for n := range 100 {
		if g.lost(memberKey{1, Group4()}, &member{conn: c2, unheard: n}, now.Add(time.Hour)) {
			t.Fatal("joined again although nothing can be known")
		}
	}
	var after []time.Duration // how long after the one before
	last := now
	for range 20_000 {
		if g.lost(memberKey{1, Group4()}, m, now) {
			after = append(after, now.Sub(last))
			last = now
			m.conn, m.unheard = c, 0 // joined again, without success
		}
		now = now.Add(100 * time.Millisecond)
	}
	if len(after) < 5 || after[0] != deafAfter {
		t.Fatalf("joined again after %v", after)
	}
	for i, d := range after[1:] {
		if d < after[i] || d > 2*after[i]+time.Second || d > deafMax+time.Second {
			t.Errorf("joined again after %v", after)
			break
		}
	}
}
