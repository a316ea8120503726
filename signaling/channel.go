package signaling

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
)

// An EventKind says what an Event is.
type EventKind uint8

// The kinds of events.
const (
	PresenceEvent EventKind = 1 // the other device is there now, with Presence
	GoodbyeEvent  EventKind = 2 // it has stopped in good order
	CommitEvent   EventKind = 3 // a body for the pair's pairing.Commit
)

// An Event is something that the other device said.
type Event struct {
	Kind     EventKind
	Presence Presence
	Body     []byte         // with CommitEvent
	Exchange string         // the medium that brought it
	From     netip.AddrPort // sender's address as the medium saw it; no proof of anything
	Stored   bool           // said before this device listened: the other may be gone
}

// Config is what Open needs. Exchange, Chain and Events must be set.
type Config struct {
	Exchange  rendezvous.Exchange
	Self      identity.DeviceID
	Joiner    bool // this device was the joiner of the pair
	Chain     pairing.Chain
	Skew      int64  // days that the other's clock was last seen ahead of ours
	BootID    BootID // of this run of the program
	Endpoints []netip.AddrPort
	Rand      io.Reader        // default crypto/rand
	Logger    *slog.Logger     // default: discard
	Now       func() time.Time // default time.Now
	// Events is called from the channel's goroutine and must not block or call
	// the Channel's Close.
	Events func(Event)
	// Heard is called, as Events is, for all that the other device has ever sealed with the
	// pair's keys, fresh or not: it has them. Default: nothing is called.
	Heard func()
	// Notes is the medium on which notes and their acknowledgements go out, and
	// nothing else. Nil: none does. It is used from the first note on; they come in
	// by Exchange.
	Notes rendezvous.Exchange
	// TakeNote takes a note of the other device: each once and in order within one
	// run of both. It reports whether it did; if not, or if TakeNote is nil, the
	// note is not acknowledged, and the other device sends it again. It is called
	// as Events is, with bytes that it may keep.
	TakeNote func(body []byte) bool
	// TakeQuestion takes a question of the other device, each once within one run of
	// both and at most one a second, and reports whether Answer will follow. It is
	// called as Events is. Nil: questions are ignored.
	TakeQuestion func(Asked) bool
}

// A Channel is one pair's signaling on all media. It is safe for concurrent use.
// Close ends it.
type Channel struct {
	cfg   Config
	role  pairing.Role
	ctx   context.Context //nolint:containedctx // ends with Close
	stop  context.CancelFunc
	done  chan struct{}
	calls chan func(now time.Time)
	in    chan arrival
	out   chan outgoing
	turn  chan struct{} // holds the right to send a note

	asking chan struct{} // holds the right to ask

	// Of the loop's goroutine:
	core     core
	inbound  map[int64]*inbound
	outbound map[int64]*outbound
	noteOut  map[int64]*outbound // nil: no note has been sent

	mu      sync.Mutex // guards peerDay
	peerDay int64
}

// inbound is one day's topic to listen on.
type inbound struct {
	session rendezvous.Session
	sealer  *wire.Sealer
	stop    context.CancelFunc
	done    chan struct{}
}

// outbound is one day's topic to speak on.
type outbound struct {
	session rendezvous.Session
	sealer  *wire.Sealer
}

type arrival struct {
	day int64
	msg rendezvous.Message
}

type outgoing struct {
	session rendezvous.Session
	frame   []byte
}

// outQueue is how many frames wait for a slow medium before new ones are
// dropped; the schedule brings them again.
const outQueue = 32

// Open joins the pair's topics of the day. ctx bounds the call only. It errs if
// the chain cannot give the day's keys, or if no medium takes the topics.
func Open(ctx context.Context, cfg Config) (*Channel, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Channel{
		cfg: cfg, role: pairing.Offerer, done: make(chan struct{}), calls: make(chan func(time.Time)),
		in: make(chan arrival), out: make(chan outgoing, outQueue), turn: make(chan struct{}, 1), asking: make(chan struct{}, 1),
		core: core{self: cfg.BootID}, inbound: make(map[int64]*inbound), outbound: make(map[int64]*outbound),
	}
	if cfg.Joiner {
		c.role = pairing.Joiner
	}
	c.ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.join(cfg.Now()); err != nil {
		c.leave(nil)
		c.stop()
		return nil, err
	}
	go c.run()
	return c, nil
}

func (c *Channel) other() pairing.Role { return pairing.Joiner + pairing.Offerer - c.role }

// days are those to listen on and to speak on at now: the specification's
// window, a day more on both ends while the other side is not found, and its day
// if its clock was seen to be further off.
func (c *Channel) days(now time.Time) (listen, speak []int64) {
	day := wire.Day(now)
	listen, speak = []int64{day - 1, day, day + 1}, []int64{day}
	if c.core.wide(now) {
		listen = append(listen, day-2, day+2)
	}
	skew := c.cfg.Skew
	if c.core.peerDay != 0 {
		skew = c.core.skew
	}
	if skew < -1 || skew > 1 {
		if off := day + skew; !slices.Contains(listen, off) {
			listen = append(listen, off)
		}
		speak = append(speak, day+skew)
	}
	early := func(d int64) bool { return d < c.cfg.Chain.Day }
	listen, speak = slices.DeleteFunc(listen, early), slices.DeleteFunc(speak, early)
	if len(listen) == 0 { // our clock is behind the pairing's day: meet on that day
		listen = []int64{c.cfg.Chain.Day}
	}
	if len(speak) == 0 {
		speak = []int64{c.cfg.Chain.Day}
	}
	return listen, speak
}

// join brings the topics in step with the day.
func (c *Channel) join(now time.Time) error {
	listen, speak := c.days(now)
	for day, in := range c.inbound {
		if !slices.Contains(listen, day) {
			in.close()
			delete(c.inbound, day)
		}
	}
	for _, day := range listen {
		if c.inbound[day] == nil {
			if err := c.listen(day); err != nil {
				return err
			}
		}
	}
	if err := c.speakOn(c.cfg.Exchange, c.outbound, speak); err != nil || c.noteOut == nil {
		return err
	}
	return c.speakOn(c.cfg.Notes, c.noteOut, speak)
}

func (c *Channel) open(ex rendezvous.Exchange, day int64, from pairing.Role, mode rendezvous.Mode) (rendezvous.Session, *wire.Sealer, error) {
	chain, err := c.cfg.Chain.At(day)
	if err != nil {
		return nil, nil, err
	}
	key := chain.FrameKey(from)
	sealer, err := wire.NewSealer(key[:])
	if err != nil {
		return nil, nil, err
	}
	s, err := ex.Join(c.ctx, rendezvous.Point{
		Topic: chain.Topic(from), Mode: mode, Endpoints: c.cfg.Endpoints, Announce: mode == rendezvous.ReceiveOnly,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("signaling: %w", err)
	}
	return s, sealer, nil
}

func (c *Channel) listen(day int64) error {
	s, sealer, err := c.open(c.cfg.Exchange, day, c.other(), rendezvous.ReceiveOnly)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	in := &inbound{session: s, sealer: sealer, stop: cancel, done: make(chan struct{})}
	c.inbound[day] = in
	go func() {
		defer close(in.done)
		for {
			msg, err := s.Receive(ctx)
			if err != nil {
				return
			}
			select {
			case c.in <- arrival{day, msg}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}

func (in *inbound) close() {
	in.stop()
	in.session.Close()
	<-in.done
}

// leave closes all topics, after sender has ended.
func (c *Channel) leave(sender <-chan struct{}) {
	for _, in := range c.inbound {
		in.close()
	}
	if sender != nil {
		<-sender
	}
	for _, open := range []map[int64]*outbound{c.outbound, c.noteOut} {
		for _, out := range open {
			out.session.Close()
		}
	}
}

func (c *Channel) run() {
	defer close(c.done)
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		c.publish()
	}()
	defer c.leave(sender)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := c.cfg.Now()
		next := startOfDay(now).AddDate(0, 0, 1)
		if at := c.core.at; !at.IsZero() && at.Before(next) {
			next = at
		}
		note, question := c.core.notes.out, c.core.questions.out
		if note != nil && note.at.Before(next) {
			next = note.at
		}
		if question != nil && question.at.Before(next) {
			next = question.at
		}
		timer.Reset(max(0, next.Sub(now)))
		select {
		case <-c.ctx.Done():
			return
		case f := <-c.calls:
			f(c.cfg.Now())
		case a := <-c.in:
			c.receive(c.cfg.Now(), a)
		case <-timer.C:
		}
		now = c.cfg.Now()
		if err := c.join(now); err != nil {
			c.cfg.Logger.Error("topics of the day not joined", "err", err)
		}
		if c.core.due(now, c.spread()) {
			c.send(c.core.presence(now))
		}
		if n := c.core.notes.out; n != nil && n.due(now, c.spread()) {
			c.sendNote(now, c.core.outgoing(frameNote, n))
		}
		if q := c.core.questions.out; q != nil && q.due(now, c.spread()) {
			c.send(c.core.question())
		}
	}
}

func startOfDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// spread returns a factor from 0.75 to 1.25.
func (c *Channel) spread() float64 {
	var b [2]byte
	if _, err := io.ReadFull(c.cfg.Rand, b[:]); err != nil {
		return 1
	}
	return 0.75 + float64(binary.BigEndian.Uint16(b[:]))/(1<<17)
}

// publish hands frames to the media, so that a slow one does not hold the loop.
func (c *Channel) publish() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case o := <-c.out:
			if err := o.session.Publish(c.ctx, o.frame); err != nil {
				c.cfg.Logger.Debug("frame not sent", "err", err)
			}
		}
	}
}

func (c *Channel) send(m message) { c.sendOn(c.outbound, m) }

func (c *Channel) sendOn(open map[int64]*outbound, m message) {
	f, err := m.encode()
	if err != nil {
		c.cfg.Logger.Error("message not encoded", "err", err)
		return
	}
	for _, out := range open {
		frame, err := out.sealer.Seal(c.cfg.Rand, f)
		if err != nil {
			c.cfg.Logger.Error("frame not sealed", "err", err)
			continue
		}
		select {
		case c.out <- outgoing{out.session, frame}:
		default:
		}
	}
}

func (c *Channel) receive(now time.Time, a arrival) {
	in := c.inbound[a.day]
	if in == nil {
		return
	}
	f, err := in.sealer.Open(a.msg.Frame)
	if j, ok := in.session.(rendezvous.Judge); ok {
		j.Judge(a.msg, err == nil)
	}
	if err != nil {
		return
	}
	m, err := decode(f)
	if err != nil {
		c.cfg.Logger.Debug("message not understood", "exchange", a.msg.Exchange)
		return
	}
	if c.cfg.Heard != nil {
		c.cfg.Heard()
	}
	m.stored = a.msg.Stored
	o := c.core.receive(now, m)
	if o.event != nil {
		o.event.Exchange, o.event.From, o.event.Stored = a.msg.Exchange, a.msg.From, a.msg.Stored
		c.mu.Lock()
		c.peerDay = c.core.peerDay
		c.mu.Unlock()
		c.cfg.Events(*o.event)
	}
	if o.answer {
		c.send(c.core.presence(now))
	}
	c.takeNote(now, o)
	c.takeQuestion(now, o)
}

// call runs f on the loop.
func (c *Channel) call(f func(now time.Time)) {
	select {
	case c.calls <- f:
	case <-c.done:
	}
}

// Announce tells the other device what this one is now: at once, and again after
// 250 ms, each time 1.6 times as long, until it has confirmed.
func (c *Channel) Announce(p Presence) {
	c.call(func(now time.Time) { c.core.announce(now, p) })
}

// Wake begins the schedule of the last Announce anew, because something changed
// that may let it through now.
func (c *Channel) Wake() { c.call(c.core.wake) }

// SendCommit sends a body of the pair's pairing.Commit, once.
func (c *Channel) SendCommit(body []byte) {
	c.call(func(time.Time) { c.send(c.core.commit(body)) })
}

// SafeDay returns the latest day to which the pair's chain may be moved forward
// for good: the day before the earlier of both devices' days, so that a clock
// that jumps ahead destroys nothing. It reports false before the other side has
// said its day.
func (c *Channel) SafeDay() (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peerDay == 0 {
		return 0, false
	}
	return min(wire.Day(c.cfg.Now()), c.peerDay) - 1, true
}

// Unproved returns when a presence of the other device came last, on any medium, that
// did not show that it hears this one; zero if none did. It may be a recorded one.
func (c *Channel) Unproved() time.Time {
	at := make(chan time.Time, 1)
	c.call(func(time.Time) { at <- c.core.unproved })
	select {
	case t := <-at:
		return t
	case <-c.done:
		return time.Time{}
	}
}

// Goodbye tells the other device that this one stops, if ctx leaves time.
func (c *Channel) Goodbye(ctx context.Context) {
	sent := make(chan struct{})
	c.call(func(time.Time) {
		defer close(sent)
		f, err := c.core.goodbye().encode()
		if err != nil {
			return
		}
		for _, out := range c.outbound {
			frame, err := out.sealer.Seal(c.cfg.Rand, f)
			if err != nil {
				continue
			}
			if err := out.session.Publish(ctx, frame); err != nil {
				c.cfg.Logger.Debug("goodbye not sent", "err", err)
			}
		}
	})
	select {
	case <-sent:
	case <-c.done:
	case <-ctx.Done():
	}
}

// Close leaves the topics and waits for the channel's goroutines. It is
// idempotent and its error is always nil or net.ErrClosed.
func (c *Channel) Close() error {
	if c.ctx.Err() != nil {
		<-c.done
		return net.ErrClosed
	}
	c.stop()
	<-c.done
	return nil
}
