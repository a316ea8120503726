package kin

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
)

// Pending returns the letters that wait for a device.
func (b *Book) Pending(now time.Time, to identity.DeviceID) []Letter {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.world.Peer(to)
	if !ok || p.Blocked {
		return nil
	}
	var out []Letter
	for _, g := range b.s.given {
		if k := g.end(to); k >= 0 {
			out = append(out, b.toEnd(now, g, k)...)
		}
	}
	for _, r := range b.s.received {
		if r.By == to && r.acked != r.State && r.State != EndWithdrawn {
			out = append(out, Letter{Kind: LetterAnswer, ID: r.ID, End: r.State})
		}
	}
	if !p.Own {
		return out
	}
	for _, m := range b.s.made {
		end, told := m.told[to]
		if m.Peer == to || now.Sub(m.Paired) >= NoticeLife || told && end == m.Ended || m.Ended && !told {
			continue
		}
		out = append(out, Letter{Kind: LetterNotice, Notice: m.Notice})
	}
	for _, h := range b.s.heard {
		if h.From == to && h.Undo == UndoAsked {
			out = append(out, Letter{Kind: LetterUndo, ID: h.Notice.ID})
		}
	}
	return out
}

// toEnd returns what an introduction has to say to one of its ends.
func (b *Book) toEnd(now time.Time, g given, k int) []Letter {
	mine, other := g.Ends[k], g.Ends[1-k]
	switch {
	case mine.State == EndWaiting && !other.State.over() && now.Before(g.Expires):
		in := Introduction{
			ID: g.ID, By: b.world.Self(), To: mine.ID, Other: other.ID, WireGuard: g.keys[1-k], Name: other.Name,
			Secret: g.secret, Expires: g.Expires,
		}
		in.Sig = [64]byte(b.world.Sign(in.statement()))
		return []Letter{{Kind: LetterIntroduce, Introduction: in}}
	case (mine.State == EndWithdrawn || mine.State != EndWaiting && !mine.State.over()) &&
		other.State.over() && !other.State.good() && !g.told[k] && now.Before(g.Expires):
		// Also to one that has not answered: what was sent to it may have come.
		return []Letter{{Kind: LetterWithdraw, ID: g.ID, End: other.State}}
	}
	return nil
}

// Delivered takes what a device answered to one of its letters. It errs if that could
// not be stored; then the letter is still pending.
func (b *Book) Delivered(now time.Time, to identity.DeviceID, l Letter, s Status) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch l.Kind {
	case LetterIntroduce:
		return b.introduced(to, l.Introduction.ID, s)
	case LetterAnswer:
		if s != StatusOK && s != StatusOver {
			return nil
		}
		return b.eachReceived(func(r *received) bool {
			hit := r.ID == l.ID && r.By == to && r.acked != l.End
			if hit {
				r.acked = l.End
			}
			return hit
		})
	case LetterWithdraw:
		if s != StatusOK && s != StatusOver {
			return nil
		}
		for i, g := range b.s.given {
			if k := g.end(to); g.ID == l.ID && k >= 0 && !g.told[k] {
				return b.change(func(s *state) error {
					s.given[i].told[k] = true
					if !s.given[i].Ends[k].State.over() {
						s.given[i].set(k, EndWithdrawn)
					}
					return nil
				})
			}
		}
	case LetterNotice:
		if s != StatusOK && s != StatusOver {
			return nil // it may be marked there later
		}
		for i, m := range b.s.made {
			if m.ID == l.Notice.ID {
				return b.change(func(s *state) error { s.made[i].told[to] = l.Notice.Ended; return nil })
			}
		}
	case LetterUndo:
		return b.undone(to, l.ID, s)
	case LetterAsk:
	}
	return nil
}

// introduced takes the answer to an introduction.
func (b *Book) introduced(to identity.DeviceID, id ID, s Status) error {
	end := map[Status]EndState{
		StatusOK: EndDelivered, StatusRefused: EndRefused, StatusOver: EndExpired, StatusAlready: EndAlready,
		StatusRemoved: EndRemoved, StatusDeclined: EndDeclined,
	}[s]
	for i, g := range b.s.given {
		k := g.end(to)
		if g.ID == id && k >= 0 && g.Ends[k].State == EndWaiting && end != EndWaiting {
			return b.change(func(s *state) error { s.given[i].set(k, end); return nil })
		}
	}
	return nil
}

// undone takes the answer to a request to undo a pair.
func (b *Book) undone(to identity.DeviceID, id ID, s Status) error {
	if s == StatusBusy {
		return nil
	}
	for i, h := range b.s.heard {
		if !h.is(to, id) || h.Undo != UndoAsked {
			continue
		}
		return b.change(func(st *state) error {
			st.heard[i].Undo, st.heard[i].asked = UndoRefused, time.Time{}
			if s == StatusOK || s == StatusOver {
				st.heard[i].Undo, st.heard[i].Notice.Ended = UndoDone, true
			}
			return nil
		})
	}
	return nil
}

// errSame ends a change that changes nothing: nothing is stored.
var errSame = errors.New("kin: nothing changes")

// eachReceived changes received introductions: those for which f says that it did. It
// errs if the change could not be stored.
func (b *Book) eachReceived(f func(*received) bool) error {
	err := b.change(func(s *state) error {
		hit := false
		for i := range s.received {
			hit = f(&s.received[i]) || hit
		}
		if !hit {
			return errSame
		}
		return nil
	})
	if errors.Is(err, errSame) {
		return nil
	}
	return err
}

// Paired says that a device is paired, or was all along: introductions to it are over.
// by is the introduction that made the pair; zero: none. It errs if that could not be
// stored.
func (b *Book) Paired(peer, by identity.DeviceID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.eachReceived(func(r *received) bool {
		if r.Other != peer || r.State.over() {
			return false
		}
		r.end(EndAlready)
		if r.By == by {
			r.State = EndPaired
		}
		return true
	})
}

// Made notes a new pair of this device, which its own devices are to know. It does
// nothing if the pair is known, or more are than a person makes. It errs if that could not be stored.
func (b *Book) Made(pair [16]byte, n Notice) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.s.made) >= maxMade || slices.ContainsFunc(b.s.made, func(m made) bool { return m.pair == pair }) {
		return nil
	}
	n.ID, n.Name = newID(), clean(n.Name)
	n.Introducer, n.OS = pairing.CleanName(n.Introducer), pairing.CleanName(n.OS)
	return b.change(func(s *state) error {
		s.made = append(s.made, made{Notice: n, pair: pair, told: make(map[identity.DeviceID]bool)})
		return nil
	})
}

// Ended notes that a pair is over. It errs if that could not be stored.
func (b *Book) Ended(pair [16]byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.s.made, func(m made) bool { return m.pair == pair && !m.Ended })
	if i < 0 {
		return nil
	}
	return b.change(func(s *state) error { s.made[i].Ended = true; return nil })
}

// Recent returns the notices of the last 24 hours: this device's, with the pairs' ids,
// and those that own devices gave.
func (b *Book) Recent(now time.Time) (own []Notice, pairs [][16]byte, heard []Heard) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.s.made {
		if now.Sub(m.Paired) < NoticeLife {
			own, pairs = append(own, m.Notice), append(pairs, m.pair)
		}
	}
	for _, h := range b.s.heard {
		if p, ok := b.world.Peer(h.From); ok && p.Own && now.Sub(h.Notice.Paired) < NoticeLife {
			heard = append(heard, h)
		}
	}
	return own, pairs, heard
}

// Undoable returns the pair of a notice that a device asks to have undone. Only a device
// that is marked as an own one here may, and while a request that was made in time can
// still come: for two days.
func (b *Book) Undoable(now time.Time, from identity.DeviceID, id ID) ([16]byte, Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.world.Peer(from)
	if !ok || p.Blocked || !p.Own {
		return [16]byte{}, StatusRefused
	}
	for _, m := range b.s.made {
		if m.ID == id && !m.Ended && now.Sub(m.Paired) < 2*NoticeLife {
			return m.pair, StatusOK
		}
	}
	return [16]byte{}, StatusOver
}

// AskUndo asks the own device that gave a notice to end that pair. It errs with
// ErrNotFound, with ErrMay if the device is not an own one any more, with ErrOver if the
// pair has ended, and if it could not be stored.
func (b *Book) AskUndo(now time.Time, from identity.DeviceID, id ID) (Heard, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.s.heard, func(h Heard) bool { return h.is(from, id) })
	if i < 0 {
		return Heard{}, fmt.Errorf("kin: %w", ErrNotFound)
	}
	h := b.s.heard[i]
	if p, ok := b.world.Peer(h.From); !ok || !p.Own {
		return h, fmt.Errorf("kin: %w: the device that told of it is not marked as your own any more", ErrMay)
	}
	if h.Notice.Ended {
		return h, fmt.Errorf("kin: %w", ErrOver)
	}
	if h.Undo == UndoAsked {
		return h, nil
	}
	err := b.change(func(s *state) error {
		s.heard[i].Undo, s.heard[i].asked = UndoAsked, now
		h = s.heard[i]
		return nil
	})
	return h, err
}

// Tick drops what is too old and ends what has expired, or whose introducer or end is no
// longer paired here. It returns when to call it again; zero is never. It errs if that
// could not be stored.
func (b *Book) Tick(now time.Time) (next time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.s.clone()
	if c.tick(now, b.world) {
		err = b.change(func(s *state) error { *s = c; return nil })
	}
	return b.s.next(now), err
}

// tick does it, and reports whether anything changed.
func (s *state) tick(now time.Time, w World) bool {
	changed := false
	for i := range s.given {
		changed = s.given[i].tick(now, w) || changed
	}
	for i := range s.received {
		r := &s.received[i]
		p, ok := w.Peer(r.By)
		switch {
		case r.State.over():
			continue
		case w.Removed(r.Other):
			r.end(EndRemoved)
			if !p.Own {
				r.State = EndDeclined
			}
		case !now.Before(r.Expires):
			r.end(EndExpired)
		case !ok || p.Blocked || p.Vouched:
			r.end(EndGone)
		default:
			continue
		}
		changed = true
	}
	sizes := len(s.given) + len(s.received) + len(s.made) + len(s.heard)
	s.given = slices.DeleteFunc(s.given, func(g given) bool { return !now.Before(g.Expires.Add(slack)) })
	s.received = slices.DeleteFunc(s.received, func(r received) bool { return r.State.over() && !now.Before(r.until) })
	s.made = slices.DeleteFunc(s.made, func(m made) bool { return now.Sub(m.Paired) >= madeLife })
	s.heard = slices.DeleteFunc(s.heard, func(h Heard) bool {
		asked := !h.asked.IsZero() && now.Sub(h.asked) < NoticeLife
		return !asked && now.Sub(h.Notice.Paired) >= NoticeLife
	})
	return changed || sizes != len(s.given)+len(s.received)+len(s.made)+len(s.heard)
}

// tick ends what no answer will end.
func (g *given) tick(now time.Time, w World) bool {
	changed := false
	for k := range g.Ends {
		if g.Ends[k].State.over() {
			continue
		}
		p, ok := w.Peer(g.Ends[k].ID)
		switch other := g.Ends[1-k].State; {
		case !now.Before(g.Expires):
			g.set(k, EndExpired)
		case !ok || p.Blocked || p.Vouched:
			g.set(k, EndGone)
		case g.Ends[k].State == EndWaiting && other == EndAlready: // so it is paired, too
			g.set(k, EndAlready)
		case g.Ends[k].State == EndWaiting && other.over() && other != EndPaired:
			g.set(k, EndWithdrawn)
		default:
			continue
		}
		changed = true
	}
	return changed
}

// next is when something becomes too old.
func (s *state) next(now time.Time) time.Time {
	var next time.Time
	at := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, g := range s.given {
		at(g.Expires)
	}
	for _, r := range s.received {
		at(r.Expires)
	}
	for _, h := range s.heard {
		at(h.Notice.Paired.Add(NoticeLife))
		if !h.asked.IsZero() {
			at(h.asked.Add(NoticeLife))
		}
	}
	return next
}
