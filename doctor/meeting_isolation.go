package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous/lan"
)

const (
	// isolationLimit is longer than the system believes an old answer of a neighbour
	// that does not answer any more (five seconds, and three questions a second apart),
	// after the peer and the router were asked.
	isolationLimit = 15 * time.Second
	isolationPause = time.Second
	// heardLately is for how long after something of it was heard a peer is taken to be up.
	heardLately = time.Minute
)

// lanSources are where the checks of the LAN know from what they do not see themselves.
type lanSources struct {
	neighbours func() []lanNeighbour
	// ownRouter reports whether the nearest router certainly has a public address itself,
	// so that who is seen at that address is behind this very router.
	ownRouter func(ctx context.Context, env *Env, public netip.Addr) bool
}

func lanIsolationCheck(sources lanSources) Check {
	return Check{
		Code: "meeting.lan.isolation", Asks: "Can the devices of this LAN reach each other at all?", Limit: isolationLimit,
		Needs: []Code{"meeting.lan.others"}, Run: isolation{sources}.run,
		Findings: []Finding{{
			ID: "isolated", Severity: Limit,
			Cause: "The network keeps its devices apart: one of them is up and on this very LAN, and this device does not reach it there.",
			Fix:   "Switch off client isolation (also called AP isolation, guest network or private VLAN) in the access point, or use a network without.",
		}},
	}
}

// An isolation looks whether paired devices that are on this LAN can be reached there.
type isolation struct{ lanSources }

func (s isolation) run(ctx context.Context, env *Env, _ string) Answer {
	view, ok := Fact[lanView](env, factLAN)
	_, x, on := env.lan()
	networks := env.networks()
	if !ok || !on || len(networks) == 0 {
		return Nothing("there is no LAN to look at")
	}
	var public netip.Addr
	if env.Behaviour != nil {
		public = env.Behaviour().Public
	}
	table := s.neighbours()
	reached := 0 // devices that are reached on this LAN, in number
	for _, d := range view.devices {
		if d.took > 0 {
			reached++
		}
	}
	var evidence []string
	var lost [][]netip.Addr // addresses of peers that are there for certain, and silent
	for _, p := range env.Peers {
		addrs := p.onNetworks(networks)
		if len(addrs) == 0 {
			continue
		}
		name := fmt.Sprintf("%s at %v", plain(p.Name), addrs)
		switch {
		case view.answeredAt(addrs):
			evidence = append(evidence, name+" answers")
		case p.Connected && p.passes(addrs) && !notFound(table, addrs):
			reached++
			evidence = append(evidence, name+" has answered there")
		case !p.shares(networks) && !p.seenAt(public):
			evidence = append(evidence, name+" does not answer, but may be on another network with the same addresses")
		case !p.up(ctx):
			evidence = append(evidence, name+" does not answer, but may be off")
		case !p.shares(networks) && !view.hears(addrs) && !s.ownRouter(ctx, env, public):
			evidence = append(evidence, fmt.Sprintf("%s does not answer, but may be on another network behind %v, the public address of both", name, public))
		default:
			evidence = append(evidence, name+" is up, and does not answer there")
			lost = append(lost, addrs)
		}
	}
	evidence = few(evidence)
	switch {
	case reached > 0: // devices do reach each other here
		return OK(append(evidence, fmt.Sprintf("devices of this LAN that were reached: %d", reached))...)
	case len(evidence) == 0:
		return Nothing("no paired device is known to be on this LAN")
	case len(lost) == 0:
		return Unclear(evidence...)
	}
	for ; ; table = s.neighbours() {
		silent := !slices.ContainsFunc(lost, func(addrs []netip.Addr) bool { return !notFound(table, addrs) })
		router := slices.IndexFunc(table, func(n lanNeighbour) bool { _, real := networks[n.ifi]; return n.found && real })
		if silent && router >= 0 {
			return Fails("isolated", append(evidence, fmt.Sprintf("it does not even answer ARP, which %v does", table[router].addr))...)
		}
		answers, err := lanRound(ctx, env, x, isolationPause, slices.Concat(lost...))
		switch {
		case slices.ContainsFunc(answers, func(a lan.Answer) bool { return !a.Own && a.Came != lan.ByMulticast }):
			return OK(append(evidence, "but it answered when it was asked again")...)
		case err != nil, ctx.Err() != nil, time.Until(deadline(ctx, isolationLimit)) < isolationPause:
			return Unclear(append(evidence, "whether it can be reached at all was not found out: it may have an older kith, or a firewall")...)
		}
	}
}

// answeredAt reports whether one of these addresses answered by unicast.
func (v lanView) answeredAt(addrs []netip.Addr) bool {
	return slices.ContainsFunc(v.devices, func(d lanDevice) bool {
		return d.took > 0 && slices.ContainsFunc(d.addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	})
}

// hears reports whether multicast came from one of these addresses.
func (v lanView) hears(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(v.heard, a) })
}

// notFound reports whether the system has asked for the IPv4 addresses among these by
// ARP, and none was answered.
func notFound(table []lanNeighbour, addrs []netip.Addr) bool {
	asked := 0
	for _, a := range addrs {
		if !a.Is4() {
			continue
		}
		i := slices.IndexFunc(table, func(n lanNeighbour) bool { return n.addr == a })
		if i < 0 || table[i].found {
			return false
		}
		asked++
	}
	return asked > 0
}

// passes reports whether probes to one of these addresses were answered.
func (p Peer) passes(addrs []netip.Addr) bool {
	return slices.ContainsFunc(p.Candidates(), func(c Candidate) bool {
		return slices.Contains(addrs, c.Remote.Addr().Unmap()) && c.Answered > 0
	})
}

// seenAt reports whether the peer is seen at a public address. Others of a provider may
// share it, each behind a router of their own.
func (p Peer) seenAt(public netip.Addr) bool {
	return public.IsValid() && slices.ContainsFunc(p.Candidates(), func(c Candidate) bool {
		return (c.Kind == "reflexive" || c.Kind == "mapped") && c.Remote.Addr().Unmap() == public
	})
}

// shares reports whether the peer is certainly on the same network: both have addresses of
// one IPv6 network of the internet.
func (p Peer) shares(networks map[string]netmon.Interface) bool {
	return slices.ContainsFunc(p.Candidates(), func(c Candidate) bool {
		a := c.Remote.Addr().Unmap()
		if c.Kind != "host" || !a.Is6() || a.IsPrivate() || !a.IsGlobalUnicast() {
			return false
		}
		for _, i := range networks {
			if onNetwork(i, a) {
				return true
			}
		}
		return false
	})
}

// routerIsPublic asks the nearest router with packets that live for one hop: where it says
// that they do not get on, and nothing of those to the public address, it has that itself.
func routerIsPublic(ctx context.Context, env *Env, public netip.Addr) bool {
	const anyPort = 33434 // number
	return public.Is4() && once(env, "meeting.router of "+public.String(), func() bool {
		return !hop(ctx, env, netip.AddrPortFrom(public, ownedPort), 1).IsValid() && ctx.Err() == nil &&
			hop(ctx, env, netip.AddrPortFrom(deviceFar4[0], anyPort), 1).IsValid()
	})
}

// up reports whether the peer is up for certain.
func (p Peer) up(ctx context.Context) bool {
	if p.Connected || !p.Heard.IsZero() && time.Since(p.Heard) < heardLately {
		return true
	}
	if p.Ask == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := p.Ask(ctx, Question{})
	return err == nil
}
