package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

const (
	// IDSize is the length of a DeviceID, in bytes.
	IDSize = ed25519.PublicKeySize
	// CommitmentSize is the length of an ID commitment, in bytes.
	CommitmentSize = 16
)

// ErrID reports text or bytes that are not a device ID.
var ErrID = errors.New("identity: not a device ID")

// A DeviceID names a device: its Ed25519 public key (RFC 8032). It is public
// and comparable. The zero value names nobody.
type DeviceID [IDSize]byte

var idText = base32.StdEncoding.WithPadding(base32.NoPadding) //nolint:gochecknoglobals // a constant

// ParseDeviceID reads the text form that String gives, in any case, with spaces
// around it; every ID has that one form only. It errs with ErrID.
func ParseDeviceID(text string) (DeviceID, error) {
	text = strings.TrimSpace(text)
	if len(text) == idText.EncodedLen(IDSize) {
		raw, err := idText.DecodeString(strings.ToUpper(text))
		// Decoding skips line breaks and the last, unused bits.
		if err == nil && len(raw) == IDSize && strings.EqualFold(DeviceID(raw).String(), text) {
			return DeviceID(raw), nil
		}
	}
	return DeviceID{}, fmt.Errorf("%w: %d characters of base32 expected", ErrID, idText.EncodedLen(IDSize))
}

// String returns the ID as 52 characters of lower-case base32 (RFC 4648
// section 6, no padding).
func (id DeviceID) String() string { return strings.ToLower(idText.EncodeToString(id[:])) }

// MarshalText returns String. It never errs.
func (id DeviceID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText gives. It errs with ErrID.
func (id *DeviceID) UnmarshalText(text []byte) error {
	got, err := ParseDeviceID(string(text))
	if err == nil {
		*id = got
	}
	return err
}

// Short returns the first 8 characters of String, for logs and tables: enough
// to tell a person's devices apart, not enough to trust.
func (id DeviceID) Short() string { return id.String()[:8] }

// IsZero reports whether id names nobody.
func (id DeviceID) IsZero() bool { return id == DeviceID{} }

// Verify reports whether sig is this device's Ed25519 signature of message.
func (id DeviceID) Verify(message, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(id[:], message, sig)
}

// Commitment returns the 16 bytes that a QR code carries in place of the whole
// ID: the start of SHA-256("kith/1 id-commit" || id).
func (id DeviceID) Commitment() [CommitmentSize]byte {
	sum := sha256.Sum256(append([]byte("kith/1 id-commit"), id[:]...))
	return [CommitmentSize]byte(sum[:CommitmentSize])
}

// Prefix is the IPv6 prefix of all kith devices: fd6b:6974:6800::/40, a unique
// local prefix (RFC 4193) whose bytes spell "kith".
func Prefix() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 'k', 'i', 't', 'h'}), 40)
}

// Addr returns the device's fixed address inside every tunnel: Prefix and the
// first 88 bits of SHA-256("kith/1 address" || id).
func (id DeviceID) Addr() netip.Addr {
	sum := sha256.Sum256(append([]byte("kith/1 address"), id[:]...))
	addr := Prefix().Addr().As16()
	copy(addr[5:], sum[:11])
	return netip.AddrFrom16(addr)
}
