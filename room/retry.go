package room

import (
	"encoding/binary"
	"io"
	"time"
)

const (
	firstRetry = 250 * time.Millisecond
	fastRetry  = 3 * time.Second  // the slowest while a handshake runs
	slowRetry  = 15 * time.Second // the slowest while the host's user is asked
)

// A schedule says when to send again: after 250 ms, then each time 1.6 times as
// long up to a limit, each with a jitter of a quarter either way.
type schedule struct {
	limit, wait time.Duration
	at          time.Time // zero: never
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

const maxNonces = 4096 // how many frames are known as seen

// A nonce is the part of a frame that tells a copy from a new one.
type nonce [24]byte

// nonces knows the last maxNonces frames.
type nonces struct {
	known map[nonce]struct{}
	ring  []nonce
	next  int
}

func newNonces() nonces { return nonces{known: make(map[nonce]struct{})} }

func (s *nonces) has(n nonce) bool {
	_, ok := s.known[n]
	return ok
}

// add reports whether n is new.
func (s *nonces) add(n nonce) bool {
	if s.has(n) {
		return false
	}
	if len(s.ring) < maxNonces {
		s.ring = append(s.ring, n)
	} else {
		delete(s.known, s.ring[s.next])
		s.ring[s.next] = n
		s.next = (s.next + 1) % maxNonces
	}
	s.known[n] = struct{}{}
	return true
}
