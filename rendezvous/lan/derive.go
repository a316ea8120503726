package lan

import (
	"crypto/hkdf"
	"crypto/sha256"
	"net/netip"
	"slices"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

// A Scope says how far a network lets a multicast group travel, in the numbers of
// RFC 4291 section 2.7. What really bounds a datagram is its hop limit and what
// the routers of the network do; across the internet no group travels.
type Scope uint8

// The scopes of a Config. ScopeAuto is ScopeLink while HopLimit is 1, and
// ScopeSite beyond.
const (
	ScopeAuto         Scope = 0
	ScopeLink         Scope = 2 // one network segment
	ScopeSite         Scope = 5 // what the routers of one site pass on
	ScopeOrganisation Scope = 8 // all sites of one organisation
)

// String returns "link", "site", "organisation" or "auto".
func (s Scope) String() string {
	switch s {
	case ScopeLink:
		return "link"
	case ScopeSite:
		return "site"
	case ScopeOrganisation:
		return "organisation"
	}
	return "auto"
}

// MarshalText returns what String does. It does not err.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Groups says to which multicast groups frames go.
type Groups uint8

// The choices of groups. The fixed groups are always joined and always sent to,
// so that two devices meet whatever each of them chose.
const (
	// GroupsAuto is GroupsBoth with MulticastOnly, a HopLimit above 1 or a Scope
	// beyond ScopeLink, and otherwise GroupsFixed.
	GroupsAuto Groups = iota
	// GroupsFixed sends each frame to Group4 and Group6.
	GroupsFixed
	// GroupsBoth also sends each frame to the groups of its topic. It costs a
	// datagram more per interface and group; it crosses multicast routers (with a
	// HopLimit that allows it) and switches that lost track of the fixed group.
	GroupsBoth
)

const (
	// derivation is "kith/1 " and the name of an Expand in docs/protocol.md.
	derivation = "kith/1 lan-group"
	maxPrefix  = 2 // unicast prefixes of one interface that have groups
)

// Group4 is the IPv4 multicast group 239.255.107.105, of the local scope (RFC 2365
// section 6.1), whose last bytes spell "ki".
func Group4() netip.Addr { return netip.AddrFrom4([4]byte{239, 255, 'k', 'i'}) }

// Group6 is the IPv6 multicast group ff12::6b69:7468: transient, link-local (RFC
// 4291 section 2.7), whose last bytes spell "kith".
func Group6() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x12, 12: 'k', 13: 'i', 14: 't', 15: 'h'})
}

// A topicSeed is what the groups of a topic are made of. It cannot be turned back
// into the topic.
type topicSeed [32]byte

func seedOf(topic rendezvous.Topic) topicSeed {
	b, err := hkdf.Expand(sha256.New, topic[:], derivation, len(topicSeed{}))
	if err != nil {
		panic(err) // only for outputs over 255 hashes
	}
	return topicSeed(b)
}

// group4 is the topic's IPv4 group: 239.255.0.0/16 up to site scope, and beyond
// 239.192.0.0/14 (RFC 2365 section 6). The last 256 addresses of a scope are
// reserved (section 9), so the third byte is never 255.
func (s topicSeed) group4(scope Scope) netip.Addr {
	second := byte(255)
	if scope == ScopeOrganisation {
		second = 192 + s[2]%4
	}
	return netip.AddrFrom4([4]byte{239, second, s[0] % 255, s[1]})
}

// group6 is the topic's transient IPv6 group. Its last 32 bits are of those that
// hosts may choose (RFC 3307 section 4.3.2).
func (s topicSeed) group6(scope Scope) netip.Addr {
	a := [16]byte{0: 0xff, 1: 0x10 | byte(scope)}
	copy(a[2:], s[4:18])
	a[12] |= 0x80
	return netip.AddrFrom16(a)
}

// groupPrefix is the topic's group of a unicast prefix (RFC 3306 section 4).
func (s topicSeed) groupPrefix(scope Scope, p netip.Prefix) netip.Addr {
	a := [16]byte{0: 0xff, 1: 0x30 | byte(scope), 3: byte(p.Bits())}
	net := p.Addr().As16()
	copy(a[4:12], net[:8])
	copy(a[12:], s[18:22])
	a[12] |= 0x80
	return netip.AddrFrom16(a)
}

// unicastPrefixes returns the prefixes of an interface that have groups, in an
// order that all devices of a network share: the /48 of unique local addresses
// (RFC 4193 section 3.1: a site's), and the /64 of global ones.
func unicastPrefixes(i netmon.Interface) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range i.Addrs {
		a := p.Addr()
		bits := 64
		switch {
		case !a.Is6() || !a.IsGlobalUnicast() || i.Loopback:
			continue
		case a.IsPrivate():
			bits = 48
		}
		out = append(out, netip.PrefixFrom(a.WithZone(""), bits).Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	out = slices.Compact(out)
	return out[:min(len(out), maxPrefix)]
}

// groups returns the topic's groups on an interface, IPv4 first.
func (s topicSeed) groups(scope Scope, i netmon.Interface) []netip.Addr {
	var out []netip.Addr
	if has4(i) {
		out = append(out, s.group4(scope))
	}
	if has6(i) {
		out = append(out, s.group6(scope))
	}
	if scope > ScopeLink { // within a link ff12 says it all (RFC 4489)
		for _, p := range unicastPrefixes(i) {
			out = append(out, s.groupPrefix(scope, p))
		}
	}
	return out
}

func has4(i netmon.Interface) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() })
}

func has6(i netmon.Interface) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}
