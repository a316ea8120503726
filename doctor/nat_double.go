package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/portmap"
	"github.com/kithproject/kith/link/punch"
)

const (
	// Linux as a router tells a host once a second that a packet lived for too many hops.
	hopTries  = 6 // packets to each, a count
	hopWait   = 400 * time.Millisecond
	ownedPort = 9 // port number of a router that nobody maps: discard (RFC 863)
)

// errHops reports a router, or a system, that does not tell where a packet ended.
var errHops = errors.New("the nearest router does not say when it drops a packet")

// hop sends packets that live for ttl hops and returns the router that said that this was
// too short; an invalid address if none did.
func hop(ctx context.Context, env *Env, to netip.AddrPort, ttl int) netip.Addr {
	a := deviceAskUDP(ctx, env, to, []byte{0}, deviceAsk{ttl: ttl, tries: hopTries, wait: hopWait})
	if !a.Expired {
		return netip.Addr{}
	}
	return a.Hop
}

// A route is what packets that live for one or two hops tell.
type route struct {
	first, second netip.Addr // routers on the way to the internet; invalid: silent
	beyond        int        // routers that passed on what was sent to the own public address, 0 to 2
}

type routeResult struct {
	route
	err error
}

// ownRoute finds out whether the nearest router has the public address: once in a run. A
// router that has it does not pass on what is sent there, so that it never says that the
// packet has lived for too many hops. It errs if that cannot be found out.
func ownRoute(ctx context.Context, env *Env) (route, error) {
	r := once(env, "route", func() routeResult {
		own, ok := public(env)
		seen := seenBy(env, true)
		if !ok || len(seen) == 0 {
			return routeResult{err: errors.New("the public address is not known")}
		}
		var r routeResult
		if r.first = hop(ctx, env, seen[0].Server.Addr, 1); !r.first.IsValid() {
			return routeResult{err: errHops}
		}
		r.second = hop(ctx, env, seen[0].Server.Addr, 2)
		for ttl := 1; ttl <= 2 && hop(ctx, env, netip.AddrPortFrom(own, ownedPort), ttl).IsValid(); ttl++ {
			r.beyond = ttl
		}
		return r
	})
	return r.route, r.err
}

func (r route) lines() []string {
	name := func(a netip.Addr) string {
		if !a.IsValid() {
			return "silent"
		}
		return a.String() + " (" + scope(a) + ")"
	}
	out := []string{"the first router is " + name(r.first) + ", the second " + name(r.second)}
	if r.beyond > 0 {
		return append(out, "the first one passes on what is sent to this network's public address: that is another router's")
	}
	return append(out, "nothing says that the public address is not the first router's")
}

// trials are what the routers said by each protocol, of those that opened a port.
func trials(ctx context.Context, env *Env) (out []portmap.Mapping) {
	if env.NoPortMapping {
		return nil
	}
	results := make(chan trial, len(portmap.Protocols()))
	for _, p := range portmap.Protocols() {
		go func() { results <- tryGateway(ctx, env, p) }()
	}
	for range portmap.Protocols() {
		if t := <-results; t.err == nil && t.mapping.External.Addr().IsValid() && !t.mapping.External.Addr().IsUnspecified() {
			out = append(out, t.mapping)
		}
	}
	return out
}

func checkCarrier(ctx context.Context, env *Env, _ string) Answer {
	seen := seenBy(env, true)
	if len(seen) == 0 {
		return unseen4(env)
	}
	b := punch.Classify(samples(seen))
	if b.Pooled {
		var lines []string
		for _, s := range seen {
			lines = append(lines, fmt.Sprintf("%s sees %s", s.Server.Addr, s.Mapped))
		}
		return Fails("several", lines...)
	}
	if !behindNAT(env) {
		return OK("the address that servers see is this device's own")
	}
	own := seen[0].Local.Addr()
	if shared.Contains(own) && !virtualAddr(env, own) {
		return carrierNAT(env, b, fmt.Sprintf("this device's address %s is one that providers share among customers", own))
	}
	for _, m := range trials(ctx, env) {
		if a := m.External.Addr(); shared.Contains(a) {
			return carrierNAT(env, b, fmt.Sprintf("the router's own address is %s, which providers share among customers", a))
		} else if a == seen[0].Mapped.Addr() {
			return OK(fmt.Sprintf("the nearest router has the public address %s", a))
		}
	}
	r, err := ownRoute(ctx, env)
	if err != nil {
		return Unclear(err.Error())
	}
	if r.beyond > 0 && shared.Contains(r.second) {
		return carrierNAT(env, b, r.lines()...)
	}
	return OK(r.lines()...)
}

// carrierNAT is the answer about one: it is as usual as any NAT, unless it is a hard one.
func carrierNAT(env *Env, b punch.Behaviour, lines ...string) Answer {
	switch six := works6(env); {
	case b.Hard() && six:
		return Fails("hard", lines...).With(
			"The internet provider shares one public IPv4 address among customers and takes another port of it for each destination (a hard carrier NAT), so that straight connections to devices without IPv6 often fail and need a relay.",
			"Use IPv6 at the other devices, too, as it works here, ask the provider for a public IPv4 address, "+orElse)
	case b.Hard():
		return Fails("hard", lines...)
	case six:
		return Fails("shared", lines...).With(
			"The internet provider shares one public IPv4 address among customers (carrier NAT), but IPv6 works here, to which this does not apply.", "Nothing needs to be done.")
	}
	return Fails("shared", lines...)
}

func checkDouble(ctx context.Context, env *Env, _ string) Answer {
	seen := seenBy(env, true)
	switch {
	case len(seen) == 0:
		return unseen4(env)
	case !behindNAT(env):
		return OK("there is no NAT")
	}
	hard := punch.Classify(samples(seen)).Hard()
	for _, m := range trials(ctx, env) {
		if a := m.External.Addr(); privateOrShared(a) && scope(seen[0].Mapped.Addr()) == scopePublic {
			return doubleNAT(env, hard, seen[0].Local.Addr(), fmt.Sprintf("the nearest router's own address is %s, and servers see %s", a, seen[0].Mapped.Addr()))
		} else if a == seen[0].Mapped.Addr() {
			return OK(fmt.Sprintf("the nearest router has the public address %s", a))
		}
	}
	r, err := ownRoute(ctx, env)
	if err != nil {
		return Unclear(err.Error())
	}
	if r.beyond == 2 || r.beyond == 1 && privateOrShared(r.second) {
		return doubleNAT(env, hard, seen[0].Local.Addr(), r.lines()...)
	}
	return OK(r.lines()...)
}

// doubleNAT is the answer about two routers, of which one may be the machine that kith's
// container is on.
func doubleNAT(env *Env, hard bool, own netip.Addr, lines ...string) Answer {
	finding := "second"
	if hard {
		finding = "hard"
	}
	a := Fails(finding, lines...)
	if h, ok := housed(env, own); ok {
		return a.With("kith runs in "+h.name+" with a network of its own behind that of its machine, so that there is one router more (double NAT) and ports opened in the real one do not help.", h.fix)
	}
	if !hard && works6(env) {
		return a.With("The public IPv4 address belongs to another router behind the nearest one (double NAT), but IPv6 works here, to which this does not apply.", "Nothing needs to be done.")
	}
	return a
}

// works6 reports whether servers on the internet answer this device over IPv6.
func works6(env *Env) bool {
	return slices.ContainsFunc(seenBy(env, false), func(s sighting) bool { return scope(s.Mapped.Addr()) == scopePublic })
}

// virtualAddr reports whether an address is that of a VPN or container.
func virtualAddr(env *Env, a netip.Addr) bool {
	i, ok := interfaceOf(env, a)
	return !ok || i.Virtual // not known: nobody is accused
}

// interfaceOf is the interface of this device that has an address.
func interfaceOf(env *Env, a netip.Addr) (netmon.Interface, bool) {
	all, _ := env.interfaces()
	return deviceOwner(all, a)
}
