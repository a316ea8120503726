// Package kin is what devices of one circle tell each other about pairs: a device that
// knows two others introduces them, and a person's own devices tell each other of new
// pairs and undo them. It is given a listener, a dialer and what the device knows, and
// has no network, disk or clock of its own.
//
// An Introduction is a statement, signed by the introducer, that two devices it knows
// are to know each other, with a secret by which they meet. Each of the two asks its
// user; then they pair by package pairing, with the other's keys pinned to those that
// the statement names. The introducer learns that they did, and nothing of their keys.
//
//	Book     what is durable: introductions given and received, notices made and heard.
//	         Each change is saved before it counts.
//	Service  carries letters between the books of two connected devices: each is
//	         repeated until the other side has answered it
//
// What must hold, and the tests hold it: only a device that is paired by a code
// introduces (one hop); a device that was removed does not come back by an introduction;
// only a device that is marked as one's own gives notices and has pairs undone; all that
// another device can make this one store, show or do is bounded.
package kin

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

// Port is the tunnel port on which a device takes letters, as a TCP port number.
const Port = 27498

const (
	// Life is how long an introduction waits for both devices.
	Life = 7 * 24 * time.Hour
	// NoticeLife is how long a new pair is news, and how long a request to undo one waits.
	NoticeLife = 24 * time.Hour

	// slack is by how much the clocks of two devices may differ.
	slack = 24 * time.Hour
	// madeLife is how long a notice of this device is kept: it may be told just before it
	// is old, and undone by a request that waited as long.
	madeLife = 2*NoticeLife + slack

	maxGiven       = 64  // introductions made here
	maxReceived    = 512 // of other devices, with those that are over
	maxPending     = 64  // of those that are not
	maxPendingFrom = 16  // by one device

	maxReceivedFrom = 64 // by one device, with those that are over

	maxMade      = 128 // notices of this device
	maxHeardFrom = 64  // notices of one other device
	maxHeard     = 512 // of all
	maxNameBytes = 64
	maxWordBytes = 16 // of an operating system's or a method's name
)

var (
	// ErrNotFound reports an introduction or a notice that there is not.
	ErrNotFound = errors.New("no such introduction")
	// ErrOver reports an introduction that has been decided or is over.
	ErrOver = errors.New("that is over")
	// ErrFull reports that too many introductions are under way.
	ErrFull = errors.New("too many introductions are under way")
	// ErrMay reports a device that may not introduce or be introduced.
	ErrMay = errors.New("cannot be introduced")
	// ErrState reports bytes that are no saved Book.
	ErrState = errors.New("not a kept book of introductions")
)

// An ID names an introduction or a notice: random.
type ID [16]byte

// newID returns a random ID.
func newID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 8 hexadecimal digits, for people.
func (id ID) Short() string { return id.String()[:8] }

// MarshalText returns String. The error is always nil.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote. It errs for anything else.
func (id *ID) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(id) {
		return fmt.Errorf("kin: %q is not an id", text)
	}
	*id = ID(raw)
	return nil
}

// An Introduction is what the introducer gives one of the two devices. It prints
// "redacted": it holds the secret by which the two meet.
type Introduction struct {
	ID        ID
	By        identity.DeviceID // the introducer
	To        identity.DeviceID // the device that it is given to
	Other     identity.DeviceID // the device that it gets to know
	WireGuard [32]byte          // Other's X25519 public key
	Name      string            // what By calls Other; clean
	Secret    [32]byte
	Expires   time.Time // by By's clock, to the second
	Sig       [64]byte  // of By over all of the above
}

// String returns "redacted".
func (i Introduction) String() string { return "redacted" }

// GoString returns "redacted".
func (i Introduction) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (i Introduction) LogValue() slog.Value { return slog.StringValue("redacted") }

// statement is what the introducer signs.
func (i Introduction) statement() []byte {
	return wire.AppendItems([]byte(wire.Label("introduce")), i.ID[:], i.By[:], i.To[:], i.Other[:], i.WireGuard[:],
		[]byte(i.Name), i.Secret[:], wire.DayItem(i.Expires.Unix()))
}

// genuine reports whether By has signed it.
func (i Introduction) genuine() bool { return i.By.Verify(i.statement(), i.Sig[:]) }

// Offers reports whether the device that has this is the offering side of the pairing:
// the one with the lesser ID.
func (i Introduction) Offers() bool { return i.To.String() < i.Other.String() }

// A Notice says that a device has a new pair.
type Notice struct {
	ID         ID                `json:"id"`
	Peer       identity.DeviceID `json:"peer"`
	Name       string            `json:"name"` // what the device calls it; clean
	OS         string            `json:"os,omitempty"`
	Method     string            `json:"method"`                  // words, qr, number or intro
	Introducer string            `json:"introduced_by,omitempty"` // what the device calls the one that introduced it
	Paired     time.Time         `json:"paired"`                  // by this device's clock
	Ended      bool              `json:"ended,omitempty"`         // the pair is over
}

// A Peer is what this device knows of another one that it is paired with.
type Peer struct {
	ID        identity.DeviceID
	Name      string
	WireGuard [32]byte
	Own       bool // this user's own device
	Vouched   bool // it was introduced
	Blocked   bool
}

// A World is what a Book asks its device. It must not call the Book.
type World interface {
	// Self returns this device's ID.
	Self() identity.DeviceID
	// Sign signs with this device's key.
	Sign(message []byte) []byte
	// Peer returns a device of an active pair.
	Peer(id identity.DeviceID) (Peer, bool)
	// Removed reports whether this device's user has ended a pair with a device, and not
	// paired with it by a code since.
	Removed(id identity.DeviceID) bool
}

// may reports whether a device may introduce others here, or be introduced.
func may(p Peer, ok bool) bool { return ok && !p.Vouched && !p.Blocked }
