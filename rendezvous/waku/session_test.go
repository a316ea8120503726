package waku

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// TestRate holds the politeness towards nodes: three frames at once, then one a
// second, of which the newest counts.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &session{Inbox: rendezvous.NewInbox("waku"), limit: limiter{burst: defaultBurst, interval: defaultInterval}}
		start := time.Now()
		var at []time.Duration
		for range 6 {
			s.waiting = [][]byte{{1}}
			if _, ok := s.next(); !ok {
				t.Fatal("no frame")
			}
			at = append(at, time.Since(start))
		}
		for i, want := range []time.Duration{0, 0, 0, time.Second, 2 * time.Second, 3 * time.Second} {
			if at[i] != want {
				t.Fatalf("frames went at %v", at)
			}
		}
		s.waiting = [][]byte{{1}, {2}, {3}}
		if frame, ok := s.next(); !ok || frame[0] != 3 || len(s.waiting) != 0 {
			t.Errorf("frame %v, %d wait: want the newest alone", frame, len(s.waiting))
		}
	})
}

// TestReconnect holds how attempts to connect follow each other: at once after a
// connection that carried a message, slower and slower where there is none, every
// second for some time after a good one was lost, and seldom where kith is not
// wanted.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		around := func(what string, got, want time.Duration) {
			t.Helper()
			if got < want*3/4 || got > want*5/4 {
				t.Errorf("%s: %v, want about %v", what, got, want)
			}
		}
		u := new(uplink)
		if got := u.backoff(0); got != usefulRetry {
			t.Errorf("after a message: %v", got)
		}
		around("after one failure", u.backoff(1), firstRetry)
		around("after four", u.backoff(4), 8*firstRetry)
		around("after many", u.backoff(100), longestRetry)
		u.lost = time.Now()
		around("after many, just lost", u.backoff(100), soonRetry)
		time.Sleep(soonFor + time.Second)
		around("after many, lost long ago", u.backoff(100), longestRetry)
		for _, err := range []error{ErrCluster, ErrProof} {
			if u.err = explain("node", err); u.backoff(1) != refusedRetry {
				t.Errorf("%v: %v", err, u.backoff(1))
			}
		}
	})
}

func TestSeen(t *testing.T) {
	s := seen{most: 10}
	for i := range 100 {
		if !s.add(hash{byte(i)}) || s.add(hash{byte(i)}) {
			t.Fatalf("hash %d", i)
		}
		if i > 10 && s.add(hash{byte(i - 9)}) {
			t.Fatalf("hash %d was forgotten too soon", i-9)
		}
		if len(s.now)+len(s.old) > 20 {
			t.Fatalf("%d are remembered", len(s.now)+len(s.old))
		}
	}
}
