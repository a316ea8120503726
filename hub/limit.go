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
	loginRate    = 50.0  // TURN requests of one address a second that are not signed well
	loginBurst   = 200.0 // and at once
	maxSources   = 8192  // addresses remembered for each of these
)

// sources bounds what an address may cause, so that forged requests cannot make
// the hub flood somebody, and guessing is slow.
type sources struct {
	rate, burst float64

	mu  sync.Mutex
	ips map[netip.Addr]*bucket
}

func newSources(rate, burst float64) *sources {
	return &sources{rate: rate, burst: burst, ips: make(map[netip.Addr]*bucket)}
}

func (s *sources) allow(now time.Time, ip netip.Addr) bool {
	ip = ipKey(ip)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.ips[ip]
	if b == nil {
		if len(s.ips) >= maxSources {
			// Whoever fills the table gains a full bucket by it: one burst in 8192.
			clear(s.ips)
		}
		b = new(bucket)
		s.ips[ip] = b
	}
	return b.take(now, 1, s.rate, s.burst)
}

// refund takes back what allow counted.
func (s *sources) refund(ip netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.ips[ipKey(ip)]; b != nil {
		b.tokens = min(s.burst, b.tokens+1)
	}
}
