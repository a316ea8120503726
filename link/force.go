package link

import (
	"cmp"
	"time"
)

// A Force says which paths are wanted, for a while.
type Force uint8

// The forces.
const (
	ForceNone   Force = 0 // all
	ForceRelay  Force = 1 // through a relay
	ForceDirect Force = 2 // through no relay
	ForceLAN    Force = 3 // on a network of one of our interfaces, or on this machine
)

var forceNames = [...]string{"", "relay", "direct", "lan"} //nolint:gochecknoglobals // never changed

// String returns the force in one lower-case word; "" for ForceNone.
func (f Force) String() string {
	if int(f) >= len(forceNames) {
		return "unknown"
	}
	return forceNames[f]
}

// ParseForce reads what String gives, and reports whether it is that of a Force.
func ParseForce(s string) (Force, bool) {
	for i, name := range forceNames {
		if s == name {
			return Force(i), true
		}
	}
	return ForceNone, false
}

// Allows reports whether a path of a kind is one that is wanted.
func (f Force) Allows(k PathKind) bool {
	switch f {
	case ForceRelay:
		return k == Relay
	case ForceDirect:
		return k != Relay
	case ForceLAN:
		return k == LAN || k == Loopback
	default:
		return true
	}
}

// maxForce is how long a Force lasts at most, whoever forgets it.
const maxForce = 30 * time.Second

// A forcing is an order to have a Force.
type forcing struct {
	force Force
	until time.Time
}

// Force has the Link prefer paths of one sort to all others for as long as d, at most
// 30 s, or until it is called with ForceNone. It ends no connection: while no such path
// answers, another one is used. All addresses are asked anew. It does not block.
func (l *Link) Force(f Force, d time.Duration) {
	until := time.Now().Add(min(d, maxForce))
	l.order(func(o *orders) { o.force = &forcing{f, until} })
}

// setForce begins or ends a Force.
func (c *checker) setForce(now time.Time, f forcing) {
	if f.force == c.force && f.force == ForceNone {
		return
	}
	c.force, c.forcedUntil = f.force, f.until
	if f.force == ForceNone {
		c.forcedUntil = time.Time{}
	}
	c.stir(now)
	c.probe(now)
	c.choose(now)
}

// unforce ends a Force that nobody has ended.
func (c *checker) unforce(now time.Time) {
	if !c.forcedUntil.IsZero() && !now.Before(c.forcedUntil) {
		c.setForce(now, forcing{})
	}
}

// prefer is compare, and before that what is forced.
func (c *checker) prefer(a, b *candidate) int {
	return cmp.Or(cmp.Compare(btoi(c.force.Allows(a.kind)), btoi(c.force.Allows(b.kind))), c.compare(a, b))
}

// moves reports whether the path a is worth leaving the working path b: displaces, and
// before that what is forced.
func (c *checker) moves(now time.Time, a, b *candidate) bool {
	if x, y := c.force.Allows(a.kind), c.force.Allows(b.kind); x != y {
		return x
	}
	return c.displaces(now, a, b)
}
