// Package link finds and keeps the ways between two paired devices.
//
// A [Socket] is the one UDP socket (IPv4 and IPv6) of this device. WireGuard
// sends and receives through it as through any conn.Bind; what is not WireGuard
// is taken out of the receive batch before the device sees it. A [Link] stands
// for one paired device: it is the conn.Endpoint that WireGuard knows, and it
// never changes. Which way a packet really takes is the Link's business: it
// holds many candidate addresses, proves some of them by sealed probes, and
// selects one [Path]. The selected Path may change between two packets, and
// WireGuard does not notice.
//
//	socket := link.NewSocket(link.SocketConfig{Port: 41641})
//	dev := device.NewDevice(tun, socket, logger) // opens the socket
//	l, err := socket.NewLink(link.Config{Peer: id, Keys: keys, Events: onEvent})
//	l.SetRemote(candidates)                      // from signaling; probing starts at once
//
// # How a path is chosen
//
// An address is used only after it answered our own sealed ping from that very
// address (return routability): no packet, replayed or spoofed, can make a Link
// send data where the peer has not proved to be. A valid ping from an unknown
// address makes that address a candidate that is pinged at once. Whoever relays
// genuine pings and pongs can thereby become a router of the encrypted packets,
// no more.
//
// The first ping is small, so that it arrives nearly everywhere and the
// handshake may begin after one round trip. Right behind its answer goes a ping
// as large as the largest data packet ([DefaultDataSize]); only the direction of
// that ping is proved, the answer is small. A path on which three of them got
// lost, although small ones are answered, is a black hole for data: it is used
// only if there is no other, and Path.Size says what fits.
//
// Among proven paths these rules decide, in this order: data size fits; then
// kind (loopback, LAN, direct, through a VPN or container interface); then the
// round trip, with hysteresis (20 % and 3 ms better, seen twice, not within 5 s
// of the last change).
//
// One end has its path a moment before the other. A handshake message that finds
// no path yet is therefore held for up to a second and sent on the first one.
//
// # Timers
//
//	new candidates      all at once, 2 ms apart; again after 100, 200, 400 ms ... up to 60 s,
//	                    but up to 1 s (5 s) for two (ten) minutes after the last path was lost
//	selected, idle      one ping per 25 to 27.5 s: this is the keepalive. Leave WireGuard's
//	                    persistent keepalive off: a probe is no dearer, and also
//	                    measures and proves the path
//	selected, in use    one ping per 5 s; all other candidates once per 60 s
//	relayed, not asleep with each ping of it, 20 s apart or more, at both ends: one ping to
//	                    each address that leads through no relay, and a glance at how
//	                    STUN servers see us ([Socket.Glance])
//	no answer           four round trips (300 ms - 1 s) after a packet that nothing answered:
//	                    a ping; unanswered for as long (250 ms - 1 s, or one and a half round
//	                    trips if that is longer): all candidates are pinged
//	answer late         after 3 s it does not count: no path with a longer round trip is used
//	lazy, idle          nothing, from 30 s after the last data ([Link.SetLazy]); when data
//	                    wakes it, all candidates at once
//	path left           as soon as it has missed two pings (the second after four round
//	                    trips, 100 ms - 1 s) and another has answered, at the latest 3 s
//	                    after the first sign of trouble; it displaces no other for the
//	                    next 10 s
//	path unsure         after a sleep, or when its predecessor's relay closed: replaced by
//	                    whatever has answered once its own answer is two round trips and
//	                    20 ms late
//	smaller than data   tried again in full size once per 60 s, while data flows
//
// # Probe format
//
// All integers are big-endian. A probe is one UDP datagram:
//
//	offset  bytes
//	 0       4    eb 6b 70 01: magic and version. No WireGuard type (01..04 00 00 00), and
//	              not STUN, whose first two bits are 0 (RFC 8489 section 5)
//	 4       8    receiver tag: Expand(key, "kith/1 probe tag"), first 8 bytes. It changes
//	              with the key, daily, and means nothing without it
//	12      24    nonce, random
//	36       n    XChaCha20-Poly1305(key, nonce, ad = "kith/1 probe" || bytes 0..11)
//	36+n    16    authentication tag
//
// The key is the pair's probe key of the sender's direction and UTC day; a
// receiver accepts its own day, the day before and the day after, and the same
// around the day that the peer says it is ([Link.SetPeerDay]). The plaintext:
//
//	 0       1    type: 1 ping, 2 pong
//	 1       1    flags: bit 0, the sender selected this path for its data
//	 2       8    session of the sender, random per Link (ping; zero in a pong)
//	10       8    number of the ping in its session, from 1 (ping; zero in a pong)
//	18      12    transaction, random; a pong repeats that of its ping
//	30      16    the address the ping came from, IPv4 as IPv4-mapped (pong; zero in a ping)
//	46       2    the port the ping came from (pong; zero in a ping)
//	48       2    data packets that were lost towards the sender of the pong over about
//	              the last 10 s of traffic, as 1 + the share of all in 1/65534; 0: not
//	              known (zero in a ping)
//	50       n    zeros up to the wanted size
//
// The smallest probe, and every pong, is 128 bytes long, so that a pong is never
// larger than its ping. A receiver answers a numbered ping once (window of 1024
// per session), and pings from unproven addresses at a limited rate.
package link
