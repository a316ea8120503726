package measure

import (
	"testing"
	"time"
)

// TestTimes has each direction keep its own delays, whatever the other side's clock says.
func TestTimes(t *testing.T) {
	const ms = time.Millisecond
	type delays = func(i int) time.Duration
	flat := func(d time.Duration) delays { return func(int) time.Duration { return d } }
	saw := func(d time.Duration) delays { return func(i int) time.Duration { return d + time.Duration(i%2)*20*ms } }
	for name, test := range map[string]struct {
		out, in delays
		lost    func(i int) bool
		want    Result // without losses and rates
	}{
		"even": {
			flat(30 * ms), flat(30 * ms), nil,
			Result{RTT: 60 * ms, LatencyOut: 30 * ms, LatencyIn: 30 * ms},
		},
		"out of step": {
			saw(30 * ms), flat(30 * ms), nil,
			Result{RTT: 80 * ms, LatencyOut: 50 * ms, LatencyIn: 30 * ms, JitterOut: 20 * ms},
		},
		"back out of step": {
			flat(30 * ms), saw(30 * ms), nil,
			Result{RTT: 80 * ms, LatencyOut: 30 * ms, LatencyIn: 50 * ms, JitterIn: 20 * ms},
		},
		"the quickest is not the same both ways": { // what two clocks cannot tell
			flat(10 * ms), flat(50 * ms), nil,
			Result{RTT: 60 * ms, LatencyOut: 30 * ms, LatencyIn: 30 * ms},
		},
		"the first are lost": {
			saw(30 * ms), flat(10 * ms), func(i int) bool { return i < 7 },
			Result{RTT: 60 * ms, LatencyOut: 40 * ms, LatencyIn: 20 * ms, JitterOut: 20 * ms},
		},
		"all but one are lost": {
			saw(30 * ms), saw(30 * ms), func(i int) bool { return i != 8 },
			Result{RTT: 60 * ms, LatencyOut: 30 * ms, LatencyIn: 30 * ms},
		},
		"all are lost": {flat(ms), flat(ms), func(int) bool { return true }, Result{}},
	} {
		t.Run(name, func(t *testing.T) {
			all := make([]trip, trainCount)
			start := time.Unix(1e9, 0)
			for i := range all {
				sent := start.Add(time.Duration(i) * trainGap)
				all[i].sent = sent
				if test.lost != nil && test.lost(i) {
					continue
				}
				came := sent.Add(test.out(i))
				all[i].there = came.Sub(start.Add(test.out(0))) // since the first one came
				all[i].back = came.Add(test.in(i))
			}
			var got Result
			if got.times(all); got != test.want {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}
