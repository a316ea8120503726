package signaling

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

const (
	// MaxNote is the longest body of a note, in bytes.
	MaxNote = 900

	noteLimit = 5 * time.Second        // longest wait before a note is sent again
	noteGap   = 20 * time.Millisecond  // on average between two notes that are taken
	noteBurst = 32                     // notes that may come without that gap
	staleGap  = 100 * time.Millisecond // least time between two answers to unproved notes
)

var (
	// ErrNoteSize reports a note that is empty or over MaxNote.
	ErrNoteSize = errors.New("signaling: a note is 1 to 900 bytes")
	// ErrNoNotes reports a Channel that was opened without a medium for notes.
	ErrNoNotes = errors.New("signaling: no medium for notes")
)

// notes is the part of the core that carries notes, one at a time each way.
type notes struct {
	last uint64   // id of the newest note of ours
	out  *outNote // which the other side has not acknowledged; nil: none

	taken  uint64    // id of the other run's newest note that was taken
	budget time.Time // the bucket of notes that may come is full from here on
	stale  time.Time // when an unproved note was answered last
}

// An outNote is a note on its way.
type outNote struct {
	id   uint64
	body []byte
	echo BootID // in the last message that carried it
	wait time.Duration
	at   time.Time
	done chan struct{} // closed when it is acknowledged
}

// startNote begins to send a note in place of any earlier one.
func (c *core) startNote(now time.Time, body []byte) *outNote {
	c.notes.last++
	n := &outNote{id: c.notes.last, body: slices.Clone(body), wait: firstWait, at: now, done: make(chan struct{})}
	c.notes.out = n
	return n
}

// dropNote gives a note up.
func (c *core) dropNote(n *outNote) {
	if c.notes.out == n {
		c.notes.out = nil
	}
}

// due reports whether it is time to send the note, and sets the next time. spread
// multiplies the wait, 0.75 to 1.25.
func (n *outNote) due(now time.Time, spread float64) bool {
	if now.Before(n.at) {
		return false
	}
	n.at = now.Add(time.Duration(float64(n.wait) * spread))
	n.wait = min(n.wait*8/5, noteLimit)
	return true
}

// outgoing is the next message of a type that carries a note, or a question.
func (c *core) outgoing(typ byte, n *outNote) message {
	n.echo = c.peer
	if n.echo == (BootID{}) {
		n.echo = c.hint
	}
	c.counter++
	return message{typ: typ, boot: c.self, counter: c.counter, echo: n.echo, note: n.id, body: n.body}
}

// noteAnswer tells a run of the other side which of its notes have come.
func (c *core) noteAnswer(to BootID) message {
	c.counter++
	m := message{typ: frameNote, boot: c.self, counter: c.counter, echo: to}
	if to == c.peer {
		m.ack = c.notes.taken
	}
	return m
}

// receiveNote takes a note or an answer to one.
func (c *core) receiveNote(now time.Time, m message) outcome {
	if m.echo != c.self {
		// As with a presence, the answer lets a device that has just started prove
		// itself. It changes nothing here.
		if m.note == 0 || now.Sub(c.notes.stale).Abs() < staleGap {
			return outcome{}
		}
		c.notes.stale = now
		return outcome{noteAnswer: m.boot}
	}
	if !c.proved(m) {
		return outcome{}
	}
	if n := c.notes.out; n != nil {
		switch {
		case m.ack >= n.id:
			c.notes.out = nil
			close(n.done)
		case n.echo != c.peer: // it went to a run that is over or was not known
			n.at = now
		}
	}
	switch {
	case m.note == 0 || !c.mayNote(now):
		return outcome{}
	case m.note <= c.notes.taken:
		return outcome{noteAnswer: m.boot} // the acknowledgement was lost
	}
	return outcome{note: &m}
}

// noteTaken notes that a note is where it belongs, so that it is acknowledged and
// neither it nor an earlier one is taken again.
func (c *core) noteTaken(id uint64) { c.notes.taken = max(c.notes.taken, id) }

// mayNote bounds the notes of a side that talks fast.
func (c *core) mayNote(now time.Time) bool {
	if c.notes.budget.Before(now) || c.notes.budget.Sub(now) > noteBurst*noteGap { // or the clock went back
		c.notes.budget = now
	}
	next := c.notes.budget.Add(noteGap)
	if next.Sub(now) > noteBurst*noteGap {
		return false
	}
	c.notes.budget = next
	return true
}

// Note sends a note to the other device on the medium of Config.Notes alone: at
// once, and again after 250 ms, each time 1.6 times as long up to 5 s, until the
// other device has acknowledged that it was taken. Notes of one Channel go one
// after the other, in the order of the calls' turns.
//
// It errs with ErrNoteSize, with ErrNoNotes, if the medium does not take the
// topics, with net.ErrClosed after Close, and with the context's error; then the
// note may have arrived or not, and it will not arrive after a later one.
func (c *Channel) Note(ctx context.Context, body []byte) error {
	if len(body) == 0 || len(body) > MaxNote {
		return ErrNoteSize
	}
	if c.cfg.Notes == nil {
		return ErrNoNotes
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return fmt.Errorf("signaling: note: %w", net.ErrClosed)
	}
	started := make(chan *outNote, 1)
	var failed error
	c.call(func(now time.Time) {
		if failed = c.joinNotes(now); failed != nil {
			started <- nil
			return
		}
		started <- c.core.startNote(now, body)
	})
	var n *outNote
	select {
	case n = <-started:
	case <-c.done:
		return fmt.Errorf("signaling: note: %w", net.ErrClosed)
	}
	if n == nil && c.ctx.Err() != nil {
		return fmt.Errorf("signaling: note: %w", net.ErrClosed)
	}
	if n == nil {
		return failed
	}
	select {
	case <-n.done:
		return nil
	case <-c.done:
		return fmt.Errorf("signaling: note: %w", net.ErrClosed)
	case <-ctx.Done():
		c.call(func(time.Time) { c.core.dropNote(n) })
		return ctx.Err()
	}
}

// joinNotes brings the topics of notes in step with the day.
func (c *Channel) joinNotes(now time.Time) error {
	_, speak := c.days(now)
	if c.noteOut == nil {
		c.noteOut = make(map[int64]*outbound)
	}
	return c.speakOn(c.cfg.Notes, c.noteOut, speak)
}

// sendNote sends a message of the notes' protocol.
func (c *Channel) sendNote(now time.Time, m message) {
	if err := c.joinNotes(now); err != nil {
		c.cfg.Logger.Warn("medium of notes not joined", "err", err)
		return
	}
	c.sendOn(c.noteOut, m)
}

// takeNote carries out what a note leads to.
func (c *Channel) takeNote(now time.Time, o outcome) {
	if c.cfg.Notes == nil {
		return
	}
	to := o.noteAnswer
	if m := o.note; m != nil && c.cfg.TakeNote != nil && c.cfg.TakeNote(m.body) {
		c.core.noteTaken(m.note)
		to = m.boot
	}
	if to != (BootID{}) {
		c.sendNote(now, c.core.noteAnswer(to))
	}
}

// speakOn opens the topics of days to speak on, and leaves others.
func (c *Channel) speakOn(ex rendezvous.Exchange, open map[int64]*outbound, days []int64) error {
	for day, out := range open {
		if !slices.Contains(days, day) {
			out.session.Close()
			delete(open, day)
		}
	}
	for _, day := range days {
		if open[day] != nil {
			continue
		}
		s, sealer, err := c.open(ex, day, c.role, rendezvous.SendOnly)
		if err != nil {
			return err
		}
		open[day] = &outbound{session: s, sealer: sealer}
	}
	return nil
}
