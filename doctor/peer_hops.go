package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
)

const (
	wayLongest  = 16 // routers that are asked for, in number
	wayAtOnce   = 4  // of them at the same time, in number
	wayUnasked  = 2  // devices to which ways are looked at that the run is not about, in number
	factWayDone = "peers.ways"
)

// A hopper sends packets that live for ttl hops, and returns the router that said that this
// was too short; an invalid address if none did. It is hop.
type hopper func(ctx context.Context, env *Env, to netip.AddrPort, ttl int) netip.Addr

// ways says which routers answer on the way to a peer's public addresses, one of each
// family, a line each. It is nothing where that may not or cannot be asked: with relays
// alone, nothing is sent straight.
func (h hopper) ways(ctx context.Context, env *Env, p Peer) (lines []string) {
	tells := runtime.GOOS == "linux" || runtime.GOOS == "android" // elsewhere hop limits are not set
	if !tells || env.Relay == "always" || !p.Named && !env.take(factWayDone, wayUnasked) {
		return nil
	}
	for _, to := range farOf(env, candidates(p)) {
		routers, whole := h.way(ctx, env, to)
		var names []string
		for _, r := range routers {
			if r.IsValid() {
				names = append(names, r.String())
			} else {
				names = append(names, "one that is silent")
			}
		}
		switch {
		case !whole:
			names = append(names, "and further on it was not looked at")
		case len(names) == 0:
			names = []string{"no router tells of itself"}
		default:
			names = append(names, "then silence")
		}
		lines = append(lines, fmt.Sprintf("the way to %s: %s", to.Addr(), strings.Join(names, ", ")))
	}
	return lines
}

// way lists the routers on the way as far as they answer, and reports whether all was
// looked at; a router that is silent before others is an invalid address.
func (h hopper) way(ctx context.Context, env *Env, to netip.AddrPort) (routers []netip.Addr, whole bool) {
	for len(routers) < wayLongest && !whole {
		var found [wayAtOnce]netip.Addr
		var wg sync.WaitGroup
		for i := range found {
			wg.Go(func() { found[i] = h(ctx, env, to, len(routers)+1+i) })
		}
		wg.Wait()
		if ctx.Err() != nil {
			break
		}
		routers = append(routers, found[:]...)
		whole = !slices.ContainsFunc(found[:], netip.Addr.IsValid)
	}
	for len(routers) > 0 && !routers[len(routers)-1].IsValid() {
		routers = routers[:len(routers)-1]
	}
	return routers, whole
}

// farOf are the addresses on the internet at which a peer is tried straight, at most one of
// each family, not those of this device's own router.
func farOf(env *Env, list []Candidate) (out []netip.AddrPort) {
	var own netip.Addr
	if env.Behaviour != nil {
		own = env.Behaviour().Public
	}
	for _, c := range list {
		to := netip.AddrPortFrom(c.Remote.Addr().Unmap(), c.Remote.Port())
		if c.Via != "" || c.Kind == "relayed" || c.Path == "virtual" || scope(to.Addr()) != scopePublic || to.Addr() == own {
			continue
		}
		if !slices.ContainsFunc(out, func(o netip.AddrPort) bool { return o.Addr().Is4() == to.Addr().Is4() }) {
			out = append(out, to)
		}
	}
	return out
}

// take counts to most in a run, and reports whether there was still something to take.
func (e *Env) take(name string, most int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.facts == nil {
		e.facts = make(map[string]any)
	}
	taken, _ := e.facts[name].(int)
	e.facts[name] = taken + 1
	return taken < most
}

// straight reports whether data goes to the peer without a relay.
func straight(p Peer) bool {
	return p.Connected && slices.ContainsFunc(candidates(p), func(c Candidate) bool { return c.Selected && c.Path != "relay" })
}
