package control

import (
	"testing"
	"time"

	"github.com/kithproject/kith/app/files"
)

// TestSteering holds which streams a transfer has: the direct one alone where it
// carries, many of the tunnel where that loses packets, and the tunnel again when the
// direct one has gone.
func TestSteering(t *testing.T) {
	s := newSteering()
	count := func(lanes []files.Lane) (tunnel, direct int) {
		for _, l := range lanes {
			if l.Kind == files.LaneDirect {
				direct++
			} else {
				tunnel++
			}
		}
		return tunnel, direct
	}
	step := func(carrying int, loss float64, tunnel, direct int) {
		t.Helper()
		lanes := s.next(condition{carrying, loss, 20 * time.Millisecond}, steerEvery)
		if gotTunnel, gotDirect := count(lanes); gotTunnel != tunnel || gotDirect != direct {
			t.Errorf("%d carry, %v lost: %v", carrying, loss, lanes)
		}
	}
	if tunnel, direct := count(startLanes("")); tunnel != 1 || direct != 1 {
		t.Errorf("it begins with %v", startLanes(""))
	}
	step(1, -1, 0, 0)
	for range steerSure/steerEvery - 1 {
		step(2, 0, 0, 0)
	}
	step(2, 0, 0, 1) // sure by now
	step(1, 0, 0, 0)
	step(0, 0, 1, 1) // it has gone
	step(1, 0.0004, 0, 0)
	step(1, 0.01, 78, 1)
	step(78, 0.011, 0, 0) // already so
	step(78, 0.0002, 1, 1)
	step(1, 0.2, maxStreams, 1)
	step(maxStreams, -1, 0, 0)
	for range steerSure/steerEvery - 1 {
		step(maxStreams+1, 0.01, 0, 0)
	}
	step(maxStreams+1, 0.01, 0, 1)
}

func TestStreamsFor(t *testing.T) {
	for _, tt := range []struct {
		loss      float64
		roundTrip time.Duration
		want      int
	}{
		{-1, 20 * time.Millisecond, 1},
		{0, 20 * time.Millisecond, 1},
		{0.01, 0, 1},
		{0.001, time.Millisecond, 2},
		{0.001, 20 * time.Millisecond, 25},
		{0.01, 20 * time.Millisecond, 78},
		{0.01, 200 * time.Millisecond, maxStreams},
		{1, time.Hour, maxStreams},
	} {
		if got := streamsFor(tt.loss, tt.roundTrip); got != tt.want {
			t.Errorf("%v lost, %v: %d streams, want %d", tt.loss, tt.roundTrip, got, tt.want)
		}
	}
}
