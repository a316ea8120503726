package link

import (
	"maps"
	"net/netip"
	"time"
)

// A bucket limits how often something is done: burst times at once, then every
// gap.
type bucket struct{ full time.Time }

func (b *bucket) take(now time.Time, burst int, gap time.Duration) bool {
	if b.full.Before(now) {
		b.full = now
	}
	if b.full.Sub(now) >= time.Duration(burst)*gap {
		return false
	}
	b.full = b.full.Add(gap)
	return true
}

// soonest is when the next one is allowed.
func (b *bucket) soonest(burst int, gap time.Duration) time.Time {
	return b.full.Add(-time.Duration(burst-1) * gap)
}

// allow reports whether a packet may go to an address that has not answered us,
// and if not, when it may.
func (c *checker) allow(now time.Time, to netip.AddrPort) (ok bool, at time.Time) {
	q := c.quotas[to]
	if q == nil {
		if len(c.quotas) >= maxQuotas {
			maps.DeleteFunc(c.quotas, func(_ netip.AddrPort, b *bucket) bool { return !b.full.After(now) })
		}
		if len(c.quotas) >= maxQuotas {
			return false, now.Add(strangeGap)
		}
		if !c.newcomers.take(now, newcomerBurst, newcomerGap) {
			return false, c.newcomers.soonest(newcomerBurst, newcomerGap)
		}
		if c.quotas == nil {
			c.quotas = make(map[netip.AddrPort]*bucket)
		}
		q = new(bucket)
		c.quotas[to] = q
	}
	if q.take(now, strangeBurst, strangeGap) {
		return true, now
	}
	return false, q.soonest(strangeBurst, strangeGap)
}
