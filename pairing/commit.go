package pairing

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/kithproject/kith/internal/retry"
	"github.com/kithproject/kith/internal/wire"
)

// The messages of the commit phase. Each body on the wire is
//
//	nonce 24 || XChaCha20-Poly1305(kc of the sender, nonce,
//	            ad = "kith/1 commit" || pair id, type u8 || pair id 16)
const (
	msgPrepared  = 1
	msgCommitted = 2
	msgUnpair    = 3
	msgUnpairAck = 4
)

const (
	// slowCommit is the longest wait between messages at first; slowerCommit
	// after slowAfter; and after quietAfter there is silence until the next
	// start of the program.
	slowCommit   = 5 * time.Minute
	slowerCommit = time.Hour
	slowAfter    = 24 * time.Hour
	quietAfter   = 30 * 24 * time.Hour
	// answerGap bounds answers to a peer, or a replayer, that talks fast.
	answerGap = 50 * time.Millisecond
)

// A CommitActionKind says what a CommitAction asks of the driver.
type CommitActionKind uint8

// The kinds of commit actions.
const (
	CommitSend  CommitActionKind = 1 // send Body to the other side
	CommitStore CommitActionKind = 2 // make State durable, then call Stored
	CommitDone  CommitActionKind = 3 // the other side is known to be in the same state
)

// A CommitAction is something for the driver to do, in the order of Poll.
type CommitAction struct {
	Kind  CommitActionKind
	Body  []byte
	State State
}

// A Commit is the commit phase of one pair on one side, from the durable
// PREPARED on, and through restarts: it is made anew from the record. It is not
// safe for concurrent use.
type Commit struct {
	state    State
	pairID   [16]byte
	send     [32]byte
	receive  [32]byte
	random   io.Reader
	resend   retry.Schedule
	started  time.Time // first time seen
	answered time.Time // last answer
	storing  State     // being made durable; 0 when nothing is
	settled  bool      // the other side is known to be in the same state
	over     bool      // the other side has said UNPAIR: it need not be told
	actions  []CommitAction
}

// NewCommit returns the commit phase of a record in a state. commitJ and commitO
// are the record's keys; random defaults to crypto/rand. Call Tick once to start
// it. It errs with ErrConfig for a state or role that does not exist.
func NewCommit(state State, pairID [16]byte, role Role, commitJ, commitO [32]byte, random io.Reader) (*Commit, error) {
	if state < Prepared || state > Tomb || (role != Joiner && role != Offerer) {
		return nil, fmt.Errorf("%w: state %d, role %d", ErrConfig, state, role)
	}
	c := &Commit{state: state, pairID: pairID, send: commitJ, receive: commitO, random: random}
	if role == Offerer {
		c.send, c.receive = commitO, commitJ
	}
	if c.random == nil {
		c.random = rand.Reader
	}
	return c, nil
}

// State returns the durable state.
func (c *Commit) State() State { return c.state }

// Settled reports whether the other side is known to be in the same state.
func (c *Commit) Settled() bool { return c.settled }

// Poll returns the next action; it reports false when there is none.
func (c *Commit) Poll() (CommitAction, bool) {
	if len(c.actions) == 0 {
		return CommitAction{}, false
	}
	a := c.actions[0]
	c.actions = c.actions[1:]
	return a, true
}

// Next returns when Tick wants to be called; zero means never.
func (c *Commit) Next() time.Time {
	if c.started.IsZero() {
		return time.Unix(1, 0) // at once
	}
	return c.resend.At
}

// Tick does what is due.
func (c *Commit) Tick(now time.Time) {
	if c.started.IsZero() {
		c.started = now
		c.arm(now)
		c.sendState()
		return
	}
	if !c.resend.Due(now, c.random) {
		return
	}
	switch age := now.Sub(c.started); {
	case age > quietAfter:
		c.resend.Stop()
		return
	case age > slowAfter:
		c.resend.Limit = slowerCommit
	}
	c.sendState()
}

// arm starts to repeat what the state has to say, if anything.
func (c *Commit) arm(now time.Time) {
	if c.state == Prepared || (c.state == Tomb && !c.settled) {
		c.resend.Start(now, slowCommit, c.random)
		return
	}
	c.resend.Stop()
}

// sendState says what this side waits for an answer to.
func (c *Commit) sendState() {
	switch {
	case c.state == Prepared:
		c.say(msgPrepared)
	case c.state == Tomb && !c.settled:
		c.say(msgUnpair)
	}
}

func (c *Commit) ad() []byte { return append([]byte(wire.Label("commit")), c.pairID[:]...) }

func (c *Commit) say(msg byte) {
	body, err := wire.SealMessage(c.send[:], c.ad(), append([]byte{msg}, c.pairID[:]...), c.random)
	if err != nil {
		return // no randomness: the next try may have some
	}
	c.actions = append(c.actions, CommitAction{Kind: CommitSend, Body: body})
}

// answer says something because the other side did, but not too fast.
func (c *Commit) answer(now time.Time, msg byte) {
	if now.Sub(c.answered).Abs() < answerGap {
		return
	}
	c.answered = now
	c.say(msg)
}

// Receive takes a body from the medium. What is not of this pair is ignored.
func (c *Commit) Receive(now time.Time, body []byte) { c.take(now, body, true) }

// ReceiveStored is Receive for a body that a medium kept from before: its sender may
// be gone, and asks again if it still needs to know that the pair is active.
func (c *Commit) ReceiveStored(now time.Time, body []byte) { c.take(now, body, false) }

func (c *Commit) take(now time.Time, body []byte, live bool) {
	plain, err := wire.OpenMessage(c.receive[:], c.ad(), body)
	if err != nil || len(plain) != 1+len(c.pairID) || !bytes.Equal(plain[1:], c.pairID[:]) {
		return
	}
	switch msg := plain[0]; {
	case c.state == Tomb:
		c.receiveInTomb(now, msg)
	case msg == msgUnpair:
		c.over = true
		c.store(Tomb)
	case msg == msgPrepared && c.state == Prepared:
		c.store(Active)
	case msg == msgCommitted && c.state == Prepared:
		c.settled = true
		c.store(Active)
	case msg == msgPrepared && c.state == Active:
		if live {
			c.answer(now, msgCommitted)
		}
	case msg == msgCommitted && c.state == Active:
		c.settle()
	}
}

func (c *Commit) receiveInTomb(now time.Time, msg byte) {
	switch msg {
	case msgUnpair:
		c.settle()
		c.resend.Stop()
		c.answer(now, msgUnpairAck)
	case msgUnpairAck:
		c.settle()
		c.resend.Stop()
	default:
		c.answer(now, msgUnpair)
	}
}

func (c *Commit) settle() {
	if !c.settled {
		c.settled = true
		c.actions = append(c.actions, CommitAction{Kind: CommitDone})
	}
}

// store asks for a state to be made durable, once at a time.
func (c *Commit) store(s State) {
	if c.storing == s || (c.storing == Tomb && s != Tomb) {
		return
	}
	c.storing = s
	c.actions = append(c.actions, CommitAction{Kind: CommitStore, State: s})
}

// Stored reports that a CommitStore is durable (err is nil) or failed. A failed
// one is asked for again when the other side speaks or Cancel is called.
func (c *Commit) Stored(now time.Time, s State, err error) {
	if c.storing == s {
		c.storing = 0
	}
	if err != nil || s <= c.state {
		if err != nil {
			c.settled = false
		}
		return
	}
	c.state = s
	if s == Tomb {
		// What the other side said of the pair while it lived does not count.
		c.settled = c.over
	}
	told := c.settled
	c.arm(now)
	switch {
	case s == Active:
		c.say(msgCommitted)
	case told: // ended by the other side
		c.say(msgUnpairAck)
	default:
		c.say(msgUnpair)
	}
	if told {
		c.actions = append(c.actions, CommitAction{Kind: CommitDone})
	}
}

// Promoted takes over that the pair became active by other means, for example
// in another run of this machine on the same record.
func (c *Commit) Promoted(now time.Time) {
	if c.state == Prepared {
		c.state = Active
		c.arm(now)
		c.say(msgCommitted)
	}
}

// Confirmed takes over that the other side is known to be active by other means.
func (c *Commit) Confirmed() {
	if c.state == Active {
		c.settle()
	}
}

// Ask says once more how far this side is, so that one that has ended the pair answers
// with that, and one that is active to one that is not yet.
func (c *Commit) Ask() {
	switch c.state {
	case Prepared:
		c.say(msgPrepared)
	case Active:
		c.say(msgCommitted)
	}
}

// Cancel ends the pair: it asks to store TOMB, and then tells the other side
// until that confirms. It has no effect on a pair that has ended.
func (c *Commit) Cancel(now time.Time) {
	if c.state == Tomb {
		c.resend.Start(now, slowCommit, c.random)
		c.sendState()
		return
	}
	c.settled = false
	c.store(Tomb)
}
