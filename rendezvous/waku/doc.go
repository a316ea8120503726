// Package waku carries frames over a Waku network, and runs a node of one.
//
// An Exchange is a light client (rendezvous.Exchange): it connects to the nodes
// that it is given, over TCP or WebSocket with libp2p's Noise and Yamux, and uses
// four protocols of theirs: filter (12/WAKU2-FILTER) to get messages, lightpush
// (19/WAKU2-LIGHTPUSH and its version 3) to send them, store (13/WAKU2-STORE) to
// fetch what came while it was away, and metadata (66/WAKU2-METADATA) to leave a
// node of another cluster. All nodes are used at once: each frame goes to every
// node that is connected, and the topics are subscribed at all of them, so that
// two devices meet if they share one node, or if their nodes know each other.
//
// A Service is a node that serves those protocols: to this client and to any
// other Waku light client. Nodes that name each other in Peers form a network:
// what a client sends goes up to the peers by lightpush, and what its clients
// want comes down by filter, each message once, told apart by its deterministic
// hash (14/WAKU2-MESSAGE). It does not speak relay (11/WAKU2-RELAY, gossipsub), so
// that it is a client of a relay network and never a part of its mesh.
//
// The nodes are not trusted. They see random names, sealed frames of one size,
// the device's clock to the second, and addresses. A frame is the payload of a
// message, and nothing else is; the content topic is "/kith/1/<name>/proto", whose
// name is derived one-way from the rendezvous topic. A client has a fresh libp2p
// identity at every start, so that nobody follows it by its peer ID.
//
// Messages are not ephemeral, so that store keeps them for a device that comes
// later. A receiver takes no notice of their timestamps.
//
// Of libp2p only the upgrader, Noise, Yamux and the WebSocket transport are used.
// Streams, protocol selection of the opening side, identify and ping are here.
package waku
