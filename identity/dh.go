package identity

import (
	"crypto/ecdh"
	"errors"
	"fmt"
)

// ErrPeerKey reports an X25519 public key with which no secret can be agreed.
var ErrPeerKey = errors.New("identity: not a usable WireGuard key")

// WireGuardDH returns the X25519 secret (RFC 7748 section 6.1) of this device's
// WireGuard key and a peer's public key: 32 bytes that only the two can compute.
// It is for key derivation, never a key itself. It errs with ErrPeerKey for a
// key of low order, whose secret everybody would know.
func (i *Identity) WireGuardDH(peer [32]byte) ([32]byte, error) {
	key, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return [32]byte{}, fmt.Errorf("%w: %w", ErrPeerKey, err)
	}
	secret, err := i.wg.ECDH(key)
	if err != nil {
		return [32]byte{}, fmt.Errorf("%w: %w", ErrPeerKey, err)
	}
	return [32]byte(secret), nil
}
