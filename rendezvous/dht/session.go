package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

var errReceiveOnly = errors.New("dht: this session only receives")

// A session is one use of a topic.
type session struct {
	*rendezvous.Inbox
	box  *box
	mode rendezvous.Mode
	slot int // that it writes, or would
}

func (s *session) writes() bool { return s.mode != rendezvous.ReceiveOnly }
func (s *session) reads() bool  { return s.mode != rendezvous.SendOnly }

// readSlot is the slot that it reads: the other one, but the only one where all
// go one way.
func (s *session) readSlot() int {
	if s.mode == rendezvous.Both {
		return 1 - s.slot
	}
	return 0
}

// add takes a session in. It is given the newest frame, if it came lately.
func (b *box) add(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[s] = struct{}{}
	if !s.reads() {
		return
	}
	if in := &b.in[s.readSlot()]; in.frame != nil && time.Since(in.at) < rejoinMost {
		s.Deliver(rendezvous.Message{Frame: bytes.Clone(in.frame), Exchange: b.e.Name(), From: netip.AddrPort{}})
	}
}

// Publish makes the frame the newest of this side. It replaces one that was not
// put yet.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	if !s.writes() {
		return errReceiveOnly
	}
	s.box.publish(s.slot, bytes.Clone(frame))
	for _, b := range s.box.e.allBoxes() {
		if b != s.box {
			b.warm()
		}
	}
	if h := s.box.e.Health(); !h.Ready {
		// It is put when a node answers, if nothing newer has come by then.
		return fmt.Errorf("dht: %w: %w", rendezvous.ErrUnreachable, h.Err)
	}
	return nil
}

// Close leaves the topic.
func (s *session) Close() error {
	s.Shut(func() { s.box.e.leave(s) })
	return nil
}
