package rendezvoustest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// patience bounds every wait of the suite.
const patience = 20 * time.Second

// Run runs the suite that every driver must pass. pair gives two exchanges on one
// medium that can reach each other; it closes nothing, the suite does.
func Run(t *testing.T, pair func(t *testing.T) (a, b rendezvous.Exchange)) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, *bench)
	}{
		{"a frame arrives whole, both ways", delivers},
		{"topics do not mix", isolates},
		{"many topics at once", manyTopics},
		{"frames of another size are refused", sizes},
		{"a context ends a wait", contexts},
		{"a closed session says so", closedSession},
		{"a closed exchange says so", closedExchange},
		{"a send-only session receives nothing", modes},
		{"two sessions of one exchange share a topic", shared},
		{"publish leaves the frame to the caller", ownership},
		{"use from many goroutines", concurrent},
		{"a receiver that is busy loses the newest", overflow},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			defer func() {
				if err := errors.Join(a.Close(), b.Close()); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c.f(t, &bench{t: t, ctx: ctx, a: a, b: b})
		})
	}
}

// bench is what a case works with.
type bench struct {
	t    *testing.T
	ctx  context.Context //nolint:containedctx // of one case
	a, b rendezvous.Exchange
}

func (s *bench) topic() (topic rendezvous.Topic) {
	s.t.Helper()
	if _, err := rand.Read(topic[:]); err != nil {
		s.t.Fatal(err)
	}
	return topic
}

func (s *bench) join(e rendezvous.Exchange, p rendezvous.Point) rendezvous.Session {
	s.t.Helper()
	p.Announce = p.Mode != rendezvous.SendOnly
	if e == s.b && p.Mode == rendezvous.Both {
		p.Side = 1
	}
	session, err := e.Join(s.ctx, p)
	if err != nil {
		s.t.Fatalf("join: %v", err)
	}
	return session
}

func frame(fill byte) []byte { return bytes.Repeat([]byte{fill}, rendezvous.FrameSize) }

// send publishes a frame until it arrives: a medium may lose some, and may still
// be connecting.
func (s *bench) send(from, to rendezvous.Session, f []byte) rendezvous.Message {
	s.t.Helper()
	got := make(chan rendezvous.Message, 1)
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for {
			m, err := to.Receive(ctx)
			if err != nil {
				return
			}
			if bytes.Equal(m.Frame, f) {
				got <- m
				return
			}
		}
	})
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		if err := from.Publish(ctx, f); err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
			s.t.Fatalf("publish: %v", err)
		}
		timer := time.NewTimer(wait)
		select {
		case m := <-got:
			timer.Stop()
			return m
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			s.t.Fatalf("a frame did not arrive; health: %+v, %+v", s.a.Health(), s.b.Health())
		}
	}
}

func delivers(t *testing.T, s *bench) {
	topic := s.topic()
	a, b := s.join(s.a, rendezvous.Point{Topic: topic}), s.join(s.b, rendezvous.Point{Topic: topic})
	if m := s.send(a, b, frame(1)); m.Exchange == "" {
		t.Error("a message does not name its exchange")
	}
	s.send(b, a, frame(2))
	for _, e := range []rendezvous.Exchange{s.a, s.b} {
		if h := e.Health(); !h.Ready || h.Err != nil || h.Detail == "" || h.Name == "" {
			t.Errorf("health of a medium that works: %+v", h)
		}
	}
}

func isolates(t *testing.T, s *bench) {
	one, two := s.topic(), s.topic()
	a1 := s.join(s.a, rendezvous.Point{Topic: one})
	b1, b2 := s.join(s.b, rendezvous.Point{Topic: one}), s.join(s.b, rendezvous.Point{Topic: two})
	s.send(a1, b1, frame(1))
	// By now it would have come.
	ctx, cancel := context.WithTimeout(s.ctx, 100*time.Millisecond)
	defer cancel()
	if m, err := b2.Receive(ctx); err == nil {
		t.Errorf("a frame of another topic came: %x", m.Frame[:4])
	}
}

func manyTopics(_ *testing.T, s *bench) {
	const count = 20
	type pair struct{ a, b rendezvous.Session }
	var all []pair
	for range count {
		topic := s.topic()
		all = append(all, pair{s.join(s.a, rendezvous.Point{Topic: topic}), s.join(s.b, rendezvous.Point{Topic: topic})})
	}
	for i, p := range all {
		s.send(p.a, p.b, frame(byte(i+1)))
	}
}

func sizes(t *testing.T, s *bench) {
	a := s.join(s.a, rendezvous.Point{Topic: s.topic()})
	for _, size := range []int{0, 1, rendezvous.FrameSize - 1, rendezvous.FrameSize + 1, 100_000} {
		if err := a.Publish(s.ctx, make([]byte, size)); !errors.Is(err, rendezvous.ErrFrameSize) {
			t.Errorf("publish of %d bytes: %v, want ErrFrameSize", size, err)
		}
	}
}

func contexts(t *testing.T, s *bench) {
	a := s.join(s.a, rendezvous.Point{Topic: s.topic()})
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := a.Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("receive: %v, want the context's error", err)
	}
	if err := a.Publish(ctx, frame(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("publish: %v, want the context's error", err)
	}
	if _, err := s.a.Join(ctx, rendezvous.Point{Topic: s.topic()}); !errors.Is(err, context.Canceled) {
		t.Errorf("join: %v, want the context's error", err)
	}
}

func closedSession(t *testing.T, s *bench) {
	a := s.join(s.a, rendezvous.Point{Topic: s.topic()})
	waiting := make(chan error, 1)
	go func() {
		_, err := a.Receive(s.ctx)
		waiting <- err
	}()
	for range 2 { // the second changes nothing
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a receive that waited: %v, want net.ErrClosed", err)
	}
	if _, err := a.Receive(s.ctx); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive: %v, want net.ErrClosed", err)
	}
	if err := a.Publish(s.ctx, frame(1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("publish: %v, want net.ErrClosed", err)
	}
}

func closedExchange(t *testing.T, s *bench) {
	a := s.join(s.a, rendezvous.Point{Topic: s.topic()})
	for range 2 {
		if err := s.a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := a.Receive(s.ctx); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive: %v, want net.ErrClosed", err)
	}
	if _, err := s.a.Join(s.ctx, rendezvous.Point{Topic: s.topic()}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("join: %v, want net.ErrClosed", err)
	}
}

func modes(t *testing.T, s *bench) {
	topic := s.topic()
	only := s.join(s.a, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
	hear := s.join(s.b, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
	both := s.join(s.b, rendezvous.Point{Topic: topic})
	s.send(only, hear, frame(1))
	also := s.join(s.a, rendezvous.Point{Topic: topic})
	s.send(both, also, frame(2))
	ctx, cancel := context.WithTimeout(s.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := only.Receive(ctx); err == nil {
		t.Error("a send-only session received a frame")
	}
}

func shared(_ *testing.T, s *bench) {
	topic := s.topic()
	a := s.join(s.a, rendezvous.Point{Topic: topic})
	b1, b2 := s.join(s.b, rendezvous.Point{Topic: topic}), s.join(s.b, rendezvous.Point{Topic: topic})
	s.send(a, b1, frame(1))
	s.send(a, b2, frame(2))
	b1.Close()
	s.send(a, b2, frame(3)) // the other goes on
}

func ownership(t *testing.T, s *bench) {
	topic := s.topic()
	a, b := s.join(s.a, rendezvous.Point{Topic: topic}), s.join(s.b, rendezvous.Point{Topic: topic})
	s.send(a, b, frame(9))
	f := frame(1)
	want := slices.Clone(f)
	Await(t, "the medium takes a frame", func() bool { // it may just find out which way it is reached
		err := a.Publish(s.ctx, f)
		if err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
			t.Fatal(err)
		}
		return err == nil
	})
	if !bytes.Equal(f, want) {
		t.Error("publish changed the frame")
	}
	for i := range f { // the caller uses its memory again at once
		f[i] = 2
	}
	for {
		m, err := b.Receive(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if m.Frame[0] == 9 {
			continue // a copy of the first
		}
		if !bytes.Equal(m.Frame, want) {
			t.Error("the frame changed after publish had returned")
		}
		return
	}
}

func concurrent(t *testing.T, s *bench) {
	topic := s.topic()
	a, b := s.join(s.a, rendezvous.Point{Topic: topic}), s.join(s.b, rendezvous.Point{Topic: topic})
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(s.ctx)
	for i := range 4 {
		wg.Go(func() {
			for range 25 {
				err := a.Publish(ctx, frame(byte(i)))
				if err != nil && !errors.Is(err, rendezvous.ErrUnreachable) && ctx.Err() == nil {
					t.Errorf("publish: %v", err)
				}
			}
		})
		wg.Go(func() {
			for {
				if _, err := b.Receive(ctx); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			one, err := s.a.Join(ctx, rendezvous.Point{Topic: topic})
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("join: %v", err)
				}
				return
			}
			_ = s.a.Health()
			one.Close()
		})
	}
	s.send(a, s.join(s.b, rendezvous.Point{Topic: topic}), frame(77))
	cancel()
	wg.Wait()
}

func overflow(t *testing.T, s *bench) {
	topic := s.topic()
	a, b := s.join(s.a, rendezvous.Point{Topic: topic}), s.join(s.b, rendezvous.Point{Topic: topic})
	s.send(a, b, frame(1))
	for range 2 * rendezvous.QueueSize {
		if err := a.Publish(s.ctx, frame(2)); err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
			t.Fatalf("publish to a receiver that is busy: %v", err)
		}
	}
	// Nothing is stuck: a frame still gets through once there is room.
	s.send(a, b, frame(3))
}
