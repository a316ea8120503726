package rendezvous_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A stub is an exchange whose calls are functions; what is nil waits until the
// context or Close ends it, like a driver that hangs.
type stub struct {
	name    string
	join    func(context.Context) error
	publish func(context.Context, []byte) error
	points  []netip.AddrPort
	joins   atomic.Int32
	sent    atomic.Int32
	open    atomic.Int32 // sessions
	closing error
}

func (s *stub) Name() string                { return s.name }
func (s *stub) Endpoints() []netip.AddrPort { return s.points }
func (s *stub) Close() error                { return s.closing }
func (s *stub) Health() rendezvous.Health {
	return rendezvous.Health{Name: s.name, Detail: "a stub", Err: errStub}
}

var errStub = errors.New("stub")

func (s *stub) Join(ctx context.Context, _ rendezvous.Point) (rendezvous.Session, error) {
	s.joins.Add(1)
	if s.join == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := s.join(ctx); err != nil {
		return nil, err
	}
	s.open.Add(1)
	return &stubSession{stub: s, done: make(chan struct{})}, nil
}

type stubSession struct {
	*stub
	once sync.Once
	done chan struct{}
}

func (s *stubSession) Publish(ctx context.Context, frame []byte) error {
	s.sent.Add(1)
	if s.publish == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.publish(ctx, frame)
}

func (s *stubSession) Receive(ctx context.Context) (rendezvous.Message, error) {
	select {
	case <-ctx.Done():
		return rendezvous.Message{}, ctx.Err()
	case <-s.done:
		return rendezvous.Message{}, net.ErrClosed
	}
}

func (s *stubSession) Close() error {
	s.once.Do(func() { close(s.done); s.open.Add(-1) })
	return nil
}

func joins(context.Context) error           { return nil }
func takes(context.Context, []byte) error   { return nil }
func refuses(context.Context, []byte) error { return rendezvous.ErrUnreachable }
func after(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func frame(fill byte) []byte { return bytes.Repeat([]byte{fill}, rendezvous.FrameSize) }

func join(t *testing.T, e rendezvous.Exchange, p rendezvous.Point) rendezvous.Session {
	t.Helper()
	s, err := e.Join(t.Context(), p)
	if err != nil {
		t.Fatalf("join: %v", err)
	}
	return s
}

func closed(t *testing.T, e rendezvous.Exchange) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// TestRaceJoinDoesNotWait holds that a driver whose Join hangs costs 200 ms at
// most, and that it takes part as soon as it has joined.
func TestRaceJoinDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quick := &stub{name: "quick", join: joins, publish: takes}
		late := &stub{name: "late", join: after(5 * time.Second), publish: takes}
		dead := &stub{name: "dead"}
		r := rendezvous.Race(dead, late, quick)
		start := time.Now()
		s := join(t, r, rendezvous.Point{})
		if took := time.Since(start); took != 200*time.Millisecond {
			t.Errorf("join took %v, want 200ms", took)
		}
		if err := s.Publish(t.Context(), frame(1)); err != nil {
			t.Errorf("publish with one member: %v", err)
		}
		time.Sleep(5 * time.Second)
		if err := s.Publish(t.Context(), frame(1)); err != nil {
			t.Errorf("publish with two members: %v", err)
		}
		synctest.Wait()
		if quick.sent.Load() != 2 || late.sent.Load() != 1 {
			t.Errorf("frames taken: %d by the quick, %d by the late one; want 2 and 1", quick.sent.Load(), late.sent.Load())
		}
		closed(t, r)
		if n := quick.open.Load() + late.open.Load(); n != 0 {
			t.Errorf("%d sessions left open", n)
		}
	})
}

// TestRaceAdd holds that a medium that comes later carries the frames of sessions
// that were there before it, in both directions.
func TestRaceAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		r, other := rendezvous.Race(&stub{name: "quick", join: joins, publish: takes}), network.Exchange("other")
		defer closed(t, other)
		point := rendezvous.Point{Topic: rendezvous.Topic{1}}
		s, peer := join(t, r, point), join(t, other, point)
		if err := r.Add(network.Exchange("added")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for i, way := range []struct{ from, to rendezvous.Session }{{s, peer}, {peer, s}} {
			if err := way.from.Publish(t.Context(), frame(byte(i))); err != nil {
				t.Fatal(err)
			}
			msg, err := way.to.Receive(t.Context())
			if err != nil || !bytes.Equal(msg.Frame, frame(byte(i))) {
				t.Errorf("way %d: got %x, %v", i, msg.Frame[:1], err)
			}
		}
		closed(t, r)
		if err := r.Add(network.Exchange("too late")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("add after close: %v, want net.ErrClosed", err)
		}
	})
}

// TestRaceStats holds that each medium's figures are its own, per session and in
// all, and outlive the sessions.
func TestRaceStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		other := network.Exchange("other")
		defer closed(t, other)
		broken := &stub{name: "broken", join: joins, publish: refuses}
		r := rendezvous.Race(network.Exchange("memory"), broken, &stub{name: "dead"})
		defer closed(t, r)
		point := rendezvous.Point{Topic: rendezvous.Topic{1}}
		s, peer := join(t, r, point), join(t, other, point)
		if err := s.Publish(t.Context(), frame(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for i := range 3 {
			if err := peer.Publish(t.Context(), frame(byte(i))); err != nil {
				t.Fatal(err)
			}
			msg, err := s.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.(rendezvous.Judge).Judge(msg, i > 0)
		}
		synctest.Wait()
		want := []rendezvous.Stats{
			{Name: "memory", Joined: true, Sent: 1, Received: 3, Useless: 1},
			{Name: "broken", Joined: true, Failed: 1, Err: rendezvous.ErrUnreachable.Error()},
			{Name: "dead"},
		}
		got := s.(rendezvous.Reporter).Stats()
		if got[0].First < time.Second || got[0].First > 2*time.Second {
			t.Errorf("first answer after %v, want a second", got[0].First)
		}
		want[0].First = got[0].First
		if !slices.Equal(got, want) || !slices.Equal(r.Stats(), want) {
			t.Errorf("session %+v\nall     %+v\nwant    %+v", got, r.Stats(), want)
		}
		twice := want[0].Plus(want[0])
		if twice.Sent != 2 || twice.Received != 6 || twice.Useless != 2 || twice.First != want[0].First {
			t.Errorf("together %+v", twice)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			want[i].Joined = false
		}
		if got := r.Stats(); !slices.Equal(got, want) {
			t.Errorf("after close %+v, want %+v", got, want)
		}
	})
}

func TestRaceJoinQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rendezvous.Race(&stub{name: "a", join: joins}, &stub{name: "b", join: joins})
		start := time.Now()
		join(t, r, rendezvous.Point{})
		if took := time.Since(start); took != 0 {
			t.Errorf("join took %v though every member answered at once", took)
		}
		closed(t, r)
	})
}

func TestRaceJoinRefused(t *testing.T) {
	no := func(text string) func(context.Context) error {
		return func(context.Context) error { return errors.New(text) }
	}
	for _, c := range []struct {
		name    string
		members []rendezvous.Exchange
		want    []string // in the error; nil = no error
	}{
		{"by all", []rendezvous.Exchange{&stub{name: "a", join: no("x1")}, &stub{name: "b", join: no("x2")}}, []string{"a: x1", "b: x2", "no medium"}},
		{"by one", []rendezvous.Exchange{&stub{name: "a", join: no("x1")}, &stub{name: "b", join: joins}}, nil},
		{"without members", nil, []string{"no medium"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rendezvous.Race(c.members...)
			defer closed(t, r)
			_, err := r.Join(t.Context(), rendezvous.Point{})
			if (err == nil) != (c.want == nil) {
				t.Fatalf("join: %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("join: %v, which does not say %q", err, w)
				}
			}
		})
	}
}

func TestRaceJoinEnds(t *testing.T) {
	for name, end := range map[string]struct {
		end  func(context.CancelFunc, *rendezvous.Racer)
		want error
	}{
		"with the context": {func(cancel context.CancelFunc, _ *rendezvous.Racer) { cancel() }, context.Canceled},
		"with close":       {func(_ context.CancelFunc, r *rendezvous.Racer) { _ = r.Close() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rendezvous.Race(&stub{name: "dead"}, &stub{name: "quick", join: joins})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan error, 1)
				go func() {
					_, err := r.Join(ctx, rendezvous.Point{})
					got <- err
				}()
				synctest.Wait() // it hangs in the dead member
				end.end(cancel, r)
				if err := <-got; !errors.Is(err, end.want) {
					t.Errorf("join: %v, want %v", err, end.want)
				}
				closed(t, r)
			})
		})
	}
}

// TestRacePublishFirst holds that Publish returns with the first success, that
// the slower ones still get the whole frame, and that a member that hangs is
// bounded in goroutines and time.
func TestRacePublishFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := make(chan []byte, 1000)
		slow := &stub{name: "slow", join: joins, publish: func(ctx context.Context, f []byte) error {
			if err := after(time.Second)(ctx); err != nil {
				return err
			}
			got <- slices.Clone(f)
			return nil
		}}
		hangs := &stub{name: "hangs", join: joins}
		r := rendezvous.Race(hangs, slow, &stub{name: "quick", join: joins, publish: takes})
		s := join(t, r, rendezvous.Point{})
		start := time.Now()
		f := frame(1)
		ctx, cancel := context.WithCancel(t.Context())
		if err := s.Publish(ctx, f); err != nil || time.Since(start) != 0 {
			t.Errorf("publish: %v after %v, want at once", err, time.Since(start))
		}
		cancel() // the caller is done
		clear(f) // and uses its memory again
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !bytes.Equal(<-got, frame(1)) {
			t.Error("the slow member did not get the frame as it was")
		}
		for range 100 {
			if err := s.Publish(t.Context(), frame(2)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := hangs.sent.Load(); n != 8 {
			t.Errorf("the member that hangs is busy with %d frames, want 8", n)
		}
		time.Sleep(31 * time.Second) // it is let go
		if err := s.Publish(t.Context(), frame(3)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := hangs.sent.Load(); n != 9 {
			t.Errorf("the member that hung got %d frames, want 9", n)
		}
		closed(t, r)
	})
}

func TestRacePublishFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := errors.New("out of paper")
		r := rendezvous.Race(
			&stub{name: "a", join: joins, publish: refuses},
			&stub{name: "b", join: joins, publish: func(context.Context, []byte) error { return other }},
		)
		defer closed(t, r)
		err := join(t, r, rendezvous.Point{}).Publish(t.Context(), frame(1))
		if !errors.Is(err, rendezvous.ErrUnreachable) || !errors.Is(err, other) {
			t.Errorf("publish: %v, want both causes", err)
		}
		hung := rendezvous.Race(&stub{name: "hangs", join: joins})
		defer closed(t, hung)
		s := join(t, hung, rendezvous.Point{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Publish(ctx, frame(1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("publish to a member that hangs: %v, want the context's error", err)
		}
		waiting := make(chan error, 1)
		go func() { waiting <- s.Publish(t.Context(), frame(1)) }()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-waiting; !errors.Is(err, net.ErrClosed) {
			t.Errorf("publish during close: %v, want net.ErrClosed", err)
		}
	})
}

// TestRaceFlood holds that garbage on one medium crowds out nobody on another,
// and that all together keep no more than QueueSize frames.
func TestRaceFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quiet, loud := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}), rendezvoustest.NewNetwork(2, rendezvoustest.Faults{})
		r := rendezvous.Race(loud.Exchange("loud"), quiet.Exchange("quiet"))
		topic := rendezvous.Topic{1}
		s := join(t, r, rendezvous.Point{Topic: topic})
		for range 10 {
			for range rendezvous.QueueSize {
				loud.Inject(topic, frame(0xff))
			}
			synctest.Wait()
		}
		quiet.Inject(topic, frame(1))
		synctest.Wait()
		var order []string
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			m, err := s.Receive(ctx)
			cancel()
			if err != nil {
				break
			}
			order = append(order, m.Exchange)
		}
		if i := slices.Index(order, "quiet"); i < 0 || i > 1 {
			t.Errorf("the quiet medium's frame came at place %d of %d", i, len(order))
		}
		if len(order) != rendezvous.QueueSize/2+1 {
			t.Errorf("%d frames were kept, want half of QueueSize and one", len(order))
		}
		closed(t, r)
	})
}

func TestRaceReceivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		r := rendezvous.Race(n.Exchange("a"), n.Exchange("b"))
		s := join(t, r, rendezvous.Point{})
		var wg sync.WaitGroup
		var got atomic.Int32
		for range 4 {
			wg.Go(func() {
				for {
					if _, err := s.Receive(t.Context()); err != nil {
						return
					}
					got.Add(1)
				}
			})
		}
		for range 50 {
			n.Inject(rendezvous.Topic{}, frame(1))
		}
		synctest.Wait()
		if got.Load() != 100 {
			t.Errorf("%d messages reached four receivers, want 100", got.Load())
		}
		closed(t, r)
		wg.Wait()
	})
}

func TestRaceAggregates(t *testing.T) {
	up := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}).Exchange("up")
	p1, p2 := netip.MustParseAddrPort("[fe80::1]:1"), netip.MustParseAddrPort("10.0.0.1:2")
	a, b := &stub{name: "a", points: []netip.AddrPort{p1}}, &stub{name: "b", points: []netip.AddrPort{p2}}
	for _, c := range []struct {
		members []rendezvous.Exchange
		want    string
		points  []netip.AddrPort
	}{
		{nil, "  false no medium is configured rendezvous: no medium takes this topic", nil},
		{[]rendezvous.Exchange{up}, "up up true up: in memory <nil>", nil},
		{[]rendezvous.Exchange{a, up, b}, "a+up+b a+up+b true a: a stub; up: in memory; b: a stub <nil>", []netip.AddrPort{p1, p2}},
		{[]rendezvous.Exchange{b, a}, "b+a b+a false b: a stub; a: a stub b: stub\na: stub", []netip.AddrPort{p2, p1}},
	} {
		r := rendezvous.Race(c.members...)
		h := r.Health()
		if got := fmt.Sprintf("%s %s %v %s %v", r.Name(), h.Name, h.Ready, h.Detail, h.Err); got != c.want {
			t.Errorf("health:\n%s\nwant\n%s", got, c.want)
		}
		if got := r.Endpoints(); !slices.Equal(got, c.points) {
			t.Errorf("endpoints: %v, want %v", got, c.points)
		}
		if got := r.Each(); len(got) != len(c.members) {
			t.Errorf("each: %v", got)
		}
	}
}

func TestRaceCloseJoinsErrors(t *testing.T) {
	r := rendezvous.Race(&stub{name: "a", closing: errStub}, &stub{name: "b"})
	for range 2 {
		if err := r.Close(); !errors.Is(err, errStub) {
			t.Errorf("close: %v, want the member's error", err)
		}
	}
}

func TestTopic(t *testing.T) {
	topic := rendezvous.Topic{1, 2, 3, 4, 5, 6, 7, 8, 9}
	if topic.Tag() != (rendezvous.Tag{1, 2, 3, 4, 5, 6, 7, 8}) || topic.String() != "01020304" {
		t.Errorf("tag %x, text %s", topic.Tag(), topic)
	}
}
