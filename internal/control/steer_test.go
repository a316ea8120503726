package control

import (
	"testing"

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
		lanes := s.next(carrying, loss, steerEvery)
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
	step(1, 0.0005, 0, 0)
	step(1, 0.01, manyStreams, 1)
	step(manyStreams, 0.01, 0, 0) // already so
	for range steerSure/steerEvery - 1 {
		step(manyStreams+1, 0.01, 0, 0)
	}
	step(manyStreams+1, 0.01, 0, 1)
}
