package code

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/kithproject/kith/internal/wire"
)

// Argon2id costs of a number code (RFC 9106): 64 MiB as in its second
// recommended option, one lane so that a small device takes no longer than its
// one core does.
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 1
)

// Keys are what one code gives both devices. Printing them prints "redacted".
// They are not comparable with ==, which would not be constant-time.
type Keys struct {
	Topic [20]byte // where to meet; one-way, so it tells nothing of the code
	Frame [32]byte // seals the frames on the topic (internal/wire)
	PSK   [32]byte // the preshared key of the pairing handshake
	_     [0]func()
}

// Keys returns the keys for the device that joins. For a number it takes the
// UTC day of now, some 0.15 s and 64 MiB; words and QR codes do not use now. It
// errs with ErrNone for the zero Code.
func (c Code) Keys(now time.Time) (Keys, error) {
	switch {
	case c.get == nil:
		return Keys{}, ErrNone
	case c.strong():
		return expandKeys(wire.Extract([]byte(wire.Label("code/strong")), c.get().secret[:])), nil
	}
	return c.numberKeys(wire.Day(now)), nil
}

// OfferKeys returns the keys on which the device that offers listens: one for
// words and QR; for a number three, of the UTC day before now, of now's and of
// the day after, as the joiner's clock may differ. The three take three times
// as long as Keys. It errs with ErrNone for the zero Code.
func (c Code) OfferKeys(now time.Time) ([]Keys, error) {
	if c.get == nil || c.strong() {
		keys, err := c.Keys(now)
		if err != nil {
			return nil, err
		}
		return []Keys{keys}, nil
	}
	day := wire.Day(now)
	return []Keys{c.numberKeys(day - 1), c.numberKeys(day), c.numberKeys(day + 1)}, nil
}

func (c Code) numberKeys(day int64) Keys {
	salt := fmt.Sprintf("%s %d", wire.Label("code/number"), day)
	return expandKeys(argon2.IDKey(c.get().digits[:], []byte(salt), argonTime, argonMemory, argonThreads, 32))
}

// IntroKeys returns the keys of an introduction's secret, 32 random bytes that the
// introducing device gives both others. Whoever has it can meet them and start a
// handshake; who they are is proved by their own keys alone.
func IntroKeys(secret [32]byte) Keys {
	return expandKeys(wire.Extract([]byte(wire.Label("code/intro")), secret[:]))
}

func expandKeys(ck []byte) Keys {
	return Keys{
		Topic: [20]byte(wire.Expand(ck, "topic")),
		Frame: [32]byte(wire.Expand(ck, "frame")),
		PSK:   [32]byte(wire.Expand(ck, "psk")),
	}
}

// String returns "redacted".
func (k Keys) String() string { return redacted }

// GoString returns "redacted".
func (k Keys) GoString() string { return redacted }

// LogValue returns "redacted".
func (k Keys) LogValue() slog.Value { return slog.StringValue(redacted) }

// Format prints "redacted" for every verb.
func (k Keys) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText returns "redacted", so that no encoder writes the keys out. The
// error is always nil.
func (k Keys) MarshalText() ([]byte, error) { return []byte(redacted), nil }
