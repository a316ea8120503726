package chat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/kithproject/kith/identity"
)

// Entries also travel as notes, where there is no connection: short messages that
// arrive once and in order, or not at all. A note of chat is
//
//	kind 2 (1) || part u8, from 0 || parts u8, 1 to 8 || name 8 || a part of the entry
//
// where name is the first 8 bytes of the entry's SHA-256. An entry is known whatever way
// it comes: it is there once.
const (
	// MaxPart is the longest note of chat, in bytes.
	MaxPart = 900

	noteKind   = 2
	noteHeader = 1 + 1 + 1 + 8
	maxParts   = 8
)

// pendingNote is an entry of which more parts are to come, or one that cannot be kept
// yet.
type pendingNote struct {
	next, parts byte
	name        [8]byte
	raw         []byte
}

// SendNotes writes a line for the other device of a conversation of two and sends it as
// notes, after those that it lacks, by send, which returns when the device has one. It
// errs as Send does, and with ErrNoConv for a conversation of more than two, and then
// nothing is kept; and with what send says: the line is then kept and goes by itself when the
// two are connected.
func (s *Service) SendNotes(ctx context.Context, conv ConvID, text string, send func(ctx context.Context, note []byte) error) (Message, error) {
	s.mu.Lock()
	c := s.convs[conv]
	var peer identity.DeviceID
	two := c != nil && len(c.ids) == 2 && !c.conv.Room
	if two {
		for id := range c.ids {
			if id != s.self {
				peer = id
			}
		}
	}
	s.mu.Unlock()
	if !two {
		return Message{}, ErrNoConv
	}
	m, err := s.Send(ctx, conv, text)
	if err != nil {
		return m, err
	}
	s.mu.Lock()
	spots := c.book.behind(peer)
	s.mu.Unlock()
	for _, at := range spots {
		raw, ok := s.raw(c, at.logKey, at.seq)
		if !ok {
			continue
		}
		for _, part := range split(raw) {
			if err := send(ctx, part); err != nil {
				return m, fmt.Errorf("chat: %w", err)
			}
		}
		s.takeClaims(c, peer, []claim{{at.logKey, at.seq, 0}}) // the other device has it durably
	}
	return s.Wait(ctx, m, StateDelivered)
}

// split returns the notes of an entry.
func split(raw []byte) [][]byte {
	const room = MaxPart - noteHeader
	var out [][]byte
	sum := sha256.Sum256(raw)
	parts := (len(raw) + room - 1) / room
	for i := range parts {
		head := append([]byte{noteKind, byte(i), byte(parts)}, sum[:8]...)
		out = append(out, append(head, raw[i*room:min((i+1)*room, len(raw))]...))
	}
	return out
}

// TakeNote takes a note of a device. It reports whether it is dealt with, which is true
// for one that is not understood, too; the Service is then not to be given it again. An
// entry is durable when its last note is dealt with. False: after Close, if the disk
// errs, or if an entry before it is missing.
func (s *Service) TakeNote(from identity.DeviceID, note []byte) bool {
	s.mu.Lock()
	p := s.notes[from]
	raw := p.add(note)
	if p.raw == nil {
		delete(s.notes, from)
	} else {
		s.notes[from] = p
	}
	closed := s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return false
	case raw == nil:
		return true
	}
	if !s.takeNoted(from, raw) {
		return false // the last part comes again
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.notes, from)
	return true
}

// takeNoted keeps an entry that a device has sent as notes.
func (s *Service) takeNoted(from identity.DeviceID, raw []byte) bool {
	e, err := decodeEntry(raw)
	if err != nil || e.author != from {
		return true
	}
	c, err := s.partnerIn(e.conv, from)
	if err != nil {
		return false
	}
	if c == nil || c.conv.Room || !e.genuine() {
		return true
	}
	j := &job{entries: []*entry{&e}}
	s.mu.Lock()
	err = s.submit(c, j)
	s.mu.Unlock()
	if err != nil {
		return false
	}
	r := <-j.done
	return r.err == nil && !r.gap
}

// add takes the next part of an entry and returns the entry with the last one. What
// does not fit ends the entry; the last part may come again.
func (p *pendingNote) add(note []byte) (raw []byte) {
	if len(note) <= noteHeader || len(note) > MaxPart || note[0] != noteKind || note[1] >= note[2] || note[2] > maxParts {
		*p = pendingNote{}
		return nil
	}
	part, parts, name, body := note[1], note[2], [8]byte(note[3:noteHeader]), note[noteHeader:]
	again := p.raw != nil && p.next == p.parts && part == parts-1 && parts == p.parts && name == p.name && bytes.HasSuffix(p.raw, body)
	switch {
	case again:
		return p.raw
	case part == 0: // whatever was not finished is given up
		*p = pendingNote{parts: parts, name: name}
	case part != p.next || parts != p.parts || name != p.name:
		*p = pendingNote{}
		return nil
	}
	p.raw = append(p.raw, body...)
	if p.next = part + 1; p.next < parts {
		return nil
	}
	if sum := sha256.Sum256(p.raw); [8]byte(sum[:8]) != p.name {
		*p = pendingNote{}
		return nil
	}
	return p.raw
}
