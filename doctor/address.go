package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Facts of this group.
const (
	factSeen   = "address.seen"   // []sighting: how servers see this device, by one socket a family
	factSilent = "address.silent" // []stunServer: those that were asked and did not answer
	factUDPOut = "nat.udp out"    // string: who has seen that UDP gets out, where no server answers over it
)

// addressChecks are the checks of the group: the three stages in which a device learns its
// address, and the dial-back, which alone proves one.
func addressChecks() []Check {
	return []Check{
		{
			Code: "address.outbound", Asks: "Does the system know a way to the internet, and which address of this device is on it?", Quick: true, Limit: time.Second,
			Findings: []Finding{{
				ID: "none", Severity: Limit,
				Cause: "This device has no way to the internet, so that only devices in the same network can be reached.",
				Fix:   "Connect this device to a network with internet access, or pair and connect within the local network.",
			}},
			Run: checkOutbound,
		},
		{
			Code: "address.private", Asks: "Can a program listen at each address of this device?", Limit: 3 * time.Second,
			Findings: []Finding{
				{
					ID: "none", Severity: Fault,
					Cause: "No address of this device can be listened at.",
					Fix:   "Look for a security program or a sandbox that keeps programs from listening, and allow kith in it.",
				},
				{
					ID: "some", Severity: Note,
					Cause: "Some addresses of this device cannot be listened at.",
					Fix:   "Nothing needs to be done, as the others are used.",
				},
			},
			Run: checkPrivate,
		},
		{
			Code: "address.discovery", Asks: "How do servers on the internet see this device?", Quick: true, Limit: stunPatience + 3*time.Second,
			Tells: "it tells at which public address and port each server sees this device.",
			Needs: []Code{"device.gateway", "address.outbound"},
			Run:   checkDiscovery,
		},
		{
			Code: "address.dialback", Asks: "Can another machine open a connection to this device?", Limit: 12 * time.Second,
			Tells: "it tells whether another machine could open a connection to this device. Behind most routers only answers come in; two devices then open the way for each other.",
			Needs: []Code{"address.outbound", "address.discovery"},
			Run:   checkDialBack,
		},
	}
}

// checkOutbound is the first stage: it asks the system.
func checkOutbound(_ context.Context, env *Env, _ string) Answer {
	o := env.outwards(localFor)
	switch {
	case len(o.own) == 0 && len(o.unknown) > 0:
		return Unclear(o.unknown...)
	case len(o.own) == 0:
		return Fails("none", "neither IPv4 nor IPv6 has a route to the internet")
	}
	var lines []string
	for _, a := range o.own {
		lines = append(lines, family(a)+": "+a.String()+" ("+scope(a)+")")
	}
	return OK(lines...)
}

// checkPrivate is the second stage: it tries every address with a listener.
func checkPrivate(ctx context.Context, env *Env, _ string) Answer {
	all, err := env.interfaces()
	if err != nil {
		return Unclear("the system does not list the interfaces: " + err.Error())
	}
	var lines []string
	good, bad := 0, 0
	for _, i := range all {
		for _, p := range i.Addrs {
			a := p.Addr()
			if a.IsLinkLocalUnicast() {
				if a.Is4() {
					continue
				}
				a = a.WithZone(i.Name)
			}
			if good+bad == 64 {
				lines = append(lines, "more addresses were not tried")
				break
			}
			what := fmt.Sprintf("%s (%s, %s): ", a, i.Name, scope(p.Addr()))
			if err := tryListen(ctx, a); err != nil {
				bad++
				lines = append(lines, what+"cannot be listened at: "+err.Error())
				continue
			}
			good++
			lines = append(lines, what+"can be listened at; that says nothing of whether others get there")
		}
	}
	switch {
	case good+bad == 0:
		return Unclear("this device has no address but that of loopback")
	case good == 0:
		return Fails("none", lines...)
	case bad > 0:
		return Fails("some", lines...)
	}
	return OK(lines...)
}

// tryListen listens at an address, at any port of TCP and of UDP.
func tryListen(ctx context.Context, a netip.Addr) error {
	var lc net.ListenConfig
	at := netip.AddrPortFrom(a, 0).String()
	ln, err := lc.Listen(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer ln.Close()
	pc, err := lc.ListenPacket(ctx, "udp", at)
	if err != nil {
		return err
	}
	return pc.Close()
}

// checkDiscovery is the third stage: it asks servers, by UDP.
func checkDiscovery(ctx context.Context, env *Env, _ string) Answer {
	servers, lines := stunServers(ctx, env)
	env.Remember(factSilent, servers)
	if len(servers) == 0 {
		return Unclear(append(lines, "no hub and no STUN server is known that could be asked")...)
	}
	var seen []sighting
	parts := make(chan []sighting, 2)
	for _, network := range []string{"udp4", "udp6"} {
		go func() { parts <- discover(ctx, env, network, servers) }()
	}
	for range 2 {
		seen = append(seen, <-parts...)
	}
	slices.SortStableFunc(seen, func(a, b sighting) int { return a.At.Compare(b.At) })
	silent := slices.DeleteFunc(slices.Clone(servers), func(s stunServer) bool {
		return slices.ContainsFunc(seen, func(x sighting) bool { return x.Server.Addr == s.Addr })
	})
	env.Remember(factSeen, seen)
	env.Remember(factSilent, silent)
	for _, s := range seen {
		lines = append(lines, fmt.Sprintf("%s sees %s, from the port %d of this device, after %d ms", s.Server.Addr, s.Mapped, s.Local.Port(), s.RTT.Milliseconds()))
	}
	for _, s := range silent {
		lines = append(lines, s.Addr.String()+" does not answer")
	}
	if len(seen) == 0 {
		return Unclear(lines...)
	}
	return OK(lines...)
}

// quickPatience is how long a quick run waits for an answer over UDP. That is enough to tell
// a slow network from one without UDP: nat.udp wants a TLS handshake within tcpPatience,
// which takes two round trips.
const quickPatience = tcpPatience / 2

// discover asks the servers of one family.
func discover(ctx context.Context, env *Env, network string, servers []stunServer) []sighting {
	of := slices.DeleteFunc(slices.Clone(servers), func(s stunServer) bool { return s.Addr.Addr().Is4() != (network == "udp4") })
	if len(of) == 0 {
		return nil
	}
	s, err := openSTUN(env, network)
	if err != nil {
		return nil
	}
	defer s.close()
	patience := stunPatience
	if env.Quick {
		patience = quickPatience
	}
	return s.askAll(ctx, of, patience)
}

// seenBy returns how servers see this device over a family.
func seenBy(env *Env, is4 bool) []sighting {
	all, _ := Fact[[]sighting](env, factSeen)
	return slices.DeleteFunc(slices.Clone(all), func(s sighting) bool { return s.Mapped.Addr().Is4() != is4 })
}

// unseen4 is the answer about IPv4 where no server sees it.
func unseen4(env *Env) Answer {
	own, asked := Fact[[]netip.Addr](env, factOutbound)
	if asked && len(own) > 0 && !slices.ContainsFunc(own, netip.Addr.Is4) {
		return Nothing("this device has IPv6 alone, which needs no NAT")
	}
	return Unclear("no server sees this device over IPv4")
}

// public returns this device's IPv4 address as servers on the internet see it, if they
// agree about it.
func public(env *Env) (netip.Addr, bool) {
	var out netip.Addr
	for _, s := range seenBy(env, true) {
		if out.IsValid() && s.Mapped.Addr() != out {
			return netip.Addr{}, false
		}
		out = s.Mapped.Addr()
	}
	return out, out.IsValid() && scope(out) == scopePublic
}

// behindNAT reports whether the address that servers see is none of this device.
func behindNAT(env *Env) bool {
	return slices.ContainsFunc(seenBy(env, true), func(s sighting) bool { return s.Mapped.Addr() != s.Local.Addr() })
}

func family(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Words for kinds of addresses.
const (
	scopePublic  = "public"
	scopePrivate = "private"
	scopeShared  = "shared by a provider's customers"
	scopeLink    = "of this link alone"
	scopeLoop    = "of this machine alone"
)

var shared = netip.MustParsePrefix("100.64.0.0/10") //nolint:gochecknoglobals // RFC 6598

// scope says who can use an address.
func scope(a netip.Addr) string {
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		return scopeLoop
	case a.IsLinkLocalUnicast():
		return scopeLink
	case a.IsPrivate(), a.IsUnspecified():
		return scopePrivate
	case shared.Contains(a):
		return scopeShared
	}
	return scopePublic
}

// privateOrShared reports whether an address is one that no router on the internet has.
func privateOrShared(a netip.Addr) bool {
	s := scope(a)
	return s == scopePrivate || s == scopeShared
}

// linkOnly reports whether an address reaches no further than its link.
func linkOnly(a netip.Addr) bool {
	s := scope(a)
	return s == scopeLink || s == scopeLoop
}

// splitHostPort reads HOST:PORT, or HOST where another port is given for that.
func splitHostPort(text string, otherwise uint16) (string, uint16, error) {
	host, p, err := net.SplitHostPort(text)
	if err != nil && otherwise != 0 {
		return strings.Trim(text, "[]"), otherwise, nil
	}
	port, perr := strconv.ParseUint(p, 10, 16)
	if err != nil || perr != nil || port == 0 {
		return "", 0, errors.New("not HOST:PORT")
	}
	return host, uint16(port), nil
}
