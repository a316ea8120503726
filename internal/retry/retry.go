// Package retry says when a state machine sends again what was not answered. It
// has no clock and no randomness of its own.
package retry

import (
	"encoding/binary"
	"io"
	"time"
)

// First is the wait before the second time.
const First = 250 * time.Millisecond

// A Schedule says when to send again: after First, then each time 1.6 times as
// long up to Limit, each with a jitter of a quarter either way. The zero Schedule
// is one that has stopped.
type Schedule struct {
	Limit time.Duration
	At    time.Time // zero: never
	wait  time.Duration
}

// Start begins anew.
func (s *Schedule) Start(now time.Time, limit time.Duration, random io.Reader) {
	s.StartAfter(now, First, limit, random)
}

// StartAfter is Start with another first wait.
func (s *Schedule) StartAfter(now time.Time, wait, limit time.Duration, random io.Reader) {
	s.Limit, s.wait = limit, wait
	s.At = now.Add(jitter(wait, random))
}

// Stop ends it, until Start.
func (s *Schedule) Stop() { s.At = time.Time{} }

// Due reports whether it is time, and sets the next time.
func (s *Schedule) Due(now time.Time, random io.Reader) bool {
	if s.At.IsZero() || now.Before(s.At) {
		return false
	}
	s.wait = min(s.wait*8/5, s.Limit)
	s.At = now.Add(jitter(s.wait, random))
	return true
}

func jitter(d time.Duration, random io.Reader) time.Duration {
	var b [2]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return d // without randomness only the spread is lost
	}
	return d*3/4 + d/2*time.Duration(binary.BigEndian.Uint16(b[:]))/(1<<16)
}

// Earliest returns the earliest time that is not zero.
func Earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}
