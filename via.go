package kith

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/lan"
	"github.com/kithproject/kith/signaling"
)

const (
	// ViaMulticast is the medium of NoteVia that needs no unicast between the two
	// devices: multicast of this network segment, and nothing else.
	ViaMulticast = "multicast"
	// MaxNote is the longest note, in bytes.
	MaxNote = signaling.MaxNote
)

// A NoAnswerError reports a note that the other device has not acknowledged. It may
// have arrived all the same.
type NoAnswerError struct {
	Device Device
	Via    string        // the medium
	Waited time.Duration // how long an answer was waited for
}

// Error names the device and the medium.
func (e *NoAnswerError) Error() string {
	return fmt.Sprintf("%s does not answer by %s (waited %v)", e.Device.Name, e.Via, e.Waited.Round(time.Second/10))
}

// NoteVia sends a note of 1 to MaxNote bytes to a paired device on one medium
// alone, with no connection between the two, and returns when the other device has
// taken it (HandleNotes). It is sent again until then. The only medium so far is
// ViaMulticast.
//
// It errs with a *NoAnswerError if ctx ends before that, if the reference fits no
// paired device, if there is no such medium or this device does not use it, for a
// note of another size, and after Close.
func (n *Node) NoteVia(ctx context.Context, ref, medium string, body []byte) error {
	rec, err := n.find(ref)
	if err != nil {
		return err
	}
	switch {
	case medium != ViaMulticast:
		return fmt.Errorf("kith: %q is no medium for notes: there is %s", medium, ViaMulticast)
	case n.via == nil:
		return errors.New("kith: notes by multicast need the LAN, and this device does not use it")
	case rec.State != registry.Active:
		return fmt.Errorf("kith: the pairing with %s is not finished", rec.Name)
	}
	p := n.startPeer(rec)
	if p == nil {
		return n.noPeer(rec)
	}
	start := time.Now()
	var channel *signaling.Channel
	if err = p.call(ctx, func() { channel = p.channel }); err == nil {
		if channel == nil {
			return fmt.Errorf("kith: %s cannot be reached: see kith status", rec.Name)
		}
		err = channel.Note(ctx, body)
	}
	switch {
	case err == nil:
		return nil
	case n.ctx.Err() != nil:
		return fmt.Errorf("kith: note: %w", net.ErrClosed)
	case ctx.Err() != nil:
		return &NoAnswerError{Device: n.device(rec), Via: medium, Waited: time.Since(start)}
	}
	return fmt.Errorf("kith: note to %s: %w", rec.Name, err)
}

// HandleNotes has take called with each note of a paired device: once, and in order
// within one run of both devices. What it does not take (false) is sent again; so
// is everything while nobody handles notes. It must not block; calls for several
// devices run at the same time. A later call replaces take; nil ends it.
func (n *Node) HandleNotes(take func(from Device, body []byte) bool) {
	if take == nil {
		n.notes.Store(nil)
		return
	}
	n.notes.Store(&take)
}

// takeNote takes a note of the pair, from the channel's goroutine.
func (p *peer) takeNote(body []byte) bool {
	take := p.n.notes.Load()
	rec, ok := p.n.store.Get(p.pairID)
	if take == nil || !ok || rec.State != registry.Active {
		return false
	}
	return (*take)(p.n.device(rec), body)
}

// A multicastOnly is the LAN by multicast alone. It is opened by the first Join,
// which is that of the first note or answer, and kept.
type multicastOnly struct {
	cfg lan.Config

	mu     sync.Mutex // guards the fields below
	closed bool
	ex     *lan.Exchange
}

var _ rendezvous.Exchange = (*multicastOnly)(nil)

// openVia prepares the medium of notes.
func (n *Node) openVia() {
	if n.cfg.NoLAN {
		return
	}
	n.via = &multicastOnly{cfg: lan.Config{
		Logger: n.cfg.Logger, Monitor: n.mon, IncludeLoopback: n.cfg.Loopback, DisableMDNS: true, MulticastOnly: true,
		Groups: lan.GroupsFixed, // others listen on the LAN as it is by default
	}}
}

// noteMedium is nil if there is none.
func (n *Node) noteMedium() rendezvous.Exchange {
	if n.via == nil {
		return nil
	}
	return n.via
}

// Name returns "multicast".
func (m *multicastOnly) Name() string { return ViaMulticast }

// Join opens a session. It errs if the LAN cannot be opened, and after Close.
func (m *multicastOnly) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("kith: multicast: %w", net.ErrClosed)
	}
	if m.ex == nil {
		ex, err := lan.New(m.cfg)
		if err != nil {
			return nil, err
		}
		m.ex = ex
	}
	return m.ex.Join(ctx, p)
}

// Health is that of the LAN, once it is open.
func (m *multicastOnly) Health() rendezvous.Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ex == nil {
		return rendezvous.Health{Name: m.Name(), Ready: !m.closed, Detail: "not in use"}
	}
	h := m.ex.Health()
	h.Name = m.Name()
	return h
}

// Close ends all sessions. Its error is that of the LAN.
func (m *multicastOnly) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.ex == nil {
		return nil
	}
	return m.ex.Close()
}
