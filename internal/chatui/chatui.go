// Package chatui is the full-screen chat of kith: conversations on the left, the lines
// of one of them on the right, an input below.
//
// It knows nothing of the network. A [Backend] gives conversations, history and events,
// and takes what is written; [Run] shows it on a terminal until the user leaves or the
// context ends. The model is one value that only Update changes: it does no I/O, reads
// no clock and starts nothing. Whatever may take time is a command, which runs beside
// the loop with a context that ends with Run, and comes back as one message. Nothing
// ticks: with no event and no key the program sleeps.
//
// What other devices wrote (names, texts, file names) is cleaned again here, whatever
// was done before (clean.go): no control characters, no bidirectional controls, nothing
// invisible, few combining marks. Texts are always indented, and the first column of the
// message pane is the program's own: a line that begins there with "--" was made here,
// and no text of another device can be in that place.
package chatui

import (
	"context"
	"time"
)

// A Conv is one conversation: with one device, or a room.
type Conv struct {
	ID      string    // names the conversation to the Backend
	Room    bool      // a room, with more members than one
	Name    string    // of the device or the room; cleaned before it is shown
	Members []Member  // the others: without this device itself
	Kept    int       // how many own lines wait for somebody to take them
	Unread  int       // how many lines were not seen here
	Last    time.Time // when the last line was written
	Muted   bool      // its unread lines do not ask for attention
}

// A Member is another device in a conversation.
type Member struct {
	ID     string // the device's id
	Name   string // cleaned before it is shown
	Online bool   // connected now
}

// Kinds of Message.
const (
	KindText = "text"
	KindFile = "file"
)

// States of an own Message: where it is.
const (
	StateKept      = "kept"      // durable on this device only
	StateSent      = "sent"      // handed to somebody who carries it
	StateDelivered = "delivered" // durable at all other members
	StateRead      = "read"      // read by all other members
)

// A Message is one line of a conversation. Author, Log and Seq name it; Lamport, Author,
// Seq and Log (ids compared as strings) are its place.
type Message struct {
	Conv         string    // the conversation's id
	Author       string    // the device that wrote it
	Name         string    // its name, for those who are members no more; may be empty
	Log          string    // which log of the author
	Seq          uint64    // number in that log, from 1
	Lamport      uint64    // version of the conversation that the author had seen; a count
	Time         time.Time // by the author's clock
	ClockDiffers bool      // that clock differs much from this device's: the time is not shown
	Kind         string    // KindText or KindFile
	Text         string    // what was written; one line
	File         *File     // with KindFile
	Mine         bool      // written on this device
	State        string    // of an own line: StateKept to StateRead
	Delivered    int       // how many other members have it
	Read         int       // how many other members have read it
	Late         bool      // sorted in before lines that had been shown
}

// A File is what a device offers, as the line about it tells.
type File struct {
	Name  string // as the sender calls it; cleaned before it is shown
	Size  int64  // bytes; below 0 is not known
	Offer string // names the offer to the Backend

	Now *Transfer // how far it was when the line was read; nil is not known
}

// States of a Transfer.
const (
	TransferOffered  = "offered"  // waits for an answer
	TransferAccepted = "accepted" // taken; no byte has moved
	TransferRunning  = "running"  // bytes move
	TransferWaiting  = "waiting"  // begun, and no connection at the moment
	TransferDone     = "done"     // all of it is here, or there
	TransferDeclined = "declined" // not wanted
	TransferFailed   = "failed"   // will not go on by itself
	TransferExpired  = "expired"  // not offered any more, and never answered
	TransferUnknown  = "unknown"  // nothing is known of it
)

// A Transfer is how far an offered file is.
type Transfer struct {
	Offer string // of which File
	State string // TransferOffered to TransferUnknown
	Name  string // as the offer itself says, if it waits here: what counts, whatever the line says
	Bytes int64  // bytes that are there
	Total int64  // bytes in all; 0 is not known
	Note  string // what went wrong, where it was put, or who has it; may be empty
}

// A Notice is something that this device says itself: somebody joined, was removed, a
// new pairing was made. It is never made from what came as a message.
type Notice struct {
	Conv   string    // where it belongs; empty is all
	Time   time.Time // when it happened
	Text   string    // one line; names in it are cleaned with it
	Action *Action   // what can be done about it; nil is nothing
}

// An Action is what one key does about a Notice.
type Action struct {
	ID    string // names it to Backend.Act
	Label string // what it does: "undoes the pairing"
}

// A Status is how a conversation's other side is reached.
type Status struct {
	Conv string // which conversation; empty is all
	Text string // "direct, 12 ms"; made by this device
}

// EventKind says which field of an Event counts.
type EventKind int

// Kinds of Event.
const (
	EventMessage  EventKind = iota + 1 // Message is new, or its state changed
	EventConvs                         // Convs are the conversations now; nil: ask again
	EventConv                          // Convs are new or changed (their Unread, too), the others are not
	EventGone                          // Convs are no more
	EventPresence                      // Device has come (Online) or gone
	EventTransfer                      // Transfer moved
	EventNotice                        // Notice is to be shown
	EventStatus                        // Status changed
	EventMissed                        // events were left out: ask for everything again
)

// An Event is one thing that happened.
type Event struct {
	Kind     EventKind
	Message  *Message
	Convs    []Conv
	Device   string
	Online   bool
	Transfer *Transfer
	Notice   *Notice
	Status   *Status
}

// A Backend is where conversations are. All methods may be called at once, and return
// soon after their context ends. An error's text is shown to the user in one line.
type Backend interface {
	// Convs returns the conversations there are, in the order they are listed. It
	// errs when they cannot be known.
	Convs(ctx context.Context) ([]Conv, error)
	// Events returns what happens from now on; it is closed when ctx ends or when
	// nothing more can come. It errs when there is nothing to follow.
	Events(ctx context.Context) (<-chan Event, error)
	// Send keeps one line of at most MaxText bytes durably and returns it. It errs
	// when the line is not kept.
	Send(ctx context.Context, conv, text string) (Message, error)
	// SendFile offers the file at an absolute path. It errs when it cannot be read
	// or offered.
	SendFile(ctx context.Context, conv, path string) error
	// Accept takes an offered file; how it goes on comes as events. It errs when
	// the offer is not open.
	Accept(ctx context.Context, offer string) error
	// Decline refuses an offered file. It errs when the offer is not open.
	Decline(ctx context.Context, offer string) error
	// Act does what a Notice's Action promises. It errs when it is not done.
	Act(ctx context.Context, action string) error
	// History returns at most n lines before one line (nil: the last ones), oldest
	// first; none is that there are none. It errs when they cannot be read.
	History(ctx context.Context, conv string, before *Message, n int) ([]Message, error)
	// Search returns at most n lines that contain the query, whatever the case of
	// letters, oldest first (the newest n). It errs when they cannot be read.
	Search(ctx context.Context, conv, query string, n int) ([]Message, error)
	// Read tells that everything up to a line was seen. It errs when that cannot
	// be kept.
	Read(ctx context.Context, conv string, upTo Message) error
}

// MaxText is how long a line is at most, in bytes.
const MaxText = 4096

// key is the place of a message in its conversation. Lines made here (local > 0) come
// after everything that had been there.
type key struct {
	lamport     uint64
	author, log string
	seq         uint64
	local       int
}

func (m *Message) key() key {
	return key{lamport: m.Lamport, author: m.Author, log: m.Log, seq: m.Seq}
}

// compare is the order of display.
func (k key) compare(o key) int {
	for _, c := range [...]int{
		compare(k.lamport, o.lamport), compare(min(k.local, 1), min(o.local, 1)),
		compare(k.author, o.author), compare(k.seq, o.seq), compare(k.log, o.log), compare(k.local, o.local),
	} {
		if c != 0 {
			return c
		}
	}
	return 0
}
