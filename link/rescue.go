package link

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/kithproject/kith/link/punch"
)

const (
	// maxRescues is how many attempts are made after a loss that nobody explains.
	maxRescues = 8
	// rescueFor is for how long after it.
	rescueFor = time.Minute
)

// rescue is what to do when a path between two easy NATs broke off and no medium
// brings news: perhaps one of them forgot its mappings, and gave our socket, or
// the peer's, a port that nobody knows. One side then opens many sockets, as if
// it were behind a hard NAT, and the other one probes ports. Which side lost its
// mapping is not known: they take turns, and which begins follows from the keys.
func (d *drill) rescue() (punch.Plan, time.Time) {
	c := d.l.core
	from := c.straightAddr
	if !from.IsValid() && d.peer.Public.IsValid() { // never straight: aim at what the peer's STUN server saw
		from = netip.AddrPortFrom(d.peer.Public, d.peer.LastPort)
	}
	if c.lost.IsZero() || d.news.After(c.lost) || c.selected != nil || from.Port() == 0 ||
		!from.Addr().Is4() || !outside(from.Addr()) || time.Since(c.lost) > rescueFor {
		return punch.Plan{}, time.Time{}
	}
	if d.loss != c.lost {
		d.loss, d.rescues = c.lost, 0
	}
	own, theirs := d.l.keys.send.tag(), d.l.keys.today.tag()
	if d.rescues >= maxRescues {
		return punch.Plan{}, time.Time{}
	}
	plan := punch.Plan{Reason: rescueReason, Chance: punch.Chance(rescueSockets, 1<<16-1024, punch.AttemptProbes)}
	if first := bytes.Compare(own[:], theirs[:]) < 0; first == (d.rescues%2 == 0) {
		plan.Role, plan.Sockets, plan.Target = punch.RoleOpener, rescueSockets, from
	} else {
		plan.Role, plan.Target = punch.RoleProber, netip.AddrPortFrom(from.Addr(), 0)
	}
	return plan, c.lost
}

const (
	rescueSockets = 256 // that a rescue opens
	// rescueTime is how long one side keeps its part before they take turns: 98 %
	// of attempts with the right parts succeed in that time.
	rescueTime   = 2500 * time.Millisecond
	rescueReason = "the path broke off, perhaps a NAT forgot it"
)
