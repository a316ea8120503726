package portmap

import "time"

// send begins a request over UDP, in place of the one under way.
func (c *core) send(now time.Time, k kind, p purpose, packet []byte) {
	c.bursts[k] = burst{purpose: p, packet: packet}
	c.resend(now, k)
}

func (c *core) resend(now time.Time, k kind) {
	b := &c.bursts[k]
	b.next = now.Add(firstTry << b.sent)
	b.sent++
	c.out.packets = append(c.out.packets, b.packet)
}

// start begins a job, in place of the one under way.
func (c *core) start(j job) {
	c.endJob()
	c.jobID++
	j.id, c.jobFor = c.jobID, j.purpose
	c.out.job = &j
}

func (c *core) endJob() {
	if c.jobFor != 0 {
		c.jobFor, c.out.cancel, c.out.job = 0, true, nil
	}
}

func (c *core) stopAll() {
	c.bursts = [2]burst{}
	c.endJob()
}

// deadline is when tick must be called; zero is never.
func (c *core) deadline() time.Time {
	var first time.Time
	at := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	for i := range c.bursts {
		if c.bursts[i].purpose != 0 {
			at(c.bursts[i].next)
		}
	}
	switch c.phase {
	case phaseOff, phaseQuiet, phaseRemoving:
		at(c.wake)
	case phaseAsking:
		at(c.graceEnd)
	case phaseHeld:
		at(c.mapping.Expires)
		at(c.renewAt)
		if !c.busy() {
			at(c.checkAt)
		}
	case phaseMapping, phaseDone:
	}
	return first
}

// tick does what is due.
func (c *core) tick(now time.Time) {
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	for k := range kindUPnP {
		b := &c.bursts[k]
		switch {
		case b.purpose == 0 || !due(b.next):
		case b.sent < maxSends:
			c.resend(now, k)
		default:
			c.silence(now, k)
		}
	}
	switch c.phase {
	case phaseOff, phaseQuiet:
		if due(c.wake) {
			c.out.lookup = true
			// Whoever cannot look up is asked again later, not at once.
			if c.phase == phaseOff {
				c.wake = now.Add(noGateway)
			}
		}
	case phaseAsking:
		if due(c.graceEnd) {
			c.settle(now)
		}
	case phaseHeld:
		switch {
		case due(c.mapping.Expires):
			c.expire()
		case due(c.renewAt):
			c.renew(now)
		case due(c.checkAt) && !c.busy():
			c.check(now)
		}
	case phaseRemoving:
		if due(c.wake) {
			c.stopAll()
			c.phase = phaseDone
		}
	case phaseMapping, phaseDone:
	}
}

// silence is when the last retransmission got no answer.
func (c *core) silence(now time.Time, k kind) {
	p := c.bursts[k].purpose
	c.bursts[k] = burst{}
	switch {
	case p == toCheck:
		c.miss(now)
	case p == toMap && c.phase == phaseHeld:
		c.unanswered(now)
	case p == toProbe, p == toMap:
		c.refuse(now, k, quietFor)
	}
}
