package waku

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	perTopic      = 256 // messages of one content topic that are kept
	entryOverhead = 512 // bytes that an entry costs beside its message
	maxPage       = 100 // messages of one answer
	maxPageBytes  = 900 << 10
)

// An entry is a message that is kept, encoded.
type entry struct {
	hash      hash
	pubsub    string
	topic     string
	timestamp int64
	msg       []byte
	arrived   time.Time
}

func (e *entry) size() int { return len(e.msg) + entryOverhead }

// order sorts as 13/WAKU2-STORE wants: by the time that the sender gave, then by
// hash.
func order(a, b *entry) int {
	if c := cmp.Compare(a.timestamp, b.timestamp); c != 0 {
		return c
	}
	return bytes.Compare(a.hash[:], b.hash[:])
}

// A store keeps messages in memory for some time: the latest that came, so many
// bytes at most. It is safe for concurrent use.
type store struct {
	most int           // bytes
	age  time.Duration // since a message came

	mu      sync.Mutex // guards the fields below
	size    int
	byHash  map[hash]*entry
	byTopic map[string][]*entry // in order
	all     []*entry            // in order
	queue   []*entry            // as they came; the first ones may be gone already
}

func newStore(most int, age time.Duration) *store {
	return &store{most: most, age: age, byHash: make(map[hash]*entry), byTopic: make(map[string][]*entry)}
}

// add keeps a message, and forgets what is too old or too much. It reports false
// if it is there already.
func (s *store) add(now time.Time, e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byHash[e.hash] != nil {
		return false
	}
	if e.size() > s.most {
		return true
	}
	e.arrived = now
	s.byHash[e.hash] = e
	s.byTopic[e.topic] = insert(s.byTopic[e.topic], e)
	s.all = insert(s.all, e)
	s.queue = append(s.queue, e)
	s.size += e.size()
	if same := s.byTopic[e.topic]; len(same) > perTopic {
		s.remove(slices.MinFunc(same, func(a, b *entry) int { return a.arrived.Compare(b.arrived) }))
	}
	s.expire(now)
	return true
}

// expire forgets what is too old or too much. The lock is held.
func (s *store) expire(now time.Time) {
	for len(s.queue) > 0 {
		e := s.queue[0]
		gone := s.byHash[e.hash] != e
		if !gone && s.size <= s.most && now.Sub(e.arrived) <= s.age {
			break
		}
		s.queue[0] = nil
		s.queue = s.queue[1:]
		if !gone {
			s.remove(e)
		}
	}
	if len(s.queue) > 2*len(s.byHash)+perTopic { // those of topics that overflow go out of turn
		s.queue = slices.DeleteFunc(s.queue, func(e *entry) bool { return s.byHash[e.hash] != e })
	}
}

func (s *store) remove(e *entry) {
	delete(s.byHash, e.hash)
	s.size -= e.size()
	s.all = without(s.all, e)
	if s.byTopic[e.topic] = without(s.byTopic[e.topic], e); len(s.byTopic[e.topic]) == 0 {
		delete(s.byTopic, e.topic)
	}
}

func insert(list []*entry, e *entry) []*entry {
	i, _ := slices.BinarySearchFunc(list, e, order)
	return slices.Insert(list, i, e)
}

func without(list []*entry, e *entry) []*entry {
	if i, ok := slices.BinarySearchFunc(list, e, order); ok {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// usage returns how many messages are kept, and their bytes.
func (s *store) usage(now time.Time) (messages, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	return len(s.byHash), s.size
}

// query answers a request of 13/WAKU2-STORE.
func (s *store) query(now time.Time, r *storeRequest) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	answer := response{id: r.id, status: statusOK}
	filtered := r.pubsub != "" || len(r.topics) > 0 || r.hasStart || r.hasEnd
	if (r.pubsub == "") != (len(r.topics) == 0) || len(r.hashes) > 0 && filtered || r.cursor != nil && len(r.cursor) != len(hash{}) {
		answer.status, answer.desc = statusBad, "contradictory criteria"
		return answer.append(nil)
	}
	limit := int(min(r.limit, maxPage))
	if limit == 0 {
		limit = pageSize
	}
	found, ok := s.page(r, limit+1) // one more, to know whether there are more
	if !ok {
		answer.status, answer.desc = statusBad, "unknown cursor"
		return answer.append(nil)
	}
	b, size, n := answer.append(nil), 0, 0
	for n < min(limit, len(found)) && (n == 0 || !r.includeData || size+len(found[n].msg) <= maxPageBytes) {
		size += len(found[n].msg)
		n++
	}
	more := n < len(found)
	found = found[:n]
	var cursor []byte
	if more {
		cursor = found[n-1].hash[:] // the last of this page in the order of the query
	}
	if !r.forward {
		slices.Reverse(found) // a page is sent in ascending order
	}
	for _, e := range found {
		var msg []byte
		if r.includeData {
			msg = e.msg
		}
		b = appendStoreItem(b, e.hash, e.pubsub, msg)
	}
	if cursor != nil {
		b = appendData(b, 51, cursor)
	}
	return b
}

// page returns the first n entries in the order of the query.
func (s *store) page(r *storeRequest, n int) ([]*entry, bool) {
	var from *entry
	if r.cursor != nil {
		if from = s.byHash[hash(r.cursor)]; from == nil {
			return nil, false
		}
	}
	var lists [][]*entry
	switch {
	case len(r.hashes) > 0:
		var list []*entry
		for _, h := range r.hashes {
			if e := s.byHash[h]; e != nil {
				list = insert(list, e)
			}
		}
		lists = append(lists, slices.Compact(list))
	case len(r.topics) > 0:
		topics := slices.Compact(slices.Sorted(slices.Values(r.topics)))
		for _, t := range topics {
			lists = append(lists, s.byTopic[t])
		}
	default:
		lists = append(lists, s.all)
	}
	var out []*entry
	for _, list := range lists {
		out = append(out, r.take(list, from, n)...)
	}
	slices.SortFunc(out, func(a, b *entry) int {
		if r.forward {
			return order(a, b)
		}
		return order(b, a)
	})
	return out[:min(n, len(out))], true
}

// take returns the first n entries of a list behind the cursor that match, in the
// order of the query.
func (r *storeRequest) take(list []*entry, from *entry, n int) (out []*entry) {
	low, high := 0, len(list)
	bound := func(t int64) int {
		i, _ := slices.BinarySearchFunc(list, &entry{timestamp: t}, order)
		return i
	}
	if r.hasStart {
		low = bound(r.start)
	}
	if r.hasEnd {
		high = bound(r.end)
	}
	if from != nil {
		i, there := slices.BinarySearchFunc(list, from, order)
		switch {
		case !r.forward:
			high = min(high, i)
		case there:
			low = max(low, i+1)
		default:
			low = max(low, i)
		}
	}
	for k := 0; low+k < high && len(out) < n; k++ {
		e := list[low+k]
		if !r.forward {
			e = list[high-1-k]
		}
		if r.pubsub == "" || e.pubsub == r.pubsub {
			out = append(out, e)
		}
	}
	return out
}
