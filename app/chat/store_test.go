package chat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestPowerAtEveryWrite cuts the power at the first, second, … operation of a disk while
// lines are written and come, some are let go of and some are read. Nothing that was
// said to be kept is lost, whatever of the last operation is there.
func TestPowerAtEveryWrite(t *testing.T) {
	for cut := 1; cut < 200; cut++ {
		done := false
		for seed := range uint64(3) {
			inBubble(t, 2, func(t *testing.T, l *lab) {
				done = cutAt(t, l, cut, seed)
			})
		}
		if done {
			t.Logf("%d operations", cut)
			return
		}
	}
	t.Error("there are ever more operations")
}

// cutAt cuts the power at one operation, and reports whether there are fewer.
func cutAt(t *testing.T, l *lab, cut int, seed uint64) (done bool) {
	a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
	a.disk = newMemDisk(seed)
	a.max = 12
	a.disk.left = cut
	a.start()
	b.start()
	l.connectAll()
	var said []string // of a
	var toA []Message
	for i := range 20 {
		if m, err := a.svc.Send(t.Context(), c, fmt.Sprint("a ", i)); err == nil {
			said = append(said, m.Text)
		}
		toA = append(toA, b.send(t, c, fmt.Sprint("b ", i)))
		synctest.Wait()
		if i%7 == 3 {
			_ = a.svc.MarkRead(c, toA[i]) // may be gone
		}
	}
	done = !a.disk.dead
	var delivered []string // to a, and so durable there
	for _, m := range toA {
		if got, err := b.svc.Wait(t.Context(), m, StateKept); err == nil && got.State != StateKept {
			delivered = append(delivered, m.Text)
		}
	}
	l.connect(0, 1, false)
	before := a.disk.copyOf().now
	a.kill()
	got := a.texts(t, c)
	for _, of := range [][]string{said, delivered} {
		if len(of) == 0 {
			continue
		}
		kind := of[0][:2]
		var there []string
		for _, text := range got {
			if strings.HasPrefix(text, kind) {
				there = append(there, text)
			}
		}
		// What is there is the newest of it, or more than that.
		want := of[max(0, len(of)-4):]
		if !contains(there, want) {
			t.Errorf("cut at %d: %q is there, %q was kept (files: %v)", cut, there, want, keys(before))
		}
	}
	l.connect(0, 1, true)
	pass(time.Minute)
	last := a.send(t, c, "the end")
	a.await(t, last, StateDelivered)
	bs := b.texts(t, c)
	for i, text := range said {
		if n := count(bs, text); n > 1 || n == 0 && i >= len(said)-4 {
			t.Errorf("cut at %d: %q is there %d times: %q", cut, text, n, bs)
		}
	}
	return done
}

func keys(m map[string][]byte) (out []string) {
	for k, v := range m {
		out = append(out, fmt.Sprint(k, ": ", len(v)))
	}
	return out
}

func count(all []string, text string) (n int) {
	for _, s := range all {
		if s == text {
			n++
		}
	}
	return n
}

// contains reports whether want stands in all, in order.
func contains(all, want []string) bool {
	for _, text := range all {
		if len(want) > 0 && text == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}

// TestBound lets go of the oldest lines, of who has most, and goes on.
func TestBound(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		a.max = 100
		l.startAll()
		l.connectAll()
		for i := range 10 {
			b.await(t, b.send(t, c, fmt.Sprint("b ", i)), StateDelivered)
		}
		var last Message
		for i := range 500 {
			last = a.send(t, c, fmt.Sprint("a ", i))
			a.await(t, last, StateDelivered)
		}
		check := func(when string) {
			t.Helper()
			got := a.texts(t, c)
			if len(got) > 100 || len(got) < 50 || got[len(got)-1] != "a 499" || count(got, "b 0") != 1 || count(got, "b 9") != 1 {
				t.Errorf("%s: %d lines: %q", when, len(got), got)
			}
		}
		check("now")
		if got := b.texts(t, c); len(got) != 510 {
			t.Errorf("the other one has %d lines", len(got))
		}
		if size := len(a.disk.now[c.String()+vaultExt]); size > 100*400 {
			t.Errorf("the file has %d bytes", size)
		}
		a.kill()
		check("after a restart")
		pass(time.Minute)
		check("after a while with the other one") // who does not bring it back
		if convs, err := a.svc.Convs(); err != nil || convs[0].Kept != 0 || convs[0].Unread != 10 || convs[0].Last.IsZero() {
			t.Errorf("%+v, %v", convs, err)
		}
		a.await(t, a.send(t, c, "more"), StateDelivered)
		b.await(t, b.send(t, c, "more of b"), StateDelivered)
	})
}

// TestBoundBytes counts bytes, too.
func TestBoundBytes(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, l *lab) {
		c := l.room()
		a := l.nodes[0]
		a.start()
		a.svc.cfg.MaxBytes = 100_000
		for range 100 {
			a.send(t, c, strings.Repeat("x", 4000))
		}
		if n := len(a.texts(t, c)); n > 25 || n < 15 {
			t.Errorf("%d lines of 4 KB fit 100 KB", n)
		}
	})
}

// TestGoneBeforeDelivered lets go of lines that the other device never got. It is told
// where the log starts, and gets the rest.
func TestGoneBeforeDelivered(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		c := l.room()
		a, b := l.nodes[0], l.nodes[1]
		a.max = 40
		l.startAll()
		for i := range 100 {
			a.send(t, c, fmt.Sprint(i))
		}
		want := a.texts(t, c)
		l.connect(0, 1, true)
		pass(time.Second)
		if got := b.texts(t, c); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		l.connect(0, 1, false)
		l.connect(1, 2, true) // who passes on where it starts
		pass(time.Second)
		if got := l.nodes[2].texts(t, c); !slices.Equal(got, want) {
			t.Errorf("at third hand: got %q, want %q", got, want)
		}
		b.kill()
		if got := b.texts(t, c); !slices.Equal(got, want) {
			t.Errorf("after a restart: got %q, want %q", got, want)
		}
	})
}

func TestForget(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		l.startAll()
		l.connectAll()
		a.await(t, a.send(t, c, "secret"), StateDelivered)
		b.await(t, b.send(t, c, "of b"), StateDelivered)
		l.connect(0, 1, false)
		lost := a.send(t, c, "not gone yet")
		if err := a.svc.Forget(c); err != nil {
			t.Fatal(err)
		}
		if err := a.svc.Forget(ConvID{1}); !errors.Is(err, ErrNoConv) {
			t.Errorf("forget nothing: %v", err)
		}
		if _, err := a.svc.Wait(t.Context(), lost, StateRead); !errors.Is(err, ErrNotKept) {
			t.Errorf("wait for what is gone: %v", err)
		}
		l.connect(0, 1, true)
		pass(time.Minute)
		if got := a.texts(t, c); len(got) != 0 {
			t.Errorf("it came back: %q", got)
		}
		a.await(t, a.send(t, c, "again"), StateDelivered)
		b.await(t, b.send(t, c, "again of b"), StateDelivered)
		if got := a.texts(t, c); !slices.Equal(got, []string{"again", "again of b"}) {
			t.Errorf("got %q", got)
		}
		if got := b.texts(t, c); !slices.Equal(got, []string{"secret", "of b", "again", "again of b"}) {
			t.Errorf("the other one: %q", got)
		}
	})
}

// TestSealed looks for lines and names in the files, and reads them with another key.
func TestSealed(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, c := l.nodes[0], l.pair(0, 1)
		a.start()
		a.send(t, c, "a very secret line")
		a.stop()
		self := a.id.ID()
		for name, b := range a.disk.now {
			if bytes.Contains(b, []byte("secret")) || bytes.Contains(b, self[:]) {
				t.Errorf("%s can be read", name)
			}
		}
		v, err := newVault(a.disk, [32]byte{99}, c)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if _, err := v.load(func(int64, int, byte, []byte) { n++ }); err != nil || n != 0 {
			t.Errorf("another key opens %d items, %v", n, err)
		}
	})
}

// TestDamage flips a byte anywhere in a file. What was before it is there; what was
// after it comes from the others; a large part that cannot be read is kept aside.
func TestDamage(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, c := l.nodes[0], l.pair(0, 1)
		l.startAll()
		l.connectAll()
		var last Message
		for i := range 40 {
			last = a.send(t, c, fmt.Sprint(i, strings.Repeat("x", 4000)))
		}
		a.await(t, last, StateDelivered)
		whole := l.nodes[1].texts(t, c)
		name := c.String() + vaultExt
		good := a.disk.copyOf()
		for at := 0; at < len(good.now[name]); at += 7919 {
			a.stop()
			a.disk = good.copyOf()
			a.disk.now[name][at] ^= 1
			l.connect(0, 1, false)
			a.start()
			if got := a.texts(t, c); len(got) >= 40 || !slices.Equal(got, whole[:len(got)]) {
				t.Errorf("byte %d: %d lines", at, len(got))
			}
			if aside := len(a.disk.now[name+damagedExt]); (aside > 0) != (len(good.now[name])-at > maxRecord+5000) && aside == 0 {
				t.Errorf("byte %d: %d bytes are kept aside", at, aside)
			}
			l.connect(0, 1, true)
			pass(time.Second)
			if got := a.texts(t, c); !slices.Equal(got, whole) {
				t.Errorf("byte %d: %d lines came back", at, len(got))
			}
		}
	})
}

func TestHistoryAndSearch(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		l.startAll()
		l.connectAll()
		for i := range 150 {
			n := []*node{a, b}[i%2]
			n.await(t, n.send(t, c, fmt.Sprintf("line %d about %s", i, []string{"Apples", "pears", "plums"}[i%3])), StateDelivered)
		}
		if _, err := a.svc.SendFile(t.Context(), c, FileRef{Name: "apples.txt", Size: 5, Offer: "7"}); err != nil {
			t.Fatal(err)
		}
		found, err := a.svc.Search(t.Context(), c, "aPPles", 3)
		if err != nil || len(found) != 3 || found[0].Text != "line 144 about Apples" || found[2].File == nil || found[2].File.Offer != "7" {
			t.Errorf("found %+v, %v", found, err)
		}
		if found, err = a.svc.Search(t.Context(), c, "oranges", 3); err != nil || len(found) != 0 {
			t.Errorf("found %+v, %v", found, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.svc.Search(ctx, c, "x", 1); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		page, err := a.svc.History(c, &found0(t, a, c, "line 10 about")[0], 5)
		if err != nil || len(page) != 5 || !strings.HasPrefix(page[0].Text, "line 5 ") || !strings.HasPrefix(page[4].Text, "line 9 ") {
			t.Errorf("before line 10: %+v, %v", page, err)
		}
		for _, n := range []int{-1, 0} {
			if page, err := a.svc.History(c, nil, n); err != nil || len(page) != 0 {
				t.Errorf("%d lines: %+v, %v", n, page, err)
			}
		}
	})
}

// TestMoreThanAThousand asks for more lines than a screen or a page would have.
func TestMoreThanAThousand(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, c := l.nodes[0], l.pair(0, 1)
		a.start()
		const lines = 1100
		for i := range lines {
			a.send(t, c, fmt.Sprint("line ", i))
		}
		page, err := a.svc.History(c, nil, 2*lines)
		if err != nil || len(page) != lines || page[0].Text != "line 0" {
			t.Errorf("history: %d lines, want %d: %v", len(page), lines, err)
		}
		found, err := a.svc.Search(t.Context(), c, "line", 2*lines)
		if err != nil || len(found) != lines || found[0].Text != "line 0" {
			t.Errorf("search: %d lines, want %d: %v", len(found), lines, err)
		}
	})
}

func found0(t *testing.T, n *node, c ConvID, text string) []Message {
	t.Helper()
	found, err := n.svc.Search(t.Context(), c, text, 1)
	if err != nil || len(found) != 1 {
		t.Fatalf("%q: %+v, %v", text, found, err)
	}
	return found
}

// TestEvents holds that a subscriber is told of all that happens, and if it has missed
// something.
func TestEvents(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		l.startAll()
		events, stop := a.svc.Events()
		slow, stopSlow := a.svc.Events()
		defer stopSlow()
		l.connectAll()
		m := a.send(t, c, "hello")
		a.await(t, m, StateDelivered)
		if err := b.svc.MarkRead(c, m); err != nil {
			t.Fatal(err)
		}
		a.await(t, m, StateRead)
		b.await(t, b.send(t, c, "hi"), StateDelivered)
		synctest.Wait()
		stop()
		var got []string
		for ev := range events {
			switch ev.Kind {
			case EventMessage, EventState:
				if s := fmt.Sprint(ev.Kind, " ", ev.Message.Text, " ", ev.Message.State); len(got) == 0 || got[len(got)-1] != s {
					got = append(got, s)
				}
			case EventConv:
				if len(ev.Conv.Members) != 2 || ev.Conv.ID != c {
					t.Errorf("%+v", ev.Conv)
				}
			}
		}
		_ = got // what was not taken before the end is not given
		for range maxEvents {
			a.send(t, c, "x")
		}
		lost := false
		for !lost {
			ev := <-slow
			lost = ev.Kind == EventLost
		}
	})
}

// TestRecordsStay changes the places of two records, and puts a file in the place of
// another.
func TestRecordsStay(t *testing.T) {
	d := newMemDisk(1)
	load := func(conv ConvID) int {
		v, err := newVault(d, [32]byte{1}, conv)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if _, err := v.load(func(int64, int, byte, []byte) { n++ }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	v, err := newVault(d, [32]byte{1}, ConvID{1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := v.write([]item{{9, []byte{byte(i)}}}, true); err != nil {
			t.Fatal(err)
		}
	}
	if n := load(ConvID{1}); n != 2 {
		t.Fatalf("%d records", n)
	}
	b := d.now[v.name]
	records := b[len(vaultMagic):]
	half := len(records) / 2
	d.now[v.name] = slices.Concat(b[:len(vaultMagic)], records[half:], records[:half])
	if n := load(ConvID{1}); n != 0 {
		t.Errorf("%d records open at other places", n)
	}
	d.now[ConvID{2}.String()+vaultExt] = b
	if n := load(ConvID{2}); n != 0 {
		t.Errorf("%d records open in another conversation", n)
	}
}
