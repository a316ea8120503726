// Package hubaddr is the address of a kith hub: where it is, the secret that
// lets one in, and how to know it again. A client needs this package only, not
// the server.
//
// The text form is
//
//	kith-hub:HOST[:PORT]#BASE32
//
// HOST is a name in lower case, an IPv4 address, or an IPv6 address in
// brackets; PORT defaults to 443. BASE32 (RFC 4648, lower case, no padding) is
// the access secret (16 bytes) and the pin (16 bytes), followed by the second UDP
// port (2 bytes, big endian, 0 for none) only where it is not PORT+1. There is
// exactly one text for an address.
//
// The pin is the first half of the SHA-256 of the hub's public key (the
// SubjectPublicKeyInfo of its certificate), so that a client trusts this hub and
// no certificate authority.
//
// Everything that a client needs to log in is derived from the access secret
// with HKDF-SHA256 (RFC 5869) and a label of its own: see MQTTPassword and
// TURNSecret. Whoever has the address may use the hub; an Address therefore
// prints redacted, except by Text and Hints.
package hubaddr

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// DefaultPort is the port of a hub, for TCP and UDP; a port number.
	DefaultPort = 443
	// DHTPort is the UDP port number at which a hub is a node of the distributed hash
	// table, if it is one.
	DHTPort = 6881
	// MQTTUser is the user's name at the hub's broker.
	MQTTUser = "kith"
	// MQTTPath is the path of MQTT over WebSocket.
	MQTTPath = "/mqtt"
	// MaxText is the longest text of an address, in bytes.
	MaxText = len(scheme) + maxHost + len("[]:65535#") + 55

	scheme     = "kith-hub:"
	hintPlace  = "hub="
	hintSecret = "hub#"
	maxHost    = 253 // characters of a DNS name
	keySize    = 32  // bytes of access and pin
	derived    = 16  // bytes of a derived password
)

var (
	base32Text = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding) //nolint:gochecknoglobals // never changed
	base64Text = base64.RawURLEncoding                                                                //nolint:gochecknoglobals // never changed
)

var (
	// ErrAddress reports text that is not the address of a hub.
	ErrAddress = errors.New("hubaddr: this is not a hub's address: it looks like kith-hub:HOST[:PORT]#… and is printed by kith hub address")
	// ErrPin reports a server that is not the hub of the address.
	ErrPin = errors.New("hubaddr: the server at this address is another one, or its key has changed: ask for the hub's address again")
	// ErrMarshal reports an attempt to write an address by accident.
	ErrMarshal = errors.New("hubaddr: an address holds a secret: use Text to write it")
)

// A PinError is an ErrPin that knows what answered in place of the hub.
type PinError struct{ Certificate *x509.Certificate }

// Error says what ErrPin does.
func (e *PinError) Error() string { return ErrPin.Error() }

// Is reports whether target is ErrPin.
func (e *PinError) Is(target error) bool { return target == ErrPin }

// CertificateName is the one DNS name in the certificates that hubs make for themselves.
const CertificateName = "kith-hub.invalid"

// Access is the secret that lets a client use a hub. It prints redacted.
type Access [16]byte

// String returns "redacted".
func (Access) String() string { return "redacted" }

// Format writes "redacted" for every verb.
func (Access) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("redacted")) }

// LogValue returns "redacted".
func (Access) LogValue() slog.Value { return slog.StringValue("redacted") }

// Pin is the first half of the SHA-256 of the hub's SubjectPublicKeyInfo.
type Pin [16]byte

// PinOf returns the pin of a certificate's RawSubjectPublicKeyInfo.
func PinOf(spki []byte) Pin {
	sum := sha256.Sum256(spki)
	return Pin(sum[:len(Pin{})])
}

// Address is the address of a hub. The zero value is none. It is a value and
// may be compared and copied; it prints redacted.
type Address struct {
	// Host is a name in lower case, or an IP address without brackets or zone.
	Host string
	// Port is the port number for TCP and UDP.
	Port uint16
	// AltPort is the number of the second UDP port, which answers STUN only; 0 if
	// there is none. PORT+1 by default.
	AltPort uint16
	// Access lets a client in.
	Access Access
	// Pin is how a client knows the hub.
	Pin Pin
}

// IsZero reports whether a is no address at all.
func (a Address) IsZero() bool { return a == Address{} }

// Valid reports whether a has a host and a port that an address may have.
func (a Address) Valid() bool {
	host, ok := cleanHost(a.Host)
	return ok && host == a.Host && a.Port != 0 && a.AltPort != a.Port
}

// cleanHost returns a host name or IP address in its one form.
func cleanHost(host string) (string, bool) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.String(), ip.Zone() == "" && !ip.Is4In6() && !ip.IsUnspecified() && !ip.IsMulticast()
	}
	if host == "" || len(host) > maxHost {
		return "", false
	}
	host = strings.ToLower(host)
	digits := true // in the last label
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
		digits = true
		for _, b := range []byte(label) {
			if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
				return "", false
			}
			digits = digits && b >= '0' && b <= '9'
		}
	}
	return host, !digits // a last label of digits is a mistyped IPv4 address
}

// CleanHost returns a host as an Address holds it: a name in lower case, or an
// IP address. It errs with ErrAddress for what is neither.
func CleanHost(host string) (string, error) {
	clean, ok := cleanHost(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	if !ok {
		return "", fmt.Errorf("hubaddr: %q is neither a host name nor an IP address: %w", host, ErrAddress)
	}
	return clean, nil
}

// Parse reads the text form; space around it is ignored, and letters may be of
// any case. It errs with ErrAddress.
func Parse(text string) (Address, error) {
	text = strings.TrimSpace(text)
	if len(text) > MaxText || len(text) < len(scheme) || !strings.EqualFold(text[:len(scheme)], scheme) {
		return Address{}, ErrAddress
	}
	place, secret, ok := strings.Cut(text[len(scheme):], "#")
	if !ok {
		return Address{}, ErrAddress
	}
	secret = strings.ToLower(secret)
	raw, err := base32Text.DecodeString(secret)
	if err != nil || base32Text.EncodeToString(raw) != secret {
		return Address{}, ErrAddress
	}
	return build(place, raw)
}

// build makes an address of HOST[:PORT] and the bytes behind it.
func build(place string, raw []byte) (Address, error) {
	var a Address
	var err error
	if a.Host, a.Port, err = splitPlace(place); err != nil {
		return Address{}, err
	}
	a.AltPort = a.Port + 1
	switch len(raw) {
	case keySize:
	case keySize + 2:
		a.AltPort = binary.BigEndian.Uint16(raw[keySize:])
		if a.AltPort == a.Port+1 {
			return Address{}, ErrAddress // not the one text of this address
		}
	default:
		return Address{}, ErrAddress
	}
	copy(a.Access[:], raw)
	copy(a.Pin[:], raw[len(a.Access):])
	if !a.Valid() {
		return Address{}, ErrAddress
	}
	return a, nil
}

// splitPlace reads HOST[:PORT] in its one form.
func splitPlace(place string) (string, uint16, error) {
	port := uint64(DefaultPort)
	host := place
	if i := strings.LastIndexByte(place, ':'); i > strings.LastIndexByte(place, ']') {
		var err error
		host = place[:i]
		port, err = strconv.ParseUint(place[i+1:], 10, 16)
		if err != nil || port == DefaultPort || strconv.FormatUint(port, 10) != place[i+1:] { // 0443
			return "", 0, ErrAddress
		}
	}
	inner, v6 := strings.CutPrefix(host, "[")
	if v6 {
		if inner, v6 = strings.CutSuffix(inner, "]"); !v6 {
			return "", 0, ErrAddress
		}
	}
	clean, ok := cleanHost(inner)
	if !ok || strings.Contains(clean, ":") != v6 {
		return "", 0, ErrAddress
	}
	return clean, uint16(port), nil
}

// place returns HOST[:PORT].
func (a Address) place() string {
	host := a.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if a.Port == DefaultPort {
		return host
	}
	return host + ":" + strconv.Itoa(int(a.Port))
}

func (a Address) raw() []byte {
	raw := append(append(make([]byte, 0, keySize+2), a.Access[:]...), a.Pin[:]...)
	if a.AltPort != a.Port+1 {
		raw = binary.BigEndian.AppendUint16(raw, a.AltPort)
	}
	return raw
}

// Text returns the text form with the secret in it, for the user to hand on, or
// "" for an address that is not valid.
func (a Address) Text() string {
	if !a.Valid() {
		return ""
	}
	return scheme + a.place() + "#" + base32Text.EncodeToString(a.raw())
}

// Hints returns the address as two hints of a pairing code, the secret in the
// second: "hub=HOST[:PORT]" and "hub#" with base64url. One hint of a code has at
// most 64 bytes, which host and secret do not fit into together; a host of up to
// 54 characters always fits. It is nil for an address that is not valid.
func (a Address) Hints() []string {
	if !a.Valid() {
		return nil
	}
	return []string{hintPlace + a.place(), hintSecret + base64Text.EncodeToString(a.raw())}
}

// FromHints finds the address among the hints of a pairing code; the others are
// ignored. It reports false where there is none.
func FromHints(hints []string) (Address, bool) {
	var place, secret string
	for _, h := range hints {
		if p, ok := strings.CutPrefix(h, hintPlace); ok && place == "" {
			place = p
		}
		if s, ok := strings.CutPrefix(h, hintSecret); ok && secret == "" {
			secret = s
		}
	}
	raw, err := base64Text.DecodeString(secret)
	if err != nil || len(place) > MaxText || base64Text.EncodeToString(raw) != secret {
		return Address{}, false
	}
	a, err := build(place, raw)
	return a, err == nil
}

// String returns the address without its secret.
func (a Address) String() string {
	if a.IsZero() {
		return scheme
	}
	return scheme + a.place() + "#redacted"
}

// Format writes String for every verb.
func (a Address) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(a.String())) }

// LogValue returns String.
func (a Address) LogValue() slog.Value { return slog.StringValue(a.String()) }

// MarshalText always errs, with ErrMarshal, so that no address is written to a
// file or a reply by accident.
func (Address) MarshalText() ([]byte, error) { return nil, ErrMarshal }

// derive returns a password for one purpose as 32 hexadecimal digits.
func (a Address) derive(label string) string {
	key, err := hkdf.Key(sha256.New, a.Access[:], nil, label, derived)
	if err != nil {
		panic(err) // only for an output of more than 8160 bytes
	}
	return hex.EncodeToString(key)
}

// MQTTPassword returns the password of MQTTUser at the hub's broker: 32
// hexadecimal digits.
func (a Address) MQTTPassword() string { return a.derive("kith/1 hub mqtt") }

// TURNSecret returns the shared secret of time-limited TURN credentials: 32
// hexadecimal digits as text, which is what coturn's static-auth-secret takes.
// The user is "<unix expiry>:<client>", the password base64(HMAC-SHA1(secret, user)).
// A hub takes it until a week after the expiry, so that clocks may be wrong; coturn
// until the expiry by its own clock.
func (a Address) TURNSecret() []byte { return []byte(a.derive("kith/1 hub turn")) }

// MailPreface is what a connection to a hub's mail begins with, inside TLS.
const MailPreface = "KML1"

// MailLoginSize is how long MailLogin is, in bytes.
const MailLoginSize = len(MailPreface) + 2*derived

// MailLogin returns what a client says first where a hub keeps mail, inside TLS alone:
// MailPreface and the password, 32 hexadecimal digits. The hub then speaks (package
// app/mail).
func (a Address) MailLogin() []byte { return []byte(MailPreface + a.derive("kith/1 hub mail")) }

// DialBackPreface is what a connection begins with, inside TLS, that asks a hub to dial back.
const DialBackPreface = "KDB1"

// DialBackLoginSize is how long DialBackLogin is, in bytes.
const DialBackLoginSize = len(DialBackPreface) + 2*derived

// DialBackLogin returns what a client says first that wants to be dialed back, inside TLS
// alone: DialBackPreface and the password, 32 hexadecimal digits. Package doctor/dialback
// has what follows.
func (a Address) DialBackLogin() []byte {
	return []byte(DialBackPreface + a.derive("kith/1 hub dialback"))
}

// TLSConfig returns a client's configuration that takes the hub's public key and
// no other, and asks no certificate authority. A handshake with another server
// fails with ErrPin, as a *PinError if there is a certificate.
func (a Address) TLSConfig() *tls.Config {
	pin := a.Pin
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: a.Host,
		// The pin is checked instead, also when a session is resumed.
		InsecureSkipVerify: true, //nolint:gosec // the pin is
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return ErrPin
			}
			got := PinOf(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if subtle.ConstantTimeCompare(got[:], pin[:]) != 1 {
				return &PinError{cs.PeerCertificates[0]}
			}
			return nil
		},
	}
}

// hostPort returns HOST:PORT, with the port always.
func (a Address) hostPort(port uint16) string {
	return net.JoinHostPort(a.Host, strconv.Itoa(int(port)))
}

// MQTTURLs returns where MQTT is spoken, the cheaper first: over TLS, and over
// WebSocket in TLS for networks that let only the web through. Both need
// TLSConfig.
func (a Address) MQTTURLs() []string {
	hp := a.hostPort(a.Port)
	return []string{"mqtts://" + hp, "wss://" + hp + MQTTPath}
}

// TURNURLs returns where TURN is spoken (RFC 7065), the faster first: over UDP,
// over TCP, and over TLS, which needs TLSConfig.
func (a Address) TURNURLs() []string {
	hp := a.hostPort(a.Port)
	return []string{"turn:" + hp + "?transport=udp", "turn:" + hp + "?transport=tcp", "turns:" + hp + "?transport=tcp"}
}

// STUNServers returns the host:port of one or two UDP ports that answer STUN
// binding requests. A client that is seen with different ports at the two is
// behind a NAT that maps by destination.
func (a Address) STUNServers() []string {
	out := []string{a.hostPort(a.Port)}
	if a.AltPort != 0 {
		out = append(out, a.hostPort(a.AltPort))
	}
	return out
}
