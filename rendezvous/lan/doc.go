// Package lan carries frames between devices on one local network, with no
// server and no configuration, in three ways at once:
//
//   - UDP multicast to groups of kith's own (Group4, Group6), on every interface
//     that can, over IPv4 and IPv6;
//   - mDNS and DNS-SD (RFC 6762, RFC 6763), beside a system daemon on port 5353,
//     which finds the other side's address where only mDNS is let through;
//   - unicast to addresses from a QR code, from mDNS, or from which a frame of the
//     same topic came, so that it works with multicast blocked altogether.
//
// A datagram is the topic's 8-byte tag and the 1340-byte frame. Everything else,
// and every tag that no session waits for, is dropped before it is copied.
//
// # Groups of topics
//
// With MulticastOnly, a HopLimit above 1, a Scope beyond the link, or GroupsBoth,
// each frame also goes to groups that both sides derive from the topic: one of
// 239.0.0.0/8 (RFC 2365), a transient ff1x (RFC 4291), and beyond the link ff3x
// groups of the network's own unicast prefixes (RFC 3306). They are joined while a
// session that receives is open, again after each change of link or address, and
// again if the system lost a membership without a word. The first 64 topics have
// such groups; if the system allows fewer, Health says so, and the fixed groups
// serve the rest.
//
// With MulticastOnly two devices talk that cannot reach each other by unicast at
// all. Multicast ends where the network ends it: with the default HopLimit at the
// first router, with a higher one at the first that does not route multicast. It
// does not cross the internet. Multicast tells how far datagrams came, by the hop
// limit with which they arrived.
//
// # Names
//
// The DNS-SD service is _kith._udp.local; each session that receives is a subtype
// _<tag in hex>._sub._kith._udp.local. Instance and host names are random at each
// start, so that they name nobody.
//
// A device says its name only between AnnounceNearby and its stop: service
// _kith-pair._udp.local, by mDNS and on kith's own groups, not secret and not
// proven. Nearby lists who does. An announcement counts for the address that it was
// sent from, which must be of the same link; addresses inside it are not read, so
// that nobody can point others at a third.
//
// # Echoes
//
// Echo asks devices of the LAN to answer at once, and shows which ways datagrams go
// between them and with which hop limits: it is what a doctor asks.
package lan
