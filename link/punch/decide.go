package punch

import (
	"fmt"
	"math"
	"net/netip"
)

// A Role is what one side does.
type Role uint8

// The roles. If one side is Opener, the other is Prober; the others are the same
// on both sides.
const (
	RoleNone     Role = iota // role: plain punching is enough
	RoleOpener               // role: we are hard; open many sockets towards the peer's one address
	RoleProber               // role: the peer is hard; probe ports of its public address
	RoleBoth                 // role: both are hard, and can be narrowed down; both open and aim
	RoleHopeless             // role: a relay is all that is left
)

// String returns the role as one word.
func (r Role) String() string {
	names := [...]string{"none", "opener", "prober", "both", "hopeless"}
	if int(r) >= len(names) {
		return fmt.Sprintf("role %d", uint8(r))
	}
	return names[r]
}

const (
	// fullSockets is how many sockets an opener opens against the odds of 64512
	// ports, and fewSockets where the ports can be narrowed down.
	fullSockets = 256
	fewSockets  = 64
	// bothSockets and bothFlows are for two sides that are both hard. A flow is a
	// socket and a port of the peer.
	bothSockets = 25
	bothFlows   = 256
	// maxFlows bounds flows that cost no mapping of their own.
	maxFlows = 1024
	// sequenceSpread is what not knowing where a sequence stands by now costs, as
	// if it were a block of so many ports: measured by simulation.
	sequenceSpread = 16
	// worthwhile is the smallest chance worth the packets.
	worthwhile = 0.05
)

// A Plan is what one side does about a peer.
type Plan struct {
	// Role is our part.
	Role Role
	// Sockets is how many sockets to open; 0 for a prober, which uses its own.
	Sockets int
	// Flows is how many pairs of socket and peer's port RoleBoth makes.
	Flows int
	// Target is where packets go. Its port is 0 where ports are to be guessed.
	// An opener may replace it by a better known address of the peer; it has to
	// if Target is not valid.
	Target netip.AddrPort
	// Chance is how likely one attempt succeeds, from 0 to 1, if the behaviours
	// are right and no packet is lost.
	Chance float64
	// Plain is true if plain punching may work as well, since not everything is
	// known: give it a moment first.
	Plain bool
	// Reason says in a few words, for people, why it is this role.
	Reason string

	self, peer Behaviour
}

// Decide returns what to do about a peer, given both sides' behaviour. Both
// sides come to roles that fit together if they decide on the same behaviours.
// An unknown mapping is taken for an easy one and an unknown filter for a strict
// one, with Plain set.
func Decide(self, peer Behaviour) Plan {
	p := Plan{self: self, peer: peer}
	switch {
	case self.open() || peer.open():
		p.Role, p.Reason = RoleNone, "one side lets everybody in"
	case !self.Hard() && !peer.Hard():
		p.Role, p.Reason = RoleNone, "both sides keep one port for all destinations"
		p.Plain = self.Mapping == Unknown || peer.Mapping == Unknown
	case self.Hard() && peer.Hard():
		p.both()
	case self.Hard():
		p.birthday(self, peer)
		if p.Role != RoleNone && p.Role != RoleHopeless {
			p.Role, p.Sockets = RoleOpener, openers(self)
			if peer.Public.IsValid() && peer.LastPort != 0 {
				p.Target = netip.AddrPortFrom(peer.Public, peer.LastPort)
			}
		}
	default:
		p.birthday(peer, self)
		if p.Role != RoleNone && p.Role != RoleHopeless {
			p.Role, p.Target = RoleProber, netip.AddrPortFrom(peer.Public, 0)
		}
	}
	if p.Role == RoleNone && !p.Plain {
		p.Chance = 1
	}
	return p
}

// open reports whether anybody can send to the address that others know.
func (b Behaviour) open() bool {
	return (b.Filtering == EndpointIndependent || b.Filtering == None) && b.Mapping != Unknown
}

// birthday decides for one hard and one easy side; the role is left to the
// caller unless it is none or hopeless.
func (p *Plan) birthday(hard, easy Behaviour) {
	switch {
	case easy.Filtering == AddressDependent && easy.Mapping != Unknown && !hard.Pooled:
		p.Role, p.Reason = RoleNone, "the side with one port lets the other's address in, whatever the port"
		return
	case !hard.Public.IsValid():
		p.Role, p.Reason = RoleHopeless, "the public address of the side with changing ports is not known"
		return
	case hard.Pooled:
		p.Role, p.Reason = RoleHopeless, "one side is behind a NAT that changes the public address per destination"
		return
	}
	p.Role = RoleProber
	p.Plain = easy.Filtering == Unknown || easy.Mapping == Unknown
	space := anyPorts
	switch {
	case hard.predictable():
		space = 2 * predictions
		p.Reason = "one side is behind a NAT that counts ports up per destination"
	case hard.block() != 0:
		space = hard.block()
		p.Reason = "one side is behind a NAT that chooses a port per destination, from a small block"
	default:
		p.Reason = "one side is behind a NAT that chooses a random port per destination"
	}
	p.Chance = Chance(openers(hard), space, AttemptProbes)
}

// openers returns how many sockets a hard side opens.
func openers(hard Behaviour) int {
	switch {
	case hard.predictable():
		return fewSockets
	case hard.block() != 0:
		return max(16, min(fewSockets, hard.block()/8))
	}
	return fullSockets
}

// both decides for two hard sides.
func (p *Plan) both() {
	p.Role = RoleHopeless
	switch {
	case !p.self.Public.IsValid() || !p.peer.Public.IsValid():
		p.Reason = "the public address of a side with changing ports is not known"
		return
	case p.self.Pooled || p.peer.Pooled:
		p.Reason = "a side is behind a NAT that changes the public address per destination"
		return
	}
	spreadSelf, spreadPeer := p.self.spread(), p.peer.spread()
	switch {
	case spreadSelf == 0 && spreadPeer == 0:
		p.Reason = "both sides are behind NATs that choose a random port per destination"
		return
	case spreadSelf == 0 || spreadPeer == 0:
		p.Reason = "both sides are behind NATs that choose a port per destination, and one chooses at random"
		return
	}
	p.Flows = min(p.self.flows(), p.peer.flows())
	hits := float64(p.Flows) * float64(p.Flows) / float64(spreadSelf*spreadPeer)
	if p.self.predictable() && p.peer.predictable() {
		hits = float64(p.Flows) / (4 * sequenceSpread) // they move on together
	} else if p.self.predictable() || p.peer.predictable() {
		hits = float64(p.Flows) / float64(max(spreadSelf, spreadPeer))
	}
	p.Chance = 1 - math.Exp(-hits)
	if p.Chance < worthwhile {
		p.Flows, p.Chance = 0, 0
		p.Reason = "both sides are behind NATs that choose a port per destination, from blocks too large to guess"
		return
	}
	p.Role, p.Sockets = RoleBoth, bothSockets
	p.Target = netip.AddrPortFrom(p.peer.Public, 0)
	p.Reason = "both sides are behind NATs that choose a port per destination, but not any port"
}

// spread returns how many ports a mapping of a hard side may have, 0 for all.
func (b Behaviour) spread() int {
	switch {
	case b.predictable():
		return sequenceSpread
	}
	return b.block()
}

// flows returns how many flows a hard side can have without taking more than
// half of its ports.
func (b Behaviour) flows() int {
	switch {
	case b.predictable():
		return bothFlows
	case b.Mapping == AddressDependent:
		return maxFlows // one mapping per socket
	}
	return min(bothFlows, b.block()/2)
}

// Chance returns how likely it is, from 0 to 1, that a number of probes to
// different ports hits one of a number of open ports among a space of ports.
func Chance(open, space, probes int) float64 {
	miss := 1.0
	for i := range min(probes, space) {
		if space-i <= open {
			return 1
		}
		miss *= 1 - float64(open)/float64(space-i)
	}
	return 1 - miss
}
