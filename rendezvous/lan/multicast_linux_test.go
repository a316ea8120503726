package lan

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/rendezvous"
)

// TestMulticastAlone has two devices talk that cannot reach each other by
// unicast, and records that none was tried.
func TestMulticastAlone(t *testing.T) {
	for _, c := range []struct {
		name   string
		no6    bool
		addrs  [2][]string
		expect func(netip.Addr) bool // senders that may be seen
	}{
		{"IPv4", true, [2][]string{{"10.0.0.1/24"}, {"10.0.0.2/24"}}, netip.Addr.Is4},
		{"IPv4 of different networks", true, [2][]string{{"10.0.0.1/24"}, {"172.16.9.2/24"}}, netip.Addr.Is4},
		{"IPv6", false, [2][]string{{"fd00::1/64"}, {"fd00::2/64"}}, netip.Addr.Is6},
		{"IPv6 link-local", false, [2][]string{nil, nil}, netip.Addr.Is6},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := nettest.New(t)
			br := l.Bridge("lan")
			var hosts [2]*nettest.Host
			for i := range hosts {
				hosts[i] = l.Host(fmt.Sprint("h", i))
				if c.no6 {
					ipv4Only(t, hosts[i])
				}
				hosts[i].Attach(br, c.addrs[i]...)
				hosts[i].Nft(unicastBlocked)
			}
			topic := randomTopic(t)

			// Unicast is blocked indeed.
			u0, u1 := open(t, hosts[0], Config{DisableMulticast: true, DisableMDNS: true}), open(t, hosts[1], Config{DisableMulticast: true, DisableMDNS: true})
			s0 := u0.join(rendezvous.Point{Topic: topic, Endpoints: u1.Endpoints()})
			s1 := u1.join(rendezvous.Point{Topic: topic})
			if _, _, ok := passes(t, s0, s1, 1, 200*time.Millisecond); ok {
				t.Fatal("unicast passes: nothing is shown")
			}

			rec := br.Record()
			cfg := Config{MulticastOnly: true}
			a, b := open(t, hosts[0], cfg), open(t, hosts[1], cfg)
			if got := a.Endpoints(); got != nil {
				t.Errorf("a device of multicast alone names the endpoints %v", got)
			}
			ends := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:9"), netip.MustParseAddrPort("[fd00::2]:9")}
			sa := a.join(rendezvous.Point{Topic: topic, Endpoints: ends, Announce: true})
			sb := b.join(rendezvous.Point{Topic: topic, Endpoints: ends, Announce: true})
			both(t, sa, sb, 10)
			m, took, ok := passes(t, sa, sb, 12, 5*time.Second)
			if !ok || !c.expect(m.From.Addr()) {
				t.Errorf("a frame from %v, %v", m.From, ok)
			}
			t.Logf("a frame took %v", took)
			frames := 0
			for _, p := range udpPackets(rec.Stop()) {
				switch {
				case !p.to.IsMulticast():
					t.Errorf("a datagram of %d bytes went to %v", len(p.payload), p.to)
				case len(p.payload) == datagramSize:
					frames++
				}
			}
			if frames < 3 {
				t.Errorf("%d frames recorded", frames)
			}
		})
	}
}

// TestGroupsOfTopics lets only some groups pass, so that each kind is seen to
// work by itself.
func TestGroupsOfTopics(t *testing.T) {
	for _, c := range []struct {
		name  string
		scope Scope
		pass  string // what of the datagrams to the port passes, for nft
		group func(topicSeed) netip.Addr
	}{
		{"IPv4 link", ScopeLink, "ip daddr 239.255.0.0/16", func(s topicSeed) netip.Addr { return s.group4(ScopeLink) }},
		{"IPv4 organisation", ScopeOrganisation, "ip daddr 239.192.0.0/14", func(s topicSeed) netip.Addr { return s.group4(ScopeOrganisation) }},
		{"IPv6 link", ScopeLink, "ip6 daddr ff12::/16", func(s topicSeed) netip.Addr { return s.group6(ScopeLink) }},
		{"IPv6 site", ScopeSite, "ip6 daddr ff15::/16", func(s topicSeed) netip.Addr { return s.group6(ScopeSite) }},
		{"IPv6 organisation", ScopeOrganisation, "ip6 daddr ff18::/16", func(s topicSeed) netip.Addr { return s.group6(ScopeOrganisation) }},
		{"IPv6 by the site's prefix", ScopeSite, "ip6 daddr ff35:30:fd12:3456:789a::/80", func(s topicSeed) netip.Addr {
			return s.groupPrefix(ScopeSite, netip.MustParsePrefix("fd12:3456:789a::/48"))
		}},
		{"IPv6 by a global prefix", ScopeOrganisation, "ip6 daddr ff38:40:2001:db8:0:1::/96", func(s topicSeed) netip.Addr {
			return s.groupPrefix(ScopeOrganisation, netip.MustParsePrefix("2001:db8:0:1::/64"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := nettest.New(t)
			br := l.Bridge("lan")
			rules := "table inet f { chain in { type filter hook input priority 0; meta l4proto != udp accept; " +
				"ip daddr 239.255.107.105 drop; ip6 daddr ff12::6b69:7468 drop; " + c.pass + " udp dport 27491 accept; drop; }; }"
			ha := l.Host("a").Attach(br, "10.0.0.1/24", "fd12:3456:789a:1::1/64", "2001:db8:0:1::1/64")
			hb := l.Host("b").Attach(br, "10.0.0.2/24", "fd12:3456:789a:2::2/64", "2001:db8:0:1::2/64")
			ha.Nft(rules)
			hb.Nft(rules)
			cfg := Config{Groups: GroupsBoth, Scope: c.scope}
			a, b := open(t, ha, cfg), open(t, hb, cfg)
			topic := randomTopic(t)
			sa, sb := a.join(rendezvous.Point{Topic: topic}), b.join(rendezvous.Point{Topic: topic})
			both(t, sa, sb, 1)
			want := c.group(seedOf(topic))
			m := find(t, b, want)
			if !m.Joined || m.Received == 0 || m.Sent == 0 || m.Scope != c.scope || !m.Derived || m.Interface != "eth0" {
				t.Errorf("%+v", m)
			}
			if len(m.HopsSeen) != 1 || m.HopsSeen[0].Last != 1 {
				t.Errorf("senders seen: %+v, want one with hop limit 1", m.HopsSeen)
			}
			// A closed session leaves its groups, and only those.
			sb.Close()
			for _, m := range b.Multicast() {
				if m.Derived {
					t.Errorf("still used: %+v", m)
				}
			}
			if got := hb.Output(t.Context(), "ip", "maddr", "show", "dev", "eth0"); strings.Contains(got, want.String()) {
				t.Errorf("the system is still in %v:\n%s", want, got)
			}
			if m := find(t, b, Group4()); !m.Joined {
				t.Errorf("%+v", m)
			}
		})
	}
}

func find(t *testing.T, d *device, group netip.Addr) Membership {
	t.Helper()
	for _, m := range d.Multicast() {
		if m.Group == group {
			return m
		}
	}
	t.Fatalf("%v is not used: %+v", group, d.Multicast())
	return Membership{}
}

// TestManyGroups joins more groups than one socket may, and more topics than have
// groups.
func TestManyGroups(t *testing.T) {
	l := nettest.New(t)
	br := l.Bridge("lan")
	ha, hb := l.Host("a"), l.Host("b")
	ipv4Only(t, ha)
	ipv4Only(t, hb)
	ha.Attach(br, "10.0.0.1/24")
	hb.Attach(br, "10.0.0.2/24").Nft("table inet f { chain in { type filter hook input priority 0; ip daddr 239.255.107.105 drop; }; }")
	a, b := open(t, ha, Config{MulticastOnly: true}), open(t, hb, Config{MulticastOnly: true})
	const over = 6
	type pair struct{ a, b rendezvous.Session }
	var all []pair
	for range maxTopics + over {
		topic := randomTopic(t)
		all = append(all, pair{a.join(rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly}), b.join(rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})})
	}
	for i, p := range all[:maxTopics] { // the fixed group is dropped: each by its own
		if _, _, ok := passes(t, p.a, p.b, byte(i+1), 10*time.Second); !ok {
			t.Fatalf("no frame of topic %d; %s", i, b.Health().Detail)
		}
	}
	// However many sockets there are, a datagram comes once.
	sent := make(map[netip.Addr]uint64)
	for _, m := range a.Multicast() {
		sent[m.Group] = m.Sent
	}
	for _, m := range b.Multicast() {
		if m.Derived && (m.Received == 0 || m.Received > sent[m.Group]) {
			t.Errorf("%d datagrams of %d came in %v", m.Received, sent[m.Group], m.Group)
		}
	}
	b.groups.mu.Lock()
	sockets := len(b.groups.conns[0])
	b.groups.mu.Unlock()
	if sockets < 2 {
		t.Errorf("%d sockets joined %d groups", sockets, maxTopics)
	}
	if h := b.Health(); !h.Ready || !strings.Contains(h.Detail, fmt.Sprintf("%d topics beyond %d use the fixed groups alone", over, maxTopics)) {
		t.Errorf("health: %+v", h)
	}
	if _, _, ok := passes(t, all[maxTopics].a, all[maxTopics].b, 200, 100*time.Millisecond); ok {
		t.Error("a topic without a group of its own came through although the fixed group is dropped")
	}
	// Room that is made is used.
	all[0].b.Close()
	if _, _, ok := passes(t, all[maxTopics].a, all[maxTopics].b, 201, 10*time.Second); !ok {
		t.Errorf("a topic did not get the group that became free; %s", b.Health().Detail)
	}
	// Without the firewall the fixed group serves the others.
	hb.Nft("flush ruleset")
	if _, _, ok := passes(t, all[maxTopics+1].a, all[maxTopics+1].b, 202, 10*time.Second); !ok {
		t.Errorf("the fixed group did not serve; %s", b.Health().Detail)
	}
}

// TestNoRoom gives the system no room for groups at all beyond the fixed one.
func TestNoRoom(t *testing.T) {
	l := nettest.New(t)
	br := l.Bridge("lan")
	ha, hb := l.Host("a"), l.Host("b")
	for _, h := range []*nettest.Host{ha, hb} {
		ipv4Only(t, h)
		h.Output(t.Context(), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/igmp_max_memberships")
	}
	a, b := open(t, ha.Attach(br, "10.0.0.1/24"), Config{MulticastOnly: true}), open(t, hb.Attach(br, "10.0.0.2/24"), Config{MulticastOnly: true})
	var sa, sb rendezvous.Session
	for range maxConns + 3 { // one group per socket, and one socket has the fixed group
		topic := randomTopic(t)
		sa, sb = a.join(rendezvous.Point{Topic: topic}), b.join(rendezvous.Point{Topic: topic})
	}
	if h := b.Health(); !h.Ready || !strings.Contains(h.Detail, "4 groups of topics not joined") {
		t.Errorf("health: %+v", h)
	}
	both(t, sa, sb, 1)
}

// TestLinkChanges takes link and addresses away and gives them back.
func TestLinkChanges(t *testing.T) {
	l := nettest.New(t)
	br := l.Bridge("lan")
	ha := l.Host("a").Attach(br, "10.0.0.1/24", "fd00::1/64")
	hb := l.Host("b").Attach(br, "10.0.0.2/24", "fd00::2/64")
	cfg := Config{MulticastOnly: true, Scope: ScopeSite}
	a, b := open(t, ha, cfg), open(t, hb, cfg)
	topic := randomTopic(t)
	sa, sb := a.join(rendezvous.Point{Topic: topic}), b.join(rendezvous.Point{Topic: topic})
	both(t, sa, sb, 1)
	ready := func() bool { return b.Health().Ready }

	hb.IP("link", "set", "eth0", "down")
	b.await("without a link", func() bool { return !ready() })
	hb.IP("link", "set", "eth0", "up")
	b.await("ready again", ready)
	both(t, sa, sb, 10)

	hb.IP("addr", "flush", "dev", "eth0")
	b.await("without an address", func() bool { return !ready() })
	hb.Addr("eth0", "10.0.7.7/24")
	b.await("ready with another IPv4 address", ready)
	m, _, ok := passes(t, sb, sa, 20, 10*time.Second)
	if !ok || m.From.Addr() != netip.MustParseAddr("10.0.7.7") {
		t.Errorf("from %v, %v", m.From, ok)
	}
	both(t, sa, sb, 30)

	// With another address the network may be another, and is told of the groups.
	group := seedOf(topic).group4(ScopeSite)
	before := find(t, b, group).Joins
	hb.Addr("eth0", "10.0.8.8/24")
	b.await("telling its groups again", func() bool { m := find(t, b, group); return m.Joined && m.Joins == before+1 })

	// A network of its own prefix has its own group.
	hb.Addr("eth0", "fd99::2/64")
	want := seedOf(topic).groupPrefix(ScopeSite, netip.MustParsePrefix("fd99::/48"))
	b.await("in the group of the new prefix", func() bool {
		for _, m := range b.Multicast() {
			if m.Group == want && m.Joined {
				return true
			}
		}
		return false
	})

	// Another interface, as when an adapter is plugged in again.
	hb.IP("link", "del", "eth0")
	b.await("without an interface", func() bool { return !ready() })
	hb.Attach(br, "10.0.0.3/24")
	b.await("ready on the new interface", ready)
	both(t, sa, sb, 40)
}

// TestLostMembership has the system forget a membership without a change that
// anybody is told of: what a device sends itself shows it.
func TestLostMembership(t *testing.T) {
	l := nettest.New(t)
	br := l.Bridge("lan")
	ha, hb := l.Host("a").Attach(br, "10.0.0.1/24"), l.Host("b")
	ipv4Only(t, hb)
	hb.Attach(br, "10.0.0.2/24")
	a := open(t, ha, Config{MulticastOnly: true})
	b := openWith(t, hb, Config{MulticastOnly: true, Monitor: monitor(hb)}) // it does not run
	topic := randomTopic(t)
	sa, sb := a.join(rendezvous.Point{Topic: topic}), b.join(rendezvous.Point{Topic: topic})
	both(t, sa, sb, 1)
	forget := func() {
		b.groups.mu.Lock()
		defer b.groups.mu.Unlock()
		for key, m := range b.groups.members { // what the system has no longer, and nobody knows
			if m.conn != nil {
				_ = m.conn.leave(key.index, key.group)
			}
		}
	}
	forget()
	if _, _, ok := passes(t, sa, sb, 10, 100*time.Millisecond); ok {
		t.Fatal("a frame came without a membership")
	}
	// b sends, as every device does now and then, and hears nothing of it.
	if _, _, ok := passes(t, sb, sb, 12, 20*time.Second); !ok {
		t.Error("b does not hear itself again")
	}
	both(t, sa, sb, 20)
	forget()
	b.Check() // does it at once
	both(t, sa, sb, 30)
}

// TestChosenInterface gives one of three interfaces to kith.
func TestChosenInterface(t *testing.T) {
	l := nettest.New(t)
	var bridges []*nettest.Bridge
	h := l.Host("host")
	var peers []*device
	for i := range 3 {
		br := l.Bridge(fmt.Sprint("n", i))
		h.Attach(br, fmt.Sprintf("10.%d.0.1/24", i), fmt.Sprintf("fd0%d::1/64", i))
		peers = append(peers, open(t, l.Host(fmt.Sprint("peer", i)).Attach(br, fmt.Sprintf("10.%d.0.2/24", i), fmt.Sprintf("fd0%d::2/64", i)), Config{}))
		bridges = append(bridges, br)
	}
	topic := randomTopic(t)
	var sessions []rendezvous.Session
	var ends []netip.AddrPort
	for _, p := range peers {
		sessions = append(sessions, p.join(rendezvous.Point{Topic: topic, Announce: true}))
		ends = append(ends, p.Endpoints()[0])
	}
	rec := []*nettest.Recording{bridges[0].Record(), bridges[1].Record(), bridges[2].Record()}
	d := open(t, h, Config{Interfaces: []string{"eth1", "eth7"}, Groups: GroupsBoth, Scope: ScopeSite})
	s := d.join(rendezvous.Point{Topic: topic, Endpoints: ends, Announce: true})
	if got := d.Health(); !got.Ready || !strings.Contains(got.Detail, "on eth1 (") || !strings.Contains(got.Detail, "eth7 is not up") {
		t.Errorf("health: %+v", got)
	}
	for _, e := range d.Endpoints() {
		if !netip.MustParsePrefix("10.1.0.0/24").Contains(e.Addr()) && !netip.MustParsePrefix("fd01::/64").Contains(e.Addr()) && !e.Addr().IsLinkLocalUnicast() {
			t.Errorf("endpoint %v is of another interface", e)
		}
	}
	// Those who are not on the chosen interface are not heard, by unicast neither.
	for i, p := range []int{0, 2} {
		u := peers[p].join(rendezvous.Point{Topic: topic, Endpoints: []netip.AddrPort{
			netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", p)), d.socks.conns[0].port()),
		}})
		if _, _, ok := passes(t, u, s, byte(100+i), 100*time.Millisecond); ok {
			t.Errorf("the peer on eth%d was heard", p)
		}
		u.Close()
	}
	both(t, s, sessions[1], 1)
	for i, r := range rec {
		for _, p := range udpPackets(r.Stop()) {
			if len(p.payload) == datagramSize && i != 1 && p.payload[8] == 1 {
				t.Errorf("a frame of the host crossed n%d, to %v", i, p.to)
			}
			if i != 1 && bytes.Contains(p.payload, []byte(d.mdns.label)) {
				t.Errorf("mDNS of the host crossed n%d", i)
			}
		}
	}
}

// TestHopLimit measures with which hop limit frames arrive, on the link and
// beyond a router.
func TestHopLimit(t *testing.T) {
	l := nettest.New(t)
	left, right := l.Bridge("left"), l.Bridge("right")
	ha := l.Host("a").Attach(left, "10.1.0.1/24", "fd01::1/64")
	hb := l.Host("b").Attach(left, "10.1.0.2/24", "fd01::2/64")
	hc := l.Host("c").Attach(right, "10.2.0.2/24", "fd02::2/64")
	// A multicast router, as far as a datagram sees: one hop less, other side.
	l.Host("router").Attach(left).Attach(right).Nft(`table netdev r {
		chain l { type filter hook ingress device eth0 priority 0; ip daddr 239.0.0.0/8 ip ttl 4 ip ttl set 3 fwd to eth1; }
		chain r { type filter hook ingress device eth1 priority 0; ip daddr 239.0.0.0/8 ip ttl 4 ip ttl set 3 fwd to eth0; }
	}`)
	cfg := Config{MulticastOnly: true, HopLimit: 4}
	a, b, c := open(t, ha, cfg), open(t, hb, cfg), open(t, hc, cfg)
	topic := randomTopic(t)
	sa, sb, sc := a.join(rendezvous.Point{Topic: topic}), b.join(rendezvous.Point{Topic: topic}), c.join(rendezvous.Point{Topic: topic})
	both(t, sa, sb, 1)
	both(t, sa, sc, 10)
	from := netip.MustParseAddr("10.1.0.1")
	for _, w := range []struct {
		d      *device
		last   int
		onLink bool
	}{{b, 4, true}, {c, 3, false}} {
		for _, group := range []netip.Addr{Group4(), seedOf(topic).group4(ScopeSite)} {
			// Both copies of a frame have been sent; that of the other group may be on
			// its way.
			w.d.await(fmt.Sprint("with a sender in ", group), func() bool { return len(find(t, w.d, group).HopsSeen) > 0 })
			for _, h := range find(t, w.d, group).HopsSeen {
				if h.From == from && (h.Last != w.last || h.Least != w.last || h.Most != w.last || h.OnLink != w.onLink) {
					t.Errorf("%s: %v: %+v, want %d hops left, on link %v", w.d.host.Name, group, h, w.last, w.onLink)
				}
			}
		}
	}
	for _, m := range b.Multicast() {
		for _, h := range m.HopsSeen {
			if h.From.Is6() && h.Last != 4 {
				t.Errorf("IPv6: %+v", h)
			}
		}
	}
}

// TestSnooping puts a switch between that looks at who joined what.
func TestSnooping(t *testing.T) {
	l := nettest.New(t)
	var ports []*nettest.Bridge
	var devices []*device
	sw := l.Host("sw")
	sw.IP("link", "add", "name", "br0", "type", "bridge", "mcast_snooping", "1", "mcast_querier", "1",
		"mcast_igmp_version", "3", "mcast_mld_version", "2") // before, one host's report may hush another's
	sw.IP("link", "set", "br0", "up")
	for i := range 3 {
		ports = append(ports, l.Bridge(fmt.Sprint("p", i)))
		sw.Attach(ports[i])
		sw.IP("link", "set", fmt.Sprint("eth", i), "master", "br0")
		h := l.Host(fmt.Sprint("h", i)).Attach(ports[i], fmt.Sprintf("10.0.0.%d/24", i+1), fmt.Sprintf("fd00::%d/64", i+1))
		devices = append(devices, open(t, h, Config{MulticastOnly: true}))
	}
	topic := randomTopic(t)
	sa, sb := devices[0].join(rendezvous.Point{Topic: topic}), devices[1].join(rendezvous.Point{Topic: topic})
	both(t, sa, sb, 1)
	for _, group := range []netip.Addr{seedOf(topic).group4(ScopeLink), seedOf(topic).group6(ScopeLink)} {
		devices[0].await("known to the switch as a member of "+group.String(), func() bool {
			got := sw.Output(t.Context(), "bridge", "mdb", "show")
			return strings.Contains(got, "port eth0 grp "+group.String()) && strings.Contains(got, "port eth1 grp "+group.String())
		})
	}
	both(t, sa, sb, 10)
}
