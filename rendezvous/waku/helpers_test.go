package waku

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// frameOf returns a frame that is told apart by its fill.
func frameOf(fill byte) []byte { return bytes.Repeat([]byte{fill}, rendezvous.FrameSize) }

// await polls a condition that no event tells of.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
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
func untilArrives(ctx context.Context, t testing.TB, from, to rendezvous.Session, frame []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
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
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		publish(ctx, t, from, frame)
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
