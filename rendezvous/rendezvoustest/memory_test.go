package rendezvoustest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func numbered(i int) []byte {
	f := make([]byte, rendezvous.FrameSize)
	binary.BigEndian.PutUint32(f, uint32(i))
	return f
}

func number(frame []byte) int { return int(binary.BigEndian.Uint32(frame)) }

func join(t *testing.T, e rendezvous.Exchange, p rendezvous.Point) rendezvous.Session {
	t.Helper()
	s, err := e.Join(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// waiting returns all messages that a session has.
func waiting(t *testing.T, s rendezvous.Session) (out []rendezvous.Message) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
		m, err := s.Receive(ctx)
		cancel()
		if err != nil {
			return out
		}
		out = append(out, m)
	}
}

// through sends numbered frames from a to b, 1 ms apart, and returns what arrived.
func through(t *testing.T, seed uint64, faults rendezvoustest.Faults, count int, disturb func(i int, n *rendezvoustest.Network)) (sent, echoed []rendezvous.Message) {
	t.Helper()
	n := rendezvoustest.NewNetwork(seed, faults)
	a, b := n.Exchange("a"), n.Exchange("b")
	from, to := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
	for i := range count {
		if disturb != nil {
			disturb(i, n)
		}
		if err := from.Publish(t.Context(), numbered(i)); err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		sent = append(sent, waiting(t, to)...)
		echoed = append(echoed, waiting(t, from)...)
	}
	time.Sleep(time.Second)
	sent = append(sent, waiting(t, to)...)
	echoed = append(echoed, waiting(t, from)...)
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	return sent, echoed
}

// TestFaults holds that each fault does what it says, about as often as it says.
func TestFaults(t *testing.T) {
	const count = 1000
	for _, c := range []struct {
		name                                        string
		faults                                      rendezvoustest.Faults
		arrived, twice, disorder, changed, comeBack [2]int // least and most, in frames
	}{
		{name: "none", arrived: [2]int{1000, 1000}},
		{name: "loss", faults: rendezvoustest.Faults{Loss: 0.3}, arrived: [2]int{640, 760}},
		{name: "all lost", faults: rendezvoustest.Faults{Loss: 1}},
		{name: "duplicate", faults: rendezvoustest.Faults{Duplicate: 0.2}, arrived: [2]int{1150, 1250}, twice: [2]int{150, 250}},
		{name: "reorder", faults: rendezvoustest.Faults{Reorder: 0.1}, arrived: [2]int{1000, 1000}, disorder: [2]int{60, 140}},
		{name: "delay", faults: rendezvoustest.Faults{MaxDelay: 5 * time.Millisecond}, arrived: [2]int{1000, 1000}, disorder: [2]int{200, 800}},
		{name: "corrupt", faults: rendezvoustest.Faults{Corrupt: 0.1}, arrived: [2]int{1000, 1000}, changed: [2]int{60, 140}},
		{name: "echo", faults: rendezvoustest.Faults{Echo: 0.5}, arrived: [2]int{1000, 1000}, comeBack: [2]int{440, 560}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, echoed := through(t, 7, c.faults, count, nil)
				seen := make(map[int]bool)
				var twice, disorder, changed int
				last := -1
				for _, m := range got {
					ones := 0
					for _, b := range m.Frame[4:] {
						ones += bits.OnesCount8(b)
					}
					i := number(m.Frame)
					if ones > 0 || i >= count {
						changed++
						continue
					}
					if seen[i] {
						twice++
					} else if i < last {
						disorder++
					}
					seen[i], last = true, max(last, i)
				}
				for _, f := range []struct {
					what string
					got  int
					want [2]int
				}{
					{"arrived", len(got), c.arrived}, {"twice", twice, c.twice}, {"out of order", disorder, c.disorder},
					{"changed", changed, c.changed}, {"come back", len(echoed), c.comeBack},
				} {
					if f.got < f.want[0] || f.got > f.want[1] {
						t.Errorf("%d frames %s, want %d to %d", f.got, f.what, f.want[0], f.want[1])
					}
				}
			})
		})
	}
}

// TestSeed holds that one seed gives one run, whatever others do meanwhile, and
// that another seed gives another.
func TestSeed(t *testing.T) {
	faults := rendezvoustest.Faults{Loss: 0.2, Duplicate: 0.2, Reorder: 0.2, Corrupt: 0.2, MaxDelay: 10 * time.Millisecond}
	run := func(seed uint64, disturb func(int, *rendezvoustest.Network)) (out []byte) {
		synctest.Test(t, func(t *testing.T) {
			got, _ := through(t, seed, faults, 300, disturb)
			for _, m := range got {
				out = append(out, m.Frame...)
			}
		})
		return out
	}
	first := run(1, nil)
	if !bytes.Equal(first, run(1, nil)) {
		t.Error("the same seed gave another run")
	}
	noise := func(_ int, n *rendezvoustest.Network) { n.Inject(rendezvous.Topic{9}, numbered(0)) }
	if !bytes.Equal(first, run(1, noise)) {
		t.Error("what others do changed the faults")
	}
	if bytes.Equal(first, run(2, nil)) {
		t.Error("another seed gave the same run")
	}
}

func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{MaxDelay: time.Second})
		a, b, c := n.Exchange("a"), n.Exchange("b"), n.Exchange("c")
		sa, sb, sc := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{}), join(t, c, rendezvous.Point{})
		for _, step := range []struct {
			name      string
			do        func()
			taken     bool
			atB, atC  int
			aIsReady  bool
			undoAfter func()
		}{
			{"whole", func() {}, true, 1, 1, true, nil},
			{"all cut", func() { n.Cut(true) }, false, 0, 0, false, nil},
			{"healed", func() { n.Cut(false) }, true, 1, 1, true, nil},
			{"the sender is cut", func() { a.Cut(true) }, false, 0, 0, false, nil},
			{"one receiver is cut", func() { a.Cut(false); b.Cut(true) }, true, 0, 1, true, nil},
			{"cut while it is under way", func() { b.Cut(false) }, true, 0, 0, true, func() { n.Cut(true) }},
		} {
			step.do()
			err := sa.Publish(t.Context(), numbered(1))
			if (err == nil) != step.taken || err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
				t.Errorf("%s: publish: %v", step.name, err)
			}
			if h := a.Health(); h.Ready != step.aIsReady || (h.Err == nil) != h.Ready {
				t.Errorf("%s: health: %+v", step.name, h)
			}
			if step.undoAfter != nil {
				step.undoAfter()
			}
			time.Sleep(2 * time.Second)
			if gotB, gotC := len(waiting(t, sb)), len(waiting(t, sc)); gotB != step.atB || gotC != step.atC {
				t.Errorf("%s: %d and %d frames arrived, want %d and %d", step.name, gotB, gotC, step.atB, step.atC)
			}
		}
		if err := errors.Join(a.Close(), b.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		if h := a.Health(); h.Ready || h.Err == nil {
			t.Errorf("health after close: %+v", h)
		}
	})
}

// TestCloseIsOnesOwn holds that closing one user leaves alone what is under way
// to others.
func TestCloseIsOnesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{MaxDelay: time.Second})
		a, b, c := n.Exchange("a"), n.Exchange("b"), n.Exchange("c")
		sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
		join(t, c, rendezvous.Point{})
		if err := sa.Publish(t.Context(), numbered(1)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		if got := len(waiting(t, sb)); got != 1 {
			t.Errorf("%d frames arrived, want 1", got)
		}
		b.Close()
	})
}

func TestRecordAndInject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := n.Exchange("a"), n.Exchange("b")
		topic := rendezvous.Topic{5}
		sa, sb := join(t, a, rendezvous.Point{Topic: topic}), join(t, b, rendezvous.Point{Topic: topic})
		if err := sa.Publish(t.Context(), numbered(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := sb.Publish(t.Context(), numbered(2)); err != nil {
			t.Fatal(err)
		}
		all := n.Recorded()
		if len(all) != 2 || all[0].Exchange != "a" || all[1].Exchange != "b" || all[1].Topic != topic ||
			number(all[1].Frame) != 2 || all[1].At.Sub(all[0].At) != time.Hour {
			t.Errorf("recorded: %+v", all)
		}
		waiting(t, sa)
		waiting(t, sb)
		n.Inject(topic, all[0].Frame)                         // a replay
		n.Inject(topic, make([]byte, rendezvous.FrameSize-1)) // what no driver would deliver
		n.Inject(rendezvous.Topic{6}, all[0].Frame)           // elsewhere
		for _, s := range []rendezvous.Session{sa, sb} {
			got := waiting(t, s)
			if len(got) != 1 || !slices.Equal(got[0].Frame, numbered(1)) {
				t.Errorf("%d frames came of what was injected, want the replay alone", len(got))
			}
		}
		if len(n.Recorded()) != 2 {
			t.Error("what was injected was recorded")
		}
		n.SetFaults(rendezvoustest.Faults{Loss: 1})
		n.Inject(topic, numbered(3))
		if len(waiting(t, sa)) != 0 {
			t.Error("SetFaults changed nothing")
		}
		a.Close()
		b.Close()
	})
}
