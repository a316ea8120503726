package mail

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"
)

// Take returns what is in the boxes of the tokens, the oldest first: at most maxItems
// blobs and maxBytes bytes, but one at least. more says that there is more. A blob that
// the disk has damaged is removed. It errs after Close.
func (s *Store) Take(tokens [][32]byte, maxItems int, maxBytes int64) (items []Item, more bool, err error) {
	more, _, err = s.each(tokens, 0, maxItems, maxBytes, func(it Item) error {
		items = append(items, it)
		return nil
	})
	return items, more, err
}

// each calls give with what Take returns, one by one, and ends with its error. It begins
// behind the blob that is after in the store's order, and returns the last one's place
// there.
func (s *Store) each(tokens [][32]byte, after uint64, maxItems int, maxBytes int64, give func(Item) error) (more bool, last uint64, err error) {
	all, more, err := s.find(tokens, after, maxItems)
	if err != nil {
		return false, after, err
	}
	last = after
	var bytes int64
	for i, e := range all {
		if i > 0 && bytes+e.size > maxBytes {
			return true, last, nil
		}
		last = e.order
		blob, ok := s.read(e)
		if !ok {
			continue
		}
		bytes += e.size
		if err := give(Item{Box: e.box, ID: e.id, Blob: blob}); err != nil {
			return false, last, err
		}
	}
	return more, last, nil
}

// find returns the oldest entries in the boxes of tokens that came after one, and whether
// there are more.
func (s *Store) find(tokens [][32]byte, after uint64, most int) (all []*entry, more bool, err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, false, ErrClosed
	}
	seen := make(map[Box]struct{}, len(tokens))
	for _, t := range tokens {
		box := BoxOf(t)
		if _, twice := seen[box]; twice {
			continue
		}
		seen[box] = struct{}{}
		for _, e := range s.boxes[box] {
			if e.order > after {
				all = append(all, e)
			}
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *entry) int { return cmp.Compare(a.order, b.order) })
	if len(all) > most {
		return slices.Clone(all[:most]), true, nil
	}
	return all, false, nil
}

// read returns a blob, unless it is gone, or damaged, which ends it. What cannot be read
// now, for want of files perhaps, stays.
func (s *Store) read(e *entry) (blob []byte, ok bool) {
	var err error
	for name, last := s.nameOf(e), ""; name != last; name, last = s.nameOf(e), name { // it may be renamed meanwhile
		if blob, err = s.disk.Read(name, MaxBlob+1); err == nil {
			break
		}
	}
	switch {
	case err == nil && goodSize(len(blob)) && IDOf(blob) == e.id:
		return blob, true
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		s.cfg.Logger.Error("letter not read", "err", unnamed(err))
	case s.remove(e): // else it was removed meanwhile
		s.mu.Lock()
		s.stats.Damaged++
		s.mu.Unlock()
		s.cfg.Logger.Warn("letter was damaged on the disk and is removed")
	}
	return nil, false
}

func (s *Store) nameOf(e *entry) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.fileName()
}
