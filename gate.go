package kith

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
)

const (
	// gateAfter is how long a member is looked for by way of other members alone when none
	// says that it passes frames on; gateLate is how long if one does.
	gateAfter = 10 * time.Second
	gateLate  = 30 * time.Second
	// gateRest is how long nothing is done after something was.
	gateRest = 200 * time.Millisecond
	// maxGates is how many members are looked for at once on the media that paired
	// devices meet on, which cost something for each; gateTurn is for how long each has its
	// place if others wait for one.
	maxGates = 16
	gateTurn = 2 * time.Minute
)

// A gate is the node's media for one member of a room, closed until other members had
// their time to bring the two together. It opens and closes by its gates' hand.
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
// only while a member is absent.
type gates struct {
	media rendezvous.Exchange
	// absent says whether a member is looked for and not connected, and whether another one
	// says that it passes frames on, which need not be true.
	absent  func(identity.DeviceID) (absent, way bool)
	problem func(msg string, err error)

	mu   sync.Mutex // guards the fields below
	all  map[identity.DeviceID]*gated
	last time.Time // of the last update
}

// A gated is what is known of one member's gate; gates.mu guards it.
type gated struct {
	gate   *gate
	since  time.Time // absent since; zero: it is not
	opened time.Time // zero: it is closed
	turns  int       // how often it has been open since then
}

func newGates(media rendezvous.Exchange, absent func(identity.DeviceID) (bool, bool), problem func(string, error)) *gates {
	return &gates{media: media, absent: absent, problem: problem, all: make(map[identity.DeviceID]*gated)}
}

// of returns a new gate for a member; one that is always open counts for nothing.
func (gs *gates) of(id identity.DeviceID, always bool) *gate {
	g := &gate{gs: gs, id: id, always: always, open: always, sessions: make(map[*gateSession]struct{})}
	if always {
		return g
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.all[id] = &gated{gate: g}
	return g
}

func (gs *gates) forget(g *gate) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if of := gs.all[g.id]; of != nil && of.gate == g {
		delete(gs.all, g.id)
	}
}

// update opens and closes what is due, and returns when it wants to be called again;
// zero: when something changes. Called again at once it does nothing, since any member can
// make things change.
func (gs *gates) update(now time.Time) (next time.Time) {
	gs.mu.Lock()
	if due := gs.last.Add(gateRest); now.Before(due) && !now.Before(gs.last) {
		gs.mu.Unlock()
		return due
	}
	gs.last = now
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	var wait, open []*gated
	turn := make(map[*gate]bool)
	for id, g := range gs.all {
		absent, way := gs.absent(id)
		switch due := g.due(now, absent, way); {
		case !absent:
			if !g.opened.IsZero() {
				turn[g.gate] = false
			}
			*g = gated{gate: g.gate}
		case !g.opened.IsZero():
			open = append(open, g)
		case now.Before(due):
			sooner(due)
		default:
			wait = append(wait, g)
		}
	}
	// Who had the fewest turns is next; among those any, so that two devices do not miss
	// each other for ever.
	rand.Shuffle(len(wait), func(i, j int) { wait[i], wait[j] = wait[j], wait[i] })
	slices.SortStableFunc(wait, func(a, b *gated) int { return cmp.Compare(a.turns, b.turns) })
	slices.SortFunc(open, func(a, b *gated) int { return a.opened.Compare(b.opened) })
	for len(wait) > 0 {
		if len(open) >= maxGates {
			if over := open[0].opened.Add(gateTurn); now.Before(over) {
				sooner(over)
				break
			}
			turn[open[0].gate] = false
			open[0].opened = time.Time{}
			open = open[1:]
		}
		wait[0].opened, turn[wait[0].gate] = now, true
		wait[0].turns++
		open, wait = append(open, wait[0]), wait[1:]
	}
	gs.mu.Unlock()
	for g, on := range turn {
		g.set(on)
	}
	return next
}

// due is when an absent member's gate is to open, if nothing changes.
func (g *gated) due(now time.Time, absent, way bool) time.Time {
	if absent && g.since.IsZero() {
		g.since = now
	}
	if way {
		return g.since.Add(gateLate)
	}
	return g.since.Add(gateAfter)
}
