package signaling

import (
	"slices"
	"time"

	"github.com/kithproject/kith/internal/wire"
)

const (
	firstWait   = 250 * time.Millisecond
	quickLimit  = 30 * time.Second // longest wait in the first minutes
	slowLimit   = 5 * time.Minute
	quickFor    = 10 * time.Minute
	answerGap   = 100 * time.Millisecond // least time between two answers
	maxRetired  = 256                    // runs of the other side that are known to be over
	maxUnheard  = 64                     // runs that are not proved and whose counters are known
	windowWidth = 64                     // counters below the highest that may still come
)

// core is the protocol without sockets and clock: what to answer, what to
// believe and when to speak.
type core struct {
	self    BootID
	counter uint64

	pres      Presence  // what is announced
	announced bool      // there is something to announce
	from      uint64    // first counter of the present announcement
	confirmed bool      // the other side has seen it
	began     time.Time // of the present schedule
	wait      time.Duration
	at        time.Time // next announcement; zero: none

	peer     BootID // the other's run, proved fresh; zero: none yet
	hint     BootID // the other's run as last heard, not proved
	seen     uint64 // its highest counter
	window   uint64 // bit i: counter seen-i has come
	retired  []BootID
	echoed   BootID // the run that our last presence echoed
	answered time.Time
	peerDay  int64
	skew     int64 // peerDay minus ours when it came

	unproved time.Time         // when a presence came last that may be new and does not echo our run
	unheard  map[BootID]uint64 // the highest counters of such presences, by run

	notes     notes
	questions questions
}

// an outcome is what a message leads to.
type outcome struct {
	event  *Event
	answer bool // send a presence now

	note       *message // a note for this device: noteTaken if it is taken
	noteAnswer BootID   // the run to send a noteAnswer; zero: none

	asked *Asked // a question for this device: questionTaken if it is taken
	again bool   // send the last answer once more
	tell  BootID // the run to tell who runs here; zero: none
}

// announce starts to tell the other side a new presence.
func (c *core) announce(now time.Time, p Presence) {
	c.pres, c.announced = p, true
	c.wake(now)
}

// wake starts the schedule anew.
func (c *core) wake(now time.Time) {
	if !c.announced {
		return
	}
	c.from, c.confirmed = c.counter+1, false
	c.began, c.wait, c.at = now, firstWait, now
}

// wideAfter is how long nobody confirms an announcement before the other side is
// also looked for where its clock would be two days off.
const wideAfter = time.Second

// wide reports whether the other side has to be looked for further off.
func (c *core) wide(now time.Time) bool {
	return c.announced && !c.confirmed && now.Sub(c.began) >= wideAfter
}

// due reports whether it is time to announce, and sets the next time. spread
// multiplies the wait, 0.75 to 1.25.
func (c *core) due(now time.Time, spread float64) bool {
	if c.at.IsZero() || now.Before(c.at) {
		return false
	}
	c.at = now.Add(time.Duration(float64(c.wait) * spread))
	limit := quickLimit
	if now.Sub(c.began) > quickFor {
		limit = slowLimit
	}
	c.wait = min(c.wait*8/5, limit)
	return true
}

// presence returns the next presence to send.
func (c *core) presence(now time.Time) message {
	c.counter++
	m := message{typ: framePresence, boot: c.self, counter: c.counter, want: !c.confirmed, pres: c.pres}
	m.pres.Day = wire.Day(now)
	m.echo, m.seen = c.echo()
	c.echoed = m.echo
	return m
}

// echo is the other's run as last heard, with its last counter if it is proved.
func (c *core) echo() (BootID, uint64) {
	if c.hint != (BootID{}) {
		return c.hint, 0
	}
	return c.peer, c.seen
}

func (c *core) goodbye() message {
	c.counter++
	return message{typ: frameGoodbye, boot: c.self, counter: c.counter, echo: c.peer}
}

func (c *core) commit(body []byte) message {
	c.counter++
	return message{typ: frameCommit, boot: c.self, counter: c.counter, body: body}
}

// receive takes a message that was sealed by the other side at some time.
func (c *core) receive(now time.Time, m message) outcome {
	if m.boot == c.self || slices.Contains(c.retired, m.boot) {
		return outcome{} // of a run that is over: a replay
	}
	switch m.typ {
	case frameCommit:
		// Commit bodies carry their own proof and change nothing twice.
		return outcome{event: &Event{Kind: CommitEvent, Body: m.body}}
	case frameGoodbye:
		if m.echo != c.self || m.boot != c.peer || !c.fresh(m.counter) {
			return outcome{}
		}
		c.retire()
		return outcome{event: &Event{Kind: GoodbyeEvent}}
	case frameNote:
		return c.receiveNote(now, m)
	case frameQuestion:
		return c.receiveQuestion(now, m)
	case frameAnswer:
		return c.receiveAnswer(now, m)
	}
	return c.receivePresence(now, m)
}

func (c *core) receivePresence(now time.Time, m message) outcome {
	if m.echo != c.self {
		// Perhaps a replay, perhaps a device that has just started: tell it who
		// runs here, and its answer will prove it. One that spoke before we listened
		// and is still there answers what we say of ourselves.
		if m.stored {
			return outcome{}
		}
		if c.maybeNew(m) {
			c.unproved = now
		}
		if m.boot != c.peer {
			c.hint = m.boot
		}
		return outcome{answer: c.announced && c.mayAnswer(now)}
	}
	if !c.proved(m) {
		return outcome{}
	}
	c.peerDay, c.skew = m.pres.Day, m.pres.Day-wire.Day(now)
	if c.announced && !c.confirmed && m.seen >= c.from {
		c.confirmed, c.at = true, time.Time{}
	}
	answer := c.announced && (m.want || c.echoed != m.boot) && c.mayAnswer(now)
	return outcome{answer: answer, event: &Event{Kind: PresenceEvent, Presence: m.pres}}
}

// maybeNew reports whether a presence that is not proved to be fresh is later than all
// that came of its run: one that somebody has recorded and sends again shows nothing of
// the other side.
func (c *core) maybeNew(m message) bool {
	last, known := c.unheard[m.boot]
	if known && m.counter <= last || !known && len(c.unheard) == maxUnheard || m.boot == c.peer && m.counter <= c.seen {
		return false
	}
	if c.unheard == nil {
		c.unheard = make(map[BootID]uint64)
	}
	c.unheard[m.boot] = m.counter
	return true
}

// proved takes a message that echoes our run: its own run lives. It reports false
// if the message has come before.
func (c *core) proved(m message) bool {
	if m.boot != c.peer {
		c.retire()
		c.peer, c.seen, c.window = m.boot, 0, 0
	}
	if !c.fresh(m.counter) {
		return false
	}
	// What hinted at another run was late or recorded, or it will be heard again.
	c.hint = BootID{}
	return true
}

// retire remembers that the other's present run is over.
func (c *core) retire() {
	if c.peer == (BootID{}) {
		return
	}
	c.retired = append(c.retired, c.peer)
	if len(c.retired) > maxRetired {
		c.retired = c.retired[1:]
	}
	c.peer, c.seen, c.window = BootID{}, 0, 0
	c.notes.taken = 0
	c.questions.taken, c.questions.answer = 0, nil
}

// fresh reports whether a counter of the present run comes for the first time.
func (c *core) fresh(counter uint64) bool {
	switch {
	case counter > c.seen:
		shift := counter - c.seen
		c.window = c.window<<shift | 1
		if shift >= windowWidth {
			c.window = 1
		}
		c.seen = counter
		return true
	case c.seen-counter >= windowWidth:
		return false
	}
	bit := uint64(1) << (c.seen - counter)
	if c.window&bit != 0 {
		return false
	}
	c.window |= bit
	return true
}

// mayAnswer bounds answers to a side, or a replayer, that talks fast.
func (c *core) mayAnswer(now time.Time) bool {
	if now.Sub(c.answered).Abs() < answerGap && c.echoed == c.echoNow() {
		return false
	}
	c.answered = now
	return true
}

// echoNow is the run that the next presence would echo.
func (c *core) echoNow() BootID {
	b, _ := c.echo()
	return b
}
