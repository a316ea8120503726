package rendezvoustest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// Frame returns a frame of one byte, repeated.
func Frame(fill byte) []byte { return bytes.Repeat([]byte{fill}, rendezvous.FrameSize) }

// UntilArrives publishes a frame every so often until it arrives.
func UntilArrives(t testing.TB, from, to rendezvous.Session, frame []byte, every time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	arrived := make(chan error, 1)
	go func() {
		for {
			m, err := to.Receive(ctx)
			if err != nil || bytes.Equal(m.Frame, frame) {
				arrived <- err
				return
			}
		}
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := from.Publish(ctx, frame); err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
			t.Fatal(err)
		}
		select {
		case err := <-arrived:
			if err != nil {
				t.Fatal(err)
			}
			return
		case <-tick.C:
		}
	}
}

// Await waits until something holds that gives no other sign.
func Await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}
