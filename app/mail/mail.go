// Package mail keeps sealed letters for devices that are away.
//
// Two paired devices have, for each day and each direction, a token and a key
// that nobody else has. The sender seals a letter with the key and leaves it in
// the box that the token names: Box = SHA-256("kith/1 mail box" || token)[:20].
// The receiver shows the token and gets what is in the box. A keeper, which is a
// hub or a third device whose user has allowed it, sees boxes that change daily,
// blobs of four sizes (Sizes), times, and who brings and fetches them by address;
// it sees neither names nor what is said, and a letter that it changes, moves to
// another box or invents does not open.
//
// Both halves are here. A Store holds blobs in a directory, a Server speaks the
// protocol for it over connections that it is given. A Client is the other end of
// one connection. A Service is the mail of a device: it holds one connection to
// each keeper (Place), leaves letters at every one of them and fetches from all.
// It does not poll: a keeper says when something comes (Client.News).
//
// A keeper is not trusted. It may lose letters (leave them at several), and it may
// hand out old ones again for as long as the receiver looks at that day's box
// (Days): whoever reads letters must know those that it has read.
//
// # Protocol
//
// Every frame is: length of the rest (4 bytes, big endian), type (1), number of
// the request (4), body. The keeper begins with Hello. A request is answered with
// its number, by Item frames and then Ok, by Counts, or by Failed.
package mail

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	// Port is the TCP port number inside the tunnel at which a device keeps mail.
	Port = 27497
	// MaxBlob is the largest blob, in bytes.
	MaxBlob = 64 << 10
	// MaxBody is the longest letter that Seal takes, in bytes.
	MaxBody = MaxBlob - overhead
	// Days is how many days a keeper keeps letters by default.
	Days = 7
	// LookBack is how many days before its own the receiver looks at: Days, and one
	// because a clock may be a day off.
	LookBack = Days + 1
	// LookAhead is how many days after its own the receiver looks at, for the same
	// reason.
	LookAhead = 1
)

// BoxSize is how long the name of a box is, in bytes.
const BoxSize = 20

// A Box names a box. Who knows it can leave letters there; it takes the token to
// see them.
type Box [BoxSize]byte

// BoxOf returns the box of a token.
func BoxOf(token [32]byte) Box {
	h := sha256.New()
	h.Write([]byte("kith/1 mail box")) // a hash takes everything
	h.Write(token[:])
	return Box(h.Sum(nil)[:BoxSize])
}

// String returns 40 hexadecimal digits.
func (b Box) String() string { return hex.EncodeToString(b[:]) }

// IDSize is how long the name of a blob is, in bytes.
const IDSize = 16

// IDOf returns what names a blob: the first half of its SHA-256. The same blob at
// two keepers has the same.
func IDOf(blob []byte) [IDSize]byte {
	sum := sha256.Sum256(blob)
	return [IDSize]byte(sum[:])
}

// An Item is one blob in a box.
type Item struct {
	Box  Box
	ID   [IDSize]byte
	Blob []byte
}

// A Count is what is in a box.
type Count struct {
	Letters int   `json:"letters"` // a count
	Bytes   int64 `json:"bytes"`   // bytes of blobs
}

// A Keeper keeps blobs. It may be used by many at once.
type Keeper interface {
	// Put leaves a blob of one of Sizes; it is durable when Put returns. The same one
	// twice is one. It errs with ErrFull, ErrRefused, or because the keeper is gone.
	Put(ctx context.Context, box Box, blob []byte) error
	// Take returns what is in the boxes of the tokens, the oldest first, and leaves it
	// there. It may leave out some if there are very many. A token of
	// nothing is an empty box. It errs if the keeper is gone.
	Take(ctx context.Context, tokens [][32]byte) ([]Item, error)
	// Done removes blobs from a box; those that are not there count as removed. It errs
	// if the keeper is gone.
	Done(ctx context.Context, token [32]byte, ids [][IDSize]byte) error
}

// A Letter is one that was opened. Done removes it at all keepers that had it: call it
// when what is in the letter is durable. Without it the letter comes again. Done errs if
// a keeper is gone; the letter then comes again from there and is recognised while the
// Service runs.
type Letter = struct {
	From identity.DeviceID
	Body []byte
	Done func(context.Context) error
}

// Mail is what an app needs of a Service.
type Mail interface {
	// Leave seals a letter of at most MaxBody bytes and leaves it at every keeper that
	// takes it. It errs with ErrTooLong, ErrNoKeeper if there is none, or with what the
	// keepers said (ErrFull, ErrRefused) if none took it.
	Leave(ctx context.Context, to identity.DeviceID, body []byte) error
	// Fetch returns letters that wait, each once, about MaxFetch bytes of each keeper at
	// most; the next call goes on with the rest. It errs only if ctx ends: a keeper that
	// does not answer has nothing.
	Fetch(ctx context.Context) ([]Letter, error)
}

var (
	// ErrFull reports a keeper that has no room for this letter.
	ErrFull = errors.New("mail: the keeper has no room left")
	// ErrShare is ErrFull of a keeper that has room for others.
	ErrShare error = &kind{"mail: the keeper has no room left for letters of this device", ErrFull}
	// ErrBox is ErrFull of one box.
	ErrBox error = &kind{"mail: too many letters wait for that device", ErrFull}
	// ErrRefused reports a keeper that does not take this.
	ErrRefused = errors.New("mail: the keeper refuses this")
	// ErrOff reports a hub or device that does not keep mail.
	ErrOff error = &kind{"mail: it does not keep mail", ErrRefused}
	// ErrLogin reports a hub that does not know the password.
	ErrLogin error = &kind{"mail: the hub's address has a wrong secret", ErrRefused}
	// ErrBusy reports a keeper with as many connections as it takes.
	ErrBusy = errors.New("mail: the keeper is busy")
	// ErrDisk reports a keeper that could not write.
	ErrDisk = errors.New("mail: the keeper cannot write to its disk")
	// ErrTooLong reports a letter of more than MaxBody bytes.
	ErrTooLong = errors.New("mail: the letter is too long")
	// ErrNoKeeper reports that nobody is there to leave letters at.
	ErrNoKeeper = errors.New("mail: there is no keeper: neither a hub nor a connected device keeps mail")
	// ErrOpen reports a blob that is no letter of this box and key.
	ErrOpen = errors.New("mail: not a letter of this box")
	// ErrProtocol reports bytes that are not of the protocol.
	ErrProtocol = errors.New("mail: the other side does not speak this protocol")
	// ErrClosed reports a use after Close.
	ErrClosed = errors.New("mail: closed")
)

// kind is an error that is also another one.
type kind struct {
	text string
	of   error
}

func (k *kind) Error() string { return k.text }

// Unwrap returns the more general error.
func (k *kind) Unwrap() error { return k.of }

// Key is what one pair's letters of one day and one direction are left with. It
// prints "redacted".
type Key struct {
	Device identity.DeviceID // the other device
	Day    int64             // days since 1970-01-01 UTC
	Token  [32]byte
	Seal   [32]byte
}

// String returns "redacted".
func (Key) String() string { return "redacted" }

// GoString returns "redacted".
func (Key) GoString() string { return "redacted" }

// Keys are the keys of this device's pairs. Its methods may be called at once.
type Keys interface {
	// To returns the key for letters to a device now. It errs if there is no such pair.
	To(to identity.DeviceID, now time.Time) (Key, error)
	// From returns the keys of letters that may wait for this device: of every device
	// and of the days from LookBack before to LookAhead after now.
	From(now time.Time) []Key
	// Sent returns the keys of letters of this device that may still wait.
	Sent(now time.Time) []Key
}
