// Package lane opens TLS 1.3 connections over the kernel's TCP between two paired
// devices, beside their tunnel, where a direct TCP connection is possible: in one
// LAN, or to a public or mapped port. Bulk data goes faster there and costs less
// CPU than through the tunnel's user-mode WireGuard and network stack.
//
//	s := lane.New(lane.Config{Listener: inTunnel, Dial: dialInTunnel, Who: who,
//		Allow: mayUse, Accept: serve, Addrs: localAddresses})
//	conn, err := s.Open(ctx, laptop, "files")
//	if errors.Is(err, lane.ErrNoLane) {
//		// go through the tunnel
//	}
//
// # How a lane is opened
//
// Nothing listens on an idle device. Who wants a lane calls Port inside the tunnel,
// which says who is calling, and asks:
//
//	ask     u16 length || version || u8 length || kind || invite
//	answer  u16 length || status || invite (if the status is 0)
//	report  u16 length || u8 count || count x (u8 index || u8 reason)
//	invite  key 32 || token 32 || u8 count || count x (u8 4 or 16 || address || u16 port)
//
// Both sides open a TCP listener on a port that the system chooses, if they have
// none, and invite the other to it: with the public half of an Ed25519 key made for
// this invitation, a random token, and the endpoints at which the listener may be
// reached. An invitation lasts 10 s and is used once. Either dials the other's
// endpoints, the asked one 50 ms later, since a firewall may let connections in on
// one side only. Dials start 30 ms apart and do not wait for each other.
// The asker takes the first connection that stands. The report tells it that the
// other side's dials have all failed, and why.
//
// Whoever dials is the TLS client. Its server name is derived from the token, so
// that the listener knows which invitation is meant; without one the connection is
// closed, and not a byte was sent. Both show a certificate of the invitation's key
// and accept no other key than the one from the tunnel. Then, as first bytes inside
// TLS, 32 each:
//
//	dialed    answerer -> asker   HKDF(asker's token, "lane dialed", exporter)      if the answerer dialed
//	chosen    asker -> answerer   HKDF(answerer's token, "lane chosen", exporter)
//	accepted  answerer -> asker   HKDF(answerer's token, "lane accepted", exporter)
//
// where exporter is a secret of this TLS connection alone (RFC 8446 section 7.5).
// The tokens themselves never leave the tunnel, and a proof is worth nothing in
// another connection. All are compared in constant time.
//
// # Keys
//
// The device's identity key signs nothing here. It would have to sign TLS's
// CertificateVerify, whose text (64 spaces and a context string, RFC 8446 section
// 4.4.3) no other protocol of kith signs; that would be sound, but gains nothing:
// the tunnel has told both sides already who is there, and pins any key as well. It
// would cost privacy, as a stranger who copies the server name of a connection in
// progress is shown a certificate, and would learn which device this is. Now it
// sees a key that is never used again, in a certificate without name or time.
//
// The key exchange is X25519MLKEM768, nothing else, so that recorded traffic stays
// closed to quantum computers, as that of the tunnel does. Who could forge Ed25519
// while the handshake runs still lacks the tokens.
//
// # What a stranger gets
//
// On a device without lanes: no open port. Else a port that closes the connection
// without an answer, within 2 s. At most 64 connections may be without a valid
// first message, 16 of one address; the oldest gives way, so that a flood does
// not keep out those who answer at once.
//
// # What a paired device gets
//
// Nothing before Config.Allow has agreed to the kind of lane that it asks for. Then
// it can make this device dial eight addresses of its choice, with a TLS ClientHello:
// unicast ones that are not loopback, link-local or of the tunnel, at ports from 1024.
// At most 64 lanes may be in the making with one device, 256 in all, and one device
// has at most 256 that it asked for: more are told that this device is busy.
//
// # Limits
//
// The listener closes two minutes after the last lane was opened. IPv6 link-local
// addresses are not offered. TCP hole punching is not attempted. A lane belongs to its
// addresses: it does not move to another network, as the tunnel does (lane/carry has
// connections move between both). It ends 20 to 25 s after the other side has fallen
// silent. Go's crypto/tls never renews keys: after some 380 GiB in one direction, open
// another lane (RFC 8446 section 5.5).
package lane
