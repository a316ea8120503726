package link

import (
	"net/netip"
	"time"
)

// maxBlind is how many blind pings are remembered: more than can be on their way
// at the allowed rate.
const maxBlind = 2048

// A blind is the memory of pings to addresses that are only guessed, such as
// random ports of a NAT. They are no candidates before they answer.
type blind struct {
	sent map[txid]blindPing
	ring [maxBlind]txid
	next int
}

type blindPing struct {
	to netip.AddrPort
	at time.Time
}

// guess sends a ping to an address that may lead to the peer.
func (c *checker) guess(now time.Time, to netip.AddrPort) {
	if c.relayed {
		return
	}
	b := &c.blind
	if b.sent == nil {
		b.sent = make(map[txid]blindPing, maxBlind)
	}
	c.seq++
	p := probe{kind: ping, session: c.session, seq: c.seq}
	c.read(p.tx[:])
	delete(b.sent, b.ring[b.next])
	b.ring[b.next] = p.tx
	b.next = (b.next + 1) % maxBlind
	b.sent[p.tx] = blindPing{to: to, at: now}
	_ = c.out.send(onSocket(to), nil, p, smallProbe) // lost like any datagram
}

// hit makes a candidate of a guess that answered; nil: the pong belongs to none.
func (c *checker) hit(now time.Time, from place, p probe) *candidate {
	g, ok := c.blind.sent[p.tx]
	if !ok || c.relayed || from != onSocket(g.to) || now.Sub(g.at) > pongWait {
		return nil
	}
	delete(c.blind.sent, p.tx)
	cand := c.add(from)
	cand.heard = now
	cand.pending = []pending{{tx: p.tx, sent: g.at, size: smallProbe}}
	cand.lastPing, cand.attempts = g.at, 1
	c.trim()
	return c.all[from]
}
