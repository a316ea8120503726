package kith

import (
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
)

// Media says how each medium does, and what it did for this pairing so far.
func (p *Pairing) Media() []RendezvousStatus {
	var stats []rendezvous.Stats
	for _, s := range p.sessions {
		r, ok := s.(rendezvous.Reporter)
		if !ok {
			continue
		}
		for i, one := range r.Stats() { // each session has the same media
			if i == len(stats) {
				stats = append(stats, one)
				continue
			}
			stats[i] = stats[i].Plus(one)
		}
	}
	return rendezvousStatus(p.n.media.Each(), stats)
}

// mediumOf is what a pairing meets on: the caller's exchange, or else the node's.
func (n *Node) mediumOf(own rendezvous.Exchange) rendezvous.Exchange {
	if own == nil {
		return n.media
	}
	return own
}

// judge tells a medium whether a frame that it brought was of use.
func (p *Pairing) judge(a arrival, v pairing.Verdict) {
	if j, ok := p.sessions[a.topic].(rendezvous.Judge); ok && v != pairing.Echo {
		j.Judge(a.msg, v == pairing.Heard)
	}
}

// side is a role's number at a meeting point.
func side(r pairing.Role) uint8 {
	if r == pairing.Joiner {
		return 1
	}
	return 0
}
