package room

import (
	"fmt"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

// A removal is 1 (banned) or 0, the room's id, the epoch from which on, the host, and its
// signature.
const removalSize = 1 + IDSize + 8 + identity.IDSize + signatureSize

func removalProof(room ID, epoch uint32, id identity.DeviceID, banned byte) []byte {
	return wire.AppendItems([]byte(wire.Label("room-removal")), room[:], wire.DayItem(int64(epoch)), id[:], []byte{banned})
}

// SignRemoval returns a host's word to a device that it is no member any more. It errs
// with ErrNotHost if self is none, and with ErrRoster if the device is a member.
func (r *Roster) SignRemoval(self *identity.Identity, id identity.DeviceID) ([]byte, error) {
	host := self.ID()
	if !r.IsHost(host) {
		return nil, ErrNotHost
	}
	if _, in := r.Member(id); in {
		return nil, fmt.Errorf("%w: the device is in the room", ErrRoster)
	}
	var banned byte
	if r.Banned(id) {
		banned = 1
	}
	out := append([]byte{banned}, r.Room[:]...)
	out = append(append(out, wire.DayItem(int64(r.Epoch))...), host[:]...)
	return append(out, self.Sign(removalProof(r.Room, r.Epoch, id, banned))...), nil
}

// CheckRemoval reads such a word for self, with the roster that it knows. It errs with
// ErrRoster for one that is not well-formed or of another room, with ErrNotHost if it is
// not a host's, and with ErrOlder if a newer roster has self in it.
func (r *Roster) CheckRemoval(self identity.DeviceID, raw []byte) (banned bool, err error) {
	room, epoch, host, sig, err := parseRemoval(raw)
	switch {
	case err != nil:
		return false, err
	case room != r.Room:
		return false, fmt.Errorf("%w: it is another room's", ErrRoster)
	case !r.IsHost(host) || !host.Verify(removalProof(room, epoch, self, raw[0]), sig):
		return false, ErrNotHost
	case epoch <= r.Epoch:
		return false, ErrOlder // a removal begins an epoch
	}
	return raw[0] == 1, nil
}

// RemovalRoom returns the room that a removal is of. It errs with ErrRoster.
func RemovalRoom(raw []byte) (ID, error) {
	room, _, _, _, err := parseRemoval(raw)
	return room, err
}

func parseRemoval(raw []byte) (room ID, epoch uint32, host identity.DeviceID, sig []byte, err error) {
	if len(raw) != removalSize || raw[0] > 1 {
		return room, 0, host, nil, fmt.Errorf("%w: not a removal", ErrRoster)
	}
	raw = raw[1:]
	room, raw = ID(raw[:IDSize]), raw[IDSize:]
	for _, b := range raw[:4] {
		if b != 0 {
			return room, 0, host, nil, fmt.Errorf("%w: not a removal", ErrRoster)
		}
	}
	epoch = uint32(raw[4])<<24 | uint32(raw[5])<<16 | uint32(raw[6])<<8 | uint32(raw[7])
	raw = raw[8:]
	return room, epoch, identity.DeviceID(raw[:identity.IDSize]), raw[identity.IDSize:], nil
}
