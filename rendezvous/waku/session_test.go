package waku

import (
	"testing"
	"testing/synctest"
	"time"
)

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
