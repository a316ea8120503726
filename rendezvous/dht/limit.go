package dht

import (
	"context"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const idlePause = 200 * time.Millisecond // before looking again whether there is little to do

// A limiter allows a burst and then a steady rate. It is safe for concurrent use.
type limiter struct {
	mu    sync.Mutex
	every time.Duration
	burst time.Duration // what may be taken in advance
	next  time.Time     // when the next one would be due without a burst
}

func newLimiter(rate float64, burst int) *limiter {
	every := time.Duration(float64(time.Second) / rate)
	return &limiter{every: every, burst: time.Duration(burst-1) * every}
}

// take takes a turn and returns how long to wait for it.
func (l *limiter) take(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest := now.Add(-l.burst); l.next.Before(earliest) {
		l.next = earliest
	}
	wait := l.next.Sub(now)
	l.next = l.next.Add(l.every)
	return max(wait, 0)
}

// allow takes a turn if there is one now.
func (l *limiter) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest := now.Add(-l.burst); l.next.Before(earliest) {
		l.next = earliest
	}
	if l.next.After(now) {
		return false
	}
	l.next = l.next.Add(l.every)
	return true
}

// wait waits for a turn. It errs when ctx ends first; the turn is then another's.
func (l *limiter) wait(ctx context.Context) error {
	d := l.take(time.Now())
	if err := pause(ctx, d); err != nil {
		if d > 0 {
			l.mu.Lock()
			l.next = l.next.Add(-l.every)
			l.mu.Unlock()
		}
		return err
	}
	return nil
}

// idle waits until half of the burst is free, for what can wait. It errs when ctx
// ends first.
func (l *limiter) idle(ctx context.Context) error {
	for {
		l.mu.Lock()
		free := !l.next.After(time.Now().Add(-l.burst / 2))
		l.mu.Unlock()
		if free {
			return nil
		}
		if err := pause(ctx, idlePause/2+rand.N(idlePause)); err != nil { //nolint:gosec // jitter
			return err
		}
	}
}

// pause waits. It errs when ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const sourceSlots = 512

// sources are limiters for those who ask us, in memory that does not grow: two
// addresses may share one.
type sources struct {
	seed  maphash.Seed
	slots [sourceSlots]*limiter
}

func newSources(rate float64, burst int) *sources {
	s := &sources{seed: maphash.MakeSeed()}
	for i := range s.slots {
		s.slots[i] = newLimiter(rate, burst)
	}
	return s
}

func (s *sources) allow(now time.Time, a netip.Addr) bool {
	return s.slots[maphash.Comparable(s.seed, network(a))%sourceSlots].allow(now)
}

// network is what has one owner: an address, or the half of an IPv6 address.
func network(a netip.Addr) netip.Addr {
	if a.Is6() {
		p, err := a.WithZone("").Prefix(64)
		if err == nil {
			return p.Addr()
		}
	}
	return a
}
