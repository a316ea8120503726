package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxInFlight is how many frames of one session a member may be busy with, in
	// number. A member that is stuck costs this many goroutines and no more.
	maxInFlight = 8
	// publishLimit is how long a member may go on with a frame after another has
	// taken it.
	publishLimit = 30 * time.Second
)

// A raceSession merges one session per member.
type raceSession struct {
	racer   *Racer
	point   Point
	opened  time.Time
	members atomic.Pointer[[]*raceMember] // replaced by add and remove, never changed
	merge   merge
	ctx     context.Context //nolint:containedctx // ends with Close
	cancel  context.CancelFunc
	once    sync.Once
	err     error // of Close

	mu     sync.Mutex // guards closed, and wg against additions after Close
	closed bool
	wg     sync.WaitGroup
}

var (
	_ Session  = (*raceSession)(nil)
	_ Judge    = (*raceSession)(nil)
	_ Reporter = (*raceSession)(nil)
)

// A raceMember is the part of one exchange. session and err are set before joined
// is closed.
type raceMember struct {
	exchange Exchange
	own      counters  // of this session
	all      *counters // of all sessions of the exchange
	joined   chan struct{}
	session  Session
	err      error // of Join
	closeErr error // set before done is closed
	slots    chan struct{}
	queue    *queue
	ctx      context.Context //nolint:containedctx // ends with the session, or when the exchange leaves it
	cancel   context.CancelFunc
	done     chan struct{} // closed when the session is
}

func newRaceSession(ctx context.Context, r *Racer, p Point) *raceSession {
	s := &raceSession{racer: r, point: p, opened: time.Now(), merge: merge{more: make(chan struct{}, 1)}}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.members.Store(new([]*raceMember))
	return s
}

// add has one more exchange join. The Racer's lock is held.
func (s *raceSession) add(e Exchange, all *counters) {
	m := &raceMember{
		exchange: e, all: all, joined: make(chan struct{}), slots: make(chan struct{}, maxInFlight),
		queue: s.merge.grow(), done: make(chan struct{}),
	}
	m.ctx, m.cancel = context.WithCancel(s.ctx)
	s.members.Store(new(append(slices.Clone(*s.members.Load()), m)))
	if !s.start(func() { s.run(m) }) {
		m.cancel()
		close(m.done)
	}
}

// remove takes an exchange out and returns its parts, which end. The Racer's lock is held.
func (s *raceSession) remove(e Exchange) (left []*raceMember) {
	var stay []*raceMember
	for _, m := range *s.members.Load() {
		if m.exchange != e {
			stay = append(stay, m)
			continue
		}
		m.cancel()
		left = append(left, m)
	}
	s.members.Store(&stay)
	return left
}

// end waits until the part of an exchange that was removed is closed, and nothing is
// published by it.
func (m *raceMember) end() error {
	m.cancel()
	<-m.done
	for range maxInFlight {
		m.slots <- struct{}{} // and none is given back
	}
	return m.closeErr
}

// start runs f in a goroutine that Close waits for; after Close it reports false.
func (s *raceSession) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// run is the life of one member's session.
func (s *raceSession) run(m *raceMember) {
	defer close(m.done)
	defer s.merge.shrink(m.queue)
	session, err := m.exchange.Join(m.ctx, s.point)
	if err != nil {
		m.err = fmt.Errorf("%s: %w", m.exchange.Name(), err)
		if m.ctx.Err() == nil {
			m.each(func(c *counters) { c.fail(err) })
		}
		close(m.joined)
		return
	}
	m.session = session
	m.each(func(c *counters) { c.joined.Add(1) })
	defer m.all.joined.Add(-1)
	close(m.joined)
	for s.point.Mode != SendOnly {
		msg, err := session.Receive(m.ctx)
		if err != nil {
			break
		}
		msg.via = m
		queued := s.merge.put(m.queue, msg)
		m.each(func(c *counters) {
			if c.received.Add(1); !queued {
				c.dropped.Add(1)
			}
		})
	}
	<-m.ctx.Done()
	m.closeErr = session.Close()
}

// publish hands a frame to one member.
func (m *raceMember) publish(ctx context.Context, frame []byte) error {
	select {
	case <-m.joined:
	default:
		return fmt.Errorf("%s: %w: still joining", m.exchange.Name(), ErrUnreachable)
	}
	if m.err != nil {
		return m.err
	}
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	default:
		return fmt.Errorf("%s: %w: busy with earlier frames", m.exchange.Name(), ErrUnreachable)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	err := m.session.Publish(ctx, frame)
	m.each(func(c *counters) {
		c.fail(err)
		if err == nil {
			c.sent.Add(1)
		} else {
			c.failed.Add(1)
		}
	})
	if err != nil {
		return fmt.Errorf("%s: %w", m.exchange.Name(), err)
	}
	return nil
}

// each counts for the session and for the exchange.
func (m *raceMember) each(count func(*counters)) {
	count(&m.own)
	count(m.all)
}

// Judge tells whether a message of this session could be opened.
func (s *raceSession) Judge(msg Message, opened bool) {
	m := msg.via
	if m == nil {
		return
	}
	after := int64(max(1, time.Since(s.opened)))
	m.each(func(c *counters) {
		if opened {
			c.first.CompareAndSwap(0, after)
		} else {
			c.useless.Add(1)
		}
	})
	if j, ok := m.session.(Judge); ok {
		j.Judge(msg, opened)
	}
}

// Stats returns what each medium did for this session, in their order.
func (s *raceSession) Stats() []Stats {
	members := *s.members.Load()
	out := make([]Stats, len(members))
	for i, m := range members {
		out[i] = m.own.stats(m.exchange.Name())
	}
	return out
}

// Publish hands the frame to all members at once and returns when the first has
// taken it; the others go on. It errs when none takes it.
func (s *raceSession) Publish(ctx context.Context, frame []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.ctx.Err() != nil {
		return fmt.Errorf("rendezvous: publish: %w", net.ErrClosed)
	}
	if len(frame) != FrameSize {
		return ErrFrameSize
	}
	type result struct {
		member int
		err    error
	}
	frame = slices.Clone(frame) // slower members need it after this returns
	members := *s.members.Load()
	if len(members) == 0 { // all were removed
		return errNoMember
	}
	results := make(chan result, len(members))
	sending, cancel := context.WithTimeout(s.ctx, publishLimit)
	defer context.AfterFunc(ctx, cancel)() // the caller's context counts until somebody has the frame
	var left atomic.Int32
	left.Store(int32(len(members))) // a handful
	for i, m := range members {
		started := s.start(func() {
			results <- result{i, m.publish(sending, frame)}
			if left.Add(-1) == 0 {
				cancel()
			}
		})
		if !started {
			cancel()
			return fmt.Errorf("rendezvous: publish: %w", net.ErrClosed)
		}
	}
	errs := make([]error, len(members))
	for range members {
		select {
		case r := <-results:
			if r.err == nil {
				return nil
			}
			errs[r.member] = r.err
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return fmt.Errorf("rendezvous: publish: %w", net.ErrClosed)
		}
	}
	return errors.Join(errs...)
}

// Receive returns the next frame, of the members in turn.
func (s *raceSession) Receive(ctx context.Context) (Message, error) {
	for {
		switch {
		case s.ctx.Err() != nil:
			return Message{}, fmt.Errorf("rendezvous: receive: %w", net.ErrClosed)
		case ctx.Err() != nil:
			return Message{}, ctx.Err()
		}
		if msg, ok := s.merge.take(); ok {
			return msg, nil
		}
		select {
		case <-s.merge.more:
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
	}
}

// Close ends every member's session, waits for them and joins their errors.
func (s *raceSession) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.cancel()
		s.wg.Wait()
		var errs []error
		for _, m := range *s.members.Load() {
			errs = append(errs, m.closeErr)
		}
		s.err = errors.Join(errs...)
		s.racer.mu.Lock()
		defer s.racer.mu.Unlock()
		delete(s.racer.sessions, s)
	})
	return s.err
}

// A merge holds what the members received, each in a queue with its own share of
// QueueSize: who floods one medium crowds out nobody on another.
type merge struct {
	more chan struct{} // holds a token while there may be messages

	mu      sync.Mutex // guards the fields below
	share   int        // messages per queue
	queues  []*queue
	turn    int // whose message is next
	waiting int // messages in all queues
}

// A queue is what one member received.
type queue struct{ messages []Message }

// grow makes room for one more member.
func (q *merge) grow() *queue {
	q.mu.Lock()
	defer q.mu.Unlock()
	one := new(queue)
	q.queues = append(q.queues, one)
	q.share = max(1, QueueSize/len(q.queues))
	return one
}

// shrink gives a member's room to the others, and drops what it still holds.
func (q *merge) shrink(one *queue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queues = slices.DeleteFunc(q.queues, func(other *queue) bool { return other == one })
	q.share, q.turn = QueueSize/max(1, len(q.queues)), 0
	q.waiting -= len(one.messages)
}

// put queues a message of one member, or drops it if that member's share is full.
// It reports whether it is queued.
func (q *merge) put(one *queue, msg Message) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(one.messages) >= q.share {
		return false
	}
	one.messages = append(one.messages, msg)
	q.waiting++
	q.wake()
	return true
}

func (q *merge) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take returns the oldest message of the next member that has one.
func (q *merge) take() (Message, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for range q.queues {
		one := q.queues[q.turn]
		q.turn = (q.turn + 1) % len(q.queues)
		if len(one.messages) == 0 {
			continue
		}
		msg := one.messages[0]
		one.messages[0] = Message{}
		one.messages = one.messages[1:]
		if q.waiting--; q.waiting > 0 {
			q.wake() // for another receiver
		}
		return msg, true
	}
	return Message{}, false
}
