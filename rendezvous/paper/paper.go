// Package paper carries frames by hand, for two devices that share no medium at
// all: what one side has to say is a note, a few frames as text or as QR codes,
// which a person takes to the other side in whatever way there is. A note needs no
// secrecy: its frames are sealed.
//
// The sides take turns. What a session publishes is collected into one note until
// that was taken; then everything else is dropped, since it can only be the same
// said again, until a note of the other side was given.
package paper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/rendezvous"
)

// settle is how long a note is open for more frames after the first one: what is
// said in one go goes into one note.
const settle = 100 * time.Millisecond

var (
	// ErrOther reports a note that belongs to none of the open sessions.
	ErrOther = errors.New("paper: this note is of another pairing")
	// ErrOwn reports a note that was taken from here.
	ErrOwn = errors.New("paper: this is a note of this very device")
)

// maxOwn is how many frames of notes that were taken are remembered, in number.
const maxOwn = 64

// An Exchange is the notes between two sides. It is safe for concurrent use.
type Exchange struct {
	mu       sync.Mutex // guards the fields below
	closed   bool
	sessions map[rendezvous.Tag]map[*session]struct{}
	written  []Frame // of the note that is being written
	own      []Frame // of notes that were taken, the newest last
	taken    bool    // the note was taken, and no other was given since
	more     chan struct{}
	done     chan struct{}
}

var _ rendezvous.Exchange = (*Exchange)(nil)

// New returns an exchange without notes.
func New() *Exchange {
	return &Exchange{
		sessions: make(map[rendezvous.Tag]map[*session]struct{}), more: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// Name returns "paper".
func (e *Exchange) Name() string { return "paper" }

// Health is always ready.
func (e *Exchange) Health() rendezvous.Health {
	return rendezvous.Health{Name: e.Name(), Ready: true, Detail: "notes carried by hand"}
}

// tag names a topic on a note. It is derived one-way, so that who finds a note
// cannot look for the same topic on another medium.
func tag(t rendezvous.Topic) rendezvous.Tag {
	return rendezvous.Tag(wire.Expand(t[:], "paper")[:rendezvous.TagSize])
}

// Join opens a session. It errs with net.ErrClosed after Close, and with the
// context's error.
func (e *Exchange) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &session{e: e, tag: tag(p.Topic), mode: p.Mode, Inbox: rendezvous.NewInbox(e.Name())}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("paper: join: %w", net.ErrClosed)
	}
	if e.sessions[s.tag] == nil {
		e.sessions[s.tag] = make(map[*session]struct{})
	}
	e.sessions[s.tag][s] = struct{}{}
	return s, nil
}

// Take returns the next note to carry. It waits until there is one. It errs with
// the context's error, and with net.ErrClosed after Close.
func (e *Exchange) Take(ctx context.Context) (Note, error) {
	for {
		select {
		case <-e.more:
		case <-ctx.Done():
			return Note{}, ctx.Err()
		case <-e.done:
			return Note{}, fmt.Errorf("paper: take: %w", net.ErrClosed)
		}
		timer := time.NewTimer(settle)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			e.wake()
			return Note{}, ctx.Err()
		}
		e.mu.Lock()
		n := Note{Frames: e.written}
		e.written, e.taken = nil, len(n.Frames) > 0
		e.own = append(e.own, n.Frames...)
		e.own = e.own[max(0, len(e.own)-maxOwn):]
		e.mu.Unlock()
		if len(n.Frames) > 0 {
			return n, nil
		}
	}
}

// Give hands over a note of the other side. It errs with ErrOwn for one of this
// side, with ErrOther if no open session knows any of its frames, and with
// net.ErrClosed after Close.
func (e *Exchange) Give(n Note) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return fmt.Errorf("paper: give: %w", net.ErrClosed)
	}
	known := false
	for _, f := range n.Frames {
		if slices.Contains(e.own, f) {
			return ErrOwn
		}
		known = known || len(e.sessions[f.Tag]) > 0
	}
	if !known {
		return ErrOther
	}
	e.written, e.taken = nil, false
	for _, f := range n.Frames {
		for s := range e.sessions[f.Tag] {
			if s.mode != rendezvous.SendOnly {
				s.Deliver(rendezvous.Message{Frame: slices.Clone(f.Data[:]), Exchange: e.Name()})
			}
		}
	}
	return nil
}

func (e *Exchange) wake() {
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// write puts a frame on the note that is being written.
func (e *Exchange) write(f Frame) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.taken {
		return
	}
	if len(e.written) == maxFrames {
		e.written = e.written[1:] // the newest say the most
	}
	e.written = append(e.written, f)
	e.wake()
}

// Close ends all sessions.
func (e *Exchange) Close() error {
	e.mu.Lock()
	var open []*session
	if !e.closed {
		e.closed = true
		close(e.done)
	}
	for _, set := range e.sessions {
		for s := range set {
			open = append(open, s)
		}
	}
	e.mu.Unlock()
	for _, s := range open {
		_ = s.Close() // never errs
	}
	return nil
}

// A session is one use of a topic.
type session struct {
	e    *Exchange
	tag  rendezvous.Tag
	mode rendezvous.Mode
	*rendezvous.Inbox
}

// Publish puts a frame on the note that is being written, if it is not taken.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	if s.mode == rendezvous.ReceiveOnly {
		return errors.New("paper: this session only receives")
	}
	s.e.write(Frame{Tag: s.tag, Data: [rendezvous.FrameSize]byte(frame)})
	return nil
}

// Close leaves the topic.
func (s *session) Close() error {
	s.Shut(func() {
		s.e.mu.Lock()
		defer s.e.mu.Unlock()
		delete(s.e.sessions[s.tag], s)
		if len(s.e.sessions[s.tag]) == 0 {
			delete(s.e.sessions, s.tag)
		}
	})
	return nil
}
