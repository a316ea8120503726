package hub

import (
	"net/netip"
	"sync"
	"time"
)

// bucket is a token bucket; it is full at first. The caller guards it.
type bucket struct {
	tokens float64
	last   time.Time
}

// take takes n tokens of a bucket that gains rate tokens a second up to burst.
func (b *bucket) take(now time.Time, n, rate, burst float64) bool {
	if b.last.IsZero() {
		b.tokens = burst
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(burst, b.tokens+rate*d.Seconds())
	}
	if b.last.Before(now) {
		b.last = now
	}
	if b.tokens < n {
		return false
	}
	b.tokens -= n
	return true
}

const (
	bindingRate  = 20.0  // STUN answers to one address a second
	bindingBurst = 100.0 // and at once
	maxSources   = 8192  // addresses remembered for it
)

// sources bounds how often an address is answered, so that forged requests
// cannot make the hub flood somebody.
type sources struct {
	mu  sync.Mutex
	ips map[netip.Addr]*bucket
}

func (s *sources) allow(now time.Time, ip netip.Addr) bool {
	ip = ipKey(ip)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.ips[ip]
	if b == nil {
		if len(s.ips) >= maxSources || s.ips == nil {
			// Whoever fills the table gains a full bucket by it: one burst in 8192.
			s.ips = make(map[netip.Addr]*bucket)
		}
		b = new(bucket)
		s.ips[ip] = b
	}
	return b.take(now, 1, bindingRate, bindingBurst)
}
