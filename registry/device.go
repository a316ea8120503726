// Package registry remembers the devices that this one is paired with: one file
// per pair, so that damage to one loses no other, and every write durable before
// it returns.
//
// A file is pairs/<pair id in hex>.cbor in the state directory, mode 0600: a CBOR
// map with small integer keys. Keys that this version does not know are kept. A
// file that cannot be read is moved aside, named in Problems, and the rest loads.
package registry

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/kithproject/kith/identity"
)

// A PairID names one pair; both devices have the same.
type PairID = [16]byte

// A State is how far a pair is. The values are those of the pairing protocol.
type State uint8

// The states.
const (
	Prepared State = 1 // durable here; the other side may not have it
	Active   State = 2 // durable on both sides
	Tomb     State = 3 // ended; kept to tell the other side
)

// A Device is one remembered pair with another device. Printing one prints
// "redacted": it holds the pair's keys.
type Device struct {
	PairID    PairID
	State     State
	ID        identity.DeviceID
	WireGuard [32]byte          // its X25519 public key
	Name      string            // what this device calls it; unique in the store
	PeerName  string            // what it calls itself
	OS        string            // as it said when pairing
	Joiner    bool              // this device entered the code
	Method    string            // words, qr, number or intro
	Verified  bool              // the check number was compared, or a QR code pinned its key
	VouchedBy identity.DeviceID // the device that introduced it, if it was not paired by a code
	Own       bool              // this user's own device: it may introduce others and is told of new pairings
	Check     string            // twelve digits of the handshake, to compare; "" in records of before there were any

	Chain            [32]byte  // key of the pair's chain on ChainDay; secret
	ChainDay         int64     // days since 1970-01-01 UTC
	MailKeys         []MailKey // of letters from it on days before ChainDay that may still wait; secret
	CommitJ, CommitO [32]byte  // keys of the commit phase; secret

	Next NextKeys // of a member: those that it may have by now in place of these; zero: none

	Deadline time.Time // of the code that made the pair
	Created  time.Time
	Changed  time.Time // last change of State
	LastSeen time.Time
	Skew     int64 // days that its clock is ahead of this device's

	Rights    Rights
	Endpoints []netip.AddrPort // addresses at which it was reached, newest first

	// Room is zero for a paired device. Otherwise the two only are members of one room,
	// this one; it is no pair, and ends with the membership.
	Room [16]byte
}

// Member reports whether it is known as a member of a room alone.
func (d Device) Member() bool { return d.Room != [16]byte{} }

// NextKeys are keys that a device was given, which may not know of it: they take the place
// of the pair's when it is heard to use them. They print "redacted".
type NextKeys struct {
	PairID PairID // zero: there are none
	Chain  [32]byte
	Day    int64 // of Chain, days since 1970-01-01 UTC
}

// String returns "redacted".
func (NextKeys) String() string { return "redacted" }

// GoString returns "redacted".
func (NextKeys) GoString() string { return "redacted" }

// A MailKey is what opens letters of one day (package app/mail). It prints "redacted".
type MailKey struct {
	Day         int64 // days since 1970-01-01 UTC
	Token, Seal [32]byte
}

// String returns "redacted".
func (MailKey) String() string { return "redacted" }

// GoString returns "redacted".
func (MailKey) GoString() string { return "redacted" }

// String returns "redacted".
func (d Device) String() string { return "redacted" }

// GoString returns "redacted".
func (d Device) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (d Device) LogValue() slog.Value { return slog.StringValue("redacted") }

// A Problem is a file that could not be read.
type Problem struct {
	Path   string // where it was
	KeptAs string // where it is; "" if it could not be moved
	Err    error
}

// String returns one line for a person.
func (p Problem) String() string {
	kept := "kept as " + p.KeptAs
	if p.KeptAs == "" {
		kept = "left where it is"
	}
	return fmt.Sprintf("the file %s cannot be read (%v) and was %s; the other devices are not affected", p.Path, p.Err, kept)
}

var (
	// ErrNotFound reports a reference that fits no device.
	ErrNotFound = errors.New("no such device")
	// ErrName reports a name that cannot be given.
	ErrName = errors.New("not a usable name")
	// ErrRecord reports bytes that are not a record.
	ErrRecord = errors.New("not a pair's record")
)

// An EndedError reports a reference that fits a pair that has ended, and no other device.
// It is an ErrNotFound.
type EndedError struct {
	Name  string
	Since time.Time // when this device ended the pair, or learned that it has ended
}

// Error names the device and the day.
func (e *EndedError) Error() string {
	return fmt.Sprintf("%v: the pair with %s has ended (%s)", ErrNotFound, e.Name, e.Since.Format(time.DateOnly))
}

// Unwrap returns ErrNotFound.
func (e *EndedError) Unwrap() error { return ErrNotFound }

// An AmbiguousError reports a reference that fits several devices.
type AmbiguousError struct {
	Ref   string
	Names []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%q fits several devices: %s", e.Ref, strings.Join(e.Names, ", "))
}

func fileName(id PairID) string { return hex.EncodeToString(id[:]) + ".cbor" }
