package dht

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	alpha        = 8                      // questions of one lookup that wait for an answer
	slowAfter    = 400 * time.Millisecond // then another node is asked meanwhile
	slowMost     = 16                     // nodes that are waited for in this way
	lookupBudget = 120                    // questions of one lookup
	lookupTime   = 20 * time.Second       // of one lookup
	maxCands     = 256                    // nodes that one lookup keeps in mind
	perHostAsks  = 16                     // questions of one lookup to one address
	storeGroups  = 8                      // networks that a thing is put to
	storeMost    = 16                     // nodes that a thing is put to
	wordMost     = 4                      // nodes of one answer that are asked before one of them has answered
	wellKnown    = 8                      // nearby nodes that make bootstrap nodes unnecessary
)

// A candidate is a node on the way to a target.
type candidate struct {
	contact
	state state
	since atomic.Pointer[time.Time] // when the question was sent; nil: it still waits for its turn
	token []byte
	fresh bool           // has an id that it was named with; bootstrap nodes have none
	by    netip.AddrPort // who named it; invalid for nodes that we knew
}

type state uint8

const (
	unasked state = iota
	asking
	answered // and can store
	routes   // answered, but cannot store
	failed
)

// A lookup walks towards a target, asking always the nearest nodes known.
type lookup struct {
	e      *engine
	target id
	method string
	cands  []*candidate // nearest first; without id last
	byAddr map[netip.AddrPort]*candidate
	asks   map[netip.Addr]int
	asked  int
	words  map[netip.AddrPort]*word
	done   chan *result
}

// A word is how far the nodes that somebody named have answered: who names nodes
// that do not exist cannot keep a lookup busy with them.
type word struct{ asked, answered int }

func (w *word) good() bool { return w.asked-3*w.answered < wordMost }

type result struct {
	c     *candidate
	reply message
	err   error
}

// group is whose node a contact is: two of one group count once, so that one
// owner of many nodes cannot be all of the nearest.
func group(a netip.Addr) netip.Addr {
	bits := 32
	switch {
	case a.Is4() && public(a):
		bits = 24
	case a.Is6():
		bits = 48
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return a
	}
	return p.Addr()
}

// lookup finds the nodes nearest to target. With get as method they are the ones
// that can store: those in the nearest eight networks, at most sixteen nodes.
// more are nodes to begin with, besides those of the routing table. It reports
// whether it came to an end in time, and most nodes on the last stretch answered.
func (e *engine) lookup(ctx context.Context, target id, method string, more []contact) ([]*candidate, bool) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	l := &lookup{
		e: e, target: target, method: method, byAddr: make(map[netip.AddrPort]*candidate), asks: make(map[netip.Addr]int),
		words: make(map[netip.AddrPort]*word),
		done:  make(chan *result, lookupBudget),
	}
	if own, ok := e.itself(); ok {
		n := &candidate{contact: own, fresh: true}
		l.cands, l.byAddr[own.addr] = []*candidate{n}, n
	}
	l.add(e.known(target, 2*bucketSize), netip.AddrPort{})
	l.add(more, netip.AddrPort{})
	if up, _ := e.up(time.Now()); !up || len(l.cands) < wellKnown {
		l.add(e.seeds(), netip.AddrPort{})
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	tick := time.NewTicker(slowAfter / 4)
	defer tick.Stop()
	for {
		for l.next(ctx, &wg) {
		}
		if l.finished() {
			return l.nearest()
		}
		select {
		case r := <-l.done:
			l.take(r)
		case <-tick.C:
		case <-ctx.Done():
			out, _ := l.nearest()
			return out, false
		}
	}
}

// add notes nodes that somebody named, the nearest ones if there are too many.
func (l *lookup) add(all []contact, by netip.AddrPort) {
	self := l.e.self()
	if by.IsValid() && l.words[by] == nil {
		l.words[by] = &word{}
	}
	for _, c := range all {
		if old := l.byAddr[c.addr]; old != nil && old.state == unasked && l.words[old.by] != nil && !l.words[old.by].good() {
			old.by = by // another one's word for it
		}
		if l.byAddr[c.addr] != nil || c.id == self {
			continue
		}
		n := &candidate{contact: c, fresh: c.id != id{}, by: by}
		i, _ := slices.BinarySearchFunc(l.cands, n, l.compare)
		if len(l.cands) >= maxCands {
			last := l.cands[len(l.cands)-1]
			if i == len(l.cands) || last.state == asking {
				continue
			}
			l.cands = l.cands[:len(l.cands)-1] // stays in byAddr: it is not worth another look
		}
		l.byAddr[c.addr] = n
		l.cands = slices.Insert(l.cands, i, n)
	}
}

func (l *lookup) compare(a, b *candidate) int {
	switch {
	case a.fresh != b.fresh && a.fresh:
		return -1
	case a.fresh != b.fresh:
		return 1
	case l.target.closer(a.id, b.id):
		return -1
	case l.target.closer(b.id, a.id):
		return 1
	}
	return a.addr.Compare(b.addr)
}

// waiting counts the nodes that are waited for: quick ones, and those that let
// others wait no more.
func (l *lookup) waiting() (quick, slow int) {
	for _, c := range l.cands {
		if c.state == asking {
			if since := c.since.Load(); since == nil || time.Since(*since) < slowAfter {
				quick++
			} else {
				slow++
			}
		}
	}
	return quick, slow
}

// next asks the nearest node that was not asked, if that is still useful.
func (l *lookup) next(ctx context.Context, wg *sync.WaitGroup) bool {
	quick, slow := l.waiting()
	if quick >= alpha || slow >= slowMost || l.asked >= lookupBudget || ctx.Err() != nil {
		return false
	}
	c := l.nearestUnasked()
	if c == nil {
		return false
	}
	c.state = asking
	l.asks[c.addr.Addr()]++
	l.asked++
	if w := l.words[c.by]; w != nil {
		w.asked++
	}
	wg.Go(func() { l.done <- l.query(ctx, c) })
	return true
}

// nearestUnasked returns nil when the nearest that answered are enough.
func (l *lookup) nearestUnasked() *candidate {
	enough := counter{}
	for _, c := range l.cands {
		switch {
		case c.state == answered:
			if enough.add(c) {
				return nil
			}
		case c.state == unasked && l.asks[c.addr.Addr()] < perHostAsks:
			if w := l.words[c.by]; w == nil || w.good() {
				return c
			}
		}
	}
	return nil
}

// A counter says when enough nodes of enough owners are found.
type counter struct {
	groups []netip.Addr
	nodes  int
}

func (n *counter) add(c *candidate) bool {
	n.nodes++
	// On the internet an id that its address does not allow is nobody's word.
	if g := group(c.addr.Addr()); fits(c.id, c.addr.Addr()) && !slices.Contains(n.groups, g) {
		n.groups = append(n.groups, g)
	}
	return len(n.groups) >= storeGroups || n.nodes >= storeMost
}

func (l *lookup) query(ctx context.Context, c *candidate) *result {
	q := &query{method: l.method, target: l.target}
	if l.method == "get" {
		newest := int64(maxSeq)
		q.seq = &newest // no value, please
	}
	if err := l.e.limit.wait(ctx); err != nil {
		return &result{c: c, err: err}
	}
	c.since.Store(new(time.Now()))
	m, err := l.e.askNow(ctx, c.addr, q)
	var no *refusal
	if errors.As(err, &no) && l.method == "get" {
		// It knows nothing of BEP 44, but perhaps the way.
		m, err = l.e.ask(ctx, c.addr, &query{method: "find_node", target: l.target})
		m.token = nil
	}
	return &result{c, m, err}
}

func (l *lookup) take(r *result) {
	if r.err != nil {
		r.c.state = failed
		return
	}
	r.c.state = answered
	if w := l.words[r.c.by]; w != nil {
		w.answered++
	}
	if l.method == "get" && len(r.reply.token) == 0 {
		r.c.state = routes
	}
	r.c.token = r.reply.token
	if r.c.id != r.reply.id { // who was named wrongly, or not at all, now says who he is
		l.cands = slices.DeleteFunc(l.cands, func(c *candidate) bool { return c == r.c })
		r.c.id, r.c.fresh = r.reply.id, true
		i, _ := slices.BinarySearchFunc(l.cands, r.c, l.compare)
		l.cands = slices.Insert(l.cands, i, r.c)
	}
	var named []contact
	for _, c := range r.reply.nodes {
		if l.e.suits(c.addr, r.c.addr) {
			named = append(named, c)
		}
	}
	l.add(named, r.c.addr)
}

// finished reports whether no more answer can matter: a node that is slow is not
// waited for if enough others have answered.
func (l *lookup) finished() bool {
	quick, slow := l.waiting()
	if quick > 0 || l.nearestUnasked() != nil && l.asked < lookupBudget {
		return false
	}
	enough := counter{}
	for _, c := range l.cands {
		if c.state == answered && enough.add(c) {
			return true
		}
	}
	return slow == 0
}

// nearest returns the nearest nodes that answered, and whether they are more than
// those as near that did not. If so two devices that look from different places
// share at least one: of 15 nodes both have eight.
func (l *lookup) nearest() (out []*candidate, most bool) {
	enough := counter{}
	silent := 0
	for _, c := range l.cands {
		if c.state == failed || c.state == asking {
			silent++
		}
		if c.state != answered {
			continue
		}
		out = append(out, c)
		if enough.add(c) {
			break
		}
	}
	return out, silent < len(out)
}
