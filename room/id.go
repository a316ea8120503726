package room

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

const (
	// IDSize is the length of a room's id, in bytes.
	IDSize = code.RoomIDSize
	// SaltSize is the length of what makes a host's rooms differ, in bytes.
	SaltSize = 16
)

// ErrID reports text that is not a room's id.
var ErrID = errors.New("room: not a room's id")

// An ID names a room and binds the key of the host that founded it: 128 bits
// that nobody makes fit another key (finding a second key takes 2^128 tries,
// and the founder itself gains nothing from a collision). Who has it may ask to
// be let in; the long code is nothing else.
type ID [IDSize]byte

// NewID returns the id of the room that a host founds with a salt:
// SHA-256("kith/1 room" || host || salt)[:16].
func NewID(host identity.DeviceID, salt [SaltSize]byte) ID {
	h := sha256.New()
	h.Write([]byte(wire.Label("room")))
	h.Write(host[:])
	h.Write(salt[:])
	return ID(h.Sum(nil)[:IDSize])
}

// String returns the id in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns String. It never errs.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText gives. It errs with ErrID.
func (id *ID) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != IDSize {
		return ErrID
	}
	*id = ID(raw)
	return nil
}

// IsZero reports whether id names no room.
func (id ID) IsZero() bool { return id == ID{} }

// newSalt returns a salt with which the room's words are not also those of a
// pairing.
func newSalt(host identity.DeviceID, random io.Reader) (salt [SaltSize]byte, err error) {
	if random == nil {
		random = rand.Reader
	}
	for range 256 { // each fits with 15 of 16
		if _, err := io.ReadFull(random, salt[:]); err != nil {
			return salt, fmt.Errorf("room: read randomness: %w", err)
		}
		if !code.RoomWordsUnclear(NewID(host, salt)) {
			return salt, nil
		}
	}
	return salt, errors.New("room: the source of randomness is broken")
}
