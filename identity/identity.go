// Package identity says who a device is: its Ed25519 key, its DeviceID, its
// WireGuard key and its address inside every tunnel. It does no I/O but the key
// file.
//
// A DeviceID is public and is what other devices remember. An Identity is the
// secret behind it; Open keeps it in the state directory:
//
//	# The secret keys of this kith device. Whoever has this file is this device.
//	kith identity 1
//	ed25519 <seed, 32 bytes>
//	x25519 <private key, 32 bytes>
//	check <first 8 bytes of SHA-256("kith/1 identity key" || seed || private key)>
//
// with bytes in hexadecimal. The mode is 0600, that of the directory 0700.
//
// There is one identity per installation. A copy of the key file is a second
// device with the same name: never run both.
package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
)

// An Identity is a device's long-term secret: an Ed25519 key that signs its
// proofs, and an X25519 key for WireGuard that the proofs vouch for. Printing
// one prints "redacted". It is safe for concurrent use.
type Identity struct {
	sign ed25519.PrivateKey
	wg   *ecdh.PrivateKey
	_    [0]func() // not comparable: == would not be constant-time
}

// Generate makes a fresh identity from the system's randomness. It errs only
// if that fails.
func Generate() (*Identity, error) {
	_, sign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: generate: %w", err)
	}
	wg, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: generate: %w", err)
	}
	return &Identity{sign: sign, wg: wg}, nil
}

// ID returns the device's public name.
func (i *Identity) ID() DeviceID { return DeviceID(i.sign.Public().(ed25519.PublicKey)) }

// Sign returns the Ed25519 signature of message, 64 bytes.
func (i *Identity) Sign(message []byte) []byte { return ed25519.Sign(i.sign, message) }

// WireGuardPublic returns the X25519 public key, 32 bytes.
func (i *Identity) WireGuardPublic() [32]byte { return [32]byte(i.wg.PublicKey().Bytes()) }

// WireGuardPrivate returns the X25519 private key, 32 bytes, for the tunnel.
func (i *Identity) WireGuardPrivate() [32]byte { return [32]byte(i.wg.Bytes()) }

// String returns "redacted".
func (i *Identity) String() string { return "redacted" }

// GoString returns "redacted".
func (i *Identity) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (i *Identity) LogValue() slog.Value { return slog.StringValue("redacted") }

// Format prints "redacted" for every verb, also those for which package fmt
// would print the keys.
func (i *Identity) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "redacted") }
