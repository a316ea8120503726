package link

import (
	"cmp"
	"encoding/binary"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/signaling"
)

// Bounds of what one peer, or whoever replays its packets, can make us keep or
// send.
const (
	maxRemote   = 20 // addresses of one setRemote, by priority
	maxThrough  = 8  // of these that are also tried through each relay
	maxLearned  = 8  // addresses that a valid ping came from, and old ones that worked
	maxSessions = 4  // sessions of the peer whose ping numbers are remembered
	maxZones    = 4  // own interfaces on which a link-local candidate is tried
	// Unanswered pings remembered per candidate: small and large ones whose answer may
	// still come in time.
	maxPending = 2 * int(pongWait/pingGap)
	pongBurst  = 64 // answers to pings at once to addresses that have answered us
	pongGap    = time.Second / pongBurst
	otherBurst = 10 // the same to all addresses together that are no candidates
	otherGap   = time.Second / otherBurst
	// Packets, pings and pongs, to one address that has not answered us: with the
	// burst at most 10 in any second, however often and from whichever list the
	// peer names it.
	strangeBurst = 5
	strangeGap   = time.Second / strangeBurst
	maxQuotas    = 256 // such addresses at a time
	// New addresses of that kind: so many at once, then one in each gap, whatever the
	// peer names, from wherever its packets seem to come, and however often it starts
	// anew.
	newcomerBurst = maxRemote + maxLearned + maxZones
	newcomerGap   = time.Second
)

// Timers; the package comment explains them.
const (
	pingPace      = 2 * time.Millisecond
	pingGap       = 100 * time.Millisecond // between two small pings to one candidate, whatever asks for them
	pongWait      = 3 * time.Second        // an answer that takes longer does not count
	firstRetry    = 100 * time.Millisecond
	lastRetry     = time.Minute
	soonRetry     = time.Second // between pings to one candidate, for lostLately after the last path was lost
	laterRetry    = 5 * time.Second
	lostLately    = 2 * time.Minute
	lostBefore    = 10 * time.Minute
	lostAfter     = 3 // unanswered pings end a path that is not selected
	standbyTry    = 7 // pings to an unproven candidate while a path is up
	idlePing      = 25 * time.Second
	activePing    = 5 * time.Second
	refreshPing   = time.Minute
	warmPing      = 15 * time.Second       // to the next best path, while data flows
	activeFor     = 10 * time.Second       // data makes a link active for so long
	minSilence    = 300 * time.Millisecond // data without any answer for so long, or for four
	maxSilence    = time.Second            // round trips, asks for a ping
	pathLimit     = 3 * time.Second
	minPatience   = 250 * time.Millisecond
	maxPatience   = time.Second
	againPatience = 100 * time.Millisecond // after a ping that was missed
	lateMargin    = 20 * time.Millisecond  // and two round trips: an answer of a path that may be gone is late
	sizeRetry     = 200 * time.Millisecond
	sizeTries     = 3
	sizeAgain     = time.Minute
	barFor        = 10 * time.Second
)

// A place is where a candidate can be reached: an address of the peer, and the
// number of the carrier that takes packets there. Number 0 is the shared socket.
type place struct {
	addr    netip.AddrPort
	carrier int
}

func onSocket(addr netip.AddrPort) place {
	return place{addr: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}
}

// An outlet carries out what a checker decides.
type outlet interface {
	send(to place, via conn.Endpoint, p probe, size int) error // seal and send a probe
	use(c *candidate)                                          // send data there; nil: nowhere
	admit(p place, proven bool)                                // WireGuard packets from p are this peer's
	forget(p place)                                            // they no longer are
	answered()                                                 // the selected path answered
	event(kind EventKind, p Path)
}

// A checker finds and keeps the paths to one peer. It is a pure state machine:
// it reads no clock and does no I/O but through its outlet. It is not safe for
// concurrent use.
type checker struct {
	out      outlet
	random   io.Reader
	sizes    []int // data probe sizes to try, descending, in bytes
	port     uint16
	networks networks
	carriers []carrierInfo // besides the shared socket
	loopback bool          // addresses of this machine are tried
	relayed  bool          // paths through relays alone are wanted
	direct   bool          // paths through no relay are wanted, also none of the peer's
	lazy     bool          // nothing is to be sent without data

	all      map[place]*candidate
	named    []namedAddr // as given to setRemote
	selected *candidate
	up       bool
	moved    time.Time // when selected last changed
	paced    time.Time // when the last new candidate was given its time

	session   uint64
	seq       uint64
	replays   *replays
	known     bucket // pongs to admitted addresses
	strange   bucket // pongs to unknown addresses
	blind     blind
	quotas    map[netip.AddrPort]*bucket // packets to addresses that have not answered us
	newcomers *bucket                    // new ones of them; outlives the checker

	activeUntil  time.Time
	refreshAt    time.Time
	waiting      time.Time      // since when data got no answer; zero: none did
	lost         time.Time      // when the last path was lost; zero: there was none
	straightAddr netip.AddrPort // where the last path led that went through no relay
	warmed       time.Time      // when the next best path was asked last
	alarm        time.Time      // since when all candidates are asked because the selected one is silent
	used         time.Time      // when data, or news, came or went last
	dormant      bool           // a lazy link sleeps
	theirs       place          // where the peer's last ping on the path that it selected came from
	seekAt       time.Time      // when straight paths may be asked again, while a relayed one is selected
	look         bool           // whether our outside address is still true is to be looked at
	unsure       time.Time      // since when nobody knows whether the selected path works; zero: it does
	force        Force          // which paths are wanted
	forcedUntil  time.Time      // until then
}

// A namedAddr is a candidate as the peer named it.
type namedAddr struct {
	addr     netip.AddrPort
	kind     signaling.Kind
	priority uint32
}

func newChecker(out outlet, random io.Reader, dataSize int) *checker {
	c := &checker{out: out, random: random, all: make(map[place]*candidate), sizes: []int{dataSize}, replays: new(replays), newcomers: new(bucket)}
	for _, size := range []int{1280 + 32, 1200} {
		if size < dataSize {
			c.sizes = append(c.sizes, size)
		}
	}
	var raw [8]byte
	c.read(raw[:])
	c.session = binary.BigEndian.Uint64(raw[:])
	return c
}

// read fills b with random bytes. crypto/rand does not fail.
func (c *checker) read(b []byte) {
	if _, err := io.ReadFull(c.random, b); err != nil {
		panic("link: random source failed: " + err.Error())
	}
}

// setNetworks tells the checker what this device's interfaces are.
func (c *checker) setNetworks(now time.Time, n networks) {
	c.networks = n
	for _, cand := range c.all {
		cand.network = c.kindOf(cand, netip.Addr{})
		if !cand.usable {
			continue
		}
		kind := c.kindOf(cand, cand.local)
		if kind != cand.kind && cand == c.selected {
			cand.kind = kind
			c.out.event(Changed, c.path(cand))
		}
		cand.kind = kind
	}
	c.expand(now)
	c.choose(now)
}

// setRemote replaces the candidates that the peer names.
func (c *checker) setRemote(now time.Time, list []namedAddr) {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b namedAddr) int { return cmp.Compare(b.priority, a.priority) })
	c.named = list[:min(len(list), maxRemote)]
	slept := c.stir(now)
	c.leaveRelays(now)
	c.expand(now)
	if !c.up || slept {
		c.probe(now) // news of the peer: the old addresses are worth a try, too
	}
}

// expand makes candidates of the named addresses: a link-local one for each
// interface of ours, since only we know on which of them the peer is.
func (c *checker) expand(now time.Time) {
	want := make(map[place]namedAddr)
	var order []place
	add := func(n namedAddr, places []place, most int) {
		for _, p := range places {
			if _, ok := want[p]; !ok && len(order) < most {
				want[p], order = n, append(order, p)
			}
		}
	}
	if !c.relayed {
		for _, n := range c.named {
			if c.ofRelay(onSocket(n.addr)) {
				continue
			}
			add(n, c.places(n.addr), maxRemote+maxZones)
		}
	}
	for _, r := range c.carriers {
		most := len(order) + maxThrough
		for _, n := range c.named {
			add(n, r.places(n), most)
		}
	}
	for p, cand := range c.all {
		if _, ok := want[p]; !ok && cand.named {
			cand.named = false
			if !cand.usable && !cand.worked {
				c.remove(cand)
			}
		}
	}
	for _, p := range order {
		cand := c.all[p]
		if cand == nil {
			if cand = c.add(p); !c.dormant {
				c.due(now, cand)
			}
		}
		cand.named, cand.priority, cand.origin = true, want[p].priority, want[p].kind
		cand.network = c.kindOf(cand, netip.Addr{})
	}
	c.trim()
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255}) //nolint:gochecknoglobals // never changed

// places are where an address that the peer named may be; none if no peer can
// have it.
func (c *checker) places(addr netip.AddrPort) []place {
	p := onSocket(addr)
	ip := p.addr.Addr()
	if ip.IsLoopback() && !c.loopback || p.addr.Port() == 0 || !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() || ip == broadcast || identity.Prefix().Contains(ip) {
		return nil // the last: a tunnel does not run through tunnels
	}
	if !ip.Is6() || !ip.IsLinkLocalUnicast() {
		p.addr = netip.AddrPortFrom(ip.WithZone(""), p.addr.Port())
		return []place{p}
	}
	var out []place
	for _, zone := range c.networks.zones() {
		out = append(out, place{addr: netip.AddrPortFrom(ip.WithZone(zone), p.addr.Port())})
	}
	return out[:min(len(out), maxZones)]
}

func (c *checker) add(p place) *candidate {
	cand := &candidate{place: p}
	cand.network = c.kindOf(cand, netip.Addr{})
	c.all[p] = cand
	return cand
}

func (c *checker) remove(cand *candidate) {
	delete(c.all, cand.place)
	c.out.forget(cand.place)
}

// clear gives up all candidates without an event. The checker is not used after it.
func (c *checker) clear() {
	c.out.use(nil)
	for _, cand := range c.all {
		c.out.forget(cand.place)
	}
	clear(c.all)
	c.selected = nil
}

// trim keeps at most maxLearned candidates that the peer does not name: those
// that work, then those heard of last.
func (c *checker) trim() {
	var learned []*candidate
	for _, cand := range c.all {
		if !cand.named && cand != c.selected {
			learned = append(learned, cand)
		}
	}
	if len(learned) <= maxLearned {
		return
	}
	slices.SortFunc(learned, func(a, b *candidate) int {
		if a.usable != b.usable {
			return cmp.Compare(btoi(b.usable), btoi(a.usable))
		}
		return cmp.Or(b.heard.Compare(a.heard), b.place.addr.Compare(a.place.addr))
	})
	for _, cand := range learned[maxLearned:] {
		c.remove(cand)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// due gives a candidate its first ping, a little after the one before it.
func (c *checker) due(now time.Time, cand *candidate) {
	if c.paced.Before(now) {
		c.paced = now
	}
	cand.attempts, cand.next = 0, c.paced
	c.paced = c.paced.Add(pingPace)
	if soonest := cand.lastPing.Add(pingGap); cand.next.Before(soonest) {
		cand.next = soonest
	}
}

// probe asks every candidate anew, the selected one first.
func (c *checker) probe(now time.Time) {
	all := slices.Collect(maps.Values(c.all))
	slices.SortFunc(all, func(a, b *candidate) int {
		return cmp.Or(
			cmp.Compare(btoi(b == c.selected), btoi(a == c.selected)), cmp.Compare(btoi(b.usable), btoi(a.usable)),
			cmp.Compare(b.network.rank(), a.network.rank()), cmp.Compare(b.priority, a.priority),
			a.place.addr.Compare(b.place.addr), cmp.Compare(a.place.carrier, b.place.carrier))
	})
	c.paced = now // all get their time anew
	for _, cand := range all {
		c.due(now, cand)
	}
}

// onPing answers a ping, unless it is a replay or too many come.
func (c *checker) onPing(now time.Time, from place, via conn.Endpoint, p probe) {
	if !c.fresh(p.session, p.seq) {
		return
	}
	if c.relayed && !c.relays(from.carrier) || c.ofRelay(from) {
		return
	}
	cand := c.all[from]
	limit, burst, gap := &c.strange, otherBurst, otherGap
	switch {
	case cand != nil && cand.usable:
		limit, burst, gap = &c.known, pongBurst, pongGap
	case cand != nil:
		limit = nil
	}
	if limit != nil && !limit.take(now, burst, gap) {
		return
	}
	if cand == nil {
		cand = c.add(from)
		cand.heard = now
		c.trim()
		cand = c.all[from] // nil if better ones fill the table
	}
	sel := c.selected
	elsewhere := false
	if p.flags&flagSelected != 0 {
		// Two ways that stay two are no news, or both ends would ask without an end.
		elsewhere = sel != nil && sel != cand && c.theirs != from
		c.theirs = from
		if cand != nil && cand.kind == Relay {
			c.seek(now) // as the peer does at the same time
		}
	}
	if cand != nil {
		cand.heard = now
		cand.counts.received++
		c.out.admit(from, cand.usable)
		if !cand.usable || elsewhere {
			c.stir(now)
		}
		switch soonest := cand.lastPing.Add(pingGap); {
		case cand.usable:
		case now.Before(soonest):
			if cand.attempts = 0; cand.next.IsZero() || cand.next.After(soonest) {
				cand.next = soonest
			}
		default:
			// Before the pong: then the peer's pong comes before the data that
			// our pong sets free, and we can answer those.
			cand.attempts = 0
			c.ping(now, cand)
		}
	}
	if usable := cand != nil && cand.usable; !usable {
		if ok, _ := c.allow(now, from.addr); !ok {
			return
		}
	}
	_ = c.out.send(from, via, probe{kind: pong, tx: p.tx, observed: from.addr}, smallProbe)
	if cand == nil {
		return
	}
	if elsewhere {
		// The peer uses another way: does ours still work?
		if at := sel.lastPing.Add(sel.patience()); sel.next.After(at) {
			sel.next = at
		}
	}
	c.tick(now)
}

// fresh reports whether a ping of that session and number is new.
func (c *checker) fresh(session, seq uint64) bool {
	if session == c.session {
		return false // our own
	}
	return c.replays.accept(session, seq)
}

// onPong proves a candidate, if the pong comes from where the ping went, and
// reports whether it does.
func (c *checker) onPong(now time.Time, from place, via conn.Endpoint, p probe) bool {
	cand := c.all[from]
	if cand == nil {
		if cand = c.hit(now, from, p); cand == nil {
			return false
		}
	}
	i := slices.IndexFunc(cand.pending, func(q pending) bool { return q.tx == p.tx })
	if i < 0 || now.Sub(cand.pending[i].sent) > pongWait {
		cand.tooLate(now, p.tx)
		return false
	}
	cand.counts.answered++
	if c.dormant { // a guess from before has hit
		c.stir(now)
	}
	answered := cand.pending[i]
	cand.pending = slices.DeleteFunc(cand.pending, func(q pending) bool {
		return !q.sent.After(answered.sent) && q.size <= answered.size
	})
	cand.silent = time.Time{}
	if i := slices.IndexFunc(cand.pending, func(q pending) bool { return q.size == smallProbe }); i >= 0 {
		cand.silent = cand.pending[i].sent
	}
	c.proved(now, cand, answered)
	c.observe(cand, p.observed)
	cand.via = via
	if via != nil {
		cand.local = via.SrcIP()
	}
	cand.kind = c.kindOf(cand, cand.local)
	if c.selected == cand {
		c.out.use(cand)
	}
	c.choose(now)
	c.tick(now)
	return true
}
