package pairing

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// party is one side under a random scheduler: its RAM (a Machine, or after a
// crash a Commit made from the disk) and its disk.
type party struct {
	cfg      Config
	m        *Machine
	c        *Commit
	disk     *Record
	had      bool // the disk has had a record
	paired   bool // the user was told "paired"
	cancels  bool
	rejected bool
}

// world is both sides and every message that was ever sent: the network may lose,
// repeat and reorder all of them for ever.
type world struct {
	t     *rapid.T
	now   time.Time
	sides [2]*party
	sent  [2][]message // by sender
}

// message is a frame of the machine, or a bare commit body.
type message struct {
	frame []byte
	body  []byte
}

func (w *world) drain(i int) {
	p := w.sides[i]
	for p.m != nil {
		a, ok := p.m.Poll()
		if !ok {
			break
		}
		switch a.Kind {
		case ActionSend:
			w.sent[i] = append(w.sent[i], message{frame: a.Frame})
		case ActionStore:
			r := a.Record
			if p.disk != nil && p.disk.State == Tomb {
				p.m.Stored(w.now, r.State, errors.New("ended"))
				continue
			}
			p.disk, p.had = &r, true
			p.m.Stored(w.now, r.State, nil)
		case ActionEvent:
			p.paired = p.paired || a.Event.Kind == EventPaired
		}
	}
	for p.c != nil {
		a, ok := p.c.Poll()
		if !ok {
			break
		}
		switch a.Kind {
		case CommitSend:
			w.sent[i] = append(w.sent[i], message{body: a.Body})
		case CommitStore:
			p.disk.State = a.State
			p.c.Stored(w.now, a.State, nil)
		case CommitDone:
		}
	}
	w.check()
}

// check holds S1 to S3.
func (w *world) check() {
	for i, p := range w.sides {
		other := w.sides[1-i]
		if p.disk == nil {
			if p.paired {
				w.t.Fatal("paired was said without a record")
			}
			continue
		}
		if (p.disk.State == Active || p.paired) && !other.had {
			w.t.Fatal("S1: a side is paired and the other never had a record")
		}
		if other.disk != nil && p.disk.PairID == other.disk.PairID && p.disk.Chain.Key != other.disk.Chain.Key {
			w.t.Fatal("S3: one pair id, two keys")
		}
		if p.disk.State == Active && other.disk != nil && other.disk.PairID != p.disk.PairID && other.disk.State == Active {
			w.t.Fatal("S3: both are active in different pairs")
		}
	}
}

func (w *world) deliver(to int, m message) {
	p := w.sides[to]
	switch {
	case p.m != nil && m.frame != nil:
		p.m.Receive(w.now, 0, m.frame)
	case p.c != nil && m.body != nil:
		p.c.Receive(w.now, m.body)
	case p.c != nil: // the commit body inside a frame of the code's topic
		if f, err := w.sealer(to, m.frame); err == nil && f.Type == frameCommit {
			p.c.Receive(w.now, f.Body)
		}
	case p.m != nil && p.m.commit != nil: // a body on the pair's topic
		p.m.commit.Receive(w.now, m.body)
	}
	w.drain(to)
}

func (w *world) sealer(i int, frame []byte) (f struct {
	Type byte
	Body []byte
}, err error) {
	m, err := New(w.sides[i].cfg, w.now)
	if err != nil {
		return f, err
	}
	got, err := m.sealers[0].Open(frame)
	f.Type, f.Body = got.Type, got.Body
	return f, err
}

// crash loses the RAM of a side and starts it again from its disk, without the
// code.
func (w *world) crash(i int) {
	p := w.sides[i]
	p.m, p.c = nil, nil
	if p.disk == nil {
		return
	}
	c, err := NewCommit(p.disk.State, p.disk.PairID, p.disk.Role, p.disk.CommitJ, p.disk.CommitO, rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	p.c = c
	c.Tick(w.now)
	w.drain(i)
}

func (w *world) tick(i int) {
	p := w.sides[i]
	var next time.Time
	switch {
	case p.m != nil:
		next = p.m.Next()
	case p.c != nil:
		next = p.c.Next()
	}
	if next.IsZero() {
		return
	}
	if next.After(w.now) {
		w.now = next
	}
	if p.m != nil {
		p.m.Tick(w.now)
	} else {
		p.c.Tick(w.now)
	}
	w.drain(i)
}

func newWorld(t *rapid.T, tb testing.TB) *world {
	oc, jc := configs(tb)
	oc.Lifetime, jc.Lifetime = time.Hour, time.Hour
	w := &world{t: t, now: t0}
	for i, cfg := range []Config{oc, jc} {
		m, err := New(cfg, t0)
		if err != nil {
			t.Fatal(err)
		}
		w.sides[i] = &party{cfg: cfg, m: m}
	}
	w.drain(0)
	w.drain(1)
	return w
}

// TestAnySchedule runs both sides under random losses, repeats, reorderings,
// crashes and decisions, checks S1 to S3 after every step, and in the end that two
// sides that both hold a record and did not cancel become paired.
func TestAnySchedule(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, t)
		crashes := 2
		rt.Repeat(map[string]func(*rapid.T){
			"deliver": func(rt *rapid.T) {
				from := rapid.IntRange(0, 1).Draw(rt, "from")
				if len(w.sent[from]) == 0 {
					rt.Skip()
				}
				// Mostly a recent message, so that something happens.
				back := min(rapid.IntRange(0, 8).Draw(rt, "back"), len(w.sent[from])-1)
				w.deliver(1-from, w.sent[from][len(w.sent[from])-1-back])
			},
			"tick": func(rt *rapid.T) { w.tick(rapid.IntRange(0, 1).Draw(rt, "side")) },
			"crash": func(rt *rapid.T) {
				if crashes == 0 {
					rt.Skip()
				}
				crashes--
				w.crash(rapid.IntRange(0, 1).Draw(rt, "side"))
			},
			"accept": func(rt *rapid.T) {
				p := w.sides[rapid.IntRange(0, 1).Draw(rt, "side")]
				if p.m == nil || p.m.keys == nil {
					rt.Skip()
				}
				_ = p.m.Accept(w.now, p.m.keys.check)
				w.drain(0)
				w.drain(1)
			},
			"reject": func(rt *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(rt, "side")
				if rapid.IntRange(0, 9).Draw(rt, "seldom") > 0 || w.sides[i].m == nil {
					rt.Skip()
				}
				w.sides[i].rejected = true
				w.sides[i].m.Reject(w.now)
				w.drain(i)
			},
			"unpair": func(rt *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(rt, "side")
				if rapid.IntRange(0, 9).Draw(rt, "seldom") > 0 || w.sides[i].c == nil {
					rt.Skip()
				}
				w.sides[i].cancels = true
				w.sides[i].c.Cancel(w.now)
				w.drain(i)
			},
		})
		settle(w)
		a, b := w.sides[0], w.sides[1]
		if a.disk == nil || b.disk == nil || a.disk.PairID != b.disk.PairID {
			return
		}
		switch {
		case a.cancels || b.cancels:
			if a.disk.State != Tomb || b.disk.State != Tomb {
				rt.Fatalf("a cancel did not reach the other side: %v, %v", a.disk.State, b.disk.State)
			}
		case a.disk.State != Active || b.disk.State != Active:
			rt.Fatalf("both hold a record and are not paired: %v, %v", a.disk.State, b.disk.State)
		}
	})
}

// settle lets both sides talk without faults until nothing changes.
func settle(w *world) {
	for range 40 {
		for i := range w.sides {
			w.tick(i)
			seen := len(w.sent[i])
			for _, m := range w.sent[i][max(0, seen-6):] {
				w.deliver(1-i, m)
			}
			w.now = w.now.Add(answerGap)
		}
	}
}

func TestScheduleGrowsAsSpecified(t *testing.T) {
	var s schedule
	zero := bytes.NewReader(bytes.Repeat([]byte{0x80, 0}, 100)) // no jitter
	s.start(t0, slowestRetry, zero)
	var waits []time.Duration
	last := t0
	for range 8 {
		waits = append(waits, s.at.Sub(last))
		last = s.at
		if !s.due(s.at, zero) {
			t.Fatal("not due at its time")
		}
	}
	want := []time.Duration{250, 400, 640, 1024, 1638, 2621, 3000, 3000}
	for i := range want {
		if waits[i].Round(time.Millisecond) != want[i]*time.Millisecond {
			t.Fatalf("waits %v, want %v ms", waits, want)
		}
	}
}
