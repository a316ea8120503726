package dht

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

const (
	maxLinks     = 8                // addresses of one topic that are tried
	tryEvery     = time.Second      // between datagrams to an address that has not answered
	tryMost      = 20               // datagrams to an address that has not answered
	provenFor    = time.Minute      // after a valid datagram
	provenRate   = 5                // datagrams a second to an address that has answered
	provenBurst  = 8                //
	seekEvery    = 2 * time.Second  // between questions for the other's address, while hot
	seekFrom     = 2                // nodes that are asked for it at a time
	freshFor     = 30 * time.Second // a frame is sent to an address that is new
	nonceMemory  = 256              // datagrams that are known again
	directRate   = 32               // valid datagrams a second of one topic that are looked at
	directBurst  = 64
	cooldownLink = 2 * time.Minute // then an address that never answered may be tried again
	maxSpent     = 64              // addresses that are known to have had their chance
)

// A link is an address at which the other side may be.
type link struct {
	learned time.Time
	proven  time.Time // the last valid datagram; zero if there was none
	sent    time.Time
	tries   int // datagrams since learned, without an answer
	limit   *limiter
}

// direct is the direct way of a box: the addresses, and what came lately. The
// box's mutex guards it.
type direct struct {
	links  map[netip.AddrPort]*link
	nonces map[[nonceLen]byte]struct{}
	order  [nonceMemory][nonceLen]byte // of nonces, a ring
	at     int
	limit  *limiter
	asked  time.Time                    // when the other's address was last asked for
	spent  map[netip.AddrPort]time.Time // addresses that had their chance, and when that ended
	reset  time.Time                    // when all got another chance
}

// A sending is a datagram to go out: a frame, or a probe if there is none.
type sending struct {
	to    netip.AddrPort
	slot  int
	frame []byte
}

// again lets addresses be tried once more that did not answer, every few minutes.
func (d *direct) again(now time.Time) {
	if now.Sub(d.reset) < cooldownLink {
		return
	}
	d.reset = now
	for _, l := range d.links {
		l.tries = 0
	}
}

// proven reports whether the other side was heard directly a moment ago.
func (d *direct) proven(now time.Time) bool {
	for _, l := range d.links {
		if now.Sub(l.proven) < provenFor/4 {
			return true
		}
	}
	return false
}

// learn notes an address. It reports whether that is worth a datagram at once.
func (d *direct) learn(now time.Time, p netip.AddrPort) bool {
	if d.links == nil {
		d.links, d.spent = make(map[netip.AddrPort]*link), make(map[netip.AddrPort]time.Time)
	}
	if d.links[p] != nil {
		return false
	}
	for q, at := range d.spent {
		if now.Sub(at) > cooldownLink {
			delete(d.spent, q)
		}
	}
	if _, had := d.spent[p]; had {
		return false
	}
	if len(d.links) >= maxLinks && len(d.spent) < maxSpent {
		for q, l := range d.links { // one that had its chance makes room
			if now.Sub(l.proven) > provenFor && l.tries >= tryMost {
				delete(d.links, q)
				d.spent[q] = now
				break
			}
		}
	}
	if len(d.links) >= maxLinks {
		return false
	}
	d.links[p] = &link{learned: now, limit: newLimiter(provenRate, provenBurst)}
	return true
}

// may reports whether a datagram may go to a link now, and counts it.
func (l *link) may(now time.Time) bool {
	if now.Sub(l.proven) < provenFor {
		if !l.limit.allow(now) {
			return false
		}
	} else {
		if l.tries >= tryMost || now.Sub(l.sent) < tryEvery {
			return false
		}
		l.tries++
	}
	l.sent = now
	return true
}

// publish returns where a new frame of a slot goes at once.
func (d *direct) publish(now time.Time, voices [2]bool, frame []byte, slot int) (out []sending) {
	if !voices[slot] {
		return nil
	}
	for p, l := range d.links {
		if l.may(now) {
			out = append(out, sending{p, slot, frame})
		}
	}
	return out
}

// fresh reports whether a datagram was not seen before, and remembers it.
func (d *direct) fresh(n [nonceLen]byte) bool {
	if d.nonces == nil {
		d.nonces = make(map[[nonceLen]byte]struct{}, nonceMemory)
	}
	if _, known := d.nonces[n]; known {
		return false
	}
	if len(d.nonces) >= nonceMemory {
		delete(d.nonces, d.order[d.at])
	}
	d.nonces[n] = struct{}{}
	d.order[d.at] = n
	d.at = (d.at + 1) % nonceMemory
	return true
}

// voices are the slots that this device speaks in: those that it writes, and the
// other one of those that it only reads, for probes. b.mu is held.
func (b *box) voices() (out [2]bool) {
	write, read := b.uses()
	for slot := range out {
		out[slot] = write[slot] || read[1-slot]
	}
	return out
}

// datagram takes what came directly under a tag of this topic. The tag is no
// proof; the seal is.
func (b *box) datagram(slot int, raw []byte, from netip.AddrPort) {
	frame, ok := b.keys.openDatagram(slot, raw)
	if !ok {
		b.e.stats.forged.Add(1)
		return
	}
	now := time.Now()
	b.mu.Lock()
	voices := b.voices()
	if b.direct.limit == nil {
		b.direct.limit = newLimiter(directRate, directBurst)
	}
	if !voices[1-slot] || !b.direct.fresh([nonceLen]byte(raw[tagSize:])) || !b.direct.limit.allow(now) {
		b.mu.Unlock()
		return
	}
	delete(b.direct.spent, from)
	b.direct.learn(now, from)
	var reply []sending
	if l := b.direct.links[from]; l != nil {
		was := now.Sub(l.proven) < provenFor
		l.proven, l.tries = now, 0
		if !was { // so that it knows, too
			reply = b.greet(now, from, l)
		}
	}
	if len(frame) == rendezvous.FrameSize {
		b.e.stats.fromPeers.Add(1)
		b.deliver(slot, frame, from)
	}
	b.mu.Unlock()
	b.e.transmit(b.keys, reply)
}

// greet returns what to send to an address that is new: the newest frame of each
// slot, or a probe. b.mu is held.
func (b *box) greet(now time.Time, to netip.AddrPort, l *link) (out []sending) {
	voices := b.voices()
	for slot, speaks := range voices {
		if !speaks || !l.may(now) {
			continue
		}
		s := sending{to: to, slot: slot}
		if o := &b.out[slot]; o.frame != nil && now.Sub(o.came) < freshFor {
			s.frame = o.frame
		}
		out = append(out, s)
	}
	return out
}

// directAll repeats datagrams to addresses that have not answered, which opens
// NATs on both sides, for a bounded time.
func (b *box) directAll(ctx context.Context) {
	for {
		now := time.Now()
		wait := homeFor
		var out []sending
		b.mu.Lock()
		for p, l := range b.direct.links {
			if now.Sub(l.proven) < provenFor || l.tries >= tryMost {
				continue
			}
			wait = tryEvery
			if now.Sub(l.sent) >= tryEvery {
				out = append(out, b.greet(now, p, l)...)
			}
		}
		b.mu.Unlock()
		b.e.transmit(b.keys, out)
		if sleep(ctx, wait, b.wakeD) != nil {
			return
		}
	}
}

// meet announces this device at the topic's home and asks for the other's
// address, as far as that is due. It returns when to do so again.
func (b *box) meet(ctx context.Context) time.Duration {
	now := time.Now()
	b.mu.Lock()
	hot, proven := b.hot(now), b.direct.proven(now)
	announce := now.Sub(b.announced) > announceFor || hot && b.hotSince.After(b.announced) && now.Sub(b.announced) > announceSoon
	if wait := seekEvery - now.Sub(b.direct.asked); wait > 0 {
		b.mu.Unlock()
		return wait
	}
	b.direct.asked = now
	b.mu.Unlock()
	var tried, taken atomic.Int64 // announcements
	var wg sync.WaitGroup
	for _, p := range b.places {
		nodes := p.some(seekFrom)
		if announce {
			nodes = p.all()
		}
		if !announce && (!hot || proven) {
			continue
		}
		for _, n := range nodes {
			wg.Go(func() {
				tried.Add(1)
				if b.seek(ctx, p, n, announce) {
					taken.Add(1)
				}
			})
		}
	}
	wg.Wait()
	again := announceFor
	if announce && tried.Load() > 0 {
		if taken.Load() == 0 {
			again = homeAgain
		}
		b.mu.Lock()
		b.announced = now.Add(again - announceFor)
		b.mu.Unlock()
	}
	if hot {
		return seekEvery
	}
	return again
}

// seek asks a node for the addresses that were announced at the home, and
// announces this device there (BEP 5). It reports whether the node took that.
func (b *box) seek(ctx context.Context, p *place, n *near, announce bool) bool {
	m, err := p.e.ask(ctx, n.addr, &query{method: "get_peers", target: b.keys.home})
	if err != nil {
		return false
	}
	own := p.e.external()
	now := time.Now()
	var out []sending
	b.mu.Lock()
	for _, peer := range m.peers {
		if peer == own || peer == addrPort(p.e.conn.LocalAddr()) || !p.e.suits(peer, n.addr) {
			continue
		}
		if b.direct.learn(now, peer) {
			out = append(out, b.greet(now, peer, b.direct.links[peer])...)
		}
	}
	b.mu.Unlock()
	if len(out) > 0 {
		b.e.transmit(b.keys, out)
		poke(b.wakeD)
	}
	if !announce || len(m.token) == 0 {
		return false
	}
	_, err = p.e.ask(ctx, n.addr, &query{method: "announce_peer", target: b.keys.home, token: m.token})
	return err == nil
}
