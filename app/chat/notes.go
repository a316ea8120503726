package chat

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"
)

// Lines also travel as notes, where there is no connection: short messages that
// arrive once and in order, or not at all. A note of chat is
//
//	kind 1 (1) || part u8, from 0 || parts u8, 1 to 8 || Unix time in ms u64 || text
//
// and a line is the text of its parts, one after the other.
const (
	// MaxPart is the longest note of chat, in bytes.
	MaxPart = 900

	noteKind   = 1
	noteHeader = 1 + 1 + 1 + 8
	maxParts   = 8
)

// pending is a line of which more parts are to come.
type pending struct {
	next, parts byte
	stamp       uint64
	text        []byte
}

// SendNotes sends one line as notes, by send, which returns when the other device
// has one. The others are not sent if one fails. It errs with ErrText for text that
// is no line, and with what send says.
func (s *Service) SendNotes(ctx context.Context, peer, text string, send func(ctx context.Context, note []byte) error) (Line, error) {
	clean := CleanText(text)
	if clean == "" || len(text) > MaxText || !utf8.ValidString(text) {
		return Line{}, ErrText
	}
	m := Line{Peer: peer, Text: clean, Time: time.Now().UTC().Truncate(time.Millisecond), Mine: true}
	for _, part := range split(m) {
		if err := send(ctx, part); err != nil {
			return Line{}, fmt.Errorf("chat: %w", err)
		}
	}
	return m, nil
}

// split returns the notes of a line.
func split(m Line) [][]byte {
	const room = MaxPart - noteHeader
	var out [][]byte
	parts := (len(m.Text) + room - 1) / room
	for i := range parts {
		head := binary.BigEndian.AppendUint64([]byte{noteKind, byte(i), byte(parts)}, uint64(m.Time.UnixMilli()))
		out = append(out, append(head, m.Text[i*room:min((i+1)*room, len(m.Text))]...))
	}
	return out
}

// TakeNote takes a note of a device, named as Who names it. It reports whether it is
// dealt with, which is true for one that is not understood, too; the Service is
// then not to be given it again. False: after Close.
func (s *Service) TakeNote(peer string, note []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	p := s.pending[peer]
	text, stamp, done := p.add(note)
	if done || p.text == nil {
		delete(s.pending, peer)
	} else {
		s.pending[peer] = p
	}
	if text = CleanText(text); text != "" {
		s.deliverLocked(Line{Peer: peer, Text: text, Time: time.UnixMilli(stamp).UTC()})
	}
	return true
}

// add takes the next part of a line and returns the line with the last one. What
// does not fit ends the line.
func (p *pending) add(note []byte) (text string, stamp int64, done bool) {
	if len(note) <= noteHeader || len(note) > MaxPart || note[0] != noteKind || note[1] >= note[2] || note[2] > maxParts {
		*p = pending{}
		return "", 0, true
	}
	part, parts, at := note[1], note[2], binary.BigEndian.Uint64(note[3:noteHeader])
	switch {
	case part == 0: // whatever was not finished is given up
		*p = pending{parts: parts, stamp: at}
	case part != p.next || parts != p.parts || at != p.stamp:
		*p = pending{}
		return "", 0, true
	}
	p.text = append(p.text, note[noteHeader:]...)
	if p.next = part + 1; p.next < parts {
		return "", 0, false
	}
	const year10000 = 253402300800000 // ms: later times have no JSON form
	return string(p.text), int64(min(at, year10000-1)), true
}
