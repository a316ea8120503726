package chat

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/kithproject/kith/identity"
)

func fuzzIdentity(t testing.TB) *identity.Identity {
	t.Helper()
	id, err := identity.FromSeeds([32]byte{1}, [32]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// FuzzEntry decodes entries. What is decoded encodes to the same, and can be shown.
func FuzzEntry(f *testing.F) {
	id := fuzzIdentity(f)
	e := entry{logKey: logKey{id.ID(), LogID{1}}, seq: 1, lamport: 1, time: 1, kind: kindText, body: []byte("hello")}
	e.sign(id)
	f.Add(e.encode())
	e.kind, e.body = kindFile, encodeFile(FileRef{Name: "a.txt", Size: 5, Offer: "x"})
	f.Add(e.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEntry(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(e.encode(), raw) {
			t.Fatal("it encodes to something else")
		}
		m := e.show()
		if _, err := m.Time.MarshalJSON(); err != nil || CleanText(m.Text) != m.Text || len(raw) > maxEntry {
			t.Fatalf("%+v, %v", m, err)
		}
		if m.File != nil && (m.File.Size < 0 || len(m.File.Name) > maxName || len(m.File.Offer) > maxOffer) {
			t.Fatalf("%+v", m.File)
		}
		e.genuine()
	})
}

// FuzzFrames reads what a device may send.
func FuzzFrames(f *testing.F) {
	id := fuzzIdentity(f)
	k := logKey{id.ID(), LogID{1}}
	r := newReceipt(id, ConvID{1}, id.ID(), 1, []logMark{{LogID{1}, 2, 1}})
	f.Add(appendVector(nil, ConvID{1}, true, []claim{{k, 2, 1}}))
	f.Add(appendWant(nil, ConvID{1}, k, 1))
	f.Add(appendFrame(nil, frameReceipt, r.raw))
	st := start{logKey: k, seq: 1, lamport: 1}
	f.Add(appendFrame(nil, frameStart, st.encode()))
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bufio.NewReader(bytes.NewReader(raw))
		for {
			kind, body, err := readFrame(in)
			if err != nil {
				return
			}
			switch kind {
			case frameVector:
				conv, flags, claims, err := decodeVector(body)
				if err == nil && flags == vectorBegin|vectorEnd && len(claims) < maxHas &&
					!bytes.Equal(appendVector(nil, conv, true, claims), appendFrame(nil, kind, body)) {
					t.Fatal("a vector encodes to something else")
				}
			case frameWant:
				if conv, k, has, err := decodeWant(body); err == nil && !bytes.Equal(appendWant(nil, conv, k, has), appendFrame(nil, kind, body)) {
					t.Fatal("a want encodes to something else")
				}
			case frameStart:
				if s, err := decodeStart(body); err == nil && !bytes.Equal(s.encode(), body) {
					t.Fatal("a start encodes to something else")
				}
			case frameReceipt:
				if r, err := decodeReceipt(body); err == nil && (len(r.logs) > maxReceipt || r.genuine() && r.by != id.ID()) {
					t.Fatalf("%+v", r)
				}
			case frameEntry:
				if e, err := decodeEntry(body); err == nil && !bytes.Equal(e.encode(), body) {
					t.Fatal("an entry encodes to something else")
				}
			}
		}
	})
}

// FuzzVault opens files that are damaged, and files of which the records are sealed
// under the right key and say anything. What is there then can be written on.
func FuzzVault(f *testing.F) {
	id := fuzzIdentity(f)
	e := entry{conv: ConvID{1}, logKey: logKey{id.ID(), LogID{1}}, seq: 1, lamport: 1, time: 1, kind: kindText, body: []byte("hello")}
	e.sign(id)
	one := item{itemEntry, append(make([]byte, 8), e.encode()...)}.appendTo(nil)
	st := start{conv: ConvID{1}, logKey: e.logKey, seq: 9, lamport: 9}
	f.Add(one, []byte("tail"))
	f.Add(item{itemState, appendKey(nil, e.logKey, 1, 2, 3)}.appendTo(one), []byte{0, 0, 0, 100})
	f.Add(item{itemRead, appendKey(nil, e.logKey, 1)}.appendTo(one), []byte{})
	f.Add(item{itemStart, st.encode()}.appendTo(one), []byte{})
	self := id.ID()
	f.Add(item{itemProgress, appendStep(self[:], LogID{1}, progress{1, 1, 1})}.appendTo(one), []byte{})
	f.Fuzz(func(t *testing.T, plain, tail []byte) {
		d := newMemDisk(1)
		v, err := newVault(d, [32]byte{1}, ConvID{1})
		if err != nil {
			t.Fatal(err)
		}
		file := []byte(vaultMagic)
		if len(plain) > 0 && len(plain) < maxPlain {
			sealed := v.aead.Seal(make([]byte, 24), make([]byte, 24), plain, v.ad(int64(len(file))))
			file = append(file, 0, 0, byte(len(sealed)>>8), byte(len(sealed)))
			file = append(file, sealed...)
		}
		d.now[v.name] = append(file, tail...)
		b := newBook(id.ID())
		take := func(b *book) func(int64, int, byte, []byte) {
			return func(off int64, at int, kind byte, body []byte) { b.take(place{off, uint32(at)}, kind, body) }
		}
		if _, err := v.load(take(b)); err != nil {
			t.Fatal(err)
		}
		check(t, v, b)
		k := logKey{id.ID(), LogID{77}}
		h := head{}
		if l := b.logs[k]; l != nil {
			h = head{l.last, l.lamport}
		}
		next := entry{conv: ConvID{1}, logKey: k, seq: h.seq + 1, lamport: nextLamport(b.highest, h.seq, h.lamport), kind: kindText, body: []byte("x")}
		if next.follows(h.seq, h.lamport) && next.plausible() {
			if _, err := v.write([]item{{itemEntry, append(make([]byte, 8), next.encode()...)}}, true); err != nil {
				t.Fatal(err)
			}
			again := newBook(id.ID())
			if _, err := v.load(take(again)); err != nil {
				t.Fatal(err)
			}
			if again.logs[k] == nil || again.logs[k].last != next.seq {
				t.Fatal("what was written is not there")
			}
		}
	})
}

// check looks at what must hold of every index.
func check(t *testing.T, v *vault, b *book) {
	t.Helper()
	for i := 1; i < len(b.order); i++ {
		if b.compare(b.order[i-1], b.order[i]) > 0 {
			t.Fatal("out of order")
		}
	}
	for _, l := range b.list {
		if uint64(len(l.refs)) != l.last-l.base {
			t.Fatalf("%d entries from %d to %d", len(l.refs), l.base, l.last)
		}
		for seq := l.base + 1; seq <= l.last; seq++ {
			body, err := v.read(v.generation(), b.find(l.logKey, seq).place)
			if err != nil {
				t.Fatal(err)
			}
			if e, err := decodeEntry(body[8:]); err != nil || e.seq != seq || e.logKey != l.logKey {
				t.Fatalf("%+v, %v", e, err)
			}
		}
	}
	b.unread()
	b.kept([]Member{{ID: identity.DeviceID{1}}})
	if keep := b.newest(2, 1000); len(keep) > 2 {
		t.Fatalf("%d entries are two", len(keep))
	}
}
