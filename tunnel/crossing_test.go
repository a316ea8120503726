package tunnel

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A crossingBind holds back its first initiation until the other side has one,
// too.
type crossingBind struct {
	conn.Bind
	first sync.Once
	both  *sync.WaitGroup
}

func (b *crossingBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if len(bufs) == 1 && messageType(bufs[0]) == typeInitiation {
		b.first.Do(func() {
			b.both.Done()
			b.both.Wait()
		})
	}
	return b.Bind.Send(bufs, ep)
}

// TestCrossing lets both sides begin at the same time: none may have to wait for
// WireGuard's next try, after five seconds.
func TestCrossing(t *testing.T) {
	for range 4 { // the keys, which are random, say who wins
		t.Run("", func(t *testing.T) {
			var both sync.WaitGroup
			both.Add(2)
			ba, bb := newBind(), newBind()
			ba.Bind = &crossingBind{Bind: ba.Bind, both: &both}
			bb.Bind = &crossingBind{Bind: bb.Bind, both: &both}
			a, b := newSide(t, ba), newSide(t, bb)
			introduce(t, a, b)
			start := time.Now()
			errs := make(chan error, 2)
			for _, s := range []struct{ of, peer *side }{{a, b}, {b, a}} {
				go func() {
					_, err := s.of.Ping(patient(t), s.peer.id.ID().Addr())
					errs <- err
				}()
			}
			for range 2 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("both sides know each other after %v", took)
			}
		})
	}
}

func initiationWith(index uint32, key byte) []byte {
	b := message(typeInitiation, initiationSize, key)
	binary.LittleEndian.PutUint32(b[indexSender:], index)
	return b
}

func responseTo(index uint32) []byte {
	b := message(typeResponse, responseSize, 0)
	binary.LittleEndian.PutUint32(b[indexAnswered:], index)
	return b
}

// TestWhoWins checks that of two crossing initiations exactly one is heard.
func TestWhoWins(t *testing.T) {
	for _, tc := range []struct {
		name         string
		ours, theirs byte // random keys
		from         uint16
		hide         bool
	}{
		{"ours is less", 1, 2, 1, true},
		{"theirs is less", 2, 1, 1, false},
		{"to another endpoint", 1, 2, 2, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := time.Unix(1, 0)
			r := newResender()
			r.sent(now, initiationWith(1, tc.ours), endpoint(1))
			if reply, hide := r.received(now, initiationWith(2, tc.theirs), endpoint(tc.from)); hide != tc.hide || reply != nil {
				t.Fatalf("hidden %v, answered %v", hide, reply != nil)
			}
			r.received(now, responseTo(1), endpoint(1))
			if _, hide := r.received(now.Add(overtaken-1), initiationWith(3, tc.theirs), endpoint(tc.from)); hide != tc.hide {
				t.Errorf("hidden %v after the answer that overtook it", hide)
			}
			if _, hide := r.received(now.Add(overtaken), initiationWith(4, tc.theirs), endpoint(tc.from)); hide {
				t.Error("hidden although nothing waits")
			}
			r.sent(now, initiationWith(5, tc.ours), endpoint(1))
			r.received(now, responseTo(5), endpoint(1))
			r.forget(endpoint(1))
			if len(r.won) != 0 {
				t.Error("a peer that was forgotten is remembered")
			}
		})
	}
}

// TestResenderBounds floods a resender, and checks that it keeps what is newest
// for as long as it should.
func TestResenderBounds(t *testing.T) {
	const flood = 4 * maxAnswers
	now := time.Unix(1, 0)
	r := newResender()
	for i := range uint32(flood) {
		if _, hide := r.received(now, initiationWith(i, 1), endpoint(1)); hide {
			t.Fatalf("initiation %d is hidden", i)
		}
		r.sent(now, responseTo(i), endpoint(1))
	}
	if len(r.answers) > maxAnswers || cap(r.answers) > 4*maxAnswers {
		t.Errorf("%d answers are kept, in room for %d", len(r.answers), cap(r.answers))
	}
	for _, tc := range []struct {
		name  string
		index uint32
		at    time.Time
		again bool
	}{
		{"newest", flood - 1, now, true},
		{"oldest", 0, now, false},
		{"just in time", flood - 1, now.Add(answerLifetime - 1), true},
		{"too late", flood - 1, now.Add(answerLifetime), false},
	} {
		reply, hide := r.received(tc.at, initiationWith(tc.index, 1), endpoint(1))
		if hide != tc.again || bytes.Equal(reply, responseTo(tc.index)) != tc.again {
			t.Errorf("%s: hidden %v, answered %v", tc.name, hide, reply != nil)
		}
	}
	// Strangers' initiations, which nobody answers, push out only each other.
	for i := range uint32(flood) {
		r.received(now, initiationWith(i, 9), endpoint(uint16(i)))
	}
	if _, hide := r.received(now, initiationWith(flood-1, 1), endpoint(1)); !hide {
		t.Error("a flood pushes out an answer")
	}
	if !r.nextDue().IsZero() {
		t.Error("received initiations keep the timer going")
	}
}
