package mesh

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
)

// sendWays is by how many members a frame is sent at once: one of them may not know yet
// that it has lost the other, or not want to pass it on.
const sendWays = 2

// Exchange returns a medium that carries frames to and from one member by way of others
// that are connected to both. Closing it ends its sessions and nothing else.
func (s *Service) Exchange(peer identity.DeviceID) rendezvous.Exchange {
	return &exchange{s: s, peer: peer, open: make(map[*frames]struct{})}
}

type exchange struct {
	s    *Service
	peer identity.DeviceID

	mu     sync.Mutex // guards the fields below
	closed bool
	open   map[*frames]struct{}
}

var _ rendezvous.Exchange = (*exchange)(nil)

// Name returns "room".
func (e *exchange) Name() string { return "room" }

// Join opens a session on a topic. It errs with net.ErrClosed after Close.
func (e *exchange) Join(_ context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	f := &frames{e: e, topic: p.Topic, in: make(chan []byte, rendezvous.QueueSize), done: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("mesh: %w", net.ErrClosed)
	}
	e.open[f] = struct{}{}
	if p.Mode != rendezvous.SendOnly {
		e.s.mu.Lock()
		e.s.topics[p.Topic] = append(e.s.topics[p.Topic], f)
		e.s.mu.Unlock()
	}
	return f, nil
}

// Health says whether some member could pass a frame on.
func (e *exchange) Health() rendezvous.Health {
	h := rendezvous.Health{Name: e.Name(), Detail: "no member of the room is connected to it"}
	direct, by := e.s.Near(e.peer)
	switch {
	case direct:
		h.Ready, h.Detail = true, "connected"
	case len(by) > 0:
		h.Ready, h.Detail = true, "by way of other members"
	default:
		h.Err = rendezvous.ErrUnreachable
	}
	return h
}

// Close ends the sessions.
func (e *exchange) Close() error {
	e.mu.Lock()
	e.closed = true
	open := make([]*frames, 0, len(e.open))
	for f := range e.open {
		open = append(open, f)
	}
	e.mu.Unlock()
	for _, f := range open {
		_ = f.Close() // always nil
	}
	return nil
}

// frames is one topic's session.
type frames struct {
	e     *exchange
	topic rendezvous.Topic
	in    chan []byte
	done  chan struct{}
	once  sync.Once
}

// Publish gives the frame to members that are connected to the other one. It errs with
// rendezvous.ErrUnreachable if there are none or they do not keep up, with
// rendezvous.ErrFrameSize, the error of ctx, and net.ErrClosed.
func (f *frames) Publish(ctx context.Context, frame []byte) error {
	select {
	case <-f.done:
		return fmt.Errorf("mesh: %w", net.ErrClosed)
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(frame) != rendezvous.FrameSize {
		return rendezvous.ErrFrameSize
	}
	s := f.e.s
	msg := relayed{to: f.e.peer, from: s.self, topic: f.topic, frame: frame}.encode()
	direct, by := s.ways(f.e.peer)
	if direct {
		by = append([]identity.DeviceID{f.e.peer}, by...)
	}
	sent := 0
	for _, id := range by {
		if sent < sendWays && s.sendTo(id, msg) {
			sent++
		}
	}
	if sent == 0 {
		return fmt.Errorf("mesh: %w: no member is connected to it", rendezvous.ErrUnreachable)
	}
	return nil
}

// Receive returns the next frame of the topic, whoever passed it on. It errs with the
// error of ctx, and net.ErrClosed.
func (f *frames) Receive(ctx context.Context) (rendezvous.Message, error) {
	select {
	case frame := <-f.in:
		return rendezvous.Message{Frame: frame, Exchange: f.e.Name()}, nil
	case <-f.done:
		return rendezvous.Message{}, fmt.Errorf("mesh: %w", net.ErrClosed)
	case <-ctx.Done():
		return rendezvous.Message{}, ctx.Err()
	}
}

// Close leaves the topic.
func (f *frames) Close() error {
	f.once.Do(func() {
		close(f.done)
		f.e.mu.Lock()
		delete(f.e.open, f)
		f.e.mu.Unlock()
		s := f.e.s
		s.mu.Lock()
		defer s.mu.Unlock()
		if left := slices.DeleteFunc(s.topics[f.topic], func(o *frames) bool { return o == f }); len(left) > 0 {
			s.topics[f.topic] = left
		} else {
			delete(s.topics, f.topic)
		}
	})
	return nil
}

func (s *Service) sendTo(id identity.DeviceID, msg []byte) bool {
	s.mu.Lock()
	ses := s.sessions[id]
	s.mu.Unlock()
	return ses != nil && ses.send(msg)
}

// route delivers a frame that a member sent, or passes it on: one step, between members
// that are together in a room.
func (s *Service) route(ses *session, r relayed) {
	via := ses.peer
	switch {
	case r.to == s.self:
		s.mu.Lock()
		open := slices.Clone(s.topics[r.topic])
		s.mu.Unlock()
		for _, f := range open {
			select {
			case f.in <- slices.Clone(r.frame):
			default:
			}
		}
		if len(open) == 0 && s.cfg.Together(s.self, r.from) && ses.account.spend(&ses.account.knocks, 1) {
			s.cfg.Knock(r.from)
		}
	case r.from == via && s.cfg.Together(via, r.to):
		s.sendTo(r.to, r.encode())
	}
}
