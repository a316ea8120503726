package chat

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/kithproject/kith/identity"
)

// raw returns an entry as it is carried; false if it is not here.
func (s *Service) raw(c *convo, k logKey, seq uint64) ([]byte, bool) {
	for range 3 { // the file may be written anew in between
		s.mu.Lock()
		r := c.book.find(k, seq)
		var p place
		if r != nil {
			p = r.place
		}
		gen := c.book.gen
		s.mu.Unlock()
		if r == nil {
			return nil, false
		}
		body, err := c.vault.read(gen, p)
		if err == nil && len(body) > 8 {
			return body[8:], true
		}
		if !errors.Is(err, errStale) {
			s.cfg.Logger.Warn("entry not read", "conv", c.id, "err", err)
			return nil, false
		}
	}
	return nil, false
}

// A spot is an entry to be shown.
type spot struct {
	logKey
	seq uint64
}

// messages returns entries as they are shown, without those that are not.
func (s *Service) messages(c *convo, spots []spot) []Message {
	out := make([]Message, 0, len(spots))
	for _, at := range spots {
		raw, ok := s.raw(c, at.logKey, at.seq)
		if !ok {
			continue
		}
		e, err := decodeEntry(raw)
		if err != nil || !e.shown() {
			continue
		}
		m := e.show()
		s.mu.Lock()
		if r := c.book.find(at.logKey, at.seq); r != nil {
			c.book.fill(&m, r, c.conv.Members)
		}
		s.mu.Unlock()
		out = append(out, m)
	}
	return out
}

// spot is where an entry of the index is. s.mu is held.
func (b *book) spot(n uint32) spot {
	r := &b.refs[n]
	return spot{b.list[r.log].logKey, r.seq}
}

// History returns the n entries before one, or the last n, in the order of display. It
// errs with ErrNoConv, after Close, and if the conversation cannot be read.
func (s *Service) History(conv ConvID, before *Message, n int) ([]Message, error) {
	c, err := s.asked(conv)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	end := len(c.book.order)
	if before != nil {
		end = c.book.search(before.Lamport, logKey{before.Author, before.Log}, before.Seq)
	}
	var spots []spot
	for _, i := range slices.Backward(c.book.order[:end]) {
		if len(spots) >= n {
			break
		}
		if !c.book.refs[i].hidden {
			spots = append(spots, c.book.spot(i))
		}
	}
	s.mu.Unlock()
	return s.messages(c, backward(spots)), nil
}

// Search returns the last n entries that contain the text, whatever its case, in the
// order of display. It errs as History does, and with ctx.
func (s *Service) Search(ctx context.Context, conv ConvID, query string, n int) ([]Message, error) {
	c, err := s.asked(conv)
	if err != nil {
		return nil, err
	}
	query = strings.ToLower(CleanText(query))
	s.mu.Lock()
	spots := make([]spot, len(c.book.order))
	for i, r := range c.book.order {
		spots[i] = c.book.spot(r)
	}
	s.mu.Unlock()
	var found []Message
	for part := range slices.Chunk(backward(spots), 64) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for _, m := range s.messages(c, part) {
			if len(found) < n && m.matches(query) {
				found = append(found, m)
			}
		}
		if len(found) >= n {
			break
		}
	}
	return backward(found), nil
}

func backward[T any](s []T) []T {
	slices.Reverse(s)
	return s
}

func (m *Message) matches(query string) bool {
	return strings.Contains(strings.ToLower(m.Text), query) || m.File != nil && strings.Contains(strings.ToLower(m.File.Name), query)
}

// Unread returns the first n entries of others that MarkRead has not reached, in the
// order of display. It errs as History does.
func (s *Service) Unread(conv ConvID, n int) ([]Message, error) {
	c, err := s.asked(conv)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	var spots []spot
	left := c.book.unread()
	for _, i := range slices.Backward(c.book.order) {
		if left == 0 {
			break
		}
		r := &c.book.refs[i]
		if l := c.book.list[r.log]; l.author != s.self && r.seq > max(l.read, l.base) {
			if left--; !r.hidden {
				spots = append(spots, c.book.spot(i))
			}
		}
	}
	s.mu.Unlock()
	spots = backward(spots)
	return s.messages(c, spots[:min(len(spots), max(n, 0))]), nil
}

// MarkRead says that everything up to an entry has been shown here. The authors are
// told. It errs as History does, and with ErrNotKept if there is no such entry.
func (s *Service) MarkRead(conv ConvID, upTo Message) error {
	c, err := s.asked(conv)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := logKey{upTo.Author, upTo.Log}
	if c.book.find(at, upTo.Seq) == nil {
		return ErrNotKept
	}
	var body []byte
	for _, l := range c.book.list {
		if l.author == s.self || l.read >= l.last {
			continue
		}
		n, _ := slices.BinarySearchFunc(l.refs, upTo, func(i uint32, m Message) int {
			r := &c.book.refs[i]
			if compareAt(r.lamport, l.logKey, r.seq, m.Lamport, at, m.Seq) <= 0 {
				return -1
			}
			return 1
		})
		if to := l.base + uint64(n); n > 0 && to > l.read {
			l.read = to
			c.book.skip(l)
			body = appendKey(body, l.logKey, l.read)
			s.dirty(c, l.logKey)
		}
	}
	if body == nil {
		return nil
	}
	j := &job{}
	for len(body) > 0 {
		j.notes = append(j.notes, item{itemRead, body[:keySize+8]})
		body = body[keySize+8:]
	}
	s.publishConv(c)
	c.tell()
	return s.submit(c, j)
}

// Wait returns when an entry of this device has come as far as a state, and the entry as
// it is then. It errs as History does, with ErrNotKept if there is no such entry, and
// with ctx.
func (s *Service) Wait(ctx context.Context, m Message, state State) (Message, error) {
	c, err := s.asked(m.Conv)
	if err != nil {
		return m, err
	}
	for {
		s.mu.Lock()
		r := c.book.find(logKey{m.Author, m.Log}, m.Seq)
		if r == nil {
			s.mu.Unlock()
			return m, ErrNotKept
		}
		m.Delivered, m.Read, m.State = 0, 0, ""
		c.book.fill(&m, r, c.conv.Members)
		changed, closed := c.changed, s.closed
		s.mu.Unlock()
		if m.State.rank() >= state.rank() {
			return m, nil
		}
		if closed {
			return m, ErrClosed
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return m, ErrClosed
		case <-ctx.Done():
			return m, ctx.Err()
		}
	}
}

func (s State) rank() int {
	return slices.Index([]State{StateKept, StateSent, StateDelivered, StateRead}, s)
}

// behind returns how far the members are whom a conversation's lines of this device
// still have to reach. s.mu is held.
func (b *book) behind(member identity.DeviceID) []spot {
	var out []spot
	for i := range b.refs {
		r := &b.refs[i]
		l := b.list[r.log]
		if l.author == b.self && r.seq > l.base && r.seq > b.members[member][l.log].delivered {
			out = append(out, spot{l.logKey, r.seq})
		}
	}
	return out
}
