// Package portmap asks the home router to forward one port to this device, of UDP or
// of TCP.
//
// A [Mapper] speaks three protocols with the default gateway: PCP (RFC 6887),
// NAT-PMP (RFC 6886) and UPnP IGD 1 and 2. It keeps one mapping, of one port
// that belongs to us, for as long as [Mapper.Run] runs, and removes it in the end:
//
//	m := portmap.New(portmap.Config{Gateway: portmap.DefaultGateway})
//	go m.Run(ctx, port, func(mapping portmap.Mapping, ok bool) {
//		// ok: mapping.External is one more address to be reached at
//	})
//	m.Refresh() // whenever the network changed
//
// # Which protocol
//
// All three are asked at once whether they are there; that creates nothing. The
// first answer starts a grace of 250 ms, in which a better protocol may still
// answer (PCP before NAT-PMP before UPnP); then the best one is asked for the
// mapping, and the next one if it says no. So there is never a second mapping to
// clean up, which matters because gateways keep PCP's and NAT-PMP's in one table.
//
//	no answer            asked again after 20 minutes, or on Refresh
//	no gateway           looked up again every minute, or on Refresh
//	error with a time    (PCP) asked again after that time, 30 s to 20 minutes
//	retransmission       after 250 ms, 500 ms, 1 s; given up 2 s after that
//
// # Keeping it
//
// The mapping is renewed at half of its life, then at half of what is left. Once
// a minute (UPnP: two) the gateway is asked a question that changes nothing. Its
// answer carries the epoch (RFC 6887 section 8.5, RFC 6886 section 3.6), by which
// a gateway tells that it restarted and forgot: the mapping is then asked for
// anew at once, with the same external port. With UPnP, which has no epoch, the
// mapping itself is looked up. Announcements by multicast are not listened to:
// their port can belong to one program only.
//
// An external address that is itself private, shared (100.64.0.0/10) or unknown
// means another NAT before the internet. The mapping is still reported, with
// [Mapping.DoubleNAT] set: it may help a peer behind the same outer NAT.
//
// # IPv6
//
// With Config.Gateway6 the firewall of the IPv6 gateway is opened, too: a pinhole
// for the same port on each of our addresses, by PCP, or by UPnP's
// WANIPv6FirewallControl:1 if PCP is not there. It is chosen, kept, renewed and
// removed as above, each address by itself. External is then our own address, and
// [Mapping.Pinhole] is set: others could reach it before, but only where we had
// sent something to them. Addresses are looked up once a minute, and on Refresh.
// A gateway that says that it has no firewall, or opens none, is left alone.
//
// # What is trusted
//
// Nothing but the gateway is listened to, and what it says is input from the
// network. The socket to it is connected, so that datagrams from other addresses
// never arrive. An SSDP answer counts only if it comes from the gateway's address
// and points to that address, by http; so must the control URL. Over IPv6 the
// answer may point to another address in our own /64, since gateways answer from
// a link-local address and serve at a global one. Redirects are
// not followed, bodies end at 64 KiB, each request after 3 s. Nothing is mapped
// but the port that Run was given, to our own address; an entry of a
// different device in the gateway's table is never replaced or removed. Pinholes
// have numbers instead of ports, and only numbers that we were given are used.
package portmap
