// Package relay is a TURN client (RFC 8656): the way between two devices that
// no hole punching joins. It is no path of its own; package link sends and
// receives WireGuard's packets through it, so a relay sees ciphertext only.
//
//	r, err := relay.Dial(ctx, relay.Config{
//		URL: "turns:turn.example.org", User: "kith", Password: password,
//		Receive: func(from netip.AddrPort, packet []byte) { ... },
//	})
//	peer learns r.Addr() by signaling
//	err = r.Send([][]byte{packet}, peersAddress)
//	<-r.Done() // lost: r.Err() says why; Dial again
//
// # Addresses
//
//	turn:host[:3478][?transport=udp|tcp]    plain; udp is the default
//	turns:host[:443]                        TLS over TCP
//
// IPv6 addresses stand in brackets. turns has port 443 here and not the 5349 of
// RFC 7065, because whoever needs TLS mostly sits behind a firewall that knows
// nothing but 443; "turns:host:5349" is said in full. A name's IPv6 and IPv4
// addresses are tried in turn, a quarter of a second apart, and the first that
// answers (UDP), or has finished connecting (TCP and TLS), is kept.
//
// # Peers
//
// A server lets nobody through to us whom we did not name. The first Send to an
// address therefore binds a channel (RFC 8656 section 12), which is permission and
// short header in one round trip: 4 bytes per packet instead of 36. Until the
// answer is there, up to 8 packets wait, for up to 16 such peers; then the peer
// is written to directly, without a lock that is held for I/O and without
// allocating. Send with no packets opens the way and no more: do that for every
// address a peer may send from. A permission is for a whole IP address, so what a
// peer sends from another port arrives too. If the server refuses channels it is
// asked for a permission alone and gets Send indications.
//
// A channel is renewed every 3 minutes while it is used (a permission lasts 5, a
// channel 10 minutes); one that carried nothing for 10 minutes is let go, and the
// next Send binds it anew.
//
// # When it is lost
//
// The proof of life is whatever arrives for our allocation. If there is none, the
// allocation is refreshed, which no other answer replaces: a server that was
// started again answers a STUN binding, but has forgotten us. That happens
//
//	28 s after the last proof of life, if nothing was sent: it also keeps NATs open,
//	     and pings of idle links, every 25 s, take its place
//	 5 s after it, while something is being sent and nothing comes back
//	 at once (four times a second) when the system says that nobody listens, and on Check
//	 at half of the allocation's lifetime anyway (mostly 5 of 10 minutes)
//
// On UDP it is asked 6 times, a quarter of a second apart (a near server, two round
// trips but at least an eighth of a second); on TCP and TLS once, for 4 seconds,
// because lost segments are the system's business there. If no proof of life came
// meanwhile, Done is closed: 5.75 to 8.5 s after the server vanished when there is
// traffic, 29.5 s at most when there is none (on TCP 2.5 s later). A closed
// connection, an allocation that the server says it does not know, and refused
// credentials end it at once; a port where nobody listens as soon as the system has
// said so twice, about 0.1 s after the first packet.
//
// Dial expects a server that is being started again: where nobody listens it tries
// again every 0.1 s, for 3 s.
//
// With Config.Secret the credentials are made anew by every Dial, for 12 hours,
// and once more when the server refuses them later: same random part, later end.
// If the server refuses them at once, they are made for a week: its clock may be
// ahead of ours. One whose clock is behind accepts those of 12 hours, unless it
// limits how far ahead they may end.
//
// # Bounds
//
// One goroutine reads and calls Receive; one keeps time; TCP has one more that
// writes; at most 16 bind channels. At most 1024 peers are known at a time, and
// over TCP at most 256 KiB wait to be written; what is more is dropped, as a
// router would, so Send waits neither for the server nor for the network.
//
// # Why not a ready-made client
//
// pion/turn's client makes permissions inside its write call, does not say when a
// refresh was refused, can not change credentials, has goroutines that nobody can
// wait for, and allocates several times per packet. So the messages are
// pion/stun's, and the protocol, small as it is, is here; the tests run it
// against pion/turn's server and, where it is installed, coturn.
package relay
