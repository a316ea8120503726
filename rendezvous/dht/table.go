package dht

import (
	"crypto/rand"
	"hash/crc32"
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

const (
	bucketSize = 8                // nodes of one distance (BEP 5)
	goodFor    = 15 * time.Minute // after an answer
	badAfter   = 3                // questions in a row without an answer
)

// An entry is a node that has answered at least once.
type entry struct {
	contact
	replied time.Time // when it last answered us
	asked   time.Time // when it last asked us something
	fails   int       // questions without an answer since
}

func (e *entry) bad() bool { return e.fails >= badAfter }

func (e *entry) good(now time.Time) bool {
	return !e.bad() && (now.Sub(e.replied) < goodFor || now.Sub(e.asked) < goodFor)
}

// A table is the routing table: nodes by their distance to ours. It does no I/O
// and knows no clock. Nodes that stop answering stay until another takes their
// place, so that an outage of our own network empties nothing.
type table struct {
	self    id
	buckets [161][]*entry // by the number of leading bits shared with self
	byAddr  map[netip.AddrPort]*entry
	byIP    map[netip.Addr]int
}

func newTable(self id) *table {
	return &table{self: self, byAddr: make(map[netip.AddrPort]*entry), byIP: make(map[netip.Addr]int)}
}

// shared returns how many leading bits two ids have in common.
func shared(a, b id) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 160
}

// public reports whether an address belongs to the internet: only there one
// address means one owner.
func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(a)
}

// heard notes that a node answered.
func (t *table) heard(now time.Time, c contact) {
	if old := t.byAddr[c.addr]; old != nil {
		if old.id == c.id {
			old.replied, old.fails = now, 0
			return
		}
		t.drop(old) // it has another id now
	}
	if c.id == t.self || public(c.addr.Addr()) && t.byIP[c.addr.Addr()] > 0 {
		return
	}
	n := shared(t.self, c.id)
	if len(t.buckets[n]) >= bucketSize {
		i := slices.IndexFunc(t.buckets[n], (*entry).bad)
		if i < 0 {
			i = slices.IndexFunc(t.buckets[n], func(e *entry) bool { return !e.good(now) })
		}
		if i < 0 {
			return // old nodes are the ones that stay
		}
		t.drop(t.buckets[n][i])
	}
	e := &entry{contact: c, replied: now}
	t.buckets[n] = append(t.buckets[n], e)
	t.byAddr[c.addr] = e
	t.byIP[c.addr.Addr()]++
}

func (t *table) drop(e *entry) {
	n := shared(t.self, e.id)
	t.buckets[n] = slices.DeleteFunc(t.buckets[n], func(x *entry) bool { return x == e })
	delete(t.byAddr, e.addr)
	if t.byIP[e.addr.Addr()]--; t.byIP[e.addr.Addr()] <= 0 {
		delete(t.byIP, e.addr.Addr())
	}
}

// asks notes a question of a node, and reports whether the node is new and there
// may be room for it.
func (t *table) asks(now time.Time, c contact) bool {
	if e := t.byAddr[c.addr]; e != nil {
		if e.id == c.id {
			e.asked = now
		}
		return false
	}
	b := t.buckets[shared(t.self, c.id)]
	return len(b) < bucketSize || slices.ContainsFunc(b, (*entry).bad)
}

// failed notes that a node did not answer.
func (t *table) failed(addr netip.AddrPort) {
	if e := t.byAddr[addr]; e != nil {
		e.fails++
	}
}

// closest returns the n known nodes that are nearest to target; if strict, only
// those that are good.
func (t *table) closest(now time.Time, target id, n int, strict bool) []contact {
	var all []contact
	for _, b := range t.buckets {
		for _, e := range b {
			if !e.bad() && (!strict || e.good(now)) {
				all = append(all, e.contact)
			}
		}
	}
	sortByDistance(all, target)
	return all[:min(n, len(all))]
}

func sortByDistance(all []contact, target id) {
	slices.SortFunc(all, func(a, b contact) int {
		switch {
		case target.closer(a.id, b.id):
			return -1
		case target.closer(b.id, a.id):
			return 1
		}
		return a.addr.Compare(b.addr)
	})
}

// count returns how many nodes are good, and how many are known.
func (t *table) count(now time.Time) (good, all int) {
	for _, b := range t.buckets {
		for _, e := range b {
			if all++; e.good(now) {
				good++
			}
		}
	}
	return good, all
}

// questionable returns the node that has been silent longest, if that is worth a
// question.
func (t *table) questionable(now time.Time) (contact, bool) {
	var oldest *entry
	for _, b := range t.buckets {
		for _, e := range b {
			if !e.bad() && now.Sub(e.replied) > goodFor && (oldest == nil || e.replied.Before(oldest.replied)) {
				oldest = e
			}
		}
	}
	if oldest == nil {
		return contact{}, false
	}
	return oldest.contact, true
}

// move gives our node another id.
func (t *table) move(self id) {
	old := t.byAddr
	*t = *newTable(self)
	for _, e := range old {
		n := shared(self, e.id)
		if e.id != self && len(t.buckets[n]) < bucketSize {
			t.buckets[n] = append(t.buckets[n], e)
			t.byAddr[e.addr] = e
			t.byIP[e.addr.Addr()]++
		}
	}
}

func randomID() (out id) {
	if _, err := rand.Read(out[:]); err != nil {
		panic(err) // crypto/rand never fails
	}
	return out
}

// crcOf is what the first 21 bits of an id at an address must be (BEP 42).
func crcOf(a netip.Addr, r byte) uint32 {
	ip, mask := a.AsSlice(), []byte{0x03, 0x0f, 0x3f, 0xff}
	if a.Is6() {
		mask = []byte{0x01, 0x03, 0x07, 0x0f, 0x1f, 0x3f, 0x7f, 0xff}
	}
	b := make([]byte, len(mask))
	for i := range b {
		b[i] = ip[i] & mask[i]
	}
	b[0] |= (r & 7) << 5
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// idFor returns a random id that fits an address (BEP 42).
func idFor(a netip.Addr) id {
	out := randomID()
	c := crcOf(a, out[19])
	out[0], out[1], out[2] = byte(c>>24), byte(c>>16), byte(c>>8)&0xf8|out[2]&7
	return out
}

// fits reports whether an id may be used at an address (BEP 42): on the internet
// nobody picks where in the key space he is.
func fits(i id, a netip.Addr) bool {
	if !public(a) {
		return true
	}
	c := crcOf(a, i[19])
	return i[0] == byte(c>>24) && i[1] == byte(c>>16) && i[2]&0xf8 == byte(c>>8)&0xf8
}
