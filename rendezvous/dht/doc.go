// Package dht carries frames over the BitTorrent Mainline DHT, or a private one,
// with no server of ours: any of the many nodes can keep a message, and none is
// trusted.
//
// The mailbox. Each side writes its newest frame as two mutable items (BEP 44)
// under a key and salts that only the topic gives; the other side polls them:
// often after Join, Publish and Check, then less and less, down to once a minute.
// All items of a topic lie with the nodes nearest to one point, its home, so that
// one walk through the DHT is enough for all. Values are masked under a key of
// the topic: nobody can tell that a frame also went over another medium.
//
// The shortcut. Both sides announce themselves at the home (BEP 5). Who finds the
// other's address sends frames there directly, from the DHT's own socket, and so
// does the other: that opens easy NATs. Those who keep the announcements see which
// two addresses met; Config.NoShortcut leaves it out.
//
// The node. A device only asks (read-only, BEP 43) until it is known that others
// can reach it; SetPublic and Config.Serve make it a full node, which keeps items
// and announcements of others within fixed bounds, and which others can use as
// their bootstrap node. On the internet its id fits its address (BEP 42).
// IPv4 and IPv6 are two DHTs (BEP 32); a device uses both where it can.
//
// This is an engine of its own, and the module github.com/anacrolix/dht/v2 plays
// the other nodes in its tests. The server of that module (v2.23.0) is not used:
// a datagram of 33 bytes, "announce_peer" without arguments, ends the program that
// runs it, and so does one of 21 bytes with an "ip" that is too short; what it
// keeps for others has no bounds; and it cannot turn read-only while it runs.
//
// What a bystander can do: those who keep a topic's items see the addresses of
// those who write and read them, and can keep silent. A thing is therefore put to
// nodes of eight networks, and whoever reads asks several. Somebody who learns
// the home from being one of these nodes can surround it with nodes of his own;
// on the internet he needs as many networks for that. Topics, keys and targets
// of two days cannot be linked, but both are used from one address and port, which
// whoever keeps items of both can see.
package dht
