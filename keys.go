package kith

import "github.com/kithproject/kith/internal/wire"

// Sign returns this device's Ed25519 signature of a message, 64 bytes. The message begins
// with a label that nothing else which this device signs begins with: those of kith begin
// with "kith/1 ".
func (n *Node) Sign(message []byte) []byte { return n.id.Sign(message) }

// StateKey returns a key that only this device has, for what an app keeps in the state
// directory: one for each purpose.
func (n *Node) StateKey(purpose string) [32]byte {
	secret := n.id.WireGuardPrivate()
	return [32]byte(wire.Expand(wire.Extract(nil, secret[:]), "state key", []byte(purpose)))
}
