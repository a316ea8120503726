package pairing

import (
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/wire"
)

// bare is a commit phase without a machine, whose writes the test finishes.
type bare struct {
	t    *testing.T
	c    *Commit
	sent []byte  // the messages, in order
	last []byte  // the last body
	want []State // what is to be stored
	done int
}

func newBare(t *testing.T, s State, role Role) *bare {
	t.Helper()
	c, err := NewCommit(s, [16]byte{1}, role, [32]byte{1}, [32]byte{2}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &bare{t: t, c: c}
}

func (b *bare) drain() {
	b.t.Helper()
	for {
		a, ok := b.c.Poll()
		if !ok {
			return
		}
		switch a.Kind {
		case CommitSend:
			plain, err := wire.OpenMessage(b.c.send[:], b.c.ad(), a.Body)
			if err != nil {
				b.t.Fatal(err)
			}
			b.sent, b.last = append(b.sent, plain[0]), a.Body
		case CommitStore:
			b.want = append(b.want, a.State)
		case CommitDone:
			b.done++
		}
	}
}

// say gives c a message of the other side.
func (b *bare) say(now time.Time, msg byte) {
	b.t.Helper()
	body, err := wire.SealMessage(b.c.receive[:], b.c.ad(), append([]byte{msg}, b.c.pairID[:]...), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	b.c.Receive(now, body)
	b.drain()
}

// TestCancelIsToldAlthoughTheOtherSideSpeaks holds that nothing which the other
// side says of the living pair, while the end is on its way to the disk, counts
// as if it knew of the end.
func TestCancelIsToldAlthoughTheOtherSideSpeaks(t *testing.T) {
	for name, msgs := range map[string][]byte{
		"nothing": nil, "committed": {msgCommitted}, "prepared": {msgPrepared}, "both": {msgPrepared, msgCommitted, msgCommitted},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBare(t, Active, Joiner)
			b.c.Tick(t0)
			b.c.Cancel(t0)
			for _, m := range msgs {
				b.say(t0, m)
			}
			b.drain()
			b.sent = nil
			b.c.Stored(t0, Tomb, nil)
			b.drain()
			if len(b.sent) != 1 || b.sent[0] != msgUnpair || b.c.Settled() || b.c.Next().IsZero() {
				t.Fatalf("said %v, settled %v: the other side is not told", b.sent, b.c.Settled())
			}
			b.say(t0, msgUnpairAck)
			if !b.c.Settled() || !b.c.Next().IsZero() {
				t.Error("goes on although the other side has confirmed")
			}
		})
	}
}

// TestUnpairIsAnsweredAfterTheDisk holds the other direction: an UNPAIR is
// confirmed only when it is durable, and again if the confirmation got lost.
func TestUnpairIsAnsweredAfterTheDisk(t *testing.T) {
	for _, from := range []State{Prepared, Active} {
		b := newBare(t, from, Offerer)
		b.c.Tick(t0)
		b.drain()
		b.sent = nil
		b.say(t0, msgUnpair)
		if len(b.sent) != 0 || len(b.want) != 1 || b.want[0] != Tomb {
			t.Fatalf("%v: said %v before the disk, wants %v", from, b.sent, b.want)
		}
		b.c.Stored(t0, Tomb, errors.New("no space left"))
		b.drain()
		if len(b.sent) != 0 || b.c.State() != from {
			t.Fatalf("%v: said %v after a failed write", from, b.sent)
		}
		now := t0.Add(time.Second)
		b.say(now, msgUnpair) // the other side repeats it
		b.c.Stored(now, Tomb, nil)
		b.drain()
		if string(b.sent) != string([]byte{msgUnpairAck}) || !b.c.Settled() || b.done != 1 {
			t.Fatalf("%v: said %v, settled %v", from, b.sent, b.c.Settled())
		}
		b.say(now.Add(time.Second), msgUnpair)
		if string(b.sent) != string([]byte{msgUnpairAck, msgUnpairAck}) {
			t.Errorf("%v: said %v to a repeated UNPAIR", from, b.sent)
		}
	}
}

// TestCommitTable has every state and message: what is stored and what is said.
func TestCommitTable(t *testing.T) {
	for _, c := range []struct {
		state State
		msg   byte
		store State // 0: nothing
		says  string
	}{
		{Prepared, msgPrepared, Active, ""},
		{Prepared, msgCommitted, Active, ""},
		{Prepared, msgUnpair, Tomb, ""},
		{Prepared, msgUnpairAck, 0, ""},
		{Active, msgPrepared, 0, "\x02"},
		{Active, msgCommitted, 0, ""},
		{Active, msgUnpair, Tomb, ""},
		{Active, msgUnpairAck, 0, ""},
		{Tomb, msgPrepared, 0, "\x03"},
		{Tomb, msgCommitted, 0, "\x03"},
		{Tomb, msgUnpair, 0, "\x04"},
		{Tomb, msgUnpairAck, 0, ""},
		{Prepared, 0, 0, ""}, {Active, 5, 0, ""}, {Active, 0xff, 0, ""},
	} {
		b := newBare(t, c.state, Joiner)
		b.c.Tick(t0)
		b.drain()
		b.sent = nil
		b.say(t0.Add(time.Second), c.msg)
		var stored State
		if len(b.want) == 1 {
			stored = b.want[0]
		}
		if stored != c.store || string(b.sent) != c.says || len(b.want) > 1 {
			t.Errorf("%v and message %d: stores %v and says %v, want %v and %v", c.state, c.msg, b.want, b.sent, c.store, []byte(c.says))
		}
	}
}

// TestCommitSchedule holds the waits of the first day, of the days after, and the
// silence after a month.
func TestCommitSchedule(t *testing.T) {
	b := newBare(t, Prepared, Joiner)
	count := func(from, to time.Duration) int {
		b.sent = nil
		for !b.c.Next().IsZero() && b.c.Next().Before(t0.Add(to)) {
			now := b.c.Next()
			if now.Before(t0.Add(from)) {
				now = t0.Add(from)
			}
			b.c.Tick(now)
			b.drain()
		}
		return len(b.sent)
	}
	b.c.Tick(t0)
	b.drain()
	if n := count(0, time.Hour); n < 20 || n > 40 {
		t.Errorf("%d messages in the first hour", n)
	}
	if n := count(time.Hour, 24*time.Hour); n < 23*9 || n > 23*17 { // one per 5 minutes, ±25 %
		t.Errorf("%d messages in the rest of the first day", n)
	}
	if n := count(24*time.Hour, 30*24*time.Hour); n < 29*18 || n > 29*36 { // one per hour
		t.Errorf("%d messages in the rest of the month", n)
	}
	if n := count(30*24*time.Hour, 400*24*time.Hour); n > 1 || !b.c.Next().IsZero() {
		t.Errorf("%d messages after a month", n)
	}
}

// TestCommitBodiesAreBounded flips, cuts and reflects a body.
func TestCommitBodiesAreBounded(t *testing.T) {
	a, b := newBare(t, Prepared, Joiner), newBare(t, Prepared, Offerer)
	a.c.Tick(t0)
	a.drain()
	if len(a.last) > 128 {
		t.Errorf("a body of %d bytes; signaling carries 128", len(a.last))
	}
	for i := range a.last {
		bad := append([]byte{}, a.last...)
		bad[i] ^= 1
		b.c.Receive(t0, bad)
		b.c.Receive(t0, a.last[:i])
	}
	a.c.Receive(t0, a.last)
	a.drain()
	b.drain()
	if len(b.want)+len(a.want) != 0 {
		t.Fatalf("a bad body changed the state: %v, %v", a.want, b.want)
	}
	b.c.Receive(t0, a.last)
	b.drain()
	if len(b.want) != 1 || b.want[0] != Active {
		t.Errorf("the true body stores %v", b.want)
	}
}

func TestCommitAnswersSlowly(t *testing.T) {
	b := newBare(t, Active, Joiner)
	b.c.Tick(t0)
	for i := range 1000 {
		b.say(t0.Add(time.Duration(i)*time.Millisecond), msgPrepared)
	}
	if most := int(time.Second / answerGap); len(b.sent) > most+1 {
		t.Errorf("%d answers in a second, at most %d", len(b.sent), most)
	}
}

func TestNewCommitRefuses(t *testing.T) {
	for _, c := range []struct {
		s State
		r Role
	}{{0, Joiner}, {4, Joiner}, {Prepared, 0}, {Active, 3}} {
		if _, err := NewCommit(c.s, [16]byte{}, c.r, [32]byte{}, [32]byte{}, nil); !errors.Is(err, ErrConfig) {
			t.Errorf("state %d, role %d: %v", c.s, c.r, err)
		}
	}
}

// TestConfirmed holds that what was heard by another way settles an active pair, once,
// and no other.
func TestConfirmed(t *testing.T) {
	for _, s := range []State{Prepared, Active, Tomb} {
		b := newBare(t, s, Joiner)
		b.c.Confirmed()
		b.c.Confirmed()
		b.drain()
		if want := s == Active; b.c.Settled() != want || (b.done == 1) != want || len(b.sent) > 0 {
			t.Errorf("state %d: settled %v, done %d, sent %v", s, b.c.Settled(), b.done, b.sent)
		}
	}
}

// TestReceiveStored holds that what a medium kept has its effect, and that only who is
// there is told that the pair is active.
func TestReceiveStored(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, c := range []struct {
		state  State
		msg    byte
		stores State
	}{
		{Prepared, msgPrepared, Active}, {Prepared, msgCommitted, Active}, {Active, msgUnpair, Tomb}, {Active, msgPrepared, 0},
	} {
		b := newBare(t, c.state, Joiner)
		body, err := wire.SealMessage(b.c.receive[:], b.c.ad(), append([]byte{c.msg}, b.c.pairID[:]...), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b.c.ReceiveStored(now, body)
		b.drain()
		if got := len(b.want) == 1 && b.want[0] == c.stores; got != (c.stores != 0) || len(b.sent) > 0 {
			t.Errorf("state %d, message %d: stores %v, says %v", c.state, c.msg, b.want, b.sent)
		}
		b.say(now, c.msg)
		if c.state == Active && c.msg == msgPrepared && len(b.sent) != 1 {
			t.Errorf("a device that is there is told %v", b.sent)
		}
	}
}
