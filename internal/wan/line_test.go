package wan

import (
	"math"
	"testing"
	"time"
)

// TestLine sends packets of 1250 bytes, 10,000 bits, every 5 ms.
func TestLine(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cfg     Config
		every   time.Duration
		last    time.Duration // from going in to coming out, of the last
		dropped int           // of a thousand
	}{
		{"nothing", Config{}, time.Millisecond, 0, 0},
		{"delay", Config{Delay: 30 * time.Millisecond}, time.Millisecond, 30 * time.Millisecond, 0},
		{"rate, not full", Config{Rate: 10e6, Queue: time.Second}, 2 * time.Millisecond, time.Millisecond, 0},
		{"rate and delay", Config{Rate: 10e6, Queue: time.Second, Delay: 20 * time.Millisecond}, 2 * time.Millisecond, 21 * time.Millisecond, 0},
		{"twice the rate", Config{Rate: 10e6, Queue: 10 * time.Millisecond}, time.Millisecond / 2, 11 * time.Millisecond, 490},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLine(tt.cfg, 1)
			now, gone := time.Unix(1000, 0), 0
			var last time.Duration
			for range 1000 {
				if at, f := l.next(now, 1250); f == carried {
					last = at.Sub(now)
				} else {
					gone++
				}
				now = now.Add(tt.every)
			}
			if gone != tt.dropped || (last-tt.last).Abs() > time.Millisecond/2 {
				t.Errorf("%d dropped, the last took %v; want %d and %v", gone, last, tt.dropped, tt.last)
			}
		})
	}
}

func TestLoss(t *testing.T) {
	const packets = 100_000
	l := newLine(Config{Loss: 0.01}, 1)
	gone := 0
	for range packets {
		if _, f := l.next(time.Unix(0, 0), 100); f == lost {
			gone++
		}
	}
	if math.Abs(float64(gone)/packets-0.01) > 0.002 {
		t.Errorf("%d of %d were lost", gone, packets)
	}
}
