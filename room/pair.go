package room

import (
	"bytes"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

// PairChain returns the key chain of this device and another member for a
// roster's epoch, its pair id, and whether this device is the joiner of the
// pair: the one with the lesser id. It is for two members of whom neither was
// admitted by the other; the chain of a host and a member that it admitted comes
// from their handshake.
//
// The key follows from the X25519 secret of the two WireGuard keys, which no
// third device can compute, the host neither, and from the epoch's secret, which
// former members do not have. It has no forward secrecy against a later theft of
// a device's WireGuard key together with a roster of that epoch; the signalling
// exchange adds that to each connection.
//
// It errs with ErrNoMember if either is not in the roster, and with
// identity.ErrPeerKey for a WireGuard key of low order.
func PairChain(self *identity.Identity, r *Roster, peer identity.DeviceID) (chain pairing.Chain, pairID [16]byte, joiner bool, err error) {
	own := self.ID()
	a, okA := r.Member(own)
	b, okB := r.Member(peer)
	if !okA || !okB || own == peer || a.WireGuard != self.WireGuardPublic() {
		return pairing.Chain{}, pairID, false, ErrNoMember
	}
	dh, err := self.WireGuardDH(b.WireGuard)
	if err != nil {
		return pairing.Chain{}, pairID, false, err
	}
	joiner = bytes.Compare(own[:], peer[:]) < 0
	if !joiner {
		a, b = b, a
	}
	key := wire.Extract([]byte(wire.Label("room pair")), append(bytes.Clone(dh[:]), r.Secret[:]...))
	root := wire.Expand(key, "room pair root", r.Room[:], wire.DayItem(int64(r.Epoch)), a.ID[:], b.ID[:], a.WireGuard[:], b.WireGuard[:])
	return chainOf(root, r.Day()), [16]byte(wire.Expand(root, "pair-id")[:16]), joiner, nil
}
