package kin

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// An EndState is how far an introduction is on one of its two sides. The numbers are on
// the wire.
type EndState uint8

// The states of an introduction on one side.
const (
	EndWaiting   EndState = 0  // not there yet
	EndDelivered EndState = 1  // there; its user has not answered
	EndAccepted  EndState = 2  // its user said yes; it looks for the other side
	EndPaired    EndState = 3  // it is paired with the other side
	EndAlready   EndState = 4  // it was paired with it before
	EndDeclined  EndState = 5  // its user said no
	EndRemoved   EndState = 6  // its user has removed the other side
	EndRefused   EndState = 7  // it takes no introductions from this device
	EndExpired   EndState = 8  // seven days were not enough
	EndWithdrawn EndState = 9  // the introducer says that it is over
	EndGone      EndState = 10 // the introducer is no longer paired with it

	lastEnd = EndGone
)

// over reports whether nothing more follows.
func (e EndState) over() bool { return e >= EndPaired }

// good reports whether the two are paired.
func (e EndState) good() bool { return e == EndPaired || e == EndAlready }

// String returns the state's name in the output of programs.
func (e EndState) String() string {
	names := [...]string{"waiting", "delivered", "accepted", "paired", "already", "declined", "removed", "refused", "expired", "withdrawn", "gone"}
	if int(e) < len(names) {
		return names[e]
	}
	return "unknown"
}

// MarshalText returns String. The error is always nil.
func (e EndState) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what MarshalText wrote. It errs for anything else.
func (e *EndState) UnmarshalText(text []byte) error {
	for s := range lastEnd + 1 {
		if s.String() == string(text) {
			*e = s
			return nil
		}
	}
	return fmt.Errorf("kin: no such state: %q", text)
}

// An End is one of the two devices that are introduced.
type End struct {
	ID    identity.DeviceID `json:"id"`
	Name  string            `json:"name"` // what this device calls it
	State EndState          `json:"state"`
}

// A Given is an introduction that this device makes.
type Given struct {
	ID      ID        `json:"id"`
	Ends    [2]End    `json:"ends"`
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires"`
}

// Over reports whether nothing more follows on either side.
func (g Given) Over() bool { return g.Ends[0].State.over() && g.Ends[1].State.over() }

// Good reports whether both sides say that they are paired.
func (g Given) Good() bool { return g.Ends[0].State.good() && g.Ends[1].State.good() }

// A Received is an introduction that another device makes to this one.
type Received struct {
	ID      ID                `json:"id"`
	Number  uint64            `json:"number"` // for people: a count from 1
	By      identity.DeviceID `json:"by"`
	Other   identity.DeviceID `json:"other"`
	Name    string            `json:"name"` // what By calls Other
	State   EndState          `json:"state"`
	Auto    bool              `json:"auto,omitempty"` // accepted since By is an own device
	Why     EndState          `json:"-"`              // with EndWithdrawn: what became of it on the other side
	Got     time.Time         `json:"got"`
	Expires time.Time         `json:"expires"` // by this device's clock
}

// A Heard is a notice of an own device.
type Heard struct {
	From   identity.DeviceID `json:"from"`
	Notice Notice            `json:"notice"`
	Undo   UndoState         `json:"undo,omitempty"`

	asked time.Time // since when it is to be undone; zero: it is not
}

// is reports whether it is a device's notice: others may have given theirs the same ID.
func (h Heard) is(from identity.DeviceID, id ID) bool { return h.From == from && h.Notice.ID == id }

// An UndoState is how far a request to undo a pair of another device is.
type UndoState uint8

// The states of a request.
const (
	UndoNone    UndoState = 0 // not asked for
	UndoAsked   UndoState = 1 // on its way
	UndoDone    UndoState = 2 // the pair is over
	UndoRefused UndoState = 3 // that device has not marked this one as its own
)

// Book is what is durable. It is safe for concurrent use; it calls World and Save while
// it holds its lock.
type Book struct {
	world World
	save  func([]byte) error

	mu       sync.Mutex // guards the fields below
	s        state
	watchers map[chan struct{}]struct{}
}

// Open returns the book that was saved as raw, or an empty one if that is empty. Each
// change is given to save before it counts. It errs with ErrState if raw cannot be read.
func Open(raw []byte, world World, save func([]byte) error) (*Book, error) {
	b := &Book{world: world, save: save, watchers: make(map[chan struct{}]struct{})}
	if len(raw) == 0 {
		return b, nil
	}
	var err error
	b.s, err = decodeState(raw)
	return b, err
}

// Watch returns a channel that holds a token after each change, and what ends it.
func (b *Book) Watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watchers[ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers, ch)
	}
}

// change makes a change durable and then visible. b.mu is held. It errs if change does,
// or if it could not be saved; then nothing changed.
func (b *Book) change(change func(*state) error) error {
	next := b.s.clone()
	if err := change(&next); err != nil {
		return err
	}
	raw, err := next.encode()
	if err != nil {
		return err
	}
	if err := b.save(raw); err != nil {
		return fmt.Errorf("kin: not stored: %w", err)
	}
	b.s = next
	for ch := range b.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	return nil
}

// Introduce begins to introduce two devices to each other. If they are being introduced
// already it returns that introduction, and begun is false. It errs with ErrMay for a
// device that was itself introduced, is blocked or not paired, with ErrFull, or if it
// could not be stored.
func (b *Book) Introduce(now time.Time, one, two identity.DeviceID) (g Given, begun bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if one == two {
		return Given{}, false, fmt.Errorf("kin: %w: these are one device", ErrMay)
	}
	var ends [2]End
	var keys [2][32]byte
	for i, id := range []identity.DeviceID{one, two} {
		p, ok := b.world.Peer(id)
		switch {
		case !ok:
			return Given{}, false, fmt.Errorf("kin: a device %w: it is not paired here", ErrMay)
		case p.Vouched:
			return Given{}, false, fmt.Errorf("kin: %s %w: it was itself introduced to this device; pair with it by a code first", p.Name, ErrMay)
		case p.Blocked:
			return Given{}, false, fmt.Errorf("kin: %s %w: it is blocked here", p.Name, ErrMay)
		}
		ends[i], keys[i] = End{ID: id, Name: p.Name}, p.WireGuard
	}
	for _, g := range b.s.given {
		if g.alive() && now.Before(g.Expires) && g.between(one, two) {
			return g.Given, false, nil
		}
	}
	g = Given{ID: newID(), Ends: ends, Made: now.UTC(), Expires: now.Add(Life).UTC().Truncate(time.Second)}
	err = b.change(func(s *state) error {
		if !s.roomForGiven() {
			return fmt.Errorf("kin: %w: at most %d", ErrFull, maxGiven)
		}
		s.given = append(s.given, given{Given: g, keys: keys, secret: newSecret()})
		return nil
	})
	return g, err == nil, err
}

// roomForGiven drops the oldest introduction that is over if there is no room.
func (s *state) roomForGiven() bool {
	if len(s.given) < maxGiven {
		return true
	}
	i := slices.IndexFunc(s.given, func(g given) bool { return g.Over() })
	if i >= 0 {
		s.given = slices.Delete(s.given, i, i+1)
	}
	return i >= 0
}

// Given returns the introductions that this device makes, oldest first.
func (b *Book) Given() []Given {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Given, 0, len(b.s.given))
	for _, g := range b.s.given {
		out = append(out, g.Given)
	}
	return out
}

// Received returns the introductions that others make to this one, oldest first; those
// that are over, too, for as long as they are remembered.
func (b *Book) Received() []Received {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Received, 0, len(b.s.received))
	for _, r := range b.s.received {
		out = append(out, r.Received)
	}
	return out
}

// Accepted returns the introductions that this device is to carry out now.
func (b *Book) Accepted(now time.Time) []Introduction {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Introduction
	for _, r := range b.s.received {
		if r.State == EndAccepted && now.Before(r.Expires) {
			out = append(out, Introduction{
				ID: r.ID, By: r.By, To: b.world.Self(), Other: r.Other, WireGuard: r.wireguard, Name: r.Name, Secret: r.secret, Expires: r.Expires,
			})
		}
	}
	return out
}

// Decide is the user's answer to an introduction, by its number. It errs with
// ErrNotFound, with ErrOver if it is over or was accepted before, and if it could not be
// stored.
func (b *Book) Decide(now time.Time, number uint64, accept bool) (Received, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out Received
	err := b.change(func(s *state) error {
		i := slices.IndexFunc(s.received, func(r received) bool { return r.Number == number })
		if i < 0 {
			return fmt.Errorf("kin: %w", ErrNotFound)
		}
		r := &s.received[i]
		if r.State.over() || !now.Before(r.Expires) || accept && r.State == EndAccepted {
			return fmt.Errorf("kin: %w", ErrOver)
		}
		r.State = EndAccepted
		if !accept {
			r.end(EndDeclined)
		}
		out = r.Received
		return nil
	})
	return out, err
}
