package chat

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"sort"

	"github.com/kithproject/kith/identity"
)

// The kinds of items of a vault.
const (
	itemEntry    byte = 1 // when it came u64 || entry
	itemState    byte = 2 // author 32 || log 8 || base u64 || lamport of it u64 || read u64
	itemStart    byte = 3 // a start
	itemRead     byte = 4 // author 32 || log 8 || read u64
	itemProgress byte = 5 // member 32 || of some of this device's logs: log 8 || delivered u64 || read u64 || mailed u64
)

const (
	keySize   = identity.IDSize + 8 // bytes of a logKey
	stateSize = keySize + 3*8
	stepSize  = 8 + 3*8 // bytes of a log's progress
	// lateAfter is how long something must have been there, in milliseconds, that an
	// entry which belongs before it is late.
	lateAfter = 10_000
	// clockSlack is how far ahead of this device's clock an author's may be, in
	// milliseconds.
	clockSlack = 120_000
)

// A ref is an entry in the index.
type ref struct {
	place
	log          uint32 // index into book.list
	seq, lamport uint64
	arrived      int64 // milliseconds since 1970
	size         uint32
	late, ahead  bool
	hidden       bool // nobody is shown anything of it
}

// A logState is what is known of a log.
type logState struct {
	logKey
	index       uint32
	base        uint64 // entries after this one are here
	baseLamport uint64
	last        uint64 // the last one that is here
	lamport     uint64 // of last
	read        uint64 // up to where it was shown here
	started     *start // what the author says of base, if it does
	refs        []uint32
	old         []uint32 // of entries up to base that are still here to be shown
}

// progress is how far another member is with a log of this device.
type progress struct{ delivered, read, mailed uint64 }

// A book is the index of a conversation. It is not safe for concurrent use.
type book struct {
	self    identity.DeviceID
	gen     int // of the file that it is of
	logs    map[logKey]*logState
	list    []*logState
	perAuth map[identity.DeviceID]int // logs
	refs    []ref                     // in the order in which they came
	order   []uint32                  // in the order of display
	members map[identity.DeviceID]map[LogID]progress
	highest uint64 // Lamport number
	last    int64  // when the last entry came, milliseconds since 1970
	bytes   int64  // of entries
}

func newBook(self identity.DeviceID) *book {
	return &book{
		self: self, logs: make(map[logKey]*logState), perAuth: make(map[identity.DeviceID]int),
		members: make(map[identity.DeviceID]map[LogID]progress),
	}
}

// log returns the state of a log, which it makes.
func (b *book) log(k logKey) *logState {
	l := b.logs[k]
	if l == nil {
		l = &logState{logKey: k, index: uint32(len(b.list))}
		b.logs[k] = l
		b.list = append(b.list, l)
		b.perAuth[k.author]++
	}
	return l
}

// take applies what was read from, or has been written to, a place.
func (b *book) take(p place, kind byte, body []byte) {
	switch kind {
	case itemEntry:
		if len(body) < 8 {
			return
		}
		if e, err := decodeEntry(body[8:]); err == nil {
			b.add(p, int64(binary.BigEndian.Uint64(body)), &e, len(body))
		}
	case itemState:
		if len(body) != stateSize {
			return
		}
		k, n := decodeKey(body)
		l := b.log(k)
		l.base, l.baseLamport, l.read = n(0), n(1), max(l.read, n(2))
		l.last, l.lamport, l.refs = l.base, l.baseLamport, nil
		b.highest = max(b.highest, l.lamport)
	case itemStart:
		if s, err := decodeStart(body); err == nil {
			b.begin(&s)
		}
	case itemRead:
		if len(body) == keySize+8 {
			k, n := decodeKey(body)
			if l := b.logs[k]; l != nil {
				l.read = max(l.read, n(0))
				b.skip(l)
			}
		}
	case itemProgress:
		b.takeProgress(body)
	}
}

func (b *book) takeProgress(body []byte) {
	if len(body) < identity.IDSize || (len(body)-identity.IDSize)%stepSize != 0 {
		return
	}
	member := identity.DeviceID(body[:identity.IDSize])
	for body = body[identity.IDSize:]; len(body) > 0; body = body[stepSize:] {
		p := progress{
			binary.BigEndian.Uint64(body[8:]), binary.BigEndian.Uint64(body[16:]), binary.BigEndian.Uint64(body[24:]),
		}
		b.advance(member, LogID(body[:8]), p)
	}
}

// advance takes note of what a member has of a log of this device, and reports whether
// that is news.
func (b *book) advance(member identity.DeviceID, log LogID, p progress) bool {
	l := b.logs[logKey{b.self, log}]
	if l == nil {
		return false
	}
	p = progress{min(p.delivered, l.last), min(p.read, l.last), min(p.mailed, l.last)}
	of := b.members[member]
	was := of[log]
	now := progress{max(was.delivered, p.delivered), max(was.read, p.read), max(was.mailed, p.mailed)}
	if now == was {
		return false
	}
	if of == nil {
		of = make(map[LogID]progress)
		b.members[member] = of
	}
	of[log] = now
	return true
}

// add enters an entry if it is the next of its log.
func (b *book) add(p place, arrived int64, e *entry, size int) *ref {
	l := b.log(e.logKey)
	if !e.follows(l.last, l.lamport) {
		return nil
	}
	l.last, l.lamport = e.seq, e.lamport
	b.highest = max(b.highest, e.lamport)
	b.last = max(b.last, arrived)
	b.bytes += int64(size)
	n := uint32(len(b.refs))
	b.refs = append(b.refs, ref{
		place: p, log: l.index, seq: e.seq, lamport: e.lamport, arrived: arrived, size: uint32(size),
		ahead: int64(e.time) > arrived+clockSlack, hidden: !e.shown(),
	})
	l.refs = append(l.refs, n)
	b.skip(l)
	at := len(b.order)
	if at > 0 && b.compare(n, b.order[at-1]) < 0 {
		at = b.search(e.lamport, e.logKey, e.seq)
		b.refs[n].late = b.refs[b.order[at]].arrived <= arrived-lateAfter
	}
	b.order = slices.Insert(b.order, at, n)
	return &b.refs[n]
}

// skip has what nobody is shown not wait to be shown.
func (b *book) skip(l *logState) {
	for l.read >= l.base && l.read < l.last && b.refs[l.refs[l.read-l.base]].hidden {
		l.read++
	}
}

// begin takes a start of which the signature was looked at: the log goes on there, if
// not so much of it is here already.
func (b *book) begin(s *start) {
	l := b.log(s.logKey)
	if l.last < s.seq {
		l.old = append(l.old, l.refs...)
		l.base, l.baseLamport, l.last, l.lamport, l.refs = s.seq, s.lamport, s.seq, s.lamport, nil
		b.highest = max(b.highest, s.lamport)
	}
	if l.base >= s.seq && (l.started == nil || l.started.seq < s.seq) {
		l.started = s
	}
}

// compare orders two entries for display.
func (b *book) compare(i, j uint32) int {
	x, y := &b.refs[i], &b.refs[j]
	return compareAt(x.lamport, b.list[x.log].logKey, x.seq, y.lamport, b.list[y.log].logKey, y.seq)
}

func compareAt(lamport1 uint64, k1 logKey, seq1 uint64, lamport2 uint64, k2 logKey, seq2 uint64) int {
	return cmp.Or(cmp.Compare(lamport1, lamport2), bytes.Compare(k1.author[:], k2.author[:]),
		cmp.Compare(seq1, seq2), bytes.Compare(k1.log[:], k2.log[:]))
}

// search returns where in the order an entry is or would be.
func (b *book) search(lamport uint64, k logKey, seq uint64) int {
	return sort.Search(len(b.order), func(i int) bool {
		r := &b.refs[b.order[i]]
		return compareAt(r.lamport, b.list[r.log].logKey, r.seq, lamport, k, seq) >= 0
	})
}

// find returns an entry by its name.
func (b *book) find(k logKey, seq uint64) *ref {
	l := b.logs[k]
	switch {
	case l == nil || seq > l.last:
		return nil
	case seq > l.base:
		return &b.refs[l.refs[seq-l.base-1]]
	}
	i, ok := slices.BinarySearchFunc(l.old, seq, func(i uint32, seq uint64) int { return cmp.Compare(b.refs[i].seq, seq) })
	if !ok {
		return nil
	}
	return &b.refs[l.old[i]]
}

// unread returns how many entries of others were not shown here.
func (b *book) unread() int {
	n := uint64(0)
	for _, l := range b.list {
		if l.author != b.self {
			n += l.last - min(l.last, max(l.read, l.base))
		}
	}
	return int(n)
}

// kept returns how many of this device's entries some members have not, nor a letter with
// them.
func (b *book) kept(members []Member) int {
	n := uint64(0)
	for _, l := range b.list {
		if l.author != b.self {
			continue
		}
		least := l.last
		for _, m := range members {
			if m.ID != b.self {
				least = min(least, b.unmailed(m.ID, l))
			}
		}
		n += l.last - max(least, min(l.base, l.last))
	}
	return int(n)
}

// fill adds to a message how far it has come.
func (b *book) fill(m *Message, r *ref, members []Member) {
	m.Mine, m.Late, m.ClockDiffers = m.Author == b.self, r.late, r.ahead
	if !m.Mine {
		m.State = StateDelivered
		if b.list[r.log].read >= r.seq {
			m.State = StateRead
		}
		return
	}
	others, carried := 0, 0
	for _, o := range members {
		if o.ID == b.self {
			continue
		}
		others++
		p := b.members[o.ID][m.Log]
		switch {
		case p.read >= r.seq:
			m.Read++
			fallthrough
		case p.delivered >= r.seq:
			m.Delivered++
			fallthrough
		case p.mailed >= r.seq:
			carried++
		}
	}
	switch others {
	case m.Read:
		m.State = StateRead
	case m.Delivered:
		m.State = StateDelivered
	case carried:
		m.State = StateSent
	}
	if m.State == "" || others == 0 {
		m.State = StateKept
	}
}

// appendKey appends a log's name and numbers.
func appendKey(dst []byte, k logKey, numbers ...uint64) []byte {
	dst = append(dst, k.author[:]...)
	dst = append(dst, k.log[:]...)
	for _, n := range numbers {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	return dst
}

// decodeKey returns a log's name and what gives the numbers after it.
func decodeKey(b []byte) (logKey, func(i int) uint64) {
	var k logKey
	copy(k.author[:], b)
	copy(k.log[:], b[identity.IDSize:])
	return k, func(i int) uint64 { return binary.BigEndian.Uint64(b[keySize+8*i:]) }
}

// states are the items that say all that is known of some logs without the entries after
// their bases.
func (b *book) states(base map[*logState]head) []item {
	var out []item
	for _, l := range b.list {
		h, ok := base[l]
		if !ok {
			continue
		}
		out = append(out, item{itemState, appendKey(nil, l.logKey, h.seq, h.lamport, l.read)})
		if l.started != nil && l.started.seq == h.seq {
			out = append(out, item{itemStart, l.started.encode()})
		}
	}
	return out
}

// A head is the end of a log, or of what is gone of it.
type head struct{ seq, lamport uint64 }

// progressItems are the items that say how far others are with this device's logs.
func (b *book) progressItems() []item {
	var out []item
	for member, logs := range b.members {
		body := append([]byte(nil), member[:]...)
		for log, p := range logs {
			if body = appendStep(body, log, p); len(body) > maxPlain-stepSize {
				out = append(out, item{itemProgress, body})
				body = append([]byte(nil), member[:]...)
			}
		}
		if len(body) > identity.IDSize {
			out = append(out, item{itemProgress, body})
		}
	}
	return out
}

func appendStep(b []byte, log LogID, p progress) []byte {
	b = append(b, log[:]...)
	b = binary.BigEndian.AppendUint64(b, p.delivered)
	b = binary.BigEndian.AppendUint64(b, p.read)
	return binary.BigEndian.AppendUint64(b, p.mailed)
}
