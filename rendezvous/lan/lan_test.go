package lan

import (
	"bytes"
	"context"
	"crypto/rand"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTest(t testing.TB, cfg Config) *Exchange {
	t.Helper()
	cfg.IncludeLoopback = true
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func randomTopic(t testing.TB) (topic rendezvous.Topic) {
	t.Helper()
	if _, err := rand.Read(topic[:]); err != nil {
		t.Fatal(err)
	}
	return topic
}

func join(t testing.TB, e *Exchange, p rendezvous.Point) rendezvous.Session {
	t.Helper()
	s, err := e.Join(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestWays sends a frame each way over each way that the driver has, alone.
func TestWays(t *testing.T) {
	for _, way := range []struct {
		name     string
		cfg      Config
		endpoint bool
	}{
		{"multicast alone", Config{DisableMDNS: true, Port: 27591}, false},
		{"mDNS alone", Config{DisableMulticast: true, MDNSPort: 27653}, false},
		{"unicast to known addresses alone", Config{DisableMulticast: true, DisableMDNS: true}, true},
	} {
		t.Run(way.name, func(t *testing.T) {
			a, b := newTest(t, way.cfg), newTest(t, way.cfg)
			topic := randomTopic(t)
			sa := join(t, a, rendezvous.Point{Topic: topic, Announce: true})
			p := rendezvous.Point{Topic: topic}
			if way.endpoint {
				p.Endpoints = a.Endpoints()
			}
			sb := join(t, b, p)
			frame := bytes.Repeat([]byte{7}, rendezvous.FrameSize)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			start := time.Now()
			if err := sb.Publish(ctx, frame); err != nil {
				t.Fatal(err)
			}
			got, err := sa.Receive(ctx)
			if err != nil {
				t.Fatalf("the frame did not come: %v (%s)", err, a.Health().Detail)
			}
			if !bytes.Equal(got.Frame, frame) {
				t.Fatal("the frame was changed")
			}
			t.Logf("first frame after %v", time.Since(start))
			// The answer goes to where the frame came from.
			frame[0] = 8
			if err := sa.Publish(ctx, frame); err != nil {
				t.Fatal(err)
			}
			for {
				got, err := sb.Receive(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if got.Frame[0] == 8 {
					break
				}
			}
		})
	}
}
