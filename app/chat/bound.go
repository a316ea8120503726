package chat

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kithproject/kith/identity"
)

const (
	// slack is how many bytes a file may have beyond twice its entries, or twice what was
	// left when it was written anew.
	slack = 4 << 20
	// copyAtOnce is how many entries are written anew in one part.
	copyAtOnce = 512
	// retryBound is how many entries more come before it is tried again to let go of
	// some, after that has failed.
	retryBound = 1000
)

// bound lets go of the oldest entries of a conversation that has too many, or of all. It
// is called by the conversation's writer. It errs if the disk does.
func (s *Service) bound(c *convo, forget bool) error {
	size := c.vault.length()
	s.mu.Lock()
	b := c.book
	many := len(b.refs) > s.cfg.MaxEntries || b.bytes > s.cfg.MaxBytes
	large := size > 2*max(b.bytes, c.anew)+slack
	if !forget && (!many && !large || len(b.refs) < c.unbound) {
		s.mu.Unlock()
		return nil
	}
	entries, bytes := s.cfg.MaxEntries, s.cfg.MaxBytes
	switch {
	case forget:
		entries, bytes = 0, 0
	case many:
		entries, bytes = entries/4*3, bytes/4*3
	}
	keep := b.newest(entries, bytes)
	s.mu.Unlock()

	err := s.copyTo(c, keep)
	if err == nil {
		c.anew = c.vault.length()
		return nil
	}
	s.mu.Lock()
	c.unbound = len(b.refs) + retryBound
	s.mu.Unlock()
	return errors.Join(err, s.reload(c)) // the new file may be there all the same
}

// follow takes what has been said and shown while the index was made from another.
func (b *book) follow(old *book) {
	for _, l := range old.list {
		if of := b.logs[l.logKey]; of != nil {
			of.read = l.read
		}
	}
	for member, logs := range old.members {
		for log, p := range logs {
			b.advance(member, log, p)
		}
	}
	b.last = old.last
}

// reload reads a conversation of which it is not known what is on the disk.
func (s *Service) reload(c *convo) error {
	b := newBook(s.self)
	b.gen = c.vault.generation() + 1
	if _, err := c.vault.load(func(off int64, at int, kind byte, body []byte) { b.take(place{off, uint32(at)}, kind, body) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.book, c.own = b, LogID{}
	return nil
}

// newest chooses the entries to keep, by when they came. Every author may keep as many
// as any other: who wrote most loses most.
func (b *book) newest(entries int, bytes int64) []uint32 {
	count := make(map[uint32]int64, len(b.list)) // by the author's first log
	first := make(map[identity.DeviceID]uint32)
	of := make([]uint32, len(b.list))
	for i, l := range b.list {
		if _, ok := first[l.author]; !ok {
			first[l.author] = uint32(i)
		}
		of[i] = first[l.author]
	}
	for i := range b.refs {
		count[of[b.refs[i].log]]++
	}
	share := fair(count, int64(entries))
	size := make(map[uint32]int64, len(count))
	choose := func(share, limit map[uint32]int64, each func(n uint32)) {
		number, taken := make(map[uint32]int64), make(map[uint32]int64)
		for _, n := range slices.Backward(b.order) {
			r := &b.refs[n]
			a := of[r.log]
			if number[a] < 0 || r.seq <= b.list[r.log].base {
				continue
			}
			number[a]++
			taken[a] += int64(r.size)
			if number[a] > share[a] || limit != nil && taken[a] > limit[a] {
				number[a] = -1 // and all that are older
				continue
			}
			each(n)
		}
	}
	choose(share, nil, func(n uint32) { size[of[b.refs[n].log]] += int64(b.refs[n].size) })
	var keep []uint32
	choose(share, fair(size, bytes), func(n uint32) { keep = append(keep, n) })
	slices.Sort(keep)
	return keep
}

// fair returns how much each may have so that all have at most total: the same, or all
// that it has.
func fair(has map[uint32]int64, total int64) map[uint32]int64 {
	amounts := make([]int64, 0, len(has))
	for _, n := range has {
		amounts = append(amounts, n)
	}
	slices.Sort(amounts)
	limit := int64(0)
	for i, n := range amounts {
		limit = total / int64(len(amounts)-i)
		if n > limit {
			break
		}
		total -= n
		limit = n
	}
	out := make(map[uint32]int64, len(has))
	for a, n := range has {
		out[a] = min(n, limit)
	}
	return out
}

// copyTo writes a conversation's file anew with the entries to keep. Only the
// conversation's writer calls it, so that the index stays as it is.
func (s *Service) copyTo(c *convo, keep []uint32) error {
	old := c.book
	bases := make(map[*logState]head, len(old.list))
	for _, l := range old.list {
		bases[l] = head{l.last, l.lamport}
	}
	for _, n := range slices.Backward(keep) {
		r := &old.refs[n]
		l := old.list[r.log]
		h := head{r.seq - 1, l.baseLamport}
		if before := old.find(l.logKey, r.seq-1); before != nil {
			h.lamport = before.lamport
		}
		bases[l] = h
	}
	s.mu.Lock()
	for l, h := range bases { // those of who is no member any more are not taken again
		if l.author != s.self && !c.ids[l.author] && h.seq == l.last {
			delete(bases, l)
		}
	}
	items, last := old.states(bases), old.progressItems() // these are of entries that must be there
	s.mu.Unlock()
	for l, h := range bases { // who lacks them is told that they will not come
		if l.author == s.self && h.seq > 0 && (l.started == nil || l.started.seq != h.seq) {
			st := &start{conv: c.id, logKey: l.logKey, seq: h.seq, lamport: h.lamport}
			st.sign(s.cfg.Self)
			items = append(items, item{itemStart, st.encode()})
		}
	}
	b := newBook(s.self)
	return c.vault.rewrite(func() ([]item, error) {
		switch {
		case len(items) > 0:
			out := items
			items = nil
			return out, nil
		case len(keep) == 0:
			out := last
			last = nil
			return out, nil
		}
		n := min(len(keep), copyAtOnce)
		var out []item
		for _, i := range keep[:n] {
			body, err := c.vault.read(old.gen, old.refs[i].place)
			if err != nil {
				return nil, fmt.Errorf("chat: write anew: %w", err)
			}
			out = append(out, item{itemEntry, body})
		}
		keep = keep[n:]
		return out, nil
	}, func(items []item, places []place) {
		for i, it := range items {
			b.take(places[i], it.kind, it.body)
		}
	}, func(gen int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		b.gen = gen
		b.follow(c.book)
		c.book, c.unbound = b, 0
	})
}

// Forget deletes what is kept of a conversation. It stays known up to where, so that
// the others do not send it again; what was written here and has not gone is lost. It
// errs with ErrNoConv, after Close, and if the disk does.
func (s *Service) Forget(id ConvID) error {
	c, err := s.asked(id)
	if err != nil {
		return err
	}
	j := &job{forget: true}
	s.mu.Lock()
	if err := s.submit(c, j); err != nil {
		s.mu.Unlock()
		return err
	}
	s.mu.Unlock()
	if r := <-j.done; r.err != nil {
		return r.err
	}
	if err := s.disk.Remove(c.vault.name + damagedExt); err != nil {
		return fmt.Errorf("chat: forget: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publish(Event{Kind: EventGone, Conv: s.describe(c)})
	s.publishConv(c)
	for _, l := range s.links() {
		if l.shared[id] != nil {
			l.poke()
		}
	}
	return nil
}
