package pairing

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
)

// A Role is a side of a pairing.
type Role uint8

// The roles.
const (
	Joiner  Role = 1 // enters the code
	Offerer Role = 2 // shows the code
)

// String returns the role's name in signatures and keys.
func (r Role) String() string {
	if r == Joiner {
		return "joiner"
	}
	return "offerer"
}

// other returns the opposite role.
func (r Role) other() Role { return Joiner + Offerer - r }

// direction names the way of messages that this role sends.
func (r Role) direction() string { return r.String() + "->" + r.other().String() }

// A State is how far a pair is on this device's disk. The values are those of
// the record.
type State uint8

// The states of a pair.
const (
	Prepared State = 1 // durable here; the other side may not have it
	Active   State = 2 // durable on both sides: paired
	Tomb     State = 3 // ended; kept to tell the other side
)

// String returns the state's name in the specification.
func (s State) String() string {
	switch s {
	case Prepared:
		return "PREPARED"
	case Active:
		return "ACTIVE"
	case Tomb:
		return "TOMB"
	}
	return "NONE"
}

// A Reason says why a pairing failed.
type Reason uint8

// The reasons. A wrong code that passes its own checksum cannot be told from
// nobody being there: its topic is another one.
const (
	Expired     Reason = 1  // the code's time is over
	CodeUsed    Reason = 2  // another device has used the code
	NobodyThere Reason = 3  // nobody answered
	Refused     Reason = 4  // the other side's user said no
	Cancelled   Reason = 5  // this side's user said no
	WrongCheck  Reason = 6  // three times other digits than the other side's
	StoreFailed Reason = 7  // the pair could not be made durable here
	WrongDevice Reason = 8  // not the device whose key the QR code pins
	Self        Reason = 9  // the code was made by this very device
	TooOften    Reason = 10 // too many handshakes were begun with this code
)

// String returns a few words for a person.
func (r Reason) String() string {
	switch r {
	case Expired:
		return "the code has expired"
	case CodeUsed:
		return "the code has been used by another device"
	case NobodyThere:
		return "nobody with this code was found"
	case Refused:
		return "the other side refused"
	case Cancelled:
		return "cancelled"
	case WrongCheck:
		return "the check number was wrong"
	case StoreFailed:
		return "the pair could not be saved"
	case WrongDevice:
		return "the device is not the one that made the QR code"
	case Self:
		return "the code was made by this device"
	case TooOften:
		return "the code was tried too often"
	}
	return "unknown reason"
}

// An EventKind says what a person should see.
type EventKind uint8

// The kinds of events.
const (
	EventContact      EventKind = 1 // somebody who knows the code answered
	EventCheck        EventKind = 2 // the other side is proved to know the code; Accept it or not
	EventSecondDevice EventKind = 3 // another device tried the code after the first, or than Config.Pin names
	EventPrepared     EventKind = 4 // durable here; waiting for the other side
	EventPaired       EventKind = 5 // durable on both sides
	EventSettled      EventKind = 6 // the other side is known to be paired, too
	EventFailed       EventKind = 7 // over, for Reason
)

// String returns the kind's name in the output of programs.
func (k EventKind) String() string {
	switch k {
	case EventContact:
		return "contact"
	case EventCheck:
		return "check"
	case EventSecondDevice:
		return "second-device"
	case EventPrepared:
		return "prepared"
	case EventPaired:
		return "paired"
	case EventSettled:
		return "settled"
	case EventFailed:
		return "failed"
	}
	return "unknown"
}

// An Event is one step of a pairing.
type Event struct {
	Kind       EventKind
	Check      string   // six digits, with EventCheck
	Choices    []string // four check numbers of which one is right, with EventCheck on the offering side
	NeedsCheck bool     // with EventCheck: Accept must be called
	Peer       identity.DeviceID
	PeerInfo   Info
	Reason     Reason // with EventFailed
}

// A Record is what must be durable before the machine goes on. It prints
// "redacted".
type Record struct {
	State            State
	PairID           [16]byte
	Role             Role
	Peer             identity.DeviceID
	PeerInfo         Info
	Chain            Chain
	CommitJ, CommitO [32]byte
	Deadline         time.Time
	Method           code.Method
	Check            string // twelve digits of the handshake, to compare at any time
	CheckVerified    bool   // the check number was compared here, or the QR code pinned the peer's key
}

// String returns "redacted".
func (r Record) String() string { return "redacted" }

// GoString returns "redacted".
func (r Record) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (r Record) LogValue() slog.Value { return slog.StringValue("redacted") }

// An ActionKind says what an Action asks of the driver.
type ActionKind uint8

// The kinds of actions.
const (
	ActionSend  ActionKind = 1 // publish Frame on the topic with index Topic, on all media
	ActionStore ActionKind = 2 // make Record durable, then call Stored
	ActionEvent ActionKind = 3 // tell the user
)

// An Action is something for the driver to do, in the order of Poll.
type Action struct {
	Kind   ActionKind
	Topic  int // index into Config.Keys
	Frame  []byte
	Record Record
	Event  Event
}

var (
	// ErrCheck reports check digits other than the other side's.
	ErrCheck = errors.New("pairing: these are not the digits that the other device shows")
	// ErrNotAsked reports an Accept while there is nobody to accept.
	ErrNotAsked = errors.New("pairing: there is nobody to accept at the moment")
	// ErrConfig reports a Config that cannot be used.
	ErrConfig = errors.New("pairing: bad configuration")
)

// A Pin is the one device that an introduction is to lead to.
type Pin struct {
	ID identity.DeviceID
	// WireGuard is its X25519 public key, which it has to name itself, too.
	WireGuard [32]byte
}

// fits reports whether a device that has proved its identity is the pinned one.
func (p *Pin) fits(id identity.DeviceID, info Info) bool {
	return p == nil || p.ID == id && p.WireGuard == info.WireGuard
}

// Config is what New needs.
type Config struct {
	Role     Role
	Identity *identity.Identity
	// Keys are those of the code: one for the joiner; for the offerer of a
	// number those of the day before, the day and the day after.
	Keys []code.Keys
	// Method is how the code was entered (joiner) or made (offerer).
	Method code.Method
	// Commit is the commitment to the offerer's key from a QR code, or nil.
	Commit *[identity.CommitmentSize]byte
	// Pin is the only device to pair with; another one that knows the secret is
	// ignored. MethodIntro needs it, no other method has it.
	Pin *Pin
	// Info is what the other side learns about this device.
	Info Info
	// Lifetime is how long the code is valid. Default 10 minutes.
	Lifetime time.Duration
	// Patience is how long the joiner looks for anybody who answers. Default:
	// Lifetime.
	Patience time.Duration
	// AutoAccept pairs without asking: on the offering side only with words or QR.
	AutoAccept bool
	// Rand is the source of randomness. Default crypto/rand.
	Rand io.Reader
}

// A Verdict says what a frame was.
type Verdict uint8

// The verdicts of Machine.Receive.
const (
	Junk  Verdict = iota // nobody who knows the code has sealed it, or it came too late
	Echo                 // this machine has sent it
	Heard                // another device that knows the code has
)
