package dht

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// put asks a store to keep an item.
func put(s *store, now time.Time, from netip.Addr, it *item, cas *int64) int64 {
	m := message{item: *it, hasSeq: it.mutable}
	if cas != nil {
		m.hasCas, m.cas = true, *cas
	}
	code, _ := s.put(now, from, &m)
	return code
}

func TestStore(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k, from := derive(rendezvous.Topic{1}), netip.MustParseAddr("192.0.2.1")
	at := func(seq int64, fill byte) *item { return k.items(0, seq, frame(fill))[0] }
	forged := at(9, 1)
	forged.sig[0]++
	salty := at(9, 1)
	salty.salt = make([]byte, maxSalt+1)
	three, five := int64(3), int64(5)
	s := newStore()
	for _, c := range []struct {
		name string
		it   *item
		cas  *int64
		want int64
	}{
		{"new", at(5, 1), nil, 0},
		{"the same again", at(5, 1), nil, 0},
		{"another under the same number", at(5, 2), nil, errSeq},
		{"older", at(4, 2), nil, errSeq},
		{"wrong cas", at(6, 2), &three, errCas},
		{"right cas", at(6, 2), &five, 0},
		{"forged", forged, nil, errSig},
		{"long salt", salty, nil, errSalt},
		{"no value", &item{}, nil, errProtocol},
		{"immutable", &item{value: []byte("3:abc")}, nil, 0},
	} {
		if got := put(s, now, from, c.it, c.cas); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if got := s.get(now, k.targets[0][0]); got == nil || got.seq != 6 {
		t.Errorf("kept: %+v", got)
	}
	if got := s.get(now.Add(itemFor), k.targets[0][0]); got != nil {
		t.Error("an item outlives its time")
	}
}

// TestStoreBounds fills a store, from one address and from many.
func TestStoreBounds(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := newStore()
	for i := range 3 * maxItems {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if i%2 == 0 {
			a = netip.AddrFrom4([4]byte{9, 9, 9, 9})
		}
		now = now.Add(time.Millisecond)
		it := &item{value: appendBytes(nil, binary.BigEndian.AppendUint64(nil, uint64(i)))}
		if code := put(s, now, a, it, nil); code != 0 {
			t.Fatal(code)
		}
		s.announce(now, id(append(make([]byte, 12), binary.BigEndian.AppendUint64(nil, uint64(i))...)), netip.AddrPortFrom(a, 1))
		s.announce(now, id{1}, netip.AddrPortFrom(a, uint16(i)))
	}
	if len(s.items) > maxItems || s.perHost[netip.AddrFrom4([4]byte{9, 9, 9, 9})] > itemsPerHost || len(s.perHost) > maxItems {
		t.Errorf("%d items, %d of one address", len(s.items), s.perHost[netip.AddrFrom4([4]byte{9, 9, 9, 9})])
	}
	if len(s.swarms) > maxSwarms || len(s.peers(now, id{1})) > peersPer {
		t.Errorf("%d infohashes, %d peers", len(s.swarms), len(s.peers(now, id{1})))
	}
	if got := s.peers(now.Add(peerFor), id{1}); got != nil {
		t.Error("peers outlive their time")
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	s := newStore()
	token := bytes.Clone(s.token(now, a, 0))
	for _, c := range []struct {
		after time.Duration
		addr  netip.Addr
		want  bool
	}{{0, a, true}, {0, b, false}, {4 * time.Minute, a, true}, {6 * time.Minute, a, true}, {11 * time.Minute, a, false}} {
		if got := s.mayWrite(now.Add(c.after), c.addr, token); got != c.want {
			t.Errorf("after %v, from %v: %v", c.after, c.addr, got)
		}
	}
}

func TestAnswerRate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s, tab := newStore(), newTable(id{7})
	count := func(from string) (n int) {
		m := message{kind: 'q', method: "ping", tid: []byte("x")}
		for range 1000 {
			if s.answer(now, &m, netip.MustParseAddrPort(from), tab) != nil {
				n++
			}
		}
		return n
	}
	if n := count("192.0.2.1:1"); n != hostBurst {
		t.Errorf("%d answers to one address, want %d", n, hostBurst)
	}
	served := 0
	for _, other := range []string{"192.0.2.2:1", "198.51.100.1:1", "203.0.113.1:1"} { // one may share its slot
		if count(other) > 0 {
			served++
		}
	}
	if served < 2 {
		t.Errorf("%d of 3 other addresses get answers", served)
	}
}

func TestTable(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	tab := newTable(id{})
	addr := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1) }
	for i := range 12 { // all of one bucket
		tab.heard(now, contact{id{0x80, byte(i)}, addr(i)})
	}
	if good, all := tab.count(now); good != bucketSize || all != bucketSize {
		t.Fatalf("%d good of %d", good, all)
	}
	for range badAfter {
		tab.failed(addr(0))
	}
	if good, all := tab.count(now); good != bucketSize-1 || all != bucketSize {
		t.Errorf("after one went silent: %d good of %d", good, all)
	}
	tab.heard(now, contact{id{0x80, 99}, addr(99)}) // takes its place
	if good, _ := tab.count(now); good != bucketSize {
		t.Errorf("%d good", good)
	}
	later := now.Add(goodFor + time.Second)
	if c, ok := tab.questionable(later); !ok || c.id[0] != 0x80 {
		t.Error("none is worth a question after a quarter of an hour")
	}
	one := netip.MustParseAddrPort("8.8.8.8:1")
	tab.heard(now, contact{id{0x40}, one})
	tab.heard(now, contact{id{0x41}, netip.AddrPortFrom(one.Addr(), 2)})
	if _, all := tab.count(now); all != bucketSize+1 {
		t.Error("two nodes at one address of the internet")
	}
	got := tab.closest(now, id{0x80, 3}, 3, true)
	if len(got) != 3 || got[0].id != (id{0x80, 3}) || got[1].id != (id{0x80, 2}) || got[2].id != (id{0x80, 1}) {
		t.Errorf("closest: %v", got)
	}
	tab.move(id{0x80, 3})
	if _, all := tab.count(now); all != bucketSize {
		t.Errorf("after a move: %d nodes", all)
	}
}
