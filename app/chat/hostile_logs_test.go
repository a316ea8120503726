package chat

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// unsigned is a start of a device's log that the device has not signed.
func unsigned(c ConvID, k logKey, seq, lamport uint64) []byte {
	st := start{conv: c, logKey: k, seq: seq, lamport: lamport}
	return appendFrame(nil, frameStart, st.encode())
}

// TestOwnStart has a member say that the log which a device writes starts far ahead. Its
// lines stay, and it goes on with them; letters with them are written, too.
func TestOwnStart(t *testing.T) {
	for name, number := range map[string]uint64{"at the end": maxSeq, "soon": 3} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, l *lab) {
				post := newKeeper()
				l.mailAt(post)
				c := l.pair(0, 1)
				a := l.nodes[0]
				a.start()
				a.send(t, c, "one")
				mine := a.send(t, c, "two")
				f := foeOf(t, l, 1, 0)
				f.say(unsigned(c, logKey{a.id.ID(), mine.Log}, number, number))
				f.say(unsigned(c, logKey{a.id.ID(), LogID{7}}, number, min(number, maxFirst))) // of one that may have been lost
				synctest.Wait()
				a.send(t, c, "three")
				f.close()
				pass(10 * time.Second) // a letter is left
				want := []string{"one", "two", "three"}
				if got := a.texts(t, c); !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				if len(post.boxes[f.n.id.ID()]) == 0 {
					t.Error("no letter is left")
				}
				a.stop()
				a.start()
				if got := a.texts(t, c); !slices.Equal(got, want) {
					t.Errorf("after a restart: %q, want %q", got, want)
				}
			})
		})
	}
}

// TestStartAhead has a member sign that a log of its own starts far ahead of all others.
// What others write is shown at the end all the same.
func TestStartAhead(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		c, a, f := l.withFoe(t)
		defer f.close()
		at := uint64(maxFirst)
		for i, lamport := range []uint64{maxSeq - 10, at + maxAhead + 1, at + maxAhead} { // the last one is taken
			st := start{conv: c, logKey: logKey{f.n.id.ID(), LogID{byte(i)}}, seq: 1 << 40, lamport: lamport}
			st.sign(f.n.id)
			f.say(appendFrame(nil, frameStart, st.encode()))
			f.say(entryFrame(f.entry(c, byte(i), 1<<40+1, lamport+1, fmt.Sprint("far ", i))))
		}
		if f.hungUp() {
			t.Error("hung up")
		}
		for i := range 20 {
			a.send(t, c, fmt.Sprint("mine ", i))
		}
		got := a.texts(t, c)
		if len(got) != 21 || got[20] != "mine 19" || !slices.Contains(got, "far 2") {
			t.Errorf("got %q", got)
		}
	})
}

// TestThousandRuns has a device that has written in as many logs as it may come back with
// an old store, while the one that knows more is away.
func TestThousandRuns(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.pair(0, 1)
		a, b := l.nodes[0], l.nodes[1]
		for i := range ownLogs {
			a.start()
			a.send(t, c, fmt.Sprint("run ", i))
			a.stop()
		}
		a.start()
		b.start()
		l.connect(0, 1, true)
		pass(time.Minute)
		a.stop()
		a.disk, a.real = a.disk.copyOf(), a.disk // the later one first
		a.start()
		a.await(t, a.send(t, c, "late 0"), StateDelivered)
		l.connect(0, 1, false)
		a.stop()
		a.real = nil
		pass(time.Minute)
		a.start()
		a.send(t, c, "late 1")
		if logs := a.svc.convs[c].book.perAuth[a.id.ID()]; logs > ownLogs {
			t.Errorf("%d logs", logs)
		}
		l.connect(0, 1, true)
		pass(time.Minute)
		if got := b.texts(t, c); len(got) != ownLogs+2 || !slices.Contains(got, "late 0") || !slices.Contains(got, "late 1") {
			t.Errorf("the other one has %d lines, the last %q", len(got), got[len(got)-3:])
		}
	})
}

// TestManyClaims has a device say ever anew that it has logs of this one that nobody
// knows. It is asked for few, and what it says takes no memory.
func TestManyClaims(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.pair(0, 1)
		a := l.nodes[0]
		a.rate = 1e9
		a.start()
		f := foeOf(t, l, 1, 0)
		defer f.close()
		claims := make([]claim, maxHas)
		for n := range 100 {
			for i := range claims {
				claims[i] = claim{logKey{a.id.ID(), LogID{byte(n), byte(i >> 8), byte(i)}}, 1, 0}
			}
			f.say(appendVector(nil, c, true, claims))
		}
		if f.hungUp() {
			t.Error("hung up")
		}
		a.svc.mu.Lock()
		pulls := len(a.svc.convs[c].pulls)
		a.svc.mu.Unlock()
		f.mu.Lock()
		wants := 0
		for _, kind := range f.got {
			if kind == fmt.Sprint(frameWant) {
				wants++
			}
		}
		f.mu.Unlock()
		if pulls > maxPulls || wants > maxPulls {
			t.Errorf("%d logs are waited for, and %d were asked for", pulls, wants)
		}
		for i := range claims {
			claims[i] = claim{logKey{a.id.ID(), LogID{200, byte(i >> 8), byte(i)}}, 1, 0}
		}
		for range 3 {
			for i := range claims {
				claims[i].log[0]++
			}
			f.say(appendVector(nil, c, false, claims))
		}
		if !f.hungUp() {
			t.Errorf("%d logs of one author", 4*maxHas)
		}
	})
}

// TestManyPulls has a device fetch more logs from one who passes them on than it asks for
// at once.
func TestManyPulls(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		c := l.room()
		a, b, author := l.nodes[0], l.nodes[1], l.nodes[2]
		b.start()
		l.connect(1, 2, true)
		const runs = 3*maxPulls + 5
		for i := range runs {
			author.start()
			author.send(t, c, fmt.Sprint("run ", i))
			pass(time.Second)
			author.stop()
		}
		a.start()
		l.connect(0, 1, true)
		pass(pullTimeout / 2)
		if got := a.texts(t, c); len(got) != runs {
			t.Errorf("%d lines have come, want %d", len(got), runs)
		}
	})
}

// TestStatesOnce has a member read lines one after the other. Of each it is told once
// that it was delivered and once that it was read.
func TestStatesOnce(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.pair(0, 1)
		a := l.nodes[0]
		a.start()
		const lines = 300
		var m Message
		for i := range lines {
			m = a.send(t, c, fmt.Sprint(i))
		}
		events, stop := a.svc.Events()
		defer stop()
		f := foeOf(t, l, 1, 0)
		defer f.close()
		k := logKey{a.id.ID(), m.Log}
		claims := []claim{{k, lines, 0}}
		for i := range uint64(lines) {
			claims = append(claims, claim{k, lines, i + 1})
		}
		f.say(appendVector(nil, c, true, claims))
		synctest.Wait()
		count := make(map[State]int)
		for {
			synctest.Wait()
			select {
			case ev := <-events:
				if ev.Kind == EventState {
					count[ev.Message.State]++
				}
				continue
			default:
			}
			break
		}
		if count[StateRead] < lines || count[StateRead]+count[StateDelivered] > 2*lines {
			t.Errorf("%v events of %d lines", count, lines)
		}
	})
}

// TestManyStarts has members begin as many logs as they may. A line costs no more to write
// then, and what is known of their logs goes when they are no members any more.
func TestManyStarts(t *testing.T) {
	inBubble(t, 13, func(t *testing.T, l *lab) {
		c := l.room()
		a := l.nodes[0]
		a.rate = 1e9
		a.start()
		for n := 1; n < 13; n++ {
			f := foeOf(t, l, n, 0)
			for i := range maxLogs {
				st := start{conv: c, logKey: logKey{author: f.n.id.ID()}, seq: 1, lamport: 1}
				binary.BigEndian.PutUint32(st.log[:], uint32(i+1))
				st.sign(f.n.id)
				f.say(appendFrame(nil, frameStart, st.encode()))
			}
			synctest.Wait()
			f.close()
		}
		synctest.Wait()
		was := a.disk.bytes
		for range 3 {
			a.send(t, c, "hello")
			synctest.Wait()
		}
		if wrote := a.disk.bytes - was; wrote > slack {
			t.Errorf("3 lines wrote %d bytes", wrote)
		}
		l.mu.Lock()
		l.nodes = l.nodes[:2]
		l.mu.Unlock()
		a.svc.Changed()
		if err := a.svc.Forget(c); err != nil {
			t.Fatal(err)
		}
		a.stop()
		a.start()
		a.send(t, c, "bye")
		a.svc.mu.Lock()
		logs := len(a.svc.convs[c].book.list)
		a.svc.mu.Unlock()
		if logs != maxLogs+2 {
			t.Errorf("%d logs are known", logs)
		}
	})
}

// TestReceiptWhenTheAuthorGoes has an author leave who may not have heard that its line is
// here: whoever may meet it is given the receipt.
func TestReceiptWhenTheAuthorGoes(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		c := l.room()
		l.nodes[0].start()
		other, author := foeOf(t, l, 1, 0), foeOf(t, l, 2, 0)
		defer other.close()
		other.say(appendVector(nil, c, true, nil))
		author.say(entryFrame(author.entry(c, 1, 1, 1, "hello")))
		pass(time.Second)
		receipts := func() (n int) {
			other.mu.Lock()
			defer other.mu.Unlock()
			for _, kind := range other.got {
				if kind == fmt.Sprint(frameReceipt) {
					n++
				}
			}
			return n
		}
		if n := receipts(); n != 0 {
			t.Errorf("%d receipts while the author is there", n)
		}
		author.close()
		pass(laterDelay)
		if n := receipts(); n != 1 {
			t.Errorf("%d receipts when it has gone, want 1", n)
		}
	})
}
