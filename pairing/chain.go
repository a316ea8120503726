package pairing

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/kithproject/kith/internal/wire"
)

// maxAhead is how far a chain moves forward in one step, in days: a hundred
// years, so that a device with a wrong clock costs milliseconds and no more.
const maxAhead = 36600

// ErrDay reports a day that a chain cannot give keys for.
var ErrDay = errors.New("pairing: no keys for this day: check the clocks of both devices")

// A Chain is a pair's key chain on one day. The keys of a day follow from it,
// and those of every later day; those of earlier days do not. It prints
// "redacted".
type Chain struct {
	Key [32]byte
	Day int64 // days since 1970-01-01 UTC
}

// At returns the chain of the same or a later day. It errs with ErrDay for an
// earlier one, and for one more than a hundred years ahead.
func (c Chain) At(day int64) (Chain, error) {
	if day < c.Day || day-c.Day > maxAhead {
		return Chain{}, fmt.Errorf("%w (day %d, chain of day %d)", ErrDay, day, c.Day)
	}
	for c.Day < day {
		c.Key = [32]byte(wire.Expand(c.Key[:], "chain+1"))
		c.Day++
	}
	return c, nil
}

// Topic returns the day's topic for messages from one role to the other.
func (c Chain) Topic(from Role) [20]byte {
	return [20]byte(wire.Expand(c.Key[:], "topic", []byte(from.direction()))[:20])
}

// FrameKey returns the day's key that seals frames from one role to the other.
func (c Chain) FrameKey(from Role) [32]byte {
	return [32]byte(wire.Expand(c.Key[:], "frame", []byte(from.direction())))
}

// ProbeKey returns the day's key that seals path probes from one role.
func (c Chain) ProbeKey(from Role) [32]byte {
	return [32]byte(wire.Expand(c.Key[:], "probe", []byte(from.direction())))
}

// MailKeys returns the day's token and key of letters from one role to the other that
// a keeper holds meanwhile (package app/mail).
func (c Chain) MailKeys(from Role) (token, seal [32]byte) {
	dir := []byte(from.direction())
	return [32]byte(wire.Expand(c.Key[:], "mail token", dir)), [32]byte(wire.Expand(c.Key[:], "mail seal", dir))
}

// WireGuardPSK returns the day's WireGuard preshared key.
func (c Chain) WireGuardPSK() [32]byte { return [32]byte(wire.Expand(c.Key[:], "wg-psk")) }

// String returns "redacted".
func (c Chain) String() string { return "redacted" }

// GoString returns "redacted".
func (c Chain) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (c Chain) LogValue() slog.Value { return slog.StringValue("redacted") }
