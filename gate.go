package kith

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
)

const (
	// gateAfter is how long a member is looked for by way of other members alone.
	gateAfter = 10 * time.Second
	// maxGates is how many members are looked for at once on the media that paired
	// devices meet on, which cost something for each.
	maxGates = 16
)

// A gate is the node's media for one member of a room, closed while other members can
// pass frames on. It opens and closes by its gates' hand.
type gate struct {
	gs     *gates
	id     identity.DeviceID
	always bool // it is never closed

	mu       sync.Mutex // guards the fields below; taken after gates.mu
	ended    bool
	open     bool
	sessions map[*gateSession]struct{}
}

var _ rendezvous.Exchange = (*gate)(nil)

// Name returns the media's.
func (g *gate) Name() string { return g.gs.media.Name() }

// Health is that of the node's media.
func (g *gate) Health() rendezvous.Health { return g.gs.media.Health() }

// Close ends the sessions, and leaves the node's media open.
func (g *gate) Close() error {
	g.gs.forget(g)
	g.set(false)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for s := range g.sessions {
		s.end()
	}
	clear(g.sessions)
	return nil
}

// Join opens a session, at which nothing goes in or out while the gate is closed. It
// errs with net.ErrClosed, and as the media do while it is open.
func (g *gate) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	s := &gateSession{g: g, point: p, done: make(chan struct{}), changed: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return nil, fmt.Errorf("kith: %w", net.ErrClosed)
	}
	if g.open {
		if err := s.begin(ctx); err != nil {
			return nil, err
		}
	}
	g.sessions[s] = struct{}{}
	return s, nil
}

// set opens or closes the gate.
func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == open || g.ended {
		return
	}
	g.open = open
	for s := range g.sessions {
		if !open {
			s.pause()
		} else if err := s.begin(context.Background()); err != nil { // does not wait
			g.gs.problem("member not looked for", err)
		}
	}
}

// A gateSession is a session that may be shut off.
type gateSession struct {
	g     *gate
	point rendezvous.Point
	once  sync.Once
	done  chan struct{} // closed by end

	mu      sync.Mutex // guards the fields below
	inner   rendezvous.Session
	changed chan struct{} // closed and replaced when inner is
}

func (s *gateSession) begin(ctx context.Context) error {
	inner, err := s.g.gs.media.Join(ctx, s.point)
	if err != nil {
		return err
	}
	s.put(inner)
	return nil
}

func (s *gateSession) pause() {
	if old := s.put(nil); old != nil {
		_ = old.Close() // it is left in any case
	}
}

func (s *gateSession) put(inner rendezvous.Session) (old rendezvous.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, s.inner = s.inner, inner
	close(s.changed)
	s.changed = make(chan struct{})
	return old
}

func (s *gateSession) now() (rendezvous.Session, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inner, s.changed
}

func (s *gateSession) end() {
	s.once.Do(func() { close(s.done) })
	s.pause()
}

// Publish errs with rendezvous.ErrUnreachable while the gate is closed, and otherwise as a
// session of the node's media does.
func (s *gateSession) Publish(ctx context.Context, frame []byte) error {
	select {
	case <-s.done:
		return fmt.Errorf("kith: %w", net.ErrClosed)
	default:
	}
	if inner, _ := s.now(); inner != nil {
		return inner.Publish(ctx, frame)
	}
	return fmt.Errorf("kith: %w", rendezvous.ErrUnreachable)
}

// Receive returns the next frame, when the gate has opened. It errs with the error of ctx,
// and net.ErrClosed.
func (s *gateSession) Receive(ctx context.Context) (rendezvous.Message, error) {
	for {
		inner, changed := s.now()
		if inner != nil {
			msg, err := inner.Receive(ctx)
			if err == nil || ctx.Err() != nil {
				return msg, err
			}
			inner = nil // it was shut off, or closed
		}
		select {
		case <-s.done:
			return rendezvous.Message{}, fmt.Errorf("kith: %w", net.ErrClosed)
		case <-ctx.Done():
			return rendezvous.Message{}, ctx.Err()
		case <-changed:
		}
	}
}

// Close leaves the topic.
func (s *gateSession) Close() error {
	s.g.mu.Lock()
	delete(s.g.sessions, s)
	s.g.mu.Unlock()
	s.end()
	return nil
}

// gates open and close those of all members. They are driven by events, and by a timer
// only while a member is lost.
type gates struct {
	media   rendezvous.Exchange
	lost    func(identity.DeviceID) bool // not connected, and not to be reached by way of others
	problem func(msg string, err error)

	mu    sync.Mutex // guards the fields below
	all   map[identity.DeviceID]*gate
	since map[identity.DeviceID]time.Time // of lost members
	open  map[identity.DeviceID]bool
}

func newGates(media rendezvous.Exchange, lost func(identity.DeviceID) bool, problem func(string, error)) *gates {
	return &gates{
		media: media, lost: lost, problem: problem, all: make(map[identity.DeviceID]*gate),
		since: make(map[identity.DeviceID]time.Time), open: make(map[identity.DeviceID]bool),
	}
}

// of returns a new gate for a member; one that is always open counts for nothing.
func (gs *gates) of(id identity.DeviceID, always bool) *gate {
	g := &gate{gs: gs, id: id, always: always, open: always, sessions: make(map[*gateSession]struct{})}
	if always {
		return g
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.all[id] = g
	return g
}

func (gs *gates) forget(g *gate) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.all[g.id] == g {
		delete(gs.all, g.id)
		delete(gs.since, g.id)
		delete(gs.open, g.id)
	}
}

// update opens and closes what is due, and returns when it wants to be called again;
// zero: when something changes.
func (gs *gates) update(now time.Time) (next time.Time) {
	var turn []func()
	gs.mu.Lock()
	for id, g := range gs.all {
		if !gs.lost(id) {
			delete(gs.since, id)
			if gs.open[id] {
				delete(gs.open, id)
				turn = append(turn, func() { g.set(false) })
			}
			continue
		}
		if gs.since[id].IsZero() {
			gs.since[id] = now
		}
		due := gs.since[id].Add(gateAfter)
		switch {
		case gs.open[id]:
		case now.Before(due):
			if next.IsZero() || due.Before(next) {
				next = due
			}
		case len(gs.open) < maxGates:
			gs.open[id] = true
			turn = append(turn, func() { g.set(true) })
		}
	}
	gs.mu.Unlock()
	for _, f := range turn {
		f()
	}
	return next
}
