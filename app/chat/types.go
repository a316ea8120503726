package chat

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/kithproject/kith/identity"
)

// A ConvID names a conversation: PairConv for two devices, the room's ID for a room.
type ConvID [16]byte

// PairConv returns the conversation of two devices: the first 16 bytes of
// SHA-256("kith/1 chat pair" || lesser ID || greater ID).
func PairConv(a, b identity.DeviceID) ConvID {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	h := sha256.New()
	h.Write([]byte("kith/1 chat pair"))
	h.Write(a[:])
	h.Write(b[:])
	return ConvID(h.Sum(nil)[:16])
}

// String returns the ID in hexadecimal.
func (c ConvID) String() string { return hex.EncodeToString(c[:]) }

// MarshalText returns the ID in hexadecimal; its error is always nil.
func (c ConvID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText takes what MarshalText returns. It errs for anything else.
func (c *ConvID) UnmarshalText(text []byte) error { return fromHex(c[:], text) }

// A LogID tells the logs of one author in one conversation apart. It is random.
type LogID [8]byte

// String returns the ID in hexadecimal.
func (l LogID) String() string { return hex.EncodeToString(l[:]) }

// MarshalText returns the ID in hexadecimal; its error is always nil.
func (l LogID) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText takes what MarshalText returns. It errs for anything else.
func (l *LogID) UnmarshalText(text []byte) error { return fromHex(l[:], text) }

func fromHex(dst, text []byte) error {
	if len(text) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("chat: an ID of %d characters, want %d", len(text), hex.EncodedLen(len(dst)))
	}
	if _, err := hex.Decode(dst, text); err != nil {
		return fmt.Errorf("chat: an ID in hexadecimal: %w", err)
	}
	return nil
}

// A Kind says what an entry is.
type Kind string

// The kinds of entries.
const (
	KindText Kind = "text" // a line
	KindFile Kind = "file" // a file that is offered
)

// A FileRef is a file that is offered in a conversation. To take it is a matter of
// app/files.
type FileRef struct {
	Name  string `json:"name"`  // clean, at most 255 bytes
	Size  int64  `json:"size"`  // bytes, as its sender says; -1 is not known
	Offer string `json:"offer"` // what app/files knows it by, at most 64 bytes
}

// A State says how far an entry has come.
type State string

// The states of an entry, each of which includes those before it.
const (
	StateKept      State = "kept"      // durable here only
	StateSent      State = "sent"      // with a carrier of mail, for everybody who does not have it yet
	StateDelivered State = "delivered" // durable at all other members
	StateRead      State = "read"      // shown to all other members
)

// A Message is one entry as it is shown. Author, Log and Seq name it in its
// conversation; the order of display is that of Lamport, Author, Seq, Log: the same
// on every side.
type Message struct {
	Conv    ConvID            `json:"conv"`
	Author  identity.DeviceID `json:"author"`
	Log     LogID             `json:"log"`
	Seq     uint64            `json:"seq"`     // number in the log, from 1
	Lamport uint64            `json:"lamport"` // number in the conversation, over that of every entry that its author knew
	Time    time.Time         `json:"time"`    // by the author's clock
	// ClockDiffers: when the entry came, its time was in the future.
	ClockDiffers bool     `json:"clock_differs,omitempty"`
	Kind         Kind     `json:"kind"`
	Text         string   `json:"text,omitempty"` // clean: one line, no control, escape or bidi characters
	File         *FileRef `json:"file,omitempty"` // of KindFile
	Mine         bool     `json:"mine"`           // written on this device
	State        State    `json:"state"`          // of others' entries: Delivered, or Read by this device
	Delivered    int      `json:"delivered"`      // how many other members have it
	Read         int      `json:"read"`           // how many other members have read it
	Late         bool     `json:"late,omitempty"` // when it came, later ones were there already
}

// A Conv is a conversation.
type Conv struct {
	ID      ConvID    `json:"id"`
	Room    bool      `json:"room"` // of a room; else of this device and another one
	Name    string    `json:"name"`
	Members []Member  `json:"members"`         // this device included
	Unread  int       `json:"unread"`          // how many entries of others have not been read
	Kept    int       `json:"kept,omitempty"`  // how many entries of this device not everybody has, or a letter with them
	Last    time.Time `json:"last,omitzero"`   // when the last entry came or was written here
	Muted   bool      `json:"muted,omitempty"` // its lines are not to draw attention
}

// A Member is a device in a conversation.
type Member struct {
	ID     identity.DeviceID `json:"id"`
	Name   string            `json:"name"`
	Online bool              `json:"online"` // it is connected to this device
}

// An EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventMessage EventKind = "message" // an entry has come or was written here
	EventState   EventKind = "state"   // an entry of this device has come further
	EventConv    EventKind = "conv"    // a conversation is new or changed: unread, members, presence
	EventGone    EventKind = "gone"    // a conversation was forgotten, or is no more
	EventLost    EventKind = "lost"    // the subscriber lagged behind: it is to load anew what it shows
)

// An Event is one change of what there is to show.
type Event struct {
	Kind    EventKind `json:"event"`
	Message *Message  `json:"message,omitempty"` // EventMessage, EventState: all of it
	Conv    *Conv     `json:"conv,omitempty"`    // EventConv, EventGone: all of it
}
