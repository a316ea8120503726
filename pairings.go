package kith

import (
	"time"

	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
)

// track counts a pairing among those that are under way.
func (n *Node) track(p *Pairing) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pairings[p] = struct{}{}
}

func (n *Node) forget(p *Pairing) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pairings, p)
}

// promoted tells a pairing under way that its pair became active on the pair's
// own topics.
func (n *Node) promoted(id registry.PairID) {
	n.tellPairing(id, func(m *pairing.Machine) { m.Promoted(time.Now()) })
}

// confirmed tells a pairing under way that the other side said on the pair's own
// topics that it is active, too.
func (n *Node) confirmed(id registry.PairID) {
	n.tellPairing(id, (*pairing.Machine).Confirmed)
}

func (n *Node) tellPairing(id registry.PairID, tell func(*pairing.Machine)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.pairings {
		p.box.post(func() {
			if p.pairID == id {
				tell(p.machine)
			}
		})
	}
}
