package rendezvous_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// TestRaceRemove holds that a medium that is taken out leaves open sessions, also where it
// hangs, and that the others go on.
func TestRaceRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		other := network.Exchange("other")
		defer closed(t, other)
		gone := &stub{name: "gone", join: joins, closing: errStub} // a frame hangs in it
		joining := &stub{name: "joining"}                          // it never joins
		r := rendezvous.Race(gone, network.Exchange("stays"), joining)
		defer closed(t, r)
		point := rendezvous.Point{Topic: rendezvous.Topic{1}}
		s, peer := join(t, r, point), join(t, other, point)
		pass := func(fill byte) {
			t.Helper()
			for _, way := range []struct{ from, to rendezvous.Session }{{s, peer}, {peer, s}} {
				if err := way.from.Publish(t.Context(), frame(fill)); err != nil {
					t.Fatal(err)
				}
				if msg, err := way.to.Receive(t.Context()); err != nil || !bytes.Equal(msg.Frame, frame(fill)) {
					t.Errorf("frame %d: %v", fill, err)
				}
			}
		}
		pass(1)
		synctest.Wait()
		if gone.sent.Load() != 1 {
			t.Fatalf("%d frames in the one that hangs", gone.sent.Load())
		}
		if err := r.Remove(gone); !errors.Is(err, errStub) {
			t.Errorf("remove: %v, want what closing says", err)
		}
		if err := r.Remove(joining); err != nil {
			t.Error(err)
		}
		if err := r.Remove(gone); err != nil {
			t.Errorf("once more: %v", err)
		}
		pass(2)
		synctest.Wait()
		if gone.open.Load() != 0 || gone.sent.Load() != 1 {
			t.Errorf("%d sessions open, %d frames", gone.open.Load(), gone.sent.Load())
		}
		if h := r.Health(); h.Name != "stays" || len(r.Stats()) != 1 || r.Stats()[0].Name != "stays" || r.Stats()[0].Sent != 2 {
			t.Errorf("%+v, %+v", h, r.Stats())
		}
		if err := r.Add(&stub{name: "later", join: joins, publish: takes}); err != nil {
			t.Fatal(err)
		}
		pass(3)
	})
}

// TestRaceRemoveLast holds that a session without media takes the next one.
func TestRaceRemoveLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		old := network.Exchange("old")
		r := rendezvous.Race(old)
		defer closed(t, r)
		s := join(t, r, rendezvous.Point{Topic: rendezvous.Topic{1}})
		network.Inject(rendezvous.Topic{1}, frame(1)) // nobody takes it
		synctest.Wait()
		if err := r.Remove(old); err != nil {
			t.Fatal(err)
		}
		if err := s.Publish(t.Context(), frame(1)); err == nil {
			t.Error("a frame was taken by nobody")
		}
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan rendezvous.Message, 1)
		go func() {
			defer close(got)
			if msg, err := s.Receive(ctx); err == nil {
				got <- msg
			}
		}()
		synctest.Wait()
		defer cancel()
		if err := r.Add(network.Exchange("new")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		network.Inject(rendezvous.Topic{1}, frame(2))
		if msg := <-got; !bytes.Equal(msg.Frame, frame(2)) || msg.Exchange != "new" {
			t.Errorf("%+v", msg)
		}
	})
}
