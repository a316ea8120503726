package files

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// An Offer is what a peer wants to send. The names are made fit to be shown.
type Offer struct {
	Number uint64     `json:"number"` // its number in the inbox; 0 if it does not wait
	ID     TransferID `json:"id"`
	Peer   string     `json:"peer"`
	Names  []string   `json:"names"`  // top-level names, at most 1000
	Files  int64      `json:"files"`  // files, folders and symlinks found so far: a count
	Bytes  int64      `json:"bytes"`  // bytes found so far
	Known  bool       `json:"known"`  // Files and Bytes are all
	Stream bool       `json:"stream"` // from a pipe: nothing is known
	Folder bool       `json:"folder"` // at least one name is a folder
	Since  time.Time  `json:"since"`
}

// An Action is what to do with an offer.
type Action uint8

// Actions.
const (
	Wait    Action = iota // let it wait in the inbox
	Accept                // take it
	Decline               // say no
)

// A Decision says what to do with an offer, and how.
type Decision struct {
	Action    Action
	Dir       string // where it goes; empty is Config.Dir
	Overwrite bool   // replace what has the same name; otherwise "report (1).pdf"
	MaxBytes  int64  // bytes at most; 0 is Config.MaxBytes
}

// An inbox is the list of offers that wait for a person.
type inbox struct {
	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*waitingOffer
}

type waitingOffer struct {
	offer   Offer
	decided chan Decision // capacity 1
}

func newInbox() *inbox { return &inbox{waiting: make(map[uint64]*waitingOffer)} }

// add lets an offer wait; nil if too many do.
func (b *inbox) add(o Offer, perPeer int) *waitingOffer {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, w := range b.waiting {
		if w.offer.Peer == o.Peer {
			n++
		}
	}
	if n >= perPeer || len(b.waiting) >= maxWaitingAll {
		return nil
	}
	o.Number = b.number()
	w := &waitingOffer{offer: o, decided: make(chan Decision, 1)}
	b.waiting[o.Number] = w
	return w
}

// number returns one that was not given before. The caller holds mu.
func (b *inbox) number() uint64 {
	b.next++
	return b.next
}

func (b *inbox) remove(w *waitingOffer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, w.offer.Number)
}

func (b *inbox) decide(number uint64, d Decision) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.waiting[number]
	if w == nil {
		return false
	}
	delete(b.waiting, number)
	w.decided <- d
	return true
}

func (b *inbox) declineAll(peer string) {
	for _, o := range b.list() {
		if o.Peer == peer {
			b.decide(o.Number, Decision{Action: Decline})
		}
	}
}

func (b *inbox) list() []Offer {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Offer, 0, len(b.waiting))
	for _, w := range b.waiting {
		out = append(out, w.offer)
	}
	slices.SortFunc(out, func(x, y Offer) int { return cmp.Compare(x.Number, y.Number) })
	return out
}

// Offers returns the offers that wait, the oldest first.
func (s *Service) Offers() []Offer { return s.inbox.list() }

// Accept takes an offer that waits; Action of d is not looked at. It reports false
// if no such offer waits any more.
func (s *Service) Accept(number uint64, d Decision) bool {
	d.Action = Accept
	return s.inbox.decide(number, d)
}

// Decline says no to an offer that waits, and cancels a transfer that goes on. It
// reports false if there is neither.
func (s *Service) Decline(number uint64) bool {
	if s.inbox.decide(number, Decision{Action: Decline}) {
		return true
	}
	for _, t := range s.Transfers() {
		if p := t.Progress(); p.Number == number && p.State <= StateBroken {
			t.Cancel()
			return true
		}
	}
	return false
}
