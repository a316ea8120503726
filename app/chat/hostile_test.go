package chat

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A foe is a device that speaks the protocol as it likes.
type foe struct {
	n    *node
	conn net.Conn
	mu   sync.Mutex
	got  []string // kinds of frames
	wg   sync.WaitGroup
	gone bool
}

// withFoe returns a room of all, its first device, which runs, and the second as a foe.
func (l *lab) withFoe(t *testing.T) (ConvID, *node, *foe) {
	t.Helper()
	c, a := l.room(), l.nodes[0]
	a.start()
	return c, a, foeOf(t, l, 1, 0)
}

// foeOf connects device n, which runs no service, to another.
func foeOf(t *testing.T, l *lab, n, to int) *foe {
	t.Helper()
	near, far := net.Pipe()
	f := &foe{n: l.nodes[n], conn: near}
	l.nodes[to].ln.ch <- pipeConn{far, pipeAddr(n)}
	f.wg.Go(func() {
		in := bufio.NewReader(near)
		for {
			kind, _, err := readFrame(in)
			f.mu.Lock()
			if err != nil {
				f.gone = true
				f.mu.Unlock()
				return
			}
			f.got = append(f.got, fmt.Sprint(kind))
			f.mu.Unlock()
		}
	})
	f.say(appendFrame(nil, frameHello, []byte{wireVersion}))
	return f
}

// say sends bytes; the other side may hang up.
func (f *foe) say(b []byte) bool {
	_, err := f.conn.Write(b)
	return err == nil
}

func (f *foe) hungUp() bool {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone
}

func (f *foe) close() { f.conn.Close(); f.wg.Wait() }

// entry is one that the foe has signed.
func (f *foe) entry(c ConvID, log byte, seq, lamport uint64, text string) *entry {
	e := &entry{
		conv: c, logKey: logKey{f.n.id.ID(), LogID{log}}, seq: seq, lamport: lamport,
		time: uint64(time.Now().UnixMilli()), kind: kindText, body: []byte(text),
	}
	e.sign(f.n.id)
	return e
}

func entryFrame(e *entry) []byte { return appendFrame(nil, frameEntry, e.encode()) }

// TestHostile says to a device what nobody who keeps to the protocol says.
func TestHostile(t *testing.T) {
	other := func(l *lab) *node { return l.nodes[2] }
	for name, c := range map[string]struct {
		say    func(l *lab, f *foe, c ConvID) []byte
		hungUp bool
		want   []string // lines that are there then
	}{
		"an honest line": {func(_ *lab, f *foe, c ConvID) []byte { return entryFrame(f.entry(c, 1, 1, 1, "hello")) }, false, []string{"hello"}},
		"the line again": {func(_ *lab, f *foe, c ConvID) []byte {
			e := entryFrame(f.entry(c, 1, 1, 1, "hello"))
			return slices.Concat(e, e, e)
		}, false, []string{"hello"}},
		"another line by the same number": {func(_ *lab, f *foe, c ConvID) []byte {
			return append(entryFrame(f.entry(c, 1, 1, 1, "hello")), entryFrame(f.entry(c, 1, 1, 2, "changed"))...)
		}, false, []string{"hello"}},
		"a gap, and then what is missing": {func(_ *lab, f *foe, c ConvID) []byte {
			return slices.Concat(entryFrame(f.entry(c, 1, 3, 3, "three")), entryFrame(f.entry(c, 1, 2, 2, "two")), entryFrame(f.entry(c, 1, 1, 1, "one")))
		}, false, []string{"one", "two", "three"}},
		"a gap": {func(_ *lab, f *foe, c ConvID) []byte { return entryFrame(f.entry(c, 1, 2, 2, "two")) }, false, nil},
		"thousands that wait": {func(_ *lab, f *foe, c ConvID) []byte {
			var out []byte
			for i := range uint64(3 * maxPending) {
				out = append(out, entryFrame(f.entry(c, 1, i+2, i+2, "x"))...)
			}
			return out
		}, false, nil},
		"in the name of another member": {func(l *lab, f *foe, c ConvID) []byte {
			e := f.entry(c, 1, 1, 1, "forged")
			e.author = other(l).id.ID()
			return entryFrame(e)
		}, true, nil},
		"in the name of the device itself": {func(l *lab, f *foe, c ConvID) []byte {
			e := f.entry(c, 1, 1, 1, "forged")
			e.author = l.nodes[0].id.ID()
			return entryFrame(e)
		}, true, nil},
		"of another conversation": {func(l *lab, f *foe, _ ConvID) []byte { return entryFrame(f.entry(l.pair(0, 2), 1, 1, 1, "forged")) }, false, nil},
		"a changed line": {func(_ *lab, f *foe, c ConvID) []byte {
			e := f.entry(c, 1, 1, 1, "hello")
			e.body = []byte("jello")
			return entryFrame(e)
		}, true, nil},
		"of a stranger": {func(_ *lab, f *foe, c ConvID) []byte {
			e := f.entry(c, 1, 1, 1, "forged")
			_, _ = rand.Read(e.author[:])
			return entryFrame(e)
		}, false, nil},
		"who knew more than can be": {func(_ *lab, f *foe, c ConvID) []byte { return entryFrame(f.entry(c, 1, 1, maxFirst+1, "far")) }, true, nil},
		"as far ahead as can be":    {func(_ *lab, f *foe, c ConvID) []byte { return entryFrame(f.entry(c, 1, 1, maxFirst, "far")) }, false, []string{"far"}},
		"a number that does not rise": {func(_ *lab, f *foe, c ConvID) []byte {
			return append(entryFrame(f.entry(c, 1, 1, 5, "a")), entryFrame(f.entry(c, 1, 2, 5, "b"))...)
		}, true, []string{"a"}},
		"a step too far": {func(_ *lab, f *foe, c ConvID) []byte {
			return append(entryFrame(f.entry(c, 1, 1, 5, "a")), entryFrame(f.entry(c, 1, 2, 6+maxStep, "b"))...)
		}, true, []string{"a"}},
		"a line of 1 MiB": {func(*lab, *foe, ConvID) []byte {
			return append(binary.BigEndian.AppendUint32(nil, 1<<20), make([]byte, 1<<20)...)
		}, true, nil},
		"a line of 4 GiB": {func(*lab, *foe, ConvID) []byte { return []byte{0xff, 0xff, 0xff, 0xff, frameEntry} }, true, nil},
		"a line of 4097 bytes": {func(_ *lab, f *foe, c ConvID) []byte {
			return entryFrame(f.entry(c, 1, 1, 1, strings.Repeat("x", MaxText+1)))
		}, true, nil},
		"an empty frame": {func(*lab, *foe, ConvID) []byte { return []byte{0, 0, 0, 0} }, true, nil},
		"no UTF-8":       {func(_ *lab, f *foe, c ConvID) []byte { return entryFrame(f.entry(c, 1, 1, 1, "\xff")) }, true, nil},
		"escapes": {func(_ *lab, f *foe, c ConvID) []byte {
			return entryFrame(f.entry(c, 1, 1, 1, "\x1b[2Jhi\u202e\r\nsystem: you are hacked"))
		}, false, []string{"[2Jhi  system: you are hacked"}},
		"nothing but escapes": {func(_ *lab, f *foe, c ConvID) []byte { return entryFrame(f.entry(c, 1, 1, 1, "\x1b\u202e")) }, false, nil},
		"a kind of the future": {func(_ *lab, f *foe, c ConvID) []byte {
			e := f.entry(c, 1, 1, 1, "x")
			e.kind = 9
			e.sign(f.n.id)
			return append(entryFrame(e), entryFrame(f.entry(c, 1, 2, 2, "next"))...)
		}, false, []string{"next"}},
		"a frame of the future": {func(_ *lab, f *foe, c ConvID) []byte {
			return append(appendFrame(nil, 99, make([]byte, 100)), entryFrame(f.entry(c, 1, 1, 1, "next"))...)
		}, false, []string{"next"}},
		"half a vector": {func(_ *lab, _ *foe, c ConvID) []byte { return appendFrame(nil, frameVector, c[:], []byte{3, 1}) }, true, nil},
		"has what cannot be": {func(_ *lab, f *foe, c ConvID) []byte {
			return appendVector(nil, c, true, []claim{{logKey{f.n.id.ID(), LogID{1}}, 1 << 60, 0}})
		}, true, nil},
		"has more of the device's log than it wrote": {func(l *lab, _ *foe, c ConvID) []byte {
			return appendVector(nil, c, true, []claim{{logKey{l.nodes[0].id.ID(), LogID{1}}, 1 << 40, 1 << 40}})
		}, false, nil},
		"wants what is not there": {func(l *lab, _ *foe, c ConvID) []byte {
			return slices.Concat(appendWant(nil, c, logKey{l.nodes[2].id.ID(), LogID{1}}, 5), appendWant(nil, ConvID{9}, logKey{}, 0))
		}, false, nil},
		"a start that nobody signed": {func(l *lab, _ *foe, c ConvID) []byte {
			st := start{conv: c, logKey: logKey{other(l).id.ID(), LogID{1}}, seq: 1000, lamport: 1000}
			return appendFrame(nil, frameStart, st.encode())
		}, true, nil},
		"a receipt that nobody signed": {func(l *lab, f *foe, c ConvID) []byte {
			r := newReceipt(f.n.id, c, l.nodes[0].id.ID(), 1, nil)
			id := other(l).id.ID()
			copy(r.raw[16:], id[:])
			return appendFrame(nil, frameReceipt, r.raw)
		}, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, l *lab) {
				conv := l.room()
				a := l.nodes[0]
				a.start()
				f := foeOf(t, l, 1, 0)
				defer f.close()
				whole := f.say(c.say(l, f, conv))
				if hungUp := f.hungUp(); hungUp != c.hungUp || !whole && !hungUp {
					t.Errorf("hung up: %v, want %v; got frames %v", hungUp, c.hungUp, f.got)
				}
				if got := a.texts(t, conv); !slices.Equal(got, c.want) {
					t.Errorf("lines: %q, want %q", got, c.want)
				}
				a.stop() // and all that is there can be read again
				a.start()
				if got := a.texts(t, conv); !slices.Equal(got, c.want) {
					t.Errorf("after a restart: %q, want %q", got, c.want)
				}
			})
		})
	}
}

// TestStrangers has calls of whoever is no partner.
func TestStrangers(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a := l.nodes[0]
		a.start()
		l.mu.Lock()
		l.convs = []ConvID{{7}}
		l.nodes = l.nodes[:1] // the room has one member now
		l.mu.Unlock()
		near, far := net.Pipe()
		defer near.Close()
		l.nodes = append(l.nodes, newLab(t, 2).nodes[1])
		a.ln.ch <- pipeConn{far, pipeAddr(0)} // itself
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("a device talks with itself")
		}
	})
}

// TestPenalty has a device that broke the protocol wait.
func TestPenalty(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.room()
		l.nodes[0].start()
		f := foeOf(t, l, 1, 0)
		f.say([]byte{0, 0, 0, 0})
		f.close()
		synctest.Wait()
		f = foeOf(t, l, 1, 0)
		if !f.hungUp() {
			t.Error("it is listened to at once")
		}
		f.close()
		pass(penalty)
		f = foeOf(t, l, 1, 0)
		defer f.close()
		f.say(entryFrame(f.entry(c, 1, 1, 1, "sorry")))
		if f.hungUp() || len(l.nodes[0].texts(t, c)) != 1 {
			t.Error("it is never listened to again")
		}
	})
}

// TestFlood has a device send as fast as it can for a minute, on ever new logs, too.
func TestFlood(t *testing.T) {
	for name, perLog := range map[string]int{"one log": 1 << 30, "a log for each line": 1} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, l *lab) {
				c := l.room()
				a := l.nodes[0]
				a.max, a.rate = 1000, 20
				a.start()
				for i := range 10 {
					a.send(t, c, fmt.Sprint("mine ", i))
				}
				f := foeOf(t, l, 1, 0)
				defer f.close()
				begin, sent := time.Now(), 0
				for time.Since(begin) < time.Minute && !f.hungUp() {
					e := f.entry(c, 0, uint64(sent%perLog)+1, uint64(sent)+1, strings.Repeat("flood ", 20))
					binary.BigEndian.PutUint32(e.log[:], uint32(sent/perLog)+1)
					e.sign(f.n.id)
					f.say(entryFrame(e))
					sent++
				}
				if limit := int(a.rate*burst + 61*a.rate); sent > limit {
					t.Errorf("%d lines were taken in a minute, want at most %d", sent, limit)
				}
				synctest.Wait()
				lines := a.all(t, c)
				mine := 0
				for _, m := range lines {
					if m.Mine {
						mine++
					}
				}
				if len(lines) > a.max || mine != 10 {
					t.Errorf("%d lines are kept, of them %d of this device's 10", len(lines), mine)
				}
				if size := len(a.disk.now[c.String()+vaultExt]); size > a.max*1000+slack {
					t.Errorf("the file has %d bytes", size)
				}
			})
		})
	}
}

// TestManyAuthors has a device say that it has a million logs of a million authors, and
// bring those of some.
func TestManyAuthors(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.room()
		a := l.nodes[0]
		a.rate = 1e9
		a.start()
		f := foeOf(t, l, 1, 0)
		defer f.close()
		claims := make([]claim, maxHas)
		for n := 0; n < 1_000_000; n += len(claims) {
			for i := range claims {
				binary.BigEndian.PutUint32(claims[i].author[:], uint32(n+i))
				claims[i].has = 1
			}
			f.say(appendVector(nil, c, false, claims))
		}
		if f.hungUp() {
			t.Error("authors who are no members matter") // they do not
		}
		s := a.svc
		s.mu.Lock()
		claimed, logs, pulls := len(s.linkTo(f.n.id.ID()).shared[c].has), len(s.convs[c].book.logs), len(s.convs[c].pulls)
		s.mu.Unlock()
		if claimed != 0 || logs != 0 || pulls != 0 {
			t.Errorf("%d claims, %d logs, %d pulls are remembered", claimed, logs, pulls)
		}
		for n := 0; n < 1_000_000 && !f.hungUp(); n += len(claims) { // of one member
			for i := range claims {
				claims[i].author = f.n.id.ID()
				binary.BigEndian.PutUint32(claims[i].log[:], uint32(n+i))
			}
			f.say(appendVector(nil, c, false, claims))
		}
		if !f.hungUp() {
			t.Error("a million logs of one author")
		}
	})
}

// TestClocks has authors lie about time. Lines are there, marked, and in order.
func TestClocks(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c, a, f := l.withFoe(t)
		defer f.close()
		for i, at := range []uint64{0, year10000 - 1, uint64(time.Now().UnixMilli()), uint64(time.Now().Add(clockSlack*time.Millisecond + time.Second).UnixMilli())} {
			e := f.entry(c, 1, uint64(i)+1, uint64(i)+1, fmt.Sprint(i))
			e.time = at
			e.sign(f.n.id)
			f.say(entryFrame(e))
		}
		synctest.Wait()
		var differs []bool
		for i, m := range a.all(t, c) {
			differs = append(differs, m.ClockDiffers)
			if _, err := m.Time.MarshalJSON(); err != nil || m.Text != fmt.Sprint(i) {
				t.Errorf("%+v: %v", m, err)
			}
		}
		if !slices.Equal(differs, []bool{false, true, false, true}) {
			t.Errorf("clock differs: %v", differs)
		}
		e := f.entry(c, 1, 5, 5, "in no year")
		e.time = year10000
		e.sign(f.n.id)
		f.say(entryFrame(e))
		if !f.hungUp() {
			t.Error("a time without a JSON form was taken")
		}
	})
}

// TestWhoGoesAhead has a member take the highest number that there can be. Others can
// still write, in order, and after as many lines come after it.
func TestWhoGoesAhead(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		c, a, f := l.withFoe(t)
		defer f.close()
		lamport := uint64(maxFirst)
		var last string
		for i := range uint64(20) {
			last = fmt.Sprint("far ", i)
			f.say(entryFrame(f.entry(c, 1, i+1, lamport, last)))
			lamport += maxStep
		}
		synctest.Wait()
		for i := range 50 {
			a.send(t, c, fmt.Sprint("mine ", i))
		}
		got := a.texts(t, c)
		if len(got) != 70 || got[69] != "mine 49" || slices.Index(got, last) > 45 {
			t.Errorf("got %q", got)
		}
		var mine []string
		for _, text := range got {
			if strings.HasPrefix(text, "mine") {
				mine = append(mine, text)
			}
		}
		for i := range 50 {
			if mine[i] != fmt.Sprint("mine ", i) {
				t.Fatalf("out of order: %q", mine)
			}
		}
	})
}

// TestTwin has a line come that this device has signed, by a number that it has not
// written: somebody runs a copy of it. Its next line is in another log.
func TestTwin(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.room()
		a := l.nodes[0]
		a.start()
		mine := a.send(t, c, "mine")
		f := foeOf(t, l, 1, 0)
		defer f.close()
		e := f.entry(c, 0, 2, 2, "of the twin")
		e.logKey = logKey{a.id.ID(), mine.Log}
		e.sign(a.id)
		f.say(entryFrame(e))
		synctest.Wait()
		next := a.send(t, c, "mine, too")
		if got := a.texts(t, c); next.Log == mine.Log || !slices.Equal(got, []string{"mine", "of the twin", "mine, too"}) {
			t.Errorf("got %q, in log %s after %s", got, next.Log, mine.Log)
		}
	})
}

// TestWhoIsNoMore has the lines of a member that is removed be refused, and a device that
// is no partner any more be hung up on.
func TestWhoIsNoMore(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		c, a, f := l.withFoe(t)
		defer f.close()
		f.say(entryFrame(f.entry(c, 1, 1, 1, "as a member")))
		if f.hungUp() || len(a.texts(t, c)) != 1 {
			t.Fatal("a member is not heard")
		}
		l.mu.Lock()
		l.nodes[1] = newLab(t, 9).nodes[8] // another device in its place
		l.mu.Unlock()
		a.svc.Changed()
		if !f.hungUp() {
			t.Error("who is no member is still talked to")
		}
		if got := a.texts(t, c); !slices.Equal(got, []string{"as a member"}) {
			t.Errorf("what it has said is gone: %q", got)
		}
	})
}

// TestNothingToShow has a member write much of which nobody is shown anything. It hides
// nothing of what others write.
func TestNothingToShow(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c, a, f := l.withFoe(t)
		defer f.close()
		var want []string
		for i := range uint64(300) {
			text := "\u202e"
			if i%100 == 50 {
				text = fmt.Sprint("line ", i)
				want = append(want, text)
			}
			f.say(entryFrame(f.entry(c, 1, i+1, i+1, text)))
		}
		synctest.Wait()
		lines, err := a.svc.Unread(c, 10)
		if err != nil || len(lines) != 3 {
			t.Errorf("unread: %+v, %v", lines, err)
		}
		if page, err := a.svc.History(c, nil, 2); err != nil || len(page) != 2 || page[0].Text != want[1] {
			t.Errorf("%+v, %v", page, err)
		}
		if got := a.texts(t, c); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if err := a.svc.MarkRead(c, lines[2]); err != nil {
			t.Fatal(err)
		}
		if convs, err := a.svc.Convs(); err != nil || convs[0].Unread != 0 {
			t.Errorf("%+v, %v", convs, err)
		}
	})
}
