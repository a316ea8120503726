package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// TestForwardsAtOnce holds that changes which come at the same time all count: an older
// one must not undo a newer one.
func TestForwardsAtOnce(t *testing.T) {
	s := openServer(t, rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}), "desk")
	const rounds, each = 20, 8
	for round := range rounds {
		var wg sync.WaitGroup
		for i := range each {
			wg.Go(func() {
				spec := forward.Spec{ID: fmt.Sprint(i), Protocol: forward.TCP, Address: "127.0.0.1:0", Device: "laptop", Port: 80}
				known, err := s.forwards.add(spec, false)
				if err != nil {
					t.Error(err)
					return
				}
				<-known
			})
		}
		wg.Wait()
		if n := len(s.forwards.list(forward.Forward)); n != each {
			t.Fatalf("round %d: %d run, want %d", round, n, each)
		}
		for i := range each {
			wg.Go(func() {
				if err := s.forwards.remove(fmt.Sprint(i), errors.New("not there")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if left := s.forwards.list(forward.Forward); len(left) > 0 {
			t.Fatalf("round %d: left %+v", round, left)
		}
	}
}

// TestExposeRemovedWhileAsked has a client wait for what another one removes.
func TestExposeRemovedWhileAsked(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := openServer(t, rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}), "desk")
	spec := forward.Spec{ID: "expose x", Direction: forward.Expose, Protocol: forward.TCP, Address: "localhost:80", Device: "laptop", Port: 80}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	replied := make(chan error, 1)
	s.forwards.set.Close() // nothing is tried, as while the device does not answer
	s.forwards.set = forward.NewSet(forward.SetConfig{Network: silentNetwork{}, Changed: s.forwards.onChanged})
	go func() {
		_, err := s.follows(newStream(near), spec, true)
		replied <- err
	}()
	for len(s.forwards.list(forward.Expose)) == 0 {
		if ctx.Err() != nil {
			t.Fatal("it never began")
		}
	}
	if err := s.forwards.remove(spec.ID, errors.New("not there")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-replied:
		var told *Error
		if !errors.As(err, &told) || told.Kind != KindNotFound {
			t.Errorf("%v", err)
		}
	case <-ctx.Done():
		t.Error("the client waits for ever")
	}
}

// A silentNetwork says nothing of what is exposed.
type silentNetwork struct{ forward.Network }

func (silentNetwork) Expose(ctx context.Context, _ forward.Spec, _ forward.Options, _ func(string, error)) error {
	<-ctx.Done()
	return nil
}
