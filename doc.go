// Package kith connects a person's devices to each other: pair two of them with
// a code once, and from then on they find each other on the LAN and across
// networks, reconnect after every restart and every move, and carry ordinary
// connections through user-mode WireGuard. There is no account and no server
// that anyone must run, and nothing needs root.
//
// A Node is this device. Open makes one from a state directory; Offer and Join
// pair it; Dial and Listen reach paired devices by name, as package net would:
//
//	node, err := kith.Open(ctx, kith.Config{Name: "desk"})
//	...
//	conn, err := node.Dial(ctx, "tcp", "laptop:22")
//
// # What is true when kith says so
//
// "Paired" means that the other device has durably recorded the pair.
// "Connected" means that a WireGuard handshake with it has completed. Discovery
// never pairs and never connects anybody: it only carries sealed frames.
//
// # Rights
//
// A paired device may ping. Ports on which the program itself listens with
// Listen are open to every paired device; ports of this machine's localhost are
// open to a device only after Allow. Nothing else is reachable.
//
// # Stages
//
// The packages below this one follow the way of the data: identity, code,
// rendezvous, pairing, registry, signaling, link, tunnel, app. This package is
// the only one that knows them all; ARCHITECTURE.md has the picture.
package kith
