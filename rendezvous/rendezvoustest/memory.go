// Package rendezvoustest helps to test what meets over a rendezvous.Exchange: an
// in-memory medium with faults, and the suite that every driver must pass.
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

// Faults say how bad a Network is. The zero value is perfect.
type Faults struct {
	Loss      float64       // number from 0 to 1: part of the deliveries that are dropped
	Duplicate float64       // number from 0 to 1: part that comes twice
	MaxDelay  time.Duration // each delivery waits up to this long, so that they overtake each other
}

// A Network is a medium in memory. It works inside a testing/synctest bubble: it
// waits only on the bubble's clock. It is safe for concurrent use.
type Network struct {
	mu       sync.Mutex // guards all fields
	faults   Faults
	random   *rand.Rand
	cut      bool
	sessions map[rendezvous.Topic]map[*session]struct{}
	frames   []Recorded
	timers   map[*time.Timer]struct{}
}

// A Recorded is one frame that was published.
type Recorded struct {
	Topic rendezvous.Topic
	Frame []byte
}

// NewNetwork returns a medium whose faults follow from a seed.
func NewNetwork(seed uint64, faults Faults) *Network {
	return &Network{
		faults: faults, random: rand.New(rand.NewPCG(seed, seed)), //nolint:gosec // faults must repeat
		sessions: make(map[rendezvous.Topic]map[*session]struct{}), timers: make(map[*time.Timer]struct{}),
	}
}

// SetFaults changes the faults from now on.
func (n *Network) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = f
}

// Cut makes the medium unreachable, or reachable again.
func (n *Network) Cut(cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
}

// Recorded returns every frame that was published.
func (n *Network) Recorded() []Recorded {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.frames)
}

// Inject delivers a frame as if somebody unknown had published it.
func (n *Network) Inject(topic rendezvous.Topic, frame []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spread(topic, frame, nil)
}

// Exchange returns a user of the medium with a driver's name.
func (n *Network) Exchange(name string) *Memory { return &Memory{net: n, name: name} }

// spread delivers a frame to all sessions of a topic but one. The caller holds mu.
func (n *Network) spread(topic rendezvous.Topic, frame []byte, except *session) {
	for s := range n.sessions[topic] {
		if s == except || s.point.Mode == rendezvous.SendOnly {
			continue
		}
		copies := 1
		if n.random.Float64() < n.faults.Duplicate {
			copies = 2
		}
		for range copies {
			if n.random.Float64() < n.faults.Loss {
				continue
			}
			m := rendezvous.Message{Frame: slices.Clone(frame), Exchange: s.e.name}
			if n.faults.MaxDelay <= 0 {
				s.deliver(m)
				continue
			}
			var t *time.Timer
			t = time.AfterFunc(time.Duration(n.random.Int64N(int64(n.faults.MaxDelay))), func() {
				n.mu.Lock()
				delete(n.timers, t)
				n.mu.Unlock()
				s.deliver(m)
			})
			n.timers[t] = struct{}{}
		}
	}
}

// A Memory is one user of a Network, as a driver is of its medium.
type Memory struct {
	net    *Network
	name   string
	closed bool // guarded by net.mu
}

var _ rendezvous.Exchange = (*Memory)(nil)

// Name returns the name that Network.Exchange was given.
func (e *Memory) Name() string { return e.name }

// Health is ready unless the network is cut.
func (e *Memory) Health() rendezvous.Health {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	h := rendezvous.Health{Name: e.name, Ready: !e.net.cut, Detail: "in memory"}
	if e.net.cut {
		h.Err = rendezvous.ErrUnreachable
	}
	return h
}

// Join opens a session. It errs with net.ErrClosed after Close.
func (e *Memory) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("memory: join: %w", net.ErrClosed)
	}
	s := &session{e: e, point: p, queue: make(chan rendezvous.Message, rendezvous.QueueSize), done: make(chan struct{})}
	if e.net.sessions[p.Topic] == nil {
		e.net.sessions[p.Topic] = make(map[*session]struct{})
	}
	e.net.sessions[p.Topic][s] = struct{}{}
	return s, nil
}

// Close ends all sessions of this user.
func (e *Memory) Close() error {
	e.net.mu.Lock()
	e.closed = true
	var open []*session
	for _, set := range e.net.sessions {
		for s := range set {
			if s.e == e {
				open = append(open, s)
			}
		}
	}
	for t := range e.net.timers {
		t.Stop()
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
	queue chan rendezvous.Message
	done  chan struct{}
	once  sync.Once
}

func (s *session) deliver(m rendezvous.Message) {
	select {
	case s.queue <- m:
	default:
	}
}

func (s *session) isClosed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *session) Publish(ctx context.Context, frame []byte) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.isClosed():
		return fmt.Errorf("memory: publish: %w", net.ErrClosed)
	case len(frame) != rendezvous.FrameSize:
		return rendezvous.ErrFrameSize
	}
	n := s.e.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut {
		return fmt.Errorf("memory: %w", rendezvous.ErrUnreachable)
	}
	n.frames = append(n.frames, Recorded{s.point.Topic, slices.Clone(frame)})
	n.spread(s.point.Topic, frame, s)
	return nil
}

func (s *session) Receive(ctx context.Context) (rendezvous.Message, error) {
	if s.isClosed() {
		return rendezvous.Message{}, fmt.Errorf("memory: receive: %w", net.ErrClosed)
	}
	select {
	case m := <-s.queue:
		return m, nil
	case <-ctx.Done():
		return rendezvous.Message{}, ctx.Err()
	case <-s.done:
		return rendezvous.Message{}, fmt.Errorf("memory: receive: %w", net.ErrClosed)
	}
}

func (s *session) Close() error {
	s.once.Do(func() {
		close(s.done)
		n := s.e.net
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.sessions[s.point.Topic], s)
		if len(n.sessions[s.point.Topic]) == 0 {
			delete(n.sessions, s.point.Topic)
		}
	})
	return nil
}
