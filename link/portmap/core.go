package portmap

import (
	"net/netip"
	"time"
)

// A kind is a protocol; the smaller the better.
type kind int

const (
	kindPCP kind = iota
	kindPMP
	kindUPnP
	kinds
)

func (k kind) String() string { return [...]string{"pcp", "nat-pmp", "upnp"}[k] }

const (
	grace      = 250 * time.Millisecond // for a better protocol, after the first answer
	firstTry   = 250 * time.Millisecond // retransmission, doubled each time: RFC 6886 section 3.1
	maxSends   = 4                      // then it has been 3.75 s
	quietFor   = 20 * time.Minute       // after a gateway said no or nothing
	noGateway  = time.Minute            // looking up a gateway costs nothing
	checkEvery = time.Minute
	checkUPnP  = 2 * time.Minute // it takes two TCP connections
	minRetry   = 30 * time.Second
	minRenew   = 4 * time.Second  // RFC 6887 section 11.2.1
	minLife    = 30 * time.Second // who grants less means nothing good; RFC 6887 section 15 has 120 s
	removeIn   = time.Second
	maxMissed  = 3 // checks without an answer, until a renewal must tell
	maxTries   = 8 // of external ports, where others are taken
)

type phase int

const (
	phaseOff      phase = iota // no gateway
	phaseAsking                // who is there
	phaseMapping               // the chosen protocol is asked for the mapping
	phaseHeld                  // there is a mapping
	phaseQuiet                 // the gateway does not do it
	phaseRemoving              // the end has begun
	phaseDone
)

// A purpose is what a request is for.
type purpose int

const (
	toProbe purpose = iota + 1
	toMap           // also to renew
	toCheck
	toRemove
)

// status is what is known of one protocol.
type status struct {
	state stateOf
	again time.Duration // when refused: how long to leave it alone
}

type stateOf int

const (
	unknown stateOf = iota // still being asked
	speaks
	refused
)

// A burst is one request over UDP and its retransmissions.
type burst struct {
	purpose purpose // 0: none
	packet  []byte
	sent    int
	next    time.Time
}

// A job is one request over UPnP; it always ends in one jobResult.
type job struct {
	id      uint64
	purpose purpose
	port    uint16        // external, toMap, toCheck and toRemove
	lease   time.Duration // toMap; 0 is without end
}

type jobResult struct {
	id       uint64
	external netip.Addr // invalid: the gateway did not say
	gone     bool       // toCheck: the mapping is not there any more
	err      error
}

// A notice is one call of changed.
type notice struct {
	mapping Mapping
	ok      bool
}

// effects is what the runner shall do, in this order.
type effects struct {
	notices []notice
	packets [][]byte
	cancel  bool // the job under way
	job     *job
	lookup  bool // look the gateway up and call network
}

// A core decides everything and does nothing: time and events come in, effects
// go out. It is not safe for concurrent use.
type core struct {
	port      uint16
	transport Transport
	lifetime  time.Duration
	nonce     func(gw, self netip.Addr) [nonceSize]byte
	random    func() uint16 // an external port to try

	phase    phase
	gw, self netip.Addr
	server   netip.AddrPort // where PCP and NAT-PMP answers come from
	udpPort  uint16         // its port

	protocols [kinds]status
	bursts    [2]burst // kindPCP, kindPMP
	epochs    [2]epoch
	jobID     uint64  // of the job under way, or of the last
	jobFor    purpose // 0: no job under way
	graceEnd  time.Time
	wake      time.Time // in phaseOff and phaseQuiet; in phaseRemoving: give up

	chosen    kind
	mapping   Mapping
	told      bool           // changed knows of mapping
	suggest   netip.AddrPort // the external address to ask for
	pmpAddr   netip.Addr     // NAT-PMP says address and port in two answers
	answered  bool           // NAT-PMP: it was a check's answer that led to the renewal
	permanent bool           // UPnP: leases are not supported
	tries     int            // UPnP: of external ports
	sought    bool           // UPnP: searched again for this renewal or check
	renewAt   time.Time
	checkAt   time.Time
	missed    int

	out effects
}

// take returns what is to be done, and forgets it.
func (c *core) take() effects {
	out := c.out
	c.out = effects{}
	return out
}

// network tells the core where the gateway is. With fresh something changed, or
// may have: everything is asked anew that a changed network can invalidate.
func (c *core) network(now time.Time, gw, self netip.Addr, ok, fresh bool) {
	gw, self = gw.Unmap(), self.Unmap()
	ok = ok && gw.IsValid() && self.IsValid() && gw.Is4() == self.Is4() && !self.IsUnspecified() && !gw.IsUnspecified() && !gw.IsMulticast()
	switch {
	case c.phase >= phaseRemoving:
	case !ok:
		c.lose()
		c.stopAll()
		c.phase, c.wake = phaseOff, now.Add(noGateway)
		c.gw, c.self = netip.Addr{}, netip.Addr{}
	case gw != c.gw || self != c.self:
		c.lose()
		c.gw, c.self, c.server = gw, self, netip.AddrPortFrom(gw, c.udpPort)
		c.suggest = netip.AddrPortFrom(netip.Addr{}, c.port)
		c.ask(now)
	case c.phase == phaseHeld:
		if fresh {
			c.renew(now)
		}
	case fresh || c.phase == phaseOff || c.phase == phaseQuiet && !now.Before(c.wake):
		c.ask(now)
	}
}

// ask begins from the start: all protocols at once.
func (c *core) ask(now time.Time) {
	c.stopAll()
	c.phase = phaseAsking
	c.protocols, c.epochs = [kinds]status{}, [2]epoch{}
	c.graceEnd, c.missed, c.tries, c.permanent = time.Time{}, 0, 0, false
	c.send(now, kindPCP, toProbe, pcpAnnounceRequest(c.self))
	if c.gw.Is6() {
		c.protocols[kindPMP] = status{state: refused, again: quietFor} // it has no IPv6
	} else {
		c.send(now, kindPMP, toProbe, pmpAddressRequest())
	}
	c.start(job{purpose: toProbe})
}

// settle chooses a protocol if it is time to.
func (c *core) settle(now time.Time) {
	if c.phase != phaseAsking {
		return
	}
	open := false
	for k := range kinds {
		switch c.protocols[k].state {
		case speaks:
			if c.graceEnd.IsZero() {
				c.graceEnd = now.Add(grace)
			}
			if !open || !now.Before(c.graceEnd) {
				c.chosen, c.phase = k, phaseMapping
				c.request(now)
				return
			}
		case unknown:
			open = true
		case refused:
		}
	}
	if open {
		return
	}
	wait := quietFor
	for _, p := range c.protocols {
		wait = min(wait, p.again)
	}
	c.phase, c.wake = phaseQuiet, now.Add(max(wait, minRetry))
}

// request asks the chosen protocol for the mapping, the first time or again.
func (c *core) request(now time.Time) {
	switch c.chosen {
	case kindPCP:
		c.send(now, kindPCP, toMap, pcpMapRequest(c.transport, c.self, c.nonce(c.gw, c.self), c.port, c.suggest, c.lifetime))
	case kindPMP:
		c.send(now, kindPMP, toMap, pmpMapRequest(c.transport, c.port, c.suggest.Port(), c.lifetime))
	case kindUPnP, kinds:
		j := job{purpose: toMap, port: c.suggest.Port(), lease: c.lifetime}
		if c.permanent {
			j.lease = 0
		}
		c.start(j)
	}
}

// refuse notes that a protocol is not there or says no.
func (c *core) refuse(now time.Time, k kind, again time.Duration) {
	c.protocols[k] = status{state: refused, again: again}
	if k != c.chosen || c.phase != phaseMapping && c.phase != phaseHeld {
		c.settle(now)
		return
	}
	// Whoever held the mapping does not any more. Another protocol may have
	// answered; if none is known to, all are asked again, but not before the
	// time that this one needs.
	held := c.phase == phaseHeld
	c.lose()
	c.phase, c.graceEnd = phaseAsking, time.Time{}
	if held {
		for i := range c.protocols {
			if kind(i) != k {
				c.protocols[i] = status{state: refused, again: minRetry}
			}
		}
	}
	c.settle(now)
}

// hold takes in that the gateway granted the mapping. With life 0 it has no end.
func (c *core) hold(now time.Time, external netip.AddrPort, life time.Duration) {
	c.stopAll()
	c.phase, c.missed, c.tries = phaseHeld, 0, 0
	c.suggest = external
	m := Mapping{
		Protocol: c.chosen.String(), Internal: c.port, External: external, Gateway: c.gw,
		Pinhole: external == netip.AddrPortFrom(c.self, c.port), DoubleNAT: natted(external.Addr()),
	}
	c.checkAt = now.Add(c.interval())
	if life > 0 {
		m.Expires = now.Add(life)
		c.renewAt = now.Add(life / 2)
	} else {
		c.renewAt = now.Add(c.lifetime / 2)
	}
	c.tell(m)
}

// tell reports a mapping, if it is news. A new time of expiry is not.
func (c *core) tell(m Mapping) {
	old := c.mapping
	old.Expires = m.Expires
	c.mapping = m
	if !c.told || old != m {
		c.told = true
		c.out.notices = append(c.out.notices, notice{m, true})
	}
}

// lose reports that there is no mapping any more.
func (c *core) lose() {
	if c.told {
		c.out.notices = append(c.out.notices, notice{c.mapping, false})
	}
	c.told, c.mapping = false, Mapping{}
}

func (c *core) interval() time.Duration {
	if c.chosen == kindUPnP {
		return checkUPnP
	}
	return checkEvery
}

// renew asks for the mapping that we hold, at once.
func (c *core) renew(now time.Time) {
	c.renewAt, c.sought, c.answered = time.Time{}, false, false
	c.request(now)
}

// unanswered is when the renewal got no answer.
func (c *core) unanswered(now time.Time) {
	if c.mapping.Expires.IsZero() {
		c.expire()
		return
	}
	c.renewAt = now.Add(max(c.mapping.Expires.Sub(now)/2, minRenew))
}

// expire gives the mapping up and starts over.
func (c *core) expire() {
	c.lose()
	c.stopAll()
	c.phase, c.wake = phaseOff, time.Time{}
	c.out.lookup = true
}

// check asks the gateway something that changes nothing.
func (c *core) check(now time.Time) {
	c.checkAt, c.sought = now.Add(c.interval()), false
	c.out.lookup = true // also notices a new gateway that nobody told us about
	switch c.chosen {
	case kindPCP:
		c.send(now, kindPCP, toCheck, pcpAnnounceRequest(c.self))
	case kindPMP:
		c.send(now, kindPMP, toCheck, pmpAddressRequest())
	case kindUPnP, kinds:
		c.start(job{purpose: toCheck, port: c.mapping.External.Port()})
	}
}

// miss is when a check got no answer.
func (c *core) miss(now time.Time) {
	if c.missed++; c.missed >= maxMissed {
		c.missed = 0
		c.renew(now)
	}
}

// busy reports whether the chosen protocol is being asked something.
func (c *core) busy() bool {
	if c.chosen == kindUPnP {
		return c.jobFor != 0
	}
	return c.bursts[c.chosen].purpose != 0
}

// stop begins the end: the mapping is removed, if there is one or may be.
func (c *core) stop(now time.Time) {
	if c.phase >= phaseRemoving {
		return
	}
	may := c.phase == phaseHeld || c.phase == phaseMapping
	port := c.suggest.Port()
	c.told = false // whoever ends Run knows
	c.stopAll()
	if !may {
		c.phase = phaseDone
		return
	}
	c.phase, c.wake = phaseRemoving, now.Add(removeIn)
	switch c.chosen {
	case kindPCP:
		c.send(now, kindPCP, toRemove, pcpMapRequest(c.transport, c.self, c.nonce(c.gw, c.self), c.port, netip.AddrPort{}, 0))
	case kindPMP:
		c.send(now, kindPMP, toRemove, pmpMapRequest(c.transport, c.port, 0, 0))
	case kindUPnP, kinds:
		c.start(job{purpose: toRemove, port: port})
	}
}

// natted reports whether an address cannot be one of the internet.
func natted(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsGlobalUnicast() || a.IsPrivate() ||
		netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(a) || // RFC 6598
		netip.PrefixFrom(netip.AddrFrom4([4]byte{192}), 24).Contains(a) || // RFC 7335: DS-Lite
		netip.PrefixFrom(netip.AddrFrom4([4]byte{}), 8).Contains(a)
}
