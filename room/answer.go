package room

import (
	"time"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

// What a Joiner does with the host's decision.

func (j *Joiner) receiveJ4(now time.Time, body []byte) {
	if len(body) < 1 {
		return
	}
	for _, c := range j.claims {
		if c.j3 == nil || c.over {
			continue
		}
		switch body[0] {
		case plainAnswer:
			if j.plain(now, c, body[1:]) {
				return
			}
		case fullAnswer:
			if j.full(now, c, body[1:]) {
				return
			}
		}
	}
}

// plain takes an answer of a host that did not read the request. It reports
// whether the answer was this claim's.
func (j *Joiner) plain(now time.Time, c *claim, sealed []byte) bool {
	reason, _, proved, err := c.s.readPlain(sealed, j.room, wire.Day(now))
	if err != nil || reason == 0 {
		return false
	}
	if (!proved && !j.room.IsZero()) || (j.room.IsZero() && reason == Again) { // somebody who is not the host
		c.over = true
		return true
	}
	switch reason {
	case WrongPassword:
		j.prs, j.claims, j.asking = nil, nil, true
		j.resend.Stop()
		j.restart = time.Time{}
		j.tell(Event{Kind: EventWrongPassword})
	case Again:
		if j.begin(now) != nil {
			j.restart = now.Add(unanswered)
		}
	default:
		j.fail(reason)
	}
	return true
}

// full takes the host's decision. It reports whether it was this claim's.
func (j *Joiner) full(now time.Time, c *claim, sealed []byte) bool {
	own := j.cfg.Identity.ID()
	host, raw, err := c.s.readJ4(sealed, own)
	if err != nil {
		return false
	}
	a, err := decodeAnswer(raw)
	if err != nil {
		return true
	}
	room := ID(a.Room)
	founder, ok := a.Cred.check(room, host, wire.Day(now))
	if !ok || (!j.room.IsZero() && room != j.room) || (c.proved && c.host != host) {
		c.over = true // it knows the password, and is not the host
		if j.allOver() {
			j.fail(WrongHost)
		}
		return true
	}
	if host == own {
		j.fail(Self)
		return true
	}
	if c.flags&flagPassword != 0 && !c.proved {
		c.host, c.proved = host, true
		j.told-- // it was not a stranger
	}
	switch Status(a.Status) {
	case Waiting:
		j.restart = now.Add(waitUnanswered)
		if !j.waiting {
			j.waiting = true
			j.resend.Start(now, slowRetry, j.cfg.Rand)
			j.tell(Event{Kind: EventWaiting})
		}
	case Refused:
		j.fail(Reason(a.Reason))
	case Admitted:
		day := min(a.Day, j.day)
		chain, pairID := c.s.pair(own, host, day)
		g := Grant{
			Room: room, Salt: [SaltSize]byte(a.Cred.Salt), Founder: founder, Host: host,
			HostInfo: pairing.Info{
				Name: cleanName(a.HostName, "host"), WireGuard: [32]byte(a.WireGuard), Day: day, Endpoints: decodeEndpoints(a.Endpoints),
			},
			RoomName: cleanName(a.RoomName, "room"), Name: cleanName(a.Name, "unnamed"), Number: a.Number,
			Chain: chain, PairID: pairID,
		}
		j.end()
		j.tell(Event{Kind: EventAdmitted, Grant: g})
	}
	return true
}

// allOver reports whether everybody who answered is not the host.
func (j *Joiner) allOver() bool {
	for _, c := range j.claims {
		if !c.over {
			return false
		}
	}
	return true
}
