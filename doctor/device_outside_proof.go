package doctor

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/internal/netmon"
)

const (
	// proofWait is how long after the begin of the look a device may connect, or a node of the
	// DHT be found, that shows that there is something beyond the router; proofAsk is how long
	// a node is asked, and proofEvery how often is looked.
	proofWait, proofAsk, proofEvery = 5 * time.Second, 2500 * time.Millisecond, 200 * time.Millisecond
	maxProofs                       = 4 // nodes of the DHT that are asked, a count
)

// proof is who answers beyond the router although the servers that were tried are silent: a
// device, a server that was one too many to be tried, or a node of the DHT that the node here
// found good. It is "" if there is none until the time is over.
func (d *device) proof(ctx context.Context, env *Env, until time.Time) string {
	if env.Quick { // which asks servers of the settings alone
		return peerBeyond(env)
	}
	ctx, cancel := context.WithDeadline(ctx, until.Add(proofAsk))
	defer cancel()
	more := places(servers(env), 2*maxTargets)
	more = more[min(maxTargets, len(more)):]
	var asked []netip.AddrPort
	for {
		if line := peerBeyond(env); line != "" {
			return line
		}
		for _, at := range env.goodNodes() {
			if len(asked) < maxProofs && !slices.Contains(asked, at) && farOff(env, at.Addr()) {
				asked = append(asked, at)
				more = append(more, server{Host: at.Addr().String(), Port: at.Port(), DHT: true})
			}
		}
		if len(more) > 0 {
			asking, enough := context.WithTimeout(ctx, proofAsk)
			how := deviceAlive(d.knockAll(asking, env, more, func(a netip.Addr) bool { return d.routed(a) && farOff(env, a) }))
			if enough(); how != "" {
				return how
			}
			more = nil
		}
		if !env.undecided() || !time.Now().Before(until) {
			return ""
		}
		select {
		case <-time.After(proofEvery):
		case <-ctx.Done():
			return ""
		}
	}
}

// goodNodes are nodes of the DHT that the node of this device found good.
func (e *Env) goodNodes() (out []netip.AddrPort) {
	for _, m := range e.Media {
		if x, ok := m.Exchange.(interface{ Nodes(n int) []netip.AddrPort }); ok {
			for _, at := range x.Nodes(maxProofs) {
				out = append(out, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
			}
		}
	}
	return out
}

// undecided reports whether a device may connect yet, or the DHT find its first nodes.
func (e *Env) undecided() bool {
	return slices.ContainsFunc(e.Peers, func(p Peer) bool {
		p = p.now()
		return p.Finished && !p.Blocked && !p.Ended && !p.Connected
	}) || len(e.goodNodes()) == 0 && slices.ContainsFunc(e.Media, func(m Medium) bool { return m.Exchange != nil && m.Exchange.Name() == dhtDriver })
}

// peerBeyond is a device beyond the router that a path leads to at this moment, "" if there is
// none.
func peerBeyond(env *Env) string {
	for _, p := range env.Peers {
		if p = p.now(); !p.Connected || p.Candidates == nil {
			continue
		}
		for _, c := range p.Candidates() {
			a := c.Remote.Addr()
			if c.Selected && c.Usable && farOff(env, a) && (c.Path != "virtual" || scope(a) == scopePublic) {
				return p.Name + " answers at " + c.Remote.String()
			}
		}
	}
	return ""
}

// farOff reports whether an address is of no network that this device is in, so that a router
// leads there.
func farOff(env *Env, a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || linkOnly(a) || a.IsUnspecified() || a.IsMulticast() {
		return false
	}
	all, err := env.interfaces()
	return err == nil && !slices.ContainsFunc(all, func(i netmon.Interface) bool {
		return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// allNear reports whether there are paired devices, and all are connected over the own network
// at this moment.
func allNear(env *Env) bool {
	n := 0
	for _, p := range env.Peers {
		if p = p.now(); p.Blocked || p.Ended || !p.Finished {
			continue
		}
		if !p.Connected || !strings.HasPrefix(p.Path, "lan ") {
			return false
		}
		n++
	}
	return n > 0
}
