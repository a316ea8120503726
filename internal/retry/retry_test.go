package retry_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/retry"
)

func TestScheduleGrowsAsSpecified(t *testing.T) {
	var s retry.Schedule
	t0 := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	zero := bytes.NewReader(bytes.Repeat([]byte{0x80, 0}, 100)) // no jitter
	s.Start(t0, 3*time.Second, zero)
	var waits []time.Duration
	last := t0
	for range 8 {
		waits = append(waits, s.At.Sub(last))
		last = s.At
		if !s.Due(s.At, zero) {
			t.Fatal("not due at its time")
		}
	}
	want := []time.Duration{250, 400, 640, 1024, 1638, 2621, 3000, 3000}
	for i := range want {
		if waits[i].Round(time.Millisecond) != want[i]*time.Millisecond {
			t.Fatalf("waits %v, want %v ms", waits, want)
		}
	}
}

func TestEarliestIsNotZero(t *testing.T) {
	t0 := time.Unix(1, 0)
	if got := retry.Earliest(time.Time{}, t0.Add(1), t0, time.Time{}); !got.Equal(t0) {
		t.Errorf("got %v, want %v", got, t0)
	}
	if got := retry.Earliest(time.Time{}); !got.IsZero() {
		t.Errorf("got %v, want none", got)
	}
}
