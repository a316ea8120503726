package portmap

import (
	"net/netip"
	"time"
)

// packet takes in a datagram.
func (c *core) packet(now time.Time, from netip.AddrPort, b []byte) {
	if from != c.server || c.phase == phaseOff || c.phase == phaseDone || len(b) == 0 {
		return
	}
	switch b[0] {
	case pcpVersion:
		if a, err := parsePCP(b); err == nil {
			c.pcp(now, a)
		}
	case pmpVersion:
		if a, err := parsePMP(b); err == nil {
			c.pmp(now, a)
		}
	}
}

// pcp takes in an answer of a PCP server.
func (c *core) pcp(now time.Time, a pcpAnswer) {
	want := c.bursts[kindPCP].purpose
	if a.op == pcpMap && (a.nonce != c.nonce(c.gw, c.self) || a.transport.number() != c.transport.number() || a.internal != c.port) {
		return
	}
	switch {
	case a.op == pcpMap && (want == toMap || want == toRemove):
	case a.op == pcpAnnounce && (want == toProbe || want == toCheck):
	default:
		// Late, doubled, or announced without being asked. Those who announce
		// a new epoch are heard at the next check.
		return
	}
	c.bursts[kindPCP] = burst{}
	same := c.epochs[kindPCP].pcp(now, a.epoch)
	switch want {
	case toProbe:
		// A server that does not know ANNOUNCE is a server nevertheless.
		if a.result == pcpUnsuppVers || a.result == pcpNotAuth {
			c.refuse(now, kindPCP, errorLife(a.lifetime))
			return
		}
		c.protocols[kindPCP] = status{state: speaks}
		c.settle(now)
	case toCheck:
		c.missed = 0
		if !same {
			c.renew(now)
		}
	case toMap:
		if a.result != 0 {
			c.refuse(now, kindPCP, errorLife(a.lifetime))
			return
		}
		if a.lifetime < minLife || a.external.Addr().Is4() != c.self.Is4() {
			c.refuse(now, kindPCP, quietFor)
			return
		}
		c.hold(now, a.external, a.lifetime)
	case toRemove:
		c.phase = phaseDone
	}
}

// errorLife is how long to leave a PCP server alone that said no.
func errorLife(d time.Duration) time.Duration {
	if d == 0 {
		return quietFor
	}
	return min(max(d, minRetry), quietFor)
}

// pmp takes in an answer of a NAT-PMP gateway.
func (c *core) pmp(now time.Time, a pmpAnswer) {
	want := c.bursts[kindPMP].purpose
	if a.result == pmpUnsuppVersion {
		// To a NAT-PMP request this cannot be the answer: it is one to PCP, of
		// a gateway that speaks NAT-PMP only (RFC 6886 section 3.5). It saves
		// the rest of the grace.
		if p := c.bursts[kindPCP].purpose; p == toProbe || p == toMap {
			c.bursts[kindPCP] = burst{}
			c.refuse(now, kindPCP, quietFor)
		}
		return
	}
	switch {
	case a.op == pmpAddress && (want == toProbe || want == toCheck):
	case a.op == pmpMap(c.transport) && (want == toMap || want == toRemove):
	default:
		return
	}
	if a.op == pmpMap(c.transport) && a.result == 0 && a.internal != c.port {
		return
	}
	c.bursts[kindPMP] = burst{}
	same := c.epochs[kindPMP].pmp(now, a.epoch)
	if a.result != 0 && want != toCheck && want != toRemove {
		again := quietFor
		if a.result == pmpNetworkFailure || a.result == pmpNoResources {
			again = minRetry // it may have just started
		}
		c.refuse(now, kindPMP, again)
		return
	}
	switch want {
	case toProbe:
		c.protocols[kindPMP] = status{state: speaks}
		c.pmpAddr = a.address
		c.settle(now)
	case toCheck:
		c.missed = 0
		moved := a.result == 0 && a.address != c.pmpAddr
		if moved {
			c.pmpAddr = a.address
		}
		if moved || !same {
			c.renew(now) // and report the address when the mapping is there
			c.answered = true
		}
	case toMap:
		if a.lifetime < minLife {
			c.refuse(now, kindPMP, quietFor)
			return
		}
		// The address comes in another answer; ask for it after a renewal, but not
		// if it was an answer that led to the renewal.
		ask := c.phase == phaseHeld && !c.answered
		c.hold(now, netip.AddrPortFrom(c.pmpAddr, a.external), a.lifetime)
		if ask {
			c.checkAt = now
		}
	case toRemove:
		c.phase = phaseDone
	}
}

// unreachable is when the gateway's host said that nobody listens there (ICMP).
func (c *core) unreachable(now time.Time) {
	for k := range kindUPnP {
		if b := &c.bursts[k]; b.purpose == toProbe && b.sent > 1 {
			*b = burst{}
			c.refuse(now, k, quietFor)
		}
	}
}

// done takes in the result of a job.
func (c *core) done(now time.Time, r jobResult) {
	if r.id != c.jobID || c.jobFor == 0 {
		return
	}
	want := c.jobFor
	c.jobFor = 0
	switch want {
	case toProbe:
		if c.phase == phaseHeld {
			c.found(now, r.err == nil)
			return
		}
		if r.err != nil {
			c.refuse(now, kindUPnP, quietFor)
			return
		}
		c.protocols[kindUPnP] = status{state: speaks}
		c.settle(now)
	case toMap:
		c.added(now, r)
	case toCheck:
		switch {
		case r.err != nil:
			c.seek()
		case r.gone, r.external.IsValid() && r.external != c.mapping.External.Addr():
			c.renew(now)
		default:
			c.missed = 0
		}
	case toRemove:
		c.phase = phaseDone
	}
}

// seek searches the UPnP gateway that we hold a mapping of: it may have started
// anew, and listen on another port since.
func (c *core) seek() {
	c.sought = true
	c.start(job{purpose: toProbe})
}

// found is the end of seek.
func (c *core) found(now time.Time, ok bool) {
	switch {
	case ok:
		c.request(now)
	case c.renewAt.IsZero():
		c.unanswered(now)
	default:
		c.miss(now)
	}
}

// added takes in the answer to AddPortMapping.
func (c *core) added(now time.Time, r jobResult) {
	if r.err == nil {
		addr := r.external
		if !addr.IsValid() {
			addr = netip.IPv4Unspecified()
			if c.phase == phaseHeld {
				addr = c.mapping.External.Addr()
			}
		}
		life := c.lifetime
		if c.permanent {
			life = 0
		}
		c.hold(now, netip.AddrPortFrom(addr, c.suggest.Port()), life)
		return
	}
	code := upnpCode(r.err)
	c.tries++
	switch {
	case code == 0 && c.phase == phaseHeld:
		// It did not answer; an answer has a code.
		if c.sought {
			c.unanswered(now)
		} else {
			c.seek()
		}
	case code == 0 || c.tries >= maxTries:
		c.refuse(now, kindUPnP, quietFor)
	case !c.permanent && (code == upnpOnlyPermanent || c.phase == phaseMapping && (code == upnpActionFailed || code == upnpInvalidArgs)):
		// The latter two are what some say who mean the first.
		c.permanent = true
		c.request(now)
	case code == upnpConflict || code == upnpOtherMechanism:
		c.suggest = netip.AddrPortFrom(netip.Addr{}, c.random())
		c.request(now)
	case code == upnpSamePort && c.suggest.Port() != c.port:
		c.suggest = netip.AddrPortFrom(netip.Addr{}, c.port)
		c.request(now)
	default:
		c.refuse(now, kindUPnP, quietFor)
	}
}
