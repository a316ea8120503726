package lan

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/internal/netmon"
)

// A Membership is a multicast group on an interface, with what has gone through
// it: what a doctor can show. It tells what was measured, and promises nothing
// about other networks.
type Membership struct {
	Interface string
	Group     netip.Addr
	Scope     Scope
	Derived   bool   // the group is of one topic; else it is Group4 or Group6
	Joined    bool   // the system has taken the membership
	Joins     uint64 // how many times it was joined: more than once after changes of the network
	Err       string // why it has not; "" otherwise, also where only sending is wanted
	SendErr   string // why the last datagram to it was not sent; "" if it was
	Sent      uint64 // how many datagrams this device sent to it, also if they came back only to itself
	Received  uint64 // how many datagrams of other devices came through it
	// HopsSeen are the senders whose datagrams came through it, at most 64 of all
	// groups together, the newest first.
	HopsSeen []Hops
}

// A Hops is what is known of the way of one sender's datagrams.
type Hops struct {
	From netip.Addr // the sender, as its datagrams say
	// Last, Least and Most are the hop limits with which datagrams arrived, in
	// hops that were left; 0 where the platform does not tell. The sender's own
	// Config.HopLimit less this is the number of routers between.
	Last, Least, Most int
	// OnLink says that the sender's address is of the interface's own network.
	// Otherwise a router has passed the datagrams on.
	OnLink bool
	Seen   time.Time // when the last came
}

// maxHops bounds the table of senders, in number.
const maxHops = 64

type hopKey struct {
	index int
	group netip.Addr
	from  netip.Addr
}

// A hopTable is what is known of senders. The zero value is not usable.
type hopTable map[hopKey]Hops

func (t hopTable) add(key hopKey, hops int, now time.Time) {
	h, known := t[key]
	if !known {
		if len(t) >= maxHops {
			oldest, first := key, true
			for k, o := range t {
				if first || o.Seen.Before(t[oldest].Seen) {
					oldest, first = k, false
				}
			}
			delete(t, oldest)
		}
		h = Hops{From: key.from, Least: hops}
	}
	h.Last, h.Least, h.Most, h.Seen = hops, min(h.Least, hops), max(h.Most, hops), now
	t[key] = h
}

// Multicast returns the multicast groups that are in use, with what was sent and
// received and with which hop limits it came. It is sorted by interface and
// group.
func (e *Exchange) Multicast() []Membership {
	if e.groups == nil {
		return nil
	}
	return e.groups.report()
}

// MDNS returns the same of the groups of mDNS: datagrams of any program on other
// hosts count there.
func (e *Exchange) MDNS() []Membership {
	if e.mdns == nil {
		return nil
	}
	return e.mdns.groups.report()
}

func (g *groups) report() []Membership {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Membership, 0, len(g.members))
	for key, m := range g.members {
		r := Membership{
			Interface: m.name, Group: key.group, Scope: m.scope, Derived: m.derived, Joined: m.conn != nil, Joins: m.joins,
			Sent: m.sent, Received: m.received,
		}
		if m.err != nil {
			r.Err = m.err.Error()
		}
		if m.sendErr != nil {
			r.SendErr = m.sendErr.Error()
		}
		for k, h := range g.seen {
			if k.index == key.index && k.group == key.group {
				h.OnLink = onLink(g.use, key.index, h.From)
				r.HopsSeen = append(r.HopsSeen, h)
			}
		}
		slices.SortFunc(r.HopsSeen, func(a, b Hops) int { return b.Seen.Compare(a.Seen) })
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Membership) int {
		return cmp.Or(strings.Compare(a.Interface, b.Interface), a.Group.Compare(b.Group))
	})
	return out
}

// onLink reports whether an address is of the network of an interface, or of any
// if the interface is not known (0).
func onLink(use []netmon.Interface, index int, a netip.Addr) bool {
	if a.IsLinkLocalUnicast() {
		return true
	}
	a = a.WithZone("")
	for _, i := range use {
		if index != 0 && i.Index != index {
			continue
		}
		if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
			return true
		}
	}
	return false
}
