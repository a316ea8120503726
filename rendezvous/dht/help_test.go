package dht

import (
	"bytes"
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

type contextT = context.Context

const patience = 30 * time.Second

// await waits until something is true.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

func frame(fill byte) []byte { return bytes.Repeat([]byte{fill}, rendezvous.FrameSize) }

func newTopic(t testing.TB) (topic rendezvous.Topic) {
	t.Helper()
	if _, err := rand.Read(topic[:]); err != nil {
		t.Fatal(err)
	}
	return topic
}

func join(t testing.TB, e rendezvous.Exchange, p rendezvous.Point) rendezvous.Session {
	t.Helper()
	s, err := e.Join(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// receive waits for a frame.
func receive(t testing.TB, s rendezvous.Session, want []byte) rendezvous.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		m, err := s.Receive(ctx)
		if err != nil {
			t.Fatalf("frame %x: %v", want[:1], err)
		}
		if bytes.Equal(m.Frame, want) {
			return m
		}
	}
}
