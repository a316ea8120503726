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
// The DNS-SD service is _kith._udp.local; each session that receives is a subtype
// _<tag in hex>._sub._kith._udp.local. Instance and host names are random at each
// start, so that they name nobody.
package lan
