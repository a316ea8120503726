// Package rendezvoustest helps to test what meets over a rendezvous.Exchange: an
// in-memory medium with faults (Network), and the suite that every driver must
// pass (Run).
package rendezvoustest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// overtaken is how much longer a delivery takes that Faults.Reorder picked.
const overtaken = 50 * time.Millisecond

// Faults say how bad a Network is. The zero value is perfect: each frame arrives
// at once at every other session of its topic.
type Faults struct {
	Loss      float64       // number from 0 to 1: part of the deliveries that are dropped
	Duplicate float64       // number from 0 to 1: part that comes twice
	Reorder   float64       // number from 0 to 1: part that comes 50 ms and MaxDelay later, so that others overtake it
	Corrupt   float64       // number from 0 to 1: part that has one bit changed
	Echo      float64       // number from 0 to 1: part of the frames that also come back to the session that sent them
	MaxDelay  time.Duration // each delivery waits up to this long; default 0 is none
}

// A Network is a medium in memory. It works inside a testing/synctest bubble: it
// starts no goroutines of its own and waits only on timers. It is safe for
// concurrent use.
//
// Each user draws its faults from its own source, which follows from the seed
// and from how many users came before it. So the same publishes of one user, in
// one order, meet the same faults in every run, whatever the others do meanwhile.
type Network struct {
	seed uint64

	mu       sync.Mutex // guards the fields below, and the users' and sessions' fields that say so
	faults   Faults
	random   *rand.Rand // for what is injected
	users    uint64
	cut      bool
	sessions map[rendezvous.Topic][]*session // in the order of their Join
	frames   []Recorded
}

// A Recorded is one frame that was published.
type Recorded struct {
	Topic    rendezvous.Topic
	Frame    []byte
	Exchange string    // name of the user that published it
	At       time.Time // when
}

// NewNetwork returns a medium whose faults follow from a seed.
func NewNetwork(seed uint64, faults Faults) *Network {
	n := &Network{seed: seed, faults: faults, sessions: make(map[rendezvous.Topic][]*session)}
	n.random = n.source()
	return n
}

// source returns the next user's source of faults. The caller holds mu, or is alone.
func (n *Network) source() *rand.Rand {
	n.users++
	return rand.New(rand.NewPCG(n.seed, n.users)) //nolint:gosec // faults must repeat
}

// SetFaults changes the faults from now on. What is under way is not affected.
func (n *Network) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = f
}

// Cut makes the medium unreachable for everybody, or reachable again. What is
// under way is lost if the medium is cut when it would arrive.
func (n *Network) Cut(cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
}

// Recorded returns every frame that was published and taken, oldest first.
func (n *Network) Recorded() []Recorded {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.frames)
}

// Inject delivers a frame as if somebody unknown had published it: garbage, or a
// replay of what was Recorded. Like every driver, the medium passes on only frames
// of rendezvous.FrameSize bytes.
func (n *Network) Inject(topic rendezvous.Topic, frame []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(frame) == rendezvous.FrameSize && !n.cut {
		n.spread(n.random, topic, frame, nil)
	}
}

// Exchange returns a new user of the medium with a driver's name, which need not
// be unique.
func (n *Network) Exchange(name string) *Memory {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &Memory{net: n, name: name, random: n.source()}
}

// spread sends a frame to all sessions of a topic. The caller holds mu.
func (n *Network) spread(random *rand.Rand, topic rendezvous.Topic, frame []byte, from *session) {
	happens := func(part float64) bool { return part > 0 && random.Float64() < part }
	for _, s := range n.sessions[topic] {
		if s.point.Mode == rendezvous.SendOnly || s == from && !happens(n.faults.Echo) {
			continue
		}
		copies := 1
		if happens(n.faults.Duplicate) {
			copies = 2
		}
		for range copies {
			if happens(n.faults.Loss) {
				continue
			}
			m := rendezvous.Message{Frame: slices.Clone(frame), Exchange: s.e.name}
			if happens(n.faults.Corrupt) {
				bit := random.IntN(8 * len(m.Frame))
				m.Frame[bit/8] ^= 1 << (bit % 8)
			}
			var delay time.Duration
			if n.faults.MaxDelay > 0 {
				delay = time.Duration(random.Int64N(int64(n.faults.MaxDelay)))
			}
			if happens(n.faults.Reorder) {
				delay += n.faults.MaxDelay + overtaken
			}
			s.deliver(m, delay)
		}
	}
}

// A Memory is one user of a Network, as a driver is of its medium.
type Memory struct {
	net    *Network
	name   string
	random *rand.Rand // guarded by net.mu
	cut    bool       // guarded by net.mu
	closed bool       // guarded by net.mu
}

var (
	_ rendezvous.Exchange = (*Memory)(nil)
	_ rendezvous.Opener   = (*Memory)(nil)
)

// Name returns the name that Network.Exchange was given.
func (e *Memory) Name() string { return e.name }

// Cut takes this user off the medium, or puts it back.
func (e *Memory) Cut(cut bool) {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	e.cut = cut
}

// off reports that nothing passes. The caller holds net.mu.
func (e *Memory) off() bool { return e.cut || e.net.cut }

// Another is one more user of the medium. It does not err.
func (e *Memory) Another() (rendezvous.Exchange, error) { return e.net.Exchange(e.name), nil }

// Servers returns nothing: there are none.
func (e *Memory) Servers() []string { return nil }

// Health is ready unless the network, or this user, is cut or closed.
func (e *Memory) Health() rendezvous.Health {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	h := rendezvous.Health{Name: e.name, Ready: true, Detail: "in memory"}
	switch {
	case e.closed:
		h.Ready, h.Err = false, fmt.Errorf("memory: %w", net.ErrClosed)
	case e.off():
		h.Ready, h.Err = false, rendezvous.ErrUnreachable
	}
	return h
}

// Join opens a session. It errs with net.ErrClosed after Close, and with the
// context's error.
func (e *Memory) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("memory: join: %w", net.ErrClosed)
	}
	s := &session{
		e: e, point: p, timers: make(map[*time.Timer]struct{}),
		Inbox: rendezvous.NewInbox("memory"),
	}
	e.net.sessions[p.Topic] = append(e.net.sessions[p.Topic], s)
	return s, nil
}

// Close ends all sessions of this user.
func (e *Memory) Close() error {
	e.net.mu.Lock()
	e.closed = true
	var open []*session
	for _, all := range e.net.sessions {
		for _, s := range all {
			if s.e == e {
				open = append(open, s)
			}
		}
	}
	e.net.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
	return nil
}

type session struct {
	e     *Memory
	point rendezvous.Point
	*rendezvous.Inbox
	timers map[*time.Timer]struct{} // deliveries under way; guarded by e.net.mu
}

// deliver queues a message now or later, or drops it if the queue is full. The
// caller holds net.mu.
func (s *session) deliver(m rendezvous.Message, delay time.Duration) {
	if delay <= 0 {
		s.arrive(m)
		return
	}
	var t *time.Timer
	t = time.AfterFunc(delay, func() {
		s.e.net.mu.Lock()
		defer s.e.net.mu.Unlock()
		delete(s.timers, t)
		s.arrive(m)
	})
	s.timers[t] = struct{}{}
}

// arrive is the end of a delivery. The caller holds net.mu.
func (s *session) arrive(m rendezvous.Message) {
	if !s.Closed() && !s.e.off() {
		s.Deliver(m)
	}
}

func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	n := s.e.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.e.off() {
		return fmt.Errorf("memory: %w", rendezvous.ErrUnreachable)
	}
	n.frames = append(n.frames, Recorded{s.point.Topic, slices.Clone(frame), s.e.name, time.Now()})
	n.spread(s.e.random, s.point.Topic, frame, s)
	return nil
}

func (s *session) Close() error {
	s.Shut(func() {
		n := s.e.net
		n.mu.Lock()
		defer n.mu.Unlock()
		for t := range s.timers {
			t.Stop()
		}
		clear(s.timers)
		rest := slices.DeleteFunc(n.sessions[s.point.Topic], func(other *session) bool { return other == s })
		if n.sessions[s.point.Topic] = rest; len(rest) == 0 {
			delete(n.sessions, s.point.Topic)
		}
	})
	return nil
}
