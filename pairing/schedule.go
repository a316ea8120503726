package pairing

import (
	"encoding/binary"
	"io"
	"time"
)

const (
	firstRetry   = 250 * time.Millisecond
	slowestRetry = 3 * time.Second
)

// A schedule says when to send again: after 250 ms, then each time 1.6 times as
// long up to a limit, each with a jitter of a quarter either way.
type schedule struct {
	limit time.Duration
	wait  time.Duration
	at    time.Time // zero: never
}

func (s *schedule) start(now time.Time, limit time.Duration, random io.Reader) {
	s.limit, s.wait = limit, firstRetry
	s.at = now.Add(jitter(s.wait, random))
}

func (s *schedule) stop() { s.at = time.Time{} }

// due reports whether it is time, and sets the next time.
func (s *schedule) due(now time.Time, random io.Reader) bool {
	if s.at.IsZero() || now.Before(s.at) {
		return false
	}
	s.wait = min(s.wait*8/5, s.limit)
	s.at = now.Add(jitter(s.wait, random))
	return true
}

func jitter(d time.Duration, random io.Reader) time.Duration {
	var b [2]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return d // without randomness only the spread is lost
	}
	return d*3/4 + d/2*time.Duration(binary.BigEndian.Uint16(b[:]))/(1<<16)
}

// earliest returns the earliest time that is not zero.
func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}
