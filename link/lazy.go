package link

import "time"

const (
	// dormantAfter is for how long a lazy link goes on without data: as long as
	// the shortest usual lifetime of a NAT's mapping, after which pings would be
	// needed anyway.
	dormantAfter = 30 * time.Second
	// keyPeriod is how often the keys are looked at when nothing else happens: a
	// link that sleeps for days has to know a ping of that day.
	keyPeriod = time.Hour
)

// SetLazy says whether the link sends nothing while there is no data. A lazy link
// falls asleep 30 s after the last data, news of the peer or Probe: it pings
// nobody, and keeps its path and its state as they are. It answers the peer's
// pings. Data that is sent wakes it: they go out on the last path at once, all
// addresses are asked, and an Event of kind Waking tells that this device may have
// to be announced anew. Data that comes, a ping from another address, SetRemote
// and Probe wake it, too, without an event. It does not block.
func (l *Link) SetLazy(lazy bool) { l.order(func(o *orders) { o.lazy = &lazy }) }

// Dormant reports whether the link sleeps, as a lazy one does without data.
func (l *Link) Dormant() bool { return l.asleep.Load() }

// setLazy begins or ends to be lazy.
func (c *checker) setLazy(now time.Time, lazy bool) {
	slept := c.dormant
	c.stir(now)
	c.lazy = lazy
	if slept {
		c.probe(now)
	}
}

// stir notes that the link is of use, and ends its sleep. It reports whether it
// slept.
func (c *checker) stir(now time.Time) bool {
	c.used = now
	if !c.dormant {
		return false
	}
	c.dormant = false
	for _, cand := range c.all {
		if cand.usable && c.fit(cand) < 2 {
			cand.restartSize(now)
		}
	}
	if sel := c.selected; sel != nil {
		sel.next, c.unsure = now, now // perhaps a NAT forgot it
	}
	return true
}

// wake ends the sleep because there is data to send.
func (c *checker) wake(now time.Time) {
	if !c.stir(now) {
		return
	}
	var p Path
	if c.selected != nil {
		p = c.path(c.selected)
	}
	c.probe(now)
	c.out.event(Waking, p)
}

// received tells that data came.
func (c *checker) received(now time.Time) { c.stir(now) }

// doze falls asleep when it is time.
func (c *checker) doze(now time.Time) {
	if at := c.dozeAt(); at.IsZero() || now.Before(at) {
		return
	}
	c.dormant = true
	c.hush()
}

// dozeAt is when the link falls asleep; zero: never, or it does already.
func (c *checker) dozeAt() time.Time {
	if !c.lazy || c.dormant {
		return time.Time{}
	}
	return c.used.Add(dormantAfter)
}

// hush drops everything that would be sent, and what is waited for.
func (c *checker) hush() {
	for _, cand := range c.all {
		cand.next, cand.sizeNext, cand.silent, cand.pending = time.Time{}, time.Time{}, time.Time{}, nil
	}
	c.waiting, c.alarm, c.unsure = time.Time{}, time.Time{}, time.Time{}
	c.out.answered()
}
