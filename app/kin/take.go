package kin

import (
	"slices"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
)

// Take takes an introduction, an answer, a withdrawal or a notice of another device. The
// event says what a person may want to know of it, if anything.
func (b *Book) Take(now time.Time, from identity.DeviceID, l Letter) (Status, *Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.world.Peer(from)
	if !ok || p.Blocked {
		return StatusRefused, nil
	}
	switch l.Kind {
	case LetterIntroduce:
		return b.takeIntroduction(now, p, l.Introduction)
	case LetterAnswer:
		return b.takeAnswer(from, l.ID, l.End)
	case LetterWithdraw:
		return b.takeWithdrawal(from, l.ID, l.End)
	case LetterNotice:
		return b.takeNotice(now, p, l.Notice)
	case LetterUndo, LetterAsk: // see Undoable and Service
	}
	return StatusRefused, nil
}

// An EventKind says what a letter brought.
type EventKind uint8

// The kinds of events.
const (
	EventIntroduced EventKind = 1 // an introduction that waits for the user
	EventAccepted   EventKind = 2 // one that an own device made, and that is accepted thereby
	EventOver       EventKind = 3 // the introducer says that it is over
	EventNotice     EventKind = 4 // an own device has a new pair
	EventEnded      EventKind = 5 // such a pair is over
)

// An Event is what a letter brought.
type Event struct {
	Kind     EventKind
	Received Received // of an introduction
	Notice   Notice
}

func (b *Book) takeIntroduction(now time.Time, by Peer, in Introduction) (Status, *Event) {
	self := b.world.Self()
	switch {
	case in.By != by.ID || in.To != self || in.Other == self || in.Other == by.ID || !in.genuine():
		return StatusRefused, nil
	case by.Vouched: // one hop
		return StatusRefused, nil
	case !now.Before(in.Expires):
		return StatusOver, nil
	case in.Expires.Sub(now) > Life+slack:
		return StatusRefused, nil
	}
	for _, r := range b.s.received {
		if r.ID != in.ID {
			continue
		}
		if r.By != in.By || r.Other != in.Other || r.sig != in.Sig {
			return StatusRefused, nil
		}
		return StatusOK, nil // a copy changes nothing, also of one that is over
	}
	if b.world.Removed(in.Other) {
		if by.Own {
			return StatusRemoved, nil
		}
		return StatusDeclined, nil
	}
	if _, ok := b.world.Peer(in.Other); ok {
		return StatusAlready, nil
	}
	r := received{
		Received: Received{
			ID: in.ID, By: in.By, Other: in.Other, Name: clean(in.Name), State: EndDelivered, Got: now.UTC(),
			Expires: earlier(in.Expires, now.Add(Life)).UTC().Truncate(time.Second),
		},
		wireguard: in.WireGuard, secret: in.Secret, sig: in.Sig, acked: EndDelivered,
		// Also one that expires at once counts among its introducer's for seven days.
		until: later(in.Expires, now.Add(Life)).Add(slack),
	}
	if by.Own {
		r.State, r.Auto = EndAccepted, true
	}
	err := b.change(func(s *state) error { return s.addReceived(now, &r) })
	if err != nil {
		return StatusBusy, nil
	}
	kind := EventIntroduced
	if r.State == EndAccepted {
		kind = EventAccepted
	}
	return StatusOK, &Event{Kind: kind, Received: r.Received}
}

// addReceived adds an introduction, within bounds. A new one of the same two devices
// takes the place of one that is not over, with what the user has said to that.
func (s *state) addReceived(now time.Time, r *received) error {
	pending, from, all := 0, 0, 0
	for i := range s.received {
		old := &s.received[i]
		if old.By == r.By {
			all++
		}
		if old.State.over() {
			continue
		}
		if old.By == r.By && old.Other == r.Other {
			if old.State == EndAccepted {
				r.State, r.Auto = EndAccepted, old.Auto
			}
			old.end(EndWithdrawn)
			continue
		}
		pending++
		if old.By == r.By {
			from++
		}
	}
	if pending >= maxPending || from >= maxPendingFrom || all >= maxReceivedFrom {
		return ErrFull
	}
	if len(s.received) >= maxReceived {
		i := slices.IndexFunc(s.received, func(o received) bool { return o.State.over() && !now.Before(o.until) })
		if i < 0 {
			return ErrFull
		}
		s.received = slices.Delete(s.received, i, i+1)
	}
	s.numbers++
	r.Number = s.numbers
	s.received = append(s.received, *r)
	return nil
}

func (b *Book) takeAnswer(from identity.DeviceID, id ID, end EndState) (Status, *Event) {
	if end < EndAccepted || end == EndWithdrawn {
		return StatusRefused, nil
	}
	for i, g := range b.s.given {
		k := g.end(from)
		if g.ID != id || k < 0 {
			continue
		}
		if was := g.Ends[k].State; was == end || was.over() {
			return StatusOK, nil
		}
		if b.change(func(s *state) error { s.given[i].set(k, end); return nil }) != nil {
			return StatusBusy, nil
		}
		return StatusOK, nil
	}
	return StatusOver, nil
}

func (b *Book) takeWithdrawal(from identity.DeviceID, id ID, why EndState) (Status, *Event) {
	for i, r := range b.s.received {
		if r.ID != id || r.By != from {
			continue
		}
		if r.State.over() {
			return StatusOK, nil
		}
		if b.change(func(s *state) error { s.received[i].Why = why; s.received[i].end(EndWithdrawn); return nil }) != nil {
			return StatusBusy, nil
		}
		return StatusOK, &Event{Kind: EventOver, Received: b.s.received[i].Received}
	}
	return StatusOver, nil
}

func (b *Book) takeNotice(now time.Time, from Peer, n Notice) (Status, *Event) {
	if !from.Own {
		return StatusRefused, nil
	}
	if n.Peer == b.world.Self() {
		return StatusOK, nil // this device knows
	}
	of := 0
	for i, h := range b.s.heard {
		if h.From != from.ID {
			continue
		}
		of++
		if h.Notice.ID != n.ID {
			continue
		}
		if h.Notice.Ended || !n.Ended {
			return StatusOK, nil
		}
		if b.change(func(s *state) error { s.heard[i].Notice.Ended = true; return nil }) != nil {
			return StatusBusy, nil
		}
		return StatusOK, &Event{Kind: EventEnded, Notice: b.s.heard[i].Notice}
	}
	if of >= maxHeardFrom || len(b.s.heard) >= maxHeard {
		return StatusBusy, nil
	}
	n.Name, n.Introducer = clean(n.Name), pairing.CleanName(n.Introducer)
	if b.change(func(s *state) error { s.heard = append(s.heard, Heard{From: from.ID, Notice: n}); return nil }) != nil {
		return StatusBusy, nil
	}
	return StatusOK, &Event{Kind: EventNotice, Notice: n}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
