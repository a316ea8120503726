package kith

import (
	"context"
	"slices"
	"time"
)

const (
	// farQuiet is how long a member to which this device need not be connected has to be
	// of no use before it is let go.
	farQuiet = 2 * time.Minute
	// farStep is how often that is looked at while there are such members.
	farStep = 30 * time.Second
	// farBytes of WireGuard datagrams within farQuiet are of no use: what members tell each
	// other of who comes and goes, and keepalives.
	farBytes = 16 << 10
	// byeTime bounds the goodbye to a member that is let go.
	byeTime = time.Second
)

// quiet is since when a member is of no use, and what it had sent and received by then, in
// bytes.
type quiet struct {
	since time.Time
	bytes uint64
}

// afar are the members that this device looks for or is connected to and need not be. In a
// large room that would be all of them after a while. One goroutine owns it.
type afar struct {
	r     *rooms
	all   map[*peer]quiet
	swept time.Time
}

// sweep lets those go that were of no use for a while, and returns when it wants to be
// called again; zero: when another one is looked for.
func (a *afar) sweep(now time.Time) (next time.Time) {
	if due := a.swept.Add(farStep); now.Before(due) && !now.Before(a.swept) {
		return due
	}
	r, had := a.r, a.all
	a.swept, a.all = now, make(map[*peer]quiet)
	for _, p := range r.farPeers() {
		bytes, was := p.carried(), had[p]
		switch {
		case was.since.IsZero() || now.Before(was.since) || bytes > was.bytes+farBytes || r.n.uses(p):
			a.all[p] = quiet{now, bytes}
		case now.Sub(was.since) < farQuiet:
			a.all[p] = was
		default:
			_ = r.n.start(func() { r.letGo(p) }) // errs when the node is closed
		}
	}
	if len(a.all) == 0 {
		return time.Time{}
	}
	return now.Add(farStep)
}

// farPeers are the peers of members that this device need not be connected to.
func (r *rooms) farPeers() (out []*peer) {
	r.n.mu.Lock()
	for _, p := range r.n.peers {
		if p.member {
			out = append(out, p)
		}
	}
	r.n.mu.Unlock()
	return slices.DeleteFunc(out, func(p *peer) bool { return !r.isFar(p) })
}

// isFar reports whether a peer is that of a member that this device need not be connected
// to.
func (r *rooms) isFar(p *peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.member && !r.near[p.id]
}

// uses reports whether something here waits for a device, or has a connection with it that
// is none of kith's own services.
func (n *Node) uses(p *peer) bool {
	service := func(port uint16) bool { return port >= firstOwnPort && port <= lastOwnPort }
	return p.wanted.Load() > 0 || n.tunnel.InUse(p.id, service)
}

// carried is how much went over the link with a device, in bytes.
func (p *peer) carried() uint64 {
	p.mu.Lock()
	meter := p.meter
	p.mu.Unlock()
	if meter == nil {
		return 0
	}
	t := meter.Traffic()
	return t.Sent + t.Received
}

// letGo ends the connection with a member that is far, or the search for it, until
// something calls for it. Both ends do so.
func (r *rooms) letGo(p *peer) {
	ctx, cancel := context.WithTimeout(r.n.ctx, byeTime)
	defer cancel()
	p.goodbye(ctx)
	r.n.mu.Lock()
	same := r.n.peers[p.pairID] == p
	r.n.mu.Unlock()
	if !same {
		return // it was stopped meanwhile, and perhaps begun anew
	}
	r.n.stopPeer(p.pairID, "nothing needs it at the moment")
	if !r.isFar(p) { // it has become one to be connected to
		r.reconcile()
	}
}
