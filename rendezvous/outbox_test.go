package rendezvous_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// TestOutboxRate holds the specification's rate: three frames at once, then one a
// second, of which the newest counts.
func TestOutboxRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := rendezvous.NewOutbox(3, time.Second)
		start := time.Now()
		var at []time.Duration
		for range 6 {
			o.Put([]byte{1}, true)
			if _, ok := o.Next(nil); !ok {
				t.Fatal("no frame")
			}
			at = append(at, time.Since(start))
		}
		for i, want := range []time.Duration{0, 0, 0, time.Second, 2 * time.Second, 3 * time.Second} {
			if at[i] != want {
				t.Fatalf("frames went at %v", at)
			}
		}
		for i := range 4 {
			o.Put([]byte{byte(i)}, true)
		}
		if frame, ok := o.Next(nil); !ok || frame[0] != 3 || o.Waiting() {
			t.Errorf("frame %v, others wait %v: want the newest alone", frame, o.Waiting())
		}
		if _, ok := o.Next(nil); ok {
			t.Error("a frame out of nothing")
		}
	})
}

// TestOutboxOrder holds that what may go at once goes in order, at most a burst of
// it, and only the newest of what came while the medium was not there.
func TestOutboxOrder(t *testing.T) {
	for _, c := range []struct {
		there bool
		want  []byte
	}{{true, []byte{2, 3, 4}}, {false, []byte{4}}} {
		o := rendezvous.NewOutbox(3, time.Second)
		for i := range 5 {
			o.Put([]byte{byte(i)}, c.there)
		}
		<-o.Wake()
		var got []byte
		for o.Waiting() {
			frame, _ := o.Next(nil)
			got = append(got, frame...)
		}
		if string(got) != string(c.want) {
			t.Errorf("there %v: %v, want %v", c.there, got, c.want)
		}
	}
}

// TestOutboxDone holds that a session that closes does not wait for its turn.
func TestOutboxDone(t *testing.T) {
	o := rendezvous.NewOutbox(1, time.Hour)
	done := make(chan struct{})
	close(done)
	o.Put([]byte{1}, true)
	o.Next(done)
	o.Put([]byte{2}, true)
	if _, ok := o.Next(done); ok {
		t.Error("a frame beyond the limit")
	}
}
