package chat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/identity"
)

// A keeper keeps letters for all devices of a lab.
type keeper struct {
	mu     sync.Mutex
	boxes  map[identity.DeviceID][]kept
	down   bool
	left   int // letters
	limit  int // of a device's letters; the oldest go
	random bool
}

type kept struct {
	from identity.DeviceID
	body []byte
}

func newKeeper() *keeper { return &keeper{boxes: make(map[identity.DeviceID][]kept), limit: 1 << 20} }

// box is what one device sees of a keeper.
type box struct {
	k    *keeper
	self identity.DeviceID
}

func (b box) Leave(_ context.Context, to identity.DeviceID, body []byte) error {
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	if b.k.down || len(body) == 0 || len(body) > MaxLetter {
		return fmt.Errorf("a letter of %d bytes, or the keeper is down", len(body))
	}
	b.k.left++
	all := append(b.k.boxes[to], kept{b.self, bytes.Clone(body)})
	b.k.boxes[to] = all[max(0, len(all)-b.k.limit):]
	return nil
}

func (b box) Fetch(context.Context) ([]Letter, error) {
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	if b.k.down {
		return nil, errors.New("the keeper is down")
	}
	var out []Letter
	for _, l := range b.k.boxes[b.self] {
		out = append(out, Letter{From: l.from, Body: l.body, Done: func(context.Context) error {
			b.k.mu.Lock()
			defer b.k.mu.Unlock()
			sum := sha256.Sum256(l.body)
			b.k.boxes[b.self] = slices.DeleteFunc(b.k.boxes[b.self], func(o kept) bool { return sha256.Sum256(o.body) == sum })
			return nil
		}})
	}
	if b.k.random {
		slices.Reverse(out)
	}
	return out, nil
}

func (l *lab) mailAt(k *keeper) {
	for _, n := range l.nodes {
		n.mail = box{k, n.id.ID()}
	}
}

func (n *node) fetch(t *testing.T) {
	t.Helper()
	if err := n.svc.FetchMail(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestMail has two devices talk that are never there at the same time.
func TestMail(t *testing.T) {
	for _, random := range []bool{false, true} {
		t.Run(fmt.Sprint("in any order: ", random), func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, l *lab) {
				k := newKeeper()
				k.random = random
				l.mailAt(k)
				a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
				a.start()
				var want []string
				var last Message
				for i := range 100 { // many letters of 60 KB
					want = append(want, fmt.Sprint(i, " ", strings.Repeat("x", 3000)))
					last = a.send(t, c, want[i])
				}
				a.await(t, last, StateSent)
				first, err := a.svc.History(c, nil, 100)
				if err != nil || first[0].State != StateSent || first[0].Delivered != 0 {
					t.Fatalf("%s, %v", first[0].State, err)
				}
				if convs, err := a.svc.Convs(); err != nil || convs[0].Kept != 0 {
					t.Errorf("%d lines are here alone, %v", convs[0].Kept, err)
				}
				left := k.left
				a.stop()
				a.start() // which does not leave it again
				pass(time.Minute)
				if k.left != left {
					t.Errorf("%d letters more after a restart", k.left-left)
				}
				a.stop()

				b.start()
				b.fetch(t)
				if got := b.texts(t, c); !slices.Equal(got, want) {
					t.Errorf("%d lines by mail, want %d", len(got), len(want))
				}
				if n := len(k.boxes[b.id.ID()]); n != 0 {
					t.Errorf("%d letters stay", n)
				}
				answer := b.send(t, c, "answer")
				b.await(t, answer, StateSent)
				if err := b.svc.MarkRead(c, b.all(t, c)[50]); err != nil {
					t.Fatal(err)
				}
				pass(time.Minute)
				b.stop()

				a.start()
				a.fetch(t)
				got := a.all(t, c)
				if len(got) != 101 || got[100].Text != "answer" || got[50].State != StateRead || got[51].State != StateDelivered {
					t.Errorf("%d lines, %+v", len(got), got[len(got)-1])
				}
				b.start()
				l.connectAll() // and all is there once
				pass(time.Minute)
				if diff := l.difference(t, c); diff != "" || len(b.texts(t, c)) != 101 {
					t.Error(len(b.texts(t, c)), diff)
				}
			})
		})
	}
}

// TestMailOfARoom has the members of a room be there one by one, and one of them never.
func TestMailOfARoom(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, l *lab) {
		k := newKeeper()
		l.mailAt(k)
		c := l.room()
		for range 3 {
			for i, n := range l.nodes[:3] {
				n.start()
				n.fetch(t)
				m := n.send(t, c, fmt.Sprint("of ", i))
				n.await(t, m, StateSent)
				pass(time.Minute)
				n.stop()
			}
		}
		for _, n := range l.nodes {
			n.start()
			n.fetch(t)
		}
		if diff := l.difference(t, c); diff != "" || len(l.nodes[3].texts(t, c)) != 9 {
			t.Error(diff)
		}
	})
}

// TestMailLost has letters be lost: what comes after is kept only when the rest is there.
func TestMailLost(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		k := newKeeper()
		l.mailAt(k)
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		a.start()
		b.start()
		a.await(t, a.send(t, c, "one"), StateSent)
		delete(k.boxes, b.id.ID())
		two := a.send(t, c, "two")
		a.await(t, two, StateSent)
		b.fetch(t)
		if got := b.texts(t, c); len(got) != 0 {
			t.Errorf("a gap is shown: %q", got)
		}
		if len(k.boxes[b.id.ID()]) != 1 {
			t.Error("what was not kept is deleted")
		}
		l.connectAll()
		a.await(t, two, StateDelivered)
		b.fetch(t)
		if got := b.texts(t, c); !slices.Equal(got, []string{"one", "two"}) || len(k.boxes[b.id.ID()]) != 0 {
			t.Errorf("got %q", got)
		}
	})
}

// TestMailTurned has many letters be given back in the wrong order.
func TestMailTurned(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		k := newKeeper()
		k.random = true
		l.mailAt(k)
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		a.start()
		const lines = 10_000
		var last Message
		for i := range lines {
			last = a.send(t, c, fmt.Sprint(i))
		}
		a.await(t, last, StateSent)
		b.start()
		b.fetch(t)
		if got := b.texts(t, c); len(got) != lines || len(k.boxes[b.id.ID()]) != 0 {
			t.Errorf("%d of %d lines have come, %d of %d letters stay", len(got), lines, len(k.boxes[b.id.ID()]), k.left)
		}
	})
}

// TestGapLetters has a device leave many letters for which something is missing. Few stay.
func TestGapLetters(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		k := newKeeper()
		l.mailAt(k)
		c := l.pair(0, 1)
		a := l.nodes[0]
		a.start()
		f := &foe{n: l.nodes[1]}
		for n := range uint64(3 * maxGaps) {
			var body []byte
			for i := range uint64(10) {
				body = append(body, entryFrame(f.entry(c, 1, 2+n*20+i, 2+n*20+i, "x"))...)
			}
			k.boxes[a.id.ID()] = append(k.boxes[a.id.ID()], kept{f.n.id.ID(), body})
		}
		a.fetch(t)
		if n := len(k.boxes[a.id.ID()]); n != maxGaps {
			t.Errorf("%d letters stay, want %d", n, maxGaps)
		}
		k.boxes[a.id.ID()] = append(k.boxes[a.id.ID()], kept{f.n.id.ID(), entryFrame(f.entry(c, 1, 1, 1, "first"))})
		a.fetch(t)
		if got := a.texts(t, c); len(got) != 11 || got[0] != "first" {
			t.Errorf("got %q", got)
		}
	})
}

// TestMailDown has the keeper be away for a while.
func TestMailDown(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		k := newKeeper()
		k.down = true
		l.mailAt(k)
		a, c := l.nodes[0], l.pair(0, 1)
		a.start()
		m := a.send(t, c, "one")
		pass(time.Minute)
		if got := a.await(t, m, StateKept); got.State != StateKept {
			t.Errorf("left nowhere: %s", got.State)
		}
		if err := a.svc.FetchMail(t.Context()); err == nil {
			t.Error("fetched nowhere")
		}
		k.mu.Lock()
		k.down = false
		k.mu.Unlock()
		pass(2 * time.Minute)
		a.await(t, m, StateSent)
		l.nodes[1].start()
		left := k.left
		l.connectAll()
		a.await(t, a.send(t, c, "two"), StateDelivered)
		pass(time.Minute)
		if k.left != left {
			t.Error("a letter was left for who is there")
		}
	})
}

// TestMailForTheLost has a device go without a word, as by kill -9: its connection still
// stands, and what is written is left as mail all the same.
func TestMailForTheLost(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		k := newKeeper()
		l.mailAt(k)
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		l.startAll()
		l.connectAll()
		a.await(t, a.send(t, c, "one"), StateDelivered)
		gone := func() {
			l.mu.Lock()
			l.up[pairKey(0, 1)] = false
			l.mu.Unlock()
			l.changed()
		}
		gone() // but it answers: the connection stays
		pass(time.Minute)
		a.await(t, a.send(t, c, "two"), StateDelivered)
		if k.left != 0 {
			t.Errorf("%d letters for who is there", k.left)
		}
		l.connectAll()
		pass(time.Minute)
		l.lost.Store(true)
		gone()
		start := time.Now()
		a.await(t, a.send(t, c, "three"), StateSent)
		if took := time.Since(start); took > pingTimeout+awayBefore+time.Second {
			t.Errorf("left after %v", took)
		}
		b.stop()
	})
}

// TestHostileLetters opens letters of whoever.
func TestHostileLetters(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		k := newKeeper()
		l.mailAt(k)
		c := l.room()
		a := l.nodes[0]
		a.start()
		f := &foe{n: l.nodes[1]}
		forged := f.entry(c, 1, 1, 1, "forged")
		forged.author = l.nodes[2].id.ID()
		elsewhere := f.entry(l.pair(0, 2), 1, 1, 1, "elsewhere")
		stranger := &foe{n: newLab(t, 9).nodes[8]}
		for _, body := range [][]byte{
			entryFrame(stranger.entry(c, 1, 1, 1, "of no member")), nil, []byte("junk"), {0xff, 0xff, 0xff, 0xff}, entryFrame(forged), entryFrame(elsewhere),
			appendFrame(nil, frameVector, []byte{1}), appendFrame(nil, frameStart, make([]byte, startSize)),
			append(entryFrame(f.entry(c, 1, 1, 1, "fine, but then")), entryFrame(forged)...),
			appendVector(nil, c, true, []claim{{logKey{a.id.ID(), LogID{1}}, 100, 100}}),
		} {
			k.boxes[a.id.ID()] = append(k.boxes[a.id.ID()], kept{f.n.id.ID(), body})
		}
		a.fetch(t)
		if got := a.texts(t, c); len(got) != 0 || len(k.boxes[a.id.ID()]) != 0 {
			t.Errorf("got %q, %d letters stay", got, len(k.boxes[a.id.ID()]))
		}
		synctest.Wait()
	})
}
