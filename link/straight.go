package link

import "time"

const (
	// seekFirst is how long a path through a relay is selected before straight ones
	// are asked again: their first pings go on for so long.
	seekFirst = 15 * time.Second
	// seekGap is the least time between two such questions. It is shorter than the
	// keepalive, with which they go out, and than NATs let in who was asked.
	seekGap = 20 * time.Second
)

// seek asks the addresses that lead through no relay once more, while the selected
// path does: a network that begins to let UDP out does not tell. It is called when a
// relayed path in use is pinged, at both ends, so that both open their NATs at the same
// time, nothing wakes for it, and a lazy link that sleeps sends nothing.
func (c *checker) seek(now time.Time) {
	sel := c.selected
	if sel == nil || sel.kind != Relay || c.relayed || c.dormant || c.force == ForceRelay || now.Before(c.seekAt) {
		return
	}
	c.seekAt, c.look = now.Add(seekGap), true
	for _, cand := range c.sorted() {
		if cand.usable || !cand.next.IsZero() || c.kindOf(cand, cand.local) == Relay {
			continue
		}
		c.due(now, cand)
		cand.attempts = standbyTry - 1 // one ping
	}
}

// looks reports whether the outside address is to be looked at since it was asked last.
func (c *checker) looks() bool {
	look := c.look
	c.look = false
	return look
}
