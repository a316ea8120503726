package dht

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	homeFor    = 20 * time.Minute       // then the nearest nodes are looked for anew
	homeRetry  = time.Second            // first wait after none was found
	homeMost   = time.Minute            // longest wait after none was found
	homeAgain  = 10 * time.Second       // least time between lookups when nodes went silent
	grantFor   = 4 * time.Minute        // a write token is used (BEP 5: valid for ten minutes)
	readFrom   = 3                      // nodes that are asked in one round
	fewTopics  = 6                      // topics; with more, fewer nodes are asked in one round
	gatherTime = time.Second            // for the nodes' sequence numbers, before a put
	putTime    = 5 * time.Second        // for a put
	fetchPause = 150 * time.Millisecond // before the second part is asked for again
)

// A near is one of the nodes nearest to a topic's home, which keep its items.
type near struct {
	contact
	mu     sync.Mutex
	grants map[id]grant // write tokens by target
	fails  int          // questions without an answer, or with a lie, since the last good one
}

type grant struct {
	token []byte
	at    time.Time
}

func (n *near) note(ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ok {
		n.fails = 0
	} else {
		n.fails++
	}
}

func (n *near) failing() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fails >= 2
}

func (n *near) grant(target id, now time.Time) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	if g := n.grants[target]; now.Sub(g.at) < grantFor {
		return g.token
	}
	return nil
}

func (n *near) setGrant(target id, token []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if token == nil {
		delete(n.grants, target)
		return
	}
	n.grants[target] = grant{token, time.Now()}
}

// A place is where a topic lies in the DHT of one address family.
type place struct {
	e    *engine
	keys *keys

	mu    sync.Mutex // guards the fields below
	nodes []*near
	tried time.Time     // when the last lookup ended
	retry time.Duration // until the next, while there are none or others may be nearer
	turn  int           // where the next round begins
}

// due reports whether the nodes should be looked for now, and if not when.
func (p *place) due(now time.Time) (bool, time.Duration) {
	up, _ := p.e.up(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	failing := 0
	for _, n := range p.nodes {
		if n.failing() {
			failing++
		}
	}
	wait := homeFor
	switch {
	case !up && !p.tried.IsZero():
		return false, homeMost // told when it is up again
	case len(p.nodes) > 0 && 2*failing >= len(p.nodes):
		wait = homeAgain
	case p.retry > 0:
		wait = p.retry
	case len(p.nodes) == 0:
		wait = 0
	}
	next := p.tried.Add(wait)
	return !next.After(now), next.Sub(now)
}

// find looks for the nodes nearest to the home. It reports whether most of them are
// new, which then have nothing of ours.
func (p *place) find(ctx context.Context) (moved bool) {
	select {
	case p.e.walks <- struct{}{}:
		defer func() { <-p.e.walks }()
	case <-ctx.Done():
		return false
	}
	p.mu.Lock()
	var more []contact
	for _, n := range p.nodes {
		more = append(more, n.contact)
	}
	p.mu.Unlock()
	got, sure := p.e.lookup(ctx, p.keys.home, "get", more)
	if ctx.Err() != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tried = time.Now()
	if len(got) == 0 {
		p.retry = min(max(2*p.retry, homeRetry), homeMost)
		return false
	}
	if sure {
		p.retry = 0
	} else { // what was lost on the way may have been nearer
		p.retry = min(max(2*p.retry, homeAgain), homeFor)
	}
	var nodes []*near
	kept := 0
	for _, c := range got {
		i := slices.IndexFunc(p.nodes, func(n *near) bool { return n.contact == c.contact })
		if i >= 0 {
			p.nodes[i].note(true)
			nodes = append(nodes, p.nodes[i])
			kept++
			continue
		}
		nodes = append(nodes, &near{contact: c.contact, grants: make(map[id]grant)})
	}
	p.nodes = nodes
	return 2*kept < len(nodes)
}

// hurry ends a long wait for the next lookup: the network may answer now.
func (p *place) hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retry = min(p.retry, homeAgain)
}

func (p *place) all() []*near {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nodes
}

// some returns the next few nodes in turn, those that answer before others.
func (p *place) some(n int) []*near {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out, bad []*near
	for i := range p.nodes {
		x := p.nodes[(p.turn+i)%len(p.nodes)]
		switch {
		case x.failing():
			bad = append(bad, x)
		case len(out) < n:
			out = append(out, x)
		}
	}
	p.turn += n
	if len(out) < n && len(bad) > 0 { // now and then they get another chance
		out = append(out, bad[p.turn/n%len(bad)])
	}
	return out
}

// get asks a node for a part of a slot that is newer than have. It returns nil if
// the node has nothing newer, and errs if it does not answer, refuses or lies.
func (p *place) get(ctx context.Context, n *near, slot, part int, have int64) (*item, []byte, error) {
	target := p.keys.targets[slot][part]
	m, err := p.e.ask(ctx, n.addr, &query{method: "get", target: target, seq: &have})
	if err != nil {
		if ctx.Err() == nil {
			n.note(false)
		}
		return nil, nil, err
	}
	if len(m.token) > 0 {
		n.setGrant(target, m.token)
	}
	if m.item.value == nil || !m.hasSeq || m.item.seq <= have {
		n.note(true)
		return nil, nil, nil
	}
	half, err := p.keys.open(slot, part, &m.item)
	n.note(err == nil)
	if err != nil {
		return nil, nil, err
	}
	return &m.item, half, nil
}

// A piece is one half of a frame, as it came.
type piece struct {
	seq  int64
	half []byte
	from *near
}

// fetch asks several nodes at once for a part that is newer than have, and
// returns the first that comes.
func (p *place) fetch(ctx context.Context, nodes []*near, slot, part int, have int64) (piece, bool) {
	ctx, cancel := context.WithCancel(ctx)
	got := make(chan piece, len(nodes))
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			it, half, err := p.get(ctx, n, slot, part, have)
			if err == nil && it != nil {
				got <- piece{it.seq, half, n}
				return
			}
			got <- piece{}
		})
	}
	defer wg.Wait()
	defer cancel()
	for range nodes {
		if x := <-got; x.half != nil {
			return x, true
		}
	}
	return piece{}, false
}

// read returns a frame of a slot that is newer than have, if one of the next few
// nodes has one whole. It waits until there is little else to ask.
func (p *place) read(ctx context.Context, slot int, have int64, width int) ([]byte, int64, bool) {
	if p.e.limit.idle(ctx) != nil {
		return nil, 0, false
	}
	first, ok := p.fetch(ctx, p.some(width), slot, 0, have)
	for try := 0; ok && try < readFrom; try++ {
		ask := []*near{first.from}
		if try > 0 {
			ask = append(ask, p.some(readFrom-1)...)
			if pause(ctx, fetchPause) != nil {
				return nil, 0, false
			}
		}
		second, found := p.fetch(ctx, ask, slot, 1, first.seq-1)
		switch {
		case found && second.seq == first.seq:
			return append(first.half, second.half...), first.seq, true
		case found: // a newer frame is being written: its first part follows
			if newer, ok := p.fetch(ctx, []*near{second.from}, slot, 0, second.seq-1); ok {
				first = newer
			}
		}
	}
	return nil, 0, false
}

// write puts a frame to nodes. It returns how many took it whole, and whether one
// says that it has a newer one.
func (p *place) write(ctx context.Context, nodes []*near, slot int, seq int64, frame [parts]*item) (took int, newer bool) {
	ctx, cancel := context.WithTimeout(ctx, putTime)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			for part := parts - 1; part >= 0; part-- { // who finds the first part finds the rest
				err := p.put(ctx, n, slot, part, seq, frame[part])
				var no *refusal
				mu.Lock()
				newer = newer || errors.As(err, &no) && (no.code == errSeq || no.code == errCas)
				mu.Unlock()
				if err != nil {
					return
				}
			}
			mu.Lock()
			took++
			mu.Unlock()
		})
	}
	wg.Wait()
	return took, newer
}

func (p *place) put(ctx context.Context, n *near, slot, part int, seq int64, it *item) error {
	target := p.keys.targets[slot][part]
	for again := false; ; again = true {
		token := n.grant(target, time.Now())
		if token == nil {
			if _, _, err := p.get(ctx, n, slot, part, seq); err != nil {
				return err
			}
			if token = n.grant(target, time.Now()); token == nil {
				return &refusal{errProtocol, "no token"}
			}
		}
		_, err := p.e.ask(ctx, n.addr, &query{method: "put", target: target, token: token, item: it})
		var no *refusal
		switch {
		case err == nil:
			n.note(true)
			return nil
		case errors.As(err, &no) && no.code == errProtocol && !again:
			n.setGrant(target, nil) // it was too old
			continue
		case ctx.Err() == nil:
			n.note(errors.As(err, &no) && (no.code == errSeq || no.code == errCas))
		}
		return err
	}
}

// seen asks all near nodes for their write tokens and for a frame of the slot
// that is newer than now, and returns the highest sequence number that is proven.
func (p *place) seen(ctx context.Context, nodes []*near, slot int, now int64) int64 {
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var highest int64
	for _, n := range nodes {
		for part := range parts {
			wg.Go(func() {
				if it, _, err := p.get(ctx, n, slot, part, now); err == nil && it != nil {
					mu.Lock()
					highest = max(highest, it.seq)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	return highest
}
