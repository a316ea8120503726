package kith

import (
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

// A whereabouts is what the addresses that a device names say about its network.
type whereabouts int

const (
	whereUnknown whereabouts = iota // it named none
	whereRelays                     // at relays alone
	whereInside                     // none that holds outside its network
	whereOutside                    // one at least that does
)

func whereaboutsOf(list []signaling.Candidate) whereabouts {
	where := whereUnknown
	for _, c := range list {
		ip := c.Addr.Addr().Unmap()
		public := ip.IsGlobalUnicast() && !ip.IsPrivate()
		switch {
		case c.Kind == signaling.Relayed:
			where = max(where, whereRelays)
		case c.Kind != signaling.Host || public:
			where = whereOutside
		default:
			where = max(where, whereInside)
		}
	}
	return where
}

// whyNotStraight says why a path goes through a relay, as far as that is known. p.mu is held.
func (p *peer) whyNotStraight() string {
	_, inVain := p.n.socket.Outside()
	return whyRelayed(p.n.cfg.Relay, inVain, p.n.socket.NAT(), p.said)
}

// whyRelayed is whyNotStraight with what is known: inVain is whether servers were asked in
// vain how this device looks from outside.
func whyRelayed(policy RelayPolicy, inVain bool, self punch.Behaviour, other said) string {
	switch {
	case policy == RelayAlways:
		return "relays alone are allowed (kith config relay always)"
	case inVain:
		return "UDP does not get out of this network"
	case other.where == whereRelays:
		return "the other device allows relays alone"
	case other.where == whereInside && !other.nat.Public.IsValid():
		return "UDP does not get out of its network, or it asks no STUN server"
	}
	if plan := punch.Decide(self, other.nat); plan.Role != punch.RoleNone {
		return plan.Reason
	}
	return "no hole in the NATs or firewalls has been found yet"
}
