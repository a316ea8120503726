package doctor

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/link/punch"
)

const (
	changeIP, changePort = 4, 2 // flags of CHANGE-REQUEST (RFC 5780 section 7.2)
	filterWait           = 1500 * time.Millisecond
	hairpinTries         = 5 // packets each way, a count
	furtherSockets       = 5 // that show in which order a hard NAT gives its ports, a count
)

// samples makes what package punch classifies of sightings.
func samples(seen []sighting) (out []punch.Sample) {
	for _, s := range seen {
		out = append(out, punch.Sample{Local: s.Local, Server: s.Server.Addr, Mapped: s.Mapped, At: s.At})
	}
	return out
}

func checkMapping(ctx context.Context, env *Env, _ string) Answer {
	seen := seenBy(env, true)
	if len(seen) == 0 {
		return unseen4(env)
	}
	b := punch.Classify(samples(seen))
	if b.Hard() {
		if more := moreSockets(ctx, env, seen[0].Server); len(more) > 0 {
			b = punch.Classify(samples(append(slices.Clone(seen), more...)))
		}
	}
	env.Remember(factMapping, b)
	var lines []string
	for _, s := range seen {
		lines = append(lines, fmt.Sprintf("%s sees %s", s.Server.Addr, s.Mapped))
	}
	switch {
	case b.Mapping == punch.None:
		return OK(append(lines, "no NAT: the address is this device's own")...)
	case b.Hard():
		lines = append(lines, "the mapping is "+b.Mapping.String())
		if b.Delta != 0 {
			lines = append(lines, fmt.Sprintf("ports follow each other by %d, so that they can be guessed", b.Delta))
		}
		if b.BlockHigh != 0 {
			lines = append(lines, fmt.Sprintf("all ports are between %d and %d", b.BlockLow, b.BlockHigh))
		}
		a := Fails("hard", lines...)
		if vpn, ok := Fact[string](env, factVPN); ok {
			a = a.With(fmt.Sprintf("The VPN on %s takes another public port for each destination (a hard NAT), so that straight connections to many devices fail and a relay is needed.", vpn),
				"Leave kith out of the VPN (split tunnelling), switch the VPN off, "+orElse)
		} else if works6(env) {
			a = a.With("The router takes another public port for each destination over IPv4 (a hard NAT), so that straight connections to devices without IPv6 often fail and need a relay.",
				"Use IPv6 at the other devices, too, as it works here, turn on UPnP or forward kith's UDP port in the router, "+orElse)
		}
		return a
	case b.Mapping == punch.EndpointIndependent:
		return OK(append(lines, "the mapping is "+b.Mapping.String())...)
	case len(seen) > 1:
		return OK(append(lines, "the mapping is the same for two ports of one server")...)
	}
	return Unclear(append(lines, "one server with one port does not show whether others see another port")...)
}

// moreSockets asks a server from sockets of their own, one after another.
func moreSockets(ctx context.Context, env *Env, server stunServer) (out []sighting) {
	for range furtherSockets {
		s, err := openSTUN(env, "udp4")
		if err != nil {
			return out
		}
		// They stay open until the end: a port given back would be given again.
		defer s.close()
		out = append(out, s.askAll(ctx, []stunServer{server}, stunMore)...)
	}
	return out
}

// checkPreserve only tells: no router has to, and nothing depends on it where it keeps one
// port for all destinations.
func checkPreserve(_ context.Context, env *Env, _ string) Answer {
	seen := seenBy(env, true)
	if len(seen) == 0 {
		return unseen4(env)
	}
	var lines []string
	for _, s := range seen {
		lines = append(lines, fmt.Sprintf("port %d is seen as %d", s.Local.Port(), s.Mapped.Port()))
	}
	return OK(lines...)
}

// checkFiltering has servers answer from another port and another address (RFC 5780
// section 4.4).
func checkFiltering(ctx context.Context, env *Env, _ string) Answer {
	all, _ := Fact[[]sighting](env, factSeen)
	var lines []string
	known := false
	for _, is4 := range []bool{true, false} {
		seen := slices.DeleteFunc(slices.Clone(all), func(s sighting) bool { return s.Server.Addr.Addr().Is4() != is4 })
		if len(seen) == 0 {
			continue
		}
		line, ok := filtering(ctx, env, seen)
		lines, known = append(lines, line), known || ok
	}
	if !known {
		return Unclear(lines...)
	}
	return OK(lines...)
}

// filtering asks servers of one family.
func filtering(ctx context.Context, env *Env, seen []sighting) (string, bool) {
	sock, err := openSTUN(env, networkOf(seen[0].Server.Addr))
	if err != nil {
		return err.Error(), false
	}
	defer sock.close()
	name := family(seen[0].Server.Addr.Addr())
	for _, s := range seen {
		// Once as always: a server that is silent now says nothing of the filter.
		if _, err := sock.ask(ctx, s.Server.Addr, stunMore); err != nil {
			continue
		}
		address, errA := sock.ask(ctx, s.Server.Addr, filterWait, changeRequest(changeIP|changePort))
		if errA == nil && address.Code == 0 {
			return name + ": packets from any address come in", true
		}
		port, errP := sock.ask(ctx, s.Server.Addr, filterWait, changeRequest(changePort))
		switch {
		case errP == nil && port.Code == 0:
			return name + ": packets from another port of an address come in that something was sent to", true
		case errP == nil: // the server says that it has no such port
		case errA != nil:
			return name + ": only answers come in, from the address and port that something was sent to", true
		default:
			return name + ": packets from another port do not come in", true
		}
	}
	return name + ": no server can answer from another port", false
}

func changeRequest(flags byte) stun.Setter {
	return stun.RawAttribute{Type: stun.AttrChangeRequest, Length: 4, Value: []byte{0, 0, 0, flags}}
}

// checkHairpin sends between two sockets by their public addresses.
func checkHairpin(ctx context.Context, env *Env, _ string) Answer {
	b, _ := Fact[punch.Behaviour](env, factMapping)
	seen := seenBy(env, true)
	switch {
	case len(seen) == 0:
		return unseen4(env)
	case !behindNAT(env):
		return OK("there is no NAT")
	case b.Hard():
		return Unclear("with a hard NAT the public port towards this device itself is not known")
	}
	works, lines, err := hairpin(ctx, env, seen[0].Server)
	if err != nil {
		return Unclear(err.Error())
	}
	if works {
		return OK(append(lines, "they hear each other")...)
	}
	lines = append(lines, "they do not hear each other")
	if name := neighbour(env, seen[0].Mapped.Addr()); name != "" {
		return Fails("missing", append(lines, name+" is tried at this network's public address, and not heard at any other")...).With(fmt.Sprintf(
			"%s is behind the same router and known by its public address alone, by which the router does not connect devices behind it (hairpinning).", name), "")
	}
	return OK(append(lines, "which matters to nobody: no device is known by this address alone")...)
}

// hairpin opens two sockets that send to each other's public addresses.
func hairpin(ctx context.Context, env *Env, server stunServer) (works bool, lines []string, err error) {
	var socks [2]*stunSocket
	var at [2]netip.AddrPort
	for i := range socks {
		if socks[i], err = openSTUN(env, "udp4"); err != nil {
			return false, nil, err
		}
		defer socks[i].close()
		a, err := socks[i].ask(ctx, server.Addr, stunPatience)
		if err != nil || a.Code != 0 {
			return false, nil, fmt.Errorf("%s does not answer any more", server.Addr)
		}
		at[i] = a.Mapped
	}
	lines = []string{fmt.Sprintf("two sockets of this device, seen as %s and %s, send to each other there", at[0], at[1])}
	text := rand.Text()
	tick := time.NewTicker(echoPause)
	defer tick.Stop()
	for range hairpinTries {
		for i, s := range socks {
			_ = s.send(ctx, []byte(text), at[1-i])
		}
		select {
		case d := <-socks[0].plain:
			works = works || string(d.data) == text
		case d := <-socks[1].plain:
			works = works || string(d.data) == text
		case <-tick.C:
		case <-ctx.Done():
			return false, nil, ctx.Err()
		}
		if works {
			return true, lines, nil
		}
	}
	return false, lines, nil
}

// neighbour returns the name of a device that is behind the same public address, tried
// there, and connected to nowhere.
func neighbour(env *Env, own netip.Addr) string {
	for _, p := range env.Peers {
		if p.Candidates == nil || p.Connected {
			continue
		}
		there, heard := false, false
		for _, c := range p.Candidates() {
			there = there || c.Remote.Addr().Unmap() == own && c.Sent > 0
			heard = heard || c.Kind != "relayed" && (c.Answered > 0 || c.Received > 0)
		}
		if there && !heard {
			return p.Name
		}
	}
	return ""
}
