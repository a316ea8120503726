package link

import "time"

// restartSize begins to look for the largest datagram that passes.
func (cand *candidate) restartSize(now time.Time) {
	cand.step, cand.tries, cand.sizeNext, cand.anew = 0, 0, now, false
}

// doubtSizes looks anew for the largest datagram that passes on every path; until that is
// known, what was known counts.
func (c *checker) doubtSizes(now time.Time) {
	c.stir(now)
	for _, cand := range c.all {
		if cand.usable {
			cand.restartSize(now)
		}
	}
}

// sizeAt is when the next large ping to a candidate is due; zero: it is not.
func (c *checker) sizeAt(now time.Time, cand *candidate) time.Time {
	if !cand.usable || cand.anew && !now.Before(c.activeUntil) {
		return time.Time{}
	}
	return cand.sizeNext
}

// pingSize sends the next data-size probe, or gives that size up.
func (c *checker) pingSize(now time.Time, cand *candidate) {
	if cand.tries == sizeTries {
		cand.tries = 0
		if cand.size >= c.sizes[cand.step] { // it fit once
			cand.size = smallProbe
		}
		cand.step++
		if !cand.small {
			cand.small = true
			defer c.choose(now)
		}
	}
	if cand.step == len(c.sizes) {
		cand.step, cand.tries, cand.sizeNext, cand.anew = 0, 0, now.Add(c.jitter(sizeAgain)), true
		return
	}
	cand.anew = false
	wait := max(sizeRetry<<cand.tries, 2*cand.rtt)
	cand.tries++
	cand.sizeNext = now.Add(wait)
	c.sendPing(now, cand, cand.via, c.sizes[cand.step])
}

// onSize takes note that a probe of size bytes was answered.
func (c *checker) onSize(now time.Time, cand *candidate, size int) {
	grew := size > cand.size
	cand.size = max(cand.size, size)
	switch {
	case size == c.sizes[0]:
		cand.small, cand.sizeNext = false, time.Time{}
	case size > smallProbe:
		// Something smaller fits. The path may widen later.
		cand.step, cand.tries, cand.sizeNext, cand.anew = 0, 0, now.Add(c.jitter(sizeAgain)), true
	}
	if grew && size > smallProbe && cand == c.selected {
		c.out.event(Changed, c.path(cand))
	}
}

// fit orders candidates by what is known about data size: 0 data does not fit,
// 1 not known yet, 2 it fits.
func (c *checker) fit(cand *candidate) int {
	switch {
	case cand.size >= c.sizes[0]:
		return 2
	case cand.small:
		return 0
	default:
		return 1
	}
}
