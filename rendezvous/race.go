package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// joinPatience is how long Join waits for media that have not answered. By their
// contract they answer at once.
const joinPatience = 200 * time.Millisecond

var errNoMember = errors.New("rendezvous: no medium takes this topic")

// A Racer is several exchanges used as one: what is published goes out on all of
// them at once, and what comes in on any is received. A medium that is dead, slow
// or flooded never holds up the others. It is safe for concurrent use.
//
// A frame that travels over several media arrives several times, with the name
// of each in Message.Exchange. Nothing is filtered here: a repeated frame may be
// a retransmission that wants an answer, and only the stages above can tell,
// because they can open it.
type Racer struct {
	members atomic.Pointer[[]Exchange] // replaced by Add and Remove, never changed
	counts  []*counters                // of each member, over all sessions; guarded by mu
	once    sync.Once
	err     error // of Close

	mu       sync.Mutex // guards the fields below, and writing members
	closed   bool
	sessions map[*raceSession]struct{}
}

var (
	_ Exchange   = (*Racer)(nil)
	_ Endpointer = (*Racer)(nil)
	_ Checker    = (*Racer)(nil)
	_ Reporter   = (*Racer)(nil)
)

// Race joins exchanges into one, which owns them from now on. Without members it
// takes no topic.
func Race(members ...Exchange) *Racer {
	r := &Racer{sessions: make(map[*raceSession]struct{})}
	r.members.Store(new(slices.Clone(members)))
	for range members {
		r.counts = append(r.counts, new(counters))
	}
	return r
}

// Name returns the members' names, joined by "+".
func (r *Racer) Name() string {
	members := *r.members.Load()
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Name()
	}
	return strings.Join(names, "+")
}

// Health is ready if any member is. Its detail lists the members.
func (r *Racer) Health() Health {
	h := Health{Name: r.Name()}
	var details []string
	var errs []error
	for _, m := range r.Each() {
		h.Ready = h.Ready || m.Ready
		details = append(details, m.Name+": "+m.Detail)
		if m.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Name, m.Err))
		}
	}
	h.Detail = strings.Join(details, "; ")
	if len(*r.members.Load()) == 0 {
		h.Detail, h.Err = "no medium is configured", errNoMember
	} else if !h.Ready {
		h.Err = errors.Join(errs...)
	}
	return h
}

// Members returns the exchanges that are joined, in their order. They belong to the Racer.
func (r *Racer) Members() []Exchange { return slices.Clone(*r.members.Load()) }

// Each returns the health of every member, in their order.
func (r *Racer) Each() []Health {
	members := *r.members.Load()
	out := make([]Health, len(members))
	for i, m := range members {
		out[i] = m.Health()
	}
	return out
}

// Endpoints returns the members' endpoints, in the order of the members.
func (r *Racer) Endpoints() []netip.AddrPort {
	var out []netip.AddrPort
	for _, m := range *r.members.Load() {
		if e, ok := m.(Endpointer); ok {
			out = append(out, e.Endpoints()...)
		}
	}
	return out
}

// Add takes one more member, which open sessions join, too. It errs with
// net.ErrClosed after Close; then the caller keeps the exchange.
func (r *Racer) Add(e Exchange) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("rendezvous: add: %w", net.ErrClosed)
	}
	more := append(slices.Clone(*r.members.Load()), e)
	r.members.Store(&more)
	r.counts = append(r.counts, new(counters))
	for s := range r.sessions {
		s.add(e, r.counts[len(more)-1])
	}
	return nil
}

// Remove takes a member out, which open sessions leave, closes it and waits for that. It
// does nothing for an exchange that is no member. It errs if closing does.
func (r *Racer) Remove(e Exchange) error {
	r.mu.Lock()
	i := slices.Index(*r.members.Load(), e)
	if i < 0 || r.closed {
		r.mu.Unlock()
		return nil // Close closes it
	}
	r.members.Store(new(slices.Delete(slices.Clone(*r.members.Load()), i, i+1)))
	r.counts = slices.Delete(r.counts, i, i+1)
	var left []*raceMember
	for s := range r.sessions {
		left = append(left, s.remove(e)...)
	}
	r.mu.Unlock()
	errs := make([]error, 0, len(left)+1)
	for _, m := range left {
		errs = append(errs, m.end())
	}
	return errors.Join(append(errs, e.Close())...)
}

// Stats returns what each member did for all sessions together, in their order.
func (r *Racer) Stats() []Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	members := *r.members.Load()
	out := make([]Stats, len(members))
	for i, m := range members {
		out[i] = r.counts[i].stats(m.Name())
	}
	return out
}

// Check has the members that can (Checker) look whether they still work. It does
// not block.
func (r *Racer) Check() {
	for _, m := range *r.members.Load() {
		if c, ok := m.(Checker); ok {
			c.Check()
		}
	}
}

// Close ends all sessions, closes the members side by side, waits for them and
// joins their errors.
func (r *Racer) Close() error {
	r.once.Do(func() {
		r.mu.Lock()
		r.closed = true
		open := slices.Collect(maps.Keys(r.sessions))
		members := *r.members.Load()
		r.mu.Unlock()
		errs := make([]error, len(open)+len(members))
		var wg sync.WaitGroup
		for i, s := range open {
			wg.Go(func() { errs[i] = s.Close() })
		}
		wg.Wait()
		for i, m := range members {
			wg.Go(func() { errs[len(open)+i] = m.Close() })
		}
		wg.Wait()
		r.err = errors.Join(errs...)
	})
	return r.err
}

// Join opens the point on every member at once. A member that does not answer
// within 200 ms joins when it does. It errs with net.ErrClosed after Close, with
// the context's error, and otherwise only if every member refuses the point.
func (r *Racer) Join(ctx context.Context, p Point) (Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.Endpoints = slices.Clone(p.Endpoints) // a slow member reads them later
	s := newRaceSession(ctx, r, p)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		s.cancel()
		return nil, fmt.Errorf("rendezvous: join: %w", net.ErrClosed)
	}
	for i, e := range *r.members.Load() {
		s.add(e, r.counts[i])
	}
	r.sessions[s] = struct{}{}
	r.mu.Unlock()
	members := *s.members.Load()
	timer := time.NewTimer(joinPatience)
	defer timer.Stop()
	refused := 0
	for _, m := range members {
		select {
		case <-m.joined:
			if m.err != nil {
				refused++
			}
		case <-timer.C:
			return s, nil
		case <-s.ctx.Done():
			return nil, fmt.Errorf("rendezvous: join: %w", net.ErrClosed)
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), s.Close())
		}
	}
	if refused < len(members) {
		return s, nil
	}
	errs := make([]error, 0, len(members)+1)
	for _, m := range members {
		errs = append(errs, m.err)
	}
	err := s.Close()
	if r.isClosed() {
		return nil, fmt.Errorf("rendezvous: join: %w", net.ErrClosed)
	}
	return nil, errors.Join(append(errs, errNoMember, err)...)
}

func (r *Racer) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}
