package link

import (
	"cmp"
	"slices"
	"time"
)

// Hysteresis between paths of one kind.
const (
	rttMargin  = 3 * time.Millisecond
	rttPercent = 20
	rttDwell   = 5 * time.Second
	rttSamples = 2
)

// choose selects the best path, if it is better than the present one by enough.
func (c *checker) choose(now time.Time) {
	var best *candidate
	for _, cand := range c.all {
		if !cand.usable || now.Sub(cand.lastPong) > activePing || c.selected != nil && cand != c.selected && now.Before(cand.barred) {
			continue
		}
		if best == nil || c.prefer(cand, best) > 0 {
			best = cand
		}
	}
	if best == nil || best == c.selected {
		return
	}
	if c.selected == nil || c.moves(now, best, c.selected) {
		c.selectPath(now, best)
	}
}

// compare orders two usable candidates: positive if a is the better path. The
// order is total, so that it does not depend on the order of a map.
func (c *checker) compare(a, b *candidate) int {
	return cmp.Or(
		cmp.Compare(c.fit(a), c.fit(b)), cmp.Compare(a.size*btoi(a.small), b.size*btoi(b.small)),
		cmp.Compare(a.kind.rank(), b.kind.rank()), cmp.Compare(b.rtt, a.rtt), b.place.addr.Compare(a.place.addr),
		cmp.Compare(b.place.carrier, a.place.carrier))
}

// displaces reports whether the path a is worth leaving the working path b.
func (c *checker) displaces(now time.Time, a, b *candidate) bool {
	if d := cmp.Or(cmp.Compare(c.fit(a), c.fit(b)), cmp.Compare(a.size*btoi(a.small), b.size*btoi(b.small))); d != 0 {
		// A path whose size is not known yet does not lose to one that happened
		// to be measured first: its answer is on the way.
		return d > 0 && (a.kind.rank() > b.kind.rank() || c.fit(b) == 0)
	}
	if a.kind.rank() != b.kind.rank() {
		return a.kind.rank() > b.kind.rank()
	}
	return a.samples >= rttSamples && b.samples >= rttSamples && now.Sub(c.moved) >= rttDwell &&
		a.rtt+rttMargin < b.rtt && a.rtt*100 < b.rtt*(100-rttPercent)
}

// selectPath makes a candidate the path for data; nil: there is none.
func (c *checker) selectPath(now time.Time, cand *candidate) {
	old := c.selected
	c.selected, c.moved, c.alarm, c.unsure, c.seekAt = cand, now, time.Time{}, time.Time{}, now.Add(seekFirst)
	c.out.use(cand)
	if cand != nil && cand.kind != Relay {
		c.straightAddr = cand.place.addr
	}
	switch {
	case cand == nil:
		c.up, c.lost = false, now
		c.out.event(Down, c.path(old))
		return
	case !c.up:
		c.up, c.used = true, now
		c.out.event(Up, c.path(cand))
	default:
		c.out.event(Changed, c.path(cand))
	}
	cand.expire(cand.pending)
	cand.pending, cand.silent = nil, time.Time{} // what it missed before does not count
	cand.next = now                              // its flag tells the peer where we are
}

// supervise watches the selected path and leaves it when it does not answer.
func (c *checker) supervise(now time.Time) {
	sel := c.selected
	if sel == nil {
		return
	}
	if at := c.doubtAt(); !at.IsZero() && !now.Before(at) {
		sel.next = now
	}
	if c.replace(now) {
		return
	}
	missed := sel.missed(now)
	if missed == 0 {
		return
	}
	if c.alarm.IsZero() {
		c.alarm = now
		c.probe(now)
		c.out.event(Silent, c.path(sel))
	}
	other := c.answeredSince(c.alarm)
	if now.Before(c.deadline()) && (other == nil || missed < 2) {
		return
	}
	c.lose(now, sel)
	sel.barred = now.Add(barFor) // a path that comes and goes must not flap
	c.selectPath(now, other)
	if other == nil {
		c.probe(now)
	}
}

// answeredSince returns the best candidate besides the selected one that answered
// since a moment, or nil.
func (c *checker) answeredSince(at time.Time) *candidate {
	var best *candidate
	for _, cand := range c.all {
		if cand != c.selected && cand.usable && !cand.lastPong.Before(at) && (best == nil || c.compare(cand, best) > 0) {
			best = cand
		}
	}
	return best
}

// replace leaves a path that was selected without knowing whether it still works,
// as soon as its answer is late and another path has answered. It is not given up:
// when it answers, the usual rules apply. It reports whether it did.
func (c *checker) replace(now time.Time) bool {
	at := c.replaceAt()
	if at.IsZero() || now.Before(at) {
		return false
	}
	other := c.answeredSince(c.unsure)
	if other == nil {
		return false
	}
	c.selectPath(now, other)
	return true
}

// replaceAt is when replace has something to do; zero: never.
func (c *checker) replaceAt() time.Time {
	if c.unsure.IsZero() || c.selected == nil || c.selected.silent.IsZero() {
		return time.Time{}
	}
	return c.selected.silent.Add(2*c.selected.rtt + lateMargin)
}

// doubtAt is when the selected path is to be asked because data got no answer;
// zero: it was asked, or there is no such data.
func (c *checker) doubtAt() time.Time {
	if c.waiting.IsZero() {
		return time.Time{}
	}
	at := c.waiting.Add(min(max(4*c.selected.rtt, minSilence), maxSilence))
	if !c.selected.lastPing.Before(at) || !c.selected.lastPong.Before(at) {
		return time.Time{}
	}
	return at
}

// deadline is when the selected path is left if it stays silent: pathLimit
// after the first sign of trouble.
func (c *checker) deadline() time.Time {
	sel := c.selected
	at := sel.silent.Add(pathLimit)
	if !c.waiting.IsZero() && c.waiting.Before(sel.silent) && c.waiting.After(sel.lastPong) {
		at = c.waiting.Add(pathLimit)
	}
	if answer := sel.silent.Add(sel.patience()); at.Before(answer) {
		return answer
	}
	return at
}

// traffic tells what the data did: sent is whether any was sent since the last
// call, waiting since when it got no answer (zero: it was answered).
func (c *checker) traffic(now time.Time, sent bool, waiting time.Time) {
	if c.dormant && !sent {
		return
	}
	c.waiting = waiting
	if !sent {
		return
	}
	c.wake(now)
	c.used = now
	if !now.Before(c.activeUntil) {
		c.refreshAt = now.Add(refreshPing)
	}
	c.activeUntil = now.Add(activeFor)
	if sel := c.selected; sel != nil && sel.next.After(now.Add(activePing)) {
		sel.next = now.Add(c.jitter(activePing))
	}
}

// sendFailed tells that the system refused to send data on the selected path.
func (c *checker) sendFailed(now time.Time) {
	sel := c.selected
	if sel == nil {
		return
	}
	c.stir(now)
	if sel.via != nil {
		sel.via = nil // our address of that time may be gone
		c.out.use(sel)
	}
	if now.Sub(sel.lastPing) >= pingGap {
		sel.next = now
	}
}

// tick does what is due.
func (c *checker) tick(now time.Time) {
	c.doze(now)
	c.unforce(now)
	c.supervise(now)
	if now.Before(c.activeUntil) && !now.Before(c.refreshAt) && c.selected != nil {
		c.refreshAt = now.Add(refreshPing)
		c.probe(now)
	}
	c.warm(now)
	for _, cand := range c.sorted() {
		if !cand.next.IsZero() && !now.Before(cand.next) {
			if cand.usable && cand != c.selected && cand.missed(now) >= lostAfter {
				c.lose(now, cand)
				continue
			}
			c.ping(now, cand)
		}
		if at := c.sizeAt(now, cand); !at.IsZero() && !now.Before(at) {
			c.pingSize(now, cand)
		}
		cand.pending = slices.DeleteFunc(cand.pending, func(q pending) bool {
			old := now.Sub(q.sent) > pongWait && (q.size != smallProbe || cand != c.selected)
			if old {
				cand.expire([]pending{q})
			}
			return old
		})
	}
}

// next is when tick wants to be called; zero: not before something happens.
func (c *checker) next(now time.Time) time.Time {
	var at time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	for _, cand := range c.all {
		sooner(cand.next)
		sooner(c.sizeAt(now, cand))
	}
	sooner(c.dozeAt())
	sooner(c.forcedUntil)
	if sel := c.selected; sel != nil {
		sooner(c.warmAt(now))
		sooner(c.doubtAt())
		if at := c.replaceAt(); at.After(now) {
			sooner(at)
		}
		sel.late(func(at time.Time) {
			if at.After(now) {
				sooner(at)
			}
		})
		if at := c.deadline(); !sel.silent.IsZero() && at.After(now) {
			sooner(at)
		}
		if now.Before(c.activeUntil) {
			sooner(c.refreshAt)
		}
	}
	return at
}

// sorted returns the candidates in an order that does not change by chance.
func (c *checker) sorted() []*candidate {
	out := make([]*candidate, 0, len(c.all))
	for _, cand := range c.all {
		out = append(out, cand)
	}
	slices.SortFunc(out, func(a, b *candidate) int {
		return cmp.Or(a.next.Compare(b.next), a.place.addr.Compare(b.place.addr), cmp.Compare(a.place.carrier, b.place.carrier))
	})
	return out
}

// path describes a candidate.
func (c *checker) path(cand *candidate) Path {
	return Path{
		Kind: cand.kind, Local: localAddr(cand.local, c.port), Remote: cand.place.addr, Observed: cand.observed,
		RTT: cand.rtt, Since: cand.since, Selected: cand == c.selected, Size: cand.size, Via: c.via(cand.place.carrier),
	}
}

// paths describes the usable candidates, the selected one first.
func (c *checker) paths() []Path {
	var usable []*candidate
	for _, cand := range c.all {
		if cand.usable {
			usable = append(usable, cand)
		}
	}
	slices.SortFunc(usable, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(btoi(b == c.selected), btoi(a == c.selected)), c.compare(b, a))
	})
	out := make([]Path, len(usable))
	for i, cand := range usable {
		out[i] = c.path(cand)
	}
	return out
}
