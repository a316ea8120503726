package link

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/signaling"
)

// A pending ping has not been answered.
type pending struct {
	tx   txid
	sent time.Time
	size int
}

// A candidate is a place that may lead to the peer.
type candidate struct {
	place    place
	named    bool // in the peer's present list; the others were learned
	priority uint32
	origin   signaling.Kind // as the peer named it; zero: it did not
	network  PathKind       // by its address and our interfaces

	heard    time.Time     // when its last ping or pong came
	attempts int           // small pings since it was restarted or lost
	next     time.Time     // when the next small ping is due; zero: never
	lastPing time.Time     // when the last small one was sent
	pending  []pending     // oldest first
	silent   time.Time     // when the oldest unanswered small ping was sent; zero: none is
	via      conn.Endpoint // how its last pong came in; nil: the system chooses our address

	usable   bool // it answered, and has not been given up since
	worked   bool // it was usable once
	lastPong time.Time
	since    time.Time
	barred   time.Time // until then it does not displace another path: it was left for silence
	rtt      time.Duration
	samples  int
	kind     PathKind
	local    netip.Addr
	observed netip.AddrPort

	size     int       // largest probe that was answered, in bytes
	step     int       // index of the size to try
	tries    int       // unanswered probes of that size
	sizeNext time.Time // when the next large ping is due; zero: never
	anew     bool      // it is to find out whether the path has widened: only while data flows
	small    bool      // probes of data size were lost

	counts counts
	gone   []pending // that no answer has come to in time, oldest first
}

// ping sends a small ping and says when the next one is due if nothing answers.
func (c *checker) ping(now time.Time, cand *candidate) {
	if !cand.usable {
		if ok, at := c.allow(now, cand.place.addr); !ok {
			cand.next = at
			return
		}
	}
	via := cand.via
	if !cand.silent.IsZero() {
		via = nil // perhaps our own address is what is wrong
	} else {
		cand.silent = now
	}
	cand.lastPing = now
	cand.attempts++
	c.sendPing(now, cand, via, smallProbe)
	if cand == c.selected {
		c.seek(now)
	}
	switch {
	case cand.usable:
		cand.next = now.Add(cand.patience())
	case c.up && cand.attempts >= standbyTry:
		cand.next = time.Time{}
	default:
		wait := c.longestRetry(now)
		if cand.attempts < 12 {
			wait = min(firstRetry<<(cand.attempts-1), wait)
		}
		cand.next = now.Add(c.jitter(wait))
	}
}

// longestRetry is the longest wait between two pings to one candidate: short
// while whoever was connected a moment ago may come back at any time.
func (c *checker) longestRetry(now time.Time) time.Duration {
	switch since := now.Sub(c.lost); {
	case c.lost.IsZero() || since > lostBefore:
		return lastRetry
	case since > lostLately:
		return laterRetry
	default:
		return soonRetry
	}
}

// jitter spreads a timer by 10 %, so that many links, or both ends of one, do
// not fall into step.
func (c *checker) jitter(d time.Duration) time.Duration {
	var raw [2]byte
	c.read(raw[:])
	return d - d/20 + d/10*time.Duration(binary.BigEndian.Uint16(raw[:]))/(1<<16)
}

func (c *checker) sendPing(now time.Time, cand *candidate, via conn.Endpoint, size int) {
	c.seq++
	p := probe{kind: ping, session: c.session, seq: c.seq}
	c.read(p.tx[:])
	if cand == c.selected {
		p.flags |= flagSelected
	}
	cand.pending = append(cand.pending, pending{tx: p.tx, sent: now, size: size})
	if over := len(cand.pending) - maxPending; over > 0 {
		cand.expire(cand.pending[:over])
		cand.pending = slices.Delete(cand.pending, 0, over)
	}
	err := c.out.send(cand.place, via, p, size)
	if err != nil && via != nil {
		// Our address of that time may be gone: let the system choose one.
		cand.via = nil
		if cand == c.selected {
			c.out.use(cand)
		}
		err = c.out.send(cand.place, nil, p, size)
	}
	cand.counts.ping(err)
}

// patience is how long an answer of this candidate is awaited before its
// absence means something: four round trips between minPatience and maxPatience, and on
// the slowest paths one and a half.
func (cand *candidate) patience() time.Duration {
	return max(min(max(4*cand.rtt, minPatience), maxPatience), min(cand.rtt*3/2, pongWait))
}

// proved takes note that a ping to a candidate was answered.
func (c *checker) proved(now time.Time, cand *candidate, answered pending) {
	sample := max(now.Sub(answered.sent), time.Microsecond)
	if !cand.usable {
		cand.usable, cand.worked, cand.since = true, true, now
		cand.rtt, cand.samples = sample, 0
		cand.restartSize(now)
		c.out.admit(cand.place, true)
	}
	if answered.size == smallProbe {
		cand.rtt += (sample - cand.rtt) / 4
		cand.samples++
	}
	cand.lastPong, cand.heard, cand.attempts = now, now, 0
	switch {
	case cand != c.selected && now.Before(cand.barred):
		cand.next = cand.barred
	case cand != c.selected:
		cand.next = time.Time{}
	case now.Before(c.activeUntil):
		cand.next = now.Add(c.jitter(activePing))
	default:
		cand.next = now.Add(c.jitter(idlePing) + idlePing/20) // not sooner than idlePing
	}
	if cand == c.selected {
		c.waiting, c.unsure = time.Time{}, time.Time{}
		c.out.answered()
		if cand.silent.IsZero() {
			c.alarm = time.Time{}
		}
	}
	c.onSize(now, cand, answered.size)
}

// missed counts the small pings that should have been answered by now.
func (cand *candidate) missed(now time.Time) int {
	n := 0
	cand.late(func(at time.Time) {
		if !now.Before(at) {
			n++
		}
	})
	return n
}

// late calls f with the moments from which on the answers to small pings are
// missed: the first one's has the usual patience, later ones' less, as there is
// doubt already.
func (cand *candidate) late(f func(at time.Time)) {
	wait := cand.patience()
	for _, q := range cand.pending {
		if q.size == smallProbe {
			f(q.sent.Add(wait))
			wait = min(wait, max(4*cand.rtt, againPatience))
		}
	}
}

// lose gives up a candidate until it answers again.
func (c *checker) lose(now time.Time, cand *candidate) {
	cand.expire(cand.pending)
	cand.usable, cand.via, cand.pending, cand.silent = false, nil, nil, time.Time{}
	cand.size, cand.small, cand.sizeNext = 0, false, time.Time{}
	cand.attempts, cand.next = 0, now.Add(firstRetry)
}

// observe notes from where the peer sees our packets come. If that is another public
// address or port than before, our NAT has started anew, which nothing else tells.
func (c *checker) observe(cand *candidate, at netip.AddrPort) {
	before := cand.observed
	cand.observed = at
	if before.IsValid() && at.IsValid() && before != at && cand.place.carrier == 0 && outside(at.Addr()) {
		c.out.event(Silent, c.path(cand))
	}
}
