package waku

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"

	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// frameOf returns a frame that is told apart by its fill.
func frameOf(fill byte) []byte { return rendezvoustest.Frame(fill) }

// await polls a condition that no event tells of.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	rendezvoustest.Await(t, what, ok)
}

func awaitStats(t testing.TB, s *Service, ok func(Stats) bool) {
	t.Helper()
	var last Stats
	defer func() {
		if t.Failed() {
			t.Logf("stats: %+v", last)
		}
	}()
	await(t, "the node's counters are as they should be", func() bool {
		last = s.Stats()
		return ok(last)
	})
}

// awaitReady waits until an exchange has a node.
func awaitReady(t testing.TB, all ...*Exchange) {
	t.Helper()
	for _, e := range all {
		await(t, "a node is connected", func() bool { return e.Health().Ready })
	}
}

func publish(ctx context.Context, t testing.TB, s rendezvous.Session, frame []byte) {
	t.Helper()
	if err := s.Publish(ctx, frame); err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
		t.Fatalf("publish: %v", err)
	}
}

// awaitFrame receives until a frame comes.
func awaitFrame(ctx context.Context, t testing.TB, s rendezvous.Session, frame []byte) {
	t.Helper()
	for {
		m, err := s.Receive(ctx)
		if err != nil {
			t.Fatalf("the frame %x did not come: %v", frame[:2], err)
		}
		if bytes.Equal(m.Frame, frame) {
			return
		}
	}
}

// untilArrives publishes a frame until it arrives.
func untilArrives(t testing.TB, from, to rendezvous.Session, frame []byte) {
	t.Helper()
	rendezvoustest.UntilArrives(t, from, to, frame, 50*time.Millisecond)
}
