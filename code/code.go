package code

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"time"
)

// A Method is the form in which a code was given. It is part of the pairing
// transcript; its numbers are on the wire.
type Method uint8

// The methods. MethodShort is reserved and not made or read here. MethodIntro has no
// form that a person sees: a device that both sides know gives the secret (IntroKeys).
const (
	MethodWords  Method = 1 // 12 words
	MethodQR     Method = 2 // QR code or URI
	MethodNumber Method = 3 // 20 digits
	MethodShort  Method = 4 // reserved for 4 digits and 3 words
	MethodIntro  Method = 5 // the secret of an introduction
)

// String returns "words", "qr", "number", "short" or "intro", as the transcript
// names the method, and "method(n)" for a number that is none of them.
func (m Method) String() string {
	switch m {
	case MethodWords:
		return "words"
	case MethodQR:
		return "qr"
	case MethodNumber:
		return "number"
	case MethodShort:
		return "short"
	case MethodIntro:
		return "intro"
	}
	return fmt.Sprintf("method(%d)", uint8(m))
}

const (
	// DefaultLifetime is how long a code is good if Options name no Lifetime.
	DefaultLifetime = 10 * time.Minute
	// MinLifetime is the shortest lifetime that New accepts.
	MinLifetime = time.Minute
	// MaxLifetime is the longest lifetime that New accepts for words and QR.
	MaxLifetime = time.Hour
	// MaxNumberLifetime is the longest lifetime that New accepts for a number,
	// whose 63 bits are not meant to stand for long.
	MaxNumberLifetime = 15 * time.Minute
	// MaxEndpoints is how many endpoints a code carries at most, a count.
	MaxEndpoints = 4
	// MaxHints is how many hints a code carries at most, a count.
	MaxHints = 4
	// MaxHint is the longest hint, in bytes.
	MaxHint = 64

	secretSize = 16
)

// ErrNone reports a zero Code, which has no secret and so no keys.
var ErrNone = errors.New("code: no code given")

// Options says what New puts into a code. Only Now is required.
type Options struct {
	// Rand is where the secret comes from; nil means crypto/rand.
	Rand io.Reader
	// Now is the current time, from which the expiry counts. Required.
	Now time.Time
	// Lifetime is how long the code is good. Zero means DefaultLifetime;
	// otherwise from MinLifetime to MaxLifetime, or to MaxNumberLifetime for a
	// number.
	Lifetime time.Duration
	// Commit is identity.DeviceID.Commitment of the device that offers: with it
	// whoever scans the QR code knows that it talks to that device and no other.
	// Zero means none. Words and numbers cannot carry it.
	Commit [16]byte
	// Endpoints are addresses of this device that the QR code carries, best
	// first. Those that LocalEndpoint refuses are left out, as every reader
	// would refuse them; of the others the first MaxEndpoints are carried.
	Endpoints []netip.AddrPort
	// Hints say where else to meet ("mqtts://broker.example:8883"): at most
	// MaxHints, each 1 to MaxHint bytes of printable ASCII without spaces, no
	// web links. What they mean is up to the drivers; a reader must not trust
	// them.
	Hints []string
}

// A Code is the secret two devices share for one pairing. It is immutable and
// safe for concurrent use. The zero Code holds no secret. It is not comparable
// with ==; Equal compares in constant time. Printing one prints "redacted".
type Code struct {
	// get is a function because package fmt, which cannot call methods of
	// unexported fields, then prints an address for a Code inside a struct. For a
	// pointer it does so too, but with %s and %q it prints what is behind it.
	get func() *payload
}

func wrap(p *payload) Code { return Code{get: func() *payload { return p }} }

// payload is what a code says. digits is set for a number, secret otherwise.
type payload struct {
	method    Method
	secret    [secretSize]byte
	digits    [numberDigits]byte // ASCII
	expiry    time.Time          // zero if unknown
	commit    [16]byte
	hasCommit bool
	endpoints []netip.AddrPort
	hints     []string
}

// New makes a fresh code. With MethodWords or MethodQR it has both forms, Words
// and URI, of one secret. It errs if an option is out of its bounds, if the
// method is another, or if Rand fails.
func New(m Method, opts Options) (Code, error) {
	if opts.Now.IsZero() {
		return Code{}, errors.New("code: new: Options.Now is required")
	}
	lifetime, longest := opts.Lifetime, MaxLifetime
	if m == MethodNumber {
		longest = MaxNumberLifetime
	}
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	if lifetime < MinLifetime || lifetime > longest {
		return Code{}, fmt.Errorf("code: new: lifetime %v is not between %v and %v", lifetime, MinLifetime, longest)
	}
	random := opts.Rand
	if random == nil {
		random = rand.Reader
	}
	p := &payload{method: m, expiry: opts.Now.Add(lifetime)}
	if unix := p.expiry.Unix(); unix <= 0 || unix > math.MaxUint32 {
		return Code{}, fmt.Errorf("code: new: expiry in the year %d cannot be encoded: check the clock", p.expiry.UTC().Year())
	}
	switch m {
	case MethodWords, MethodQR:
		if _, err := io.ReadFull(random, p.secret[:]); err != nil {
			return Code{}, fmt.Errorf("code: new: read randomness: %w", err)
		}
		if err := p.setExtras(opts); err != nil {
			return Code{}, err
		}
	case MethodNumber:
		if err := randomNumber(random, &p.digits); err != nil {
			return Code{}, err
		}
	default:
		return Code{}, fmt.Errorf("code: new: %v is not a method that New makes", m)
	}
	return wrap(p), nil
}

// setExtras takes over what only a QR code carries, checked.
func (p *payload) setExtras(opts Options) error {
	p.commit, p.hasCommit = opts.Commit, opts.Commit != [16]byte{}
	for _, e := range opts.Endpoints {
		e = netip.AddrPortFrom(e.Addr().Unmap().WithZone(""), e.Port())
		if LocalEndpoint(e) && len(p.endpoints) < MaxEndpoints && !slices.Contains(p.endpoints, e) {
			p.endpoints = append(p.endpoints, e)
		}
	}
	if len(opts.Hints) > MaxHints {
		return fmt.Errorf("code: new: %d hints, at most %d fit a code", len(opts.Hints), MaxHints)
	}
	for _, hint := range opts.Hints {
		if !validHint(hint) {
			return fmt.Errorf("code: new: hint %q is not 1 to %d printable ASCII characters, or is a web link", hint, MaxHint)
		}
	}
	p.hints = slices.Clone(opts.Hints)
	if n := len(p.encode()); n > maxShown {
		return fmt.Errorf("code: new: %d bytes do not fit a QR code of one screen, at most %d do: give fewer hints or endpoints", n, maxShown)
	}
	return nil
}

// Method returns the form the code was made for or parsed from, and 0 for the
// zero Code.
func (c Code) Method() Method {
	if c.get == nil {
		return 0
	}
	return c.get().method
}

// IsZero reports whether c is the zero Code.
func (c Code) IsZero() bool { return c.get == nil }

// strong reports whether c has a 128-bit secret: words or QR.
func (c Code) strong() bool { return c.get != nil && c.get().method != MethodNumber }

// Expiry returns when the code stops to be good, or the zero time if the code
// does not say: only a URI carries it to the other device.
func (c Code) Expiry() time.Time {
	if c.get == nil {
		return time.Time{}
	}
	return c.get().expiry
}

// Expired reports whether the code is known to be too old at now.
func (c Code) Expired(now time.Time) bool {
	return c.get != nil && !c.get().expiry.IsZero() && !now.Before(c.get().expiry)
}

// Valid reports whether c holds a secret and is not known to be too old at now.
func (c Code) Valid(now time.Time) bool { return c.get != nil && !c.Expired(now) }

// Commit returns the commitment to the offering device's ID, and whether the
// code carries one.
func (c Code) Commit() (commit [16]byte, ok bool) {
	if c.get == nil {
		return commit, false
	}
	return c.get().commit, c.get().hasCommit
}

// Endpoints returns the offering device's local addresses, best first, as far
// as the code carries them. They are hints, nothing to trust. The caller owns
// the slice.
func (c Code) Endpoints() []netip.AddrPort {
	if c.get == nil {
		return nil
	}
	return slices.Clone(c.get().endpoints)
}

// Hints returns where else to meet, as far as the code says. They are not to be
// trusted. The caller owns the slice.
func (c Code) Hints() []string {
	if c.get == nil {
		return nil
	}
	return slices.Clone(c.get().hints)
}

// Equal reports, in time that does not depend on the secrets, whether both
// codes hold the same secret. Words and QR code of one offer are equal; two
// zero Codes are not.
func (c Code) Equal(other Code) bool {
	if c.get == nil || other.get == nil || c.strong() != other.strong() {
		return false
	}
	return subtle.ConstantTimeCompare(c.get().secret[:], other.get().secret[:])&
		subtle.ConstantTimeCompare(c.get().digits[:], other.get().digits[:]) == 1
}

// String returns "redacted". Words, Number and URI return the code.
func (c Code) String() string { return redacted }

// GoString returns "redacted".
func (c Code) GoString() string { return redacted }

// LogValue returns "redacted".
func (c Code) LogValue() slog.Value { return slog.StringValue(redacted) }

// Format prints "redacted" for every verb, also those for which package fmt
// would print the fields.
func (c Code) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

const redacted = "redacted"
