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
)

// A Racer is several exchanges used as one: what is published goes out on all of
// them at once, and what comes in on any is received. A medium that is down or
// slow never holds up the others. It is safe for concurrent use.
type Racer struct {
	members []Exchange

	mu       sync.Mutex // guards the fields below
	closed   bool
	sessions map[*raceSession]struct{}
}

var _ Exchange = (*Racer)(nil)

// Race joins exchanges into one, which owns them from now on.
func Race(members ...Exchange) *Racer {
	return &Racer{members: members, sessions: make(map[*raceSession]struct{})}
}

// Name returns the members' names, joined by "+".
func (r *Racer) Name() string {
	names := make([]string, len(r.members))
	for i, m := range r.members {
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
	if !h.Ready {
		h.Err = errors.Join(errs...)
	}
	return h
}

// Each returns the health of every member.
func (r *Racer) Each() []Health {
	out := make([]Health, len(r.members))
	for i, m := range r.members {
		out[i] = m.Health()
	}
	return out
}

// Endpoints returns the members' endpoints, in the order of the members.
func (r *Racer) Endpoints() []netip.AddrPort {
	var out []netip.AddrPort
	for _, m := range r.members {
		if e, ok := m.(Endpointer); ok {
			out = append(out, e.Endpoints()...)
		}
	}
	return out
}

// Close ends all sessions, closes every member and joins their errors.
func (r *Racer) Close() error {
	r.mu.Lock()
	r.closed = true
	open := slices.Collect(maps.Keys(r.sessions))
	r.mu.Unlock()
	var errs []error
	for _, s := range open {
		errs = append(errs, s.Close())
	}
	for _, m := range r.members {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Join opens the point on every member. It errs with net.ErrClosed after Close,
// with the context's error, and otherwise only if no member takes the point.
func (r *Racer) Join(ctx context.Context, p Point) (Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &raceSession{racer: r, queue: make(chan Message, QueueSize)}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	var errs []error
	for _, m := range r.members {
		one, err := m.Join(ctx, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Name(), err))
			continue
		}
		s.members = append(s.members, raceMember{m.Name(), one})
	}
	if len(s.members) == 0 {
		s.cancel()
		return nil, errors.Join(append(errs, errNoMember)...)
	}
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.sessions[s] = struct{}{}
	}
	r.mu.Unlock()
	if closed {
		return nil, errors.Join(fmt.Errorf("rendezvous: join: %w", net.ErrClosed), s.Close())
	}
	if p.Mode != SendOnly {
		for _, m := range s.members {
			s.wg.Go(func() { s.pump(m.session) })
		}
	}
	return s, nil
}

var errNoMember = errors.New("rendezvous: no medium takes this topic")

type raceMember struct {
	name    string
	session Session
}

// A raceSession merges one session per member.
type raceSession struct {
	racer   *Racer
	members []raceMember
	queue   chan Message
	ctx     context.Context //nolint:containedctx // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	once    sync.Once
	err     error
}

// pump moves what one member receives into the queue, newest dropped.
func (s *raceSession) pump(from Session) {
	for {
		msg, err := from.Receive(s.ctx)
		if err != nil {
			return
		}
		select {
		case s.queue <- msg:
		default:
		}
	}
}

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
	if len(s.members) == 1 {
		return s.members[0].session.Publish(ctx, frame)
	}
	errs := make([]error, len(s.members))
	var wg sync.WaitGroup
	for i, m := range s.members {
		wg.Go(func() {
			if err := m.session.Publish(ctx, frame); err != nil {
				errs[i] = fmt.Errorf("%s: %w", m.name, err)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			return nil // one medium has it
		}
	}
	return errors.Join(errs...)
}

func (s *raceSession) Receive(ctx context.Context) (Message, error) {
	if s.ctx.Err() != nil {
		return Message{}, fmt.Errorf("rendezvous: receive: %w", net.ErrClosed)
	}
	select {
	case msg := <-s.queue:
		return msg, nil
	case <-ctx.Done():
		return Message{}, ctx.Err()
	case <-s.ctx.Done():
		return Message{}, fmt.Errorf("rendezvous: receive: %w", net.ErrClosed)
	}
}

func (s *raceSession) Close() error {
	s.once.Do(func() {
		s.cancel()
		var errs []error
		for _, m := range s.members {
			errs = append(errs, m.session.Close())
		}
		s.wg.Wait()
		s.err = errors.Join(errs...)
		s.racer.mu.Lock()
		defer s.racer.mu.Unlock()
		delete(s.racer.sessions, s)
	})
	return s.err
}
