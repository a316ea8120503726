package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kithproject/kith/doctor/dialback"
)

// tried is a server and what came of it.
type tried struct {
	server
	tcpProbe
}

// tryTCP connects to endpoints, side by side.
func tryTCP(ctx context.Context, env *Env, to []server) []tried {
	results := make(chan tried, len(to))
	for _, e := range to {
		go func() { results <- tried{e, probeTCP(ctx, env, e.Host, e.Port, e.TLS)} }()
	}
	out := make([]tried, 0, len(to))
	for range to {
		out = append(out, <-results)
	}
	slices.SortFunc(out, func(a, b tried) int { return strings.Compare(hostPort(a.Host, a.Port), hostPort(b.Host, b.Port)) })
	return out
}

func (t tried) web() bool { return t.Port == 80 || t.Port == 443 }

func (t tried) line() string { return "TCP " + hostPort(t.Host, t.Port) + ": " + t.words() }

func checkTCP(ctx context.Context, env *Env, _ string) Answer {
	to := endpoints(env)
	if len(to) == 0 {
		return Unclear("no server is known that could be connected to")
	}
	var lines []string
	var silent []string // hosts
	out, others := false, false
	for _, t := range tryTCP(ctx, env, to) {
		lines = append(lines, t.line())
		switch {
		case t.connected():
			out = true
		case t.refused():
			others = true
		case t.silent():
			silent = append(silent, t.Host)
		default:
			others = true
		}
	}
	seen, _ := Fact[[]sighting](env, factSeen)
	switch {
	case out:
		return OK(append(lines, viewsOfTCP(ctx, env)...)...)
	case !others && len(seen) > 0 && machines(ctx, env, silent) > 1:
		return Fails("blocked", lines...)
	}
	return Unclear(lines...)
}

// machines counts those that hosts are, as far as is known: names with an address in common are
// one.
func machines(ctx context.Context, env *Env, hosts []string) (n int) {
	var known []netip.Addr
	for _, host := range hosts {
		addrs, _ := resolve(ctx, env, host) // none: it is not known whose name it is
		if len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(known, a) }) {
			n++
		}
		known = append(known, addrs...)
	}
	return n
}

// viewsOfTCP says how hubs see a TCP connection of this device.
func viewsOfTCP(ctx context.Context, env *Env) (lines []string) {
	for _, h := range env.Hubs {
		if !probeTCP(ctx, env, h.Host, h.Port, h.TLSConfig()).proved() || env.Pacer.Wait(ctx, 12) != nil {
			continue
		}
		a, err := askHubFor(ctx, h, "tcp4", dialback.Request{})
		if err != nil {
			continue // over IPv6 alone, or an older hub
		}
		line := fmt.Sprintf("the hub %s sees a TCP connection of this device from %s", h.Host, a.Client.Addr())
		if p, ok := public(env); ok && a.Client.Addr() != p {
			line += ", and UDP from " + p.String()
		}
		lines = append(lines, line)
	}
	return lines
}

// checkUDP tells UDP that is blocked from servers that are down, by TCP to the same servers.
func checkUDP(ctx context.Context, env *Env, _ string) Answer {
	seen, _ := Fact[[]sighting](env, factSeen)
	asked, _ := Fact[[]stunServer](env, factSilent)
	if len(seen) > 0 {
		return OK(fmt.Sprintf("%d of %d servers answer", len(seen), len(seen)+len(asked)))
	}
	if len(asked) == 0 {
		return Unclear("no server is known that could be asked")
	}
	var way udpWay
	var wg sync.WaitGroup
	wg.Go(func() { way = wayOfUDP(ctx, env) })
	var lines []string
	there := false
	for _, s := range asked {
		lines = append(lines, "UDP "+s.Addr.String()+": no answer")
	}
	for _, t := range tryTCP(ctx, env, endpoints(env)) {
		lines = append(lines, t.line())
		// Only a server that has UDP, too, and was not replaced by a portal.
		there = there || t.proved() && slices.ContainsFunc(asked, func(s stunServer) bool { return s.Name == hostPort(t.Host, t.Port) })
	}
	wg.Wait()
	vpn, _ := Fact[string](env, factVPN)
	switch {
	case way.open != "":
		env.Remember(factUDPOut, way.open)
		return OK(append(lines, way.open)...)
	case !there:
		return Unclear(lines...)
	case vpn != "":
		return Fails("blocked", append(lines, way.shut...)...).With(
			fmt.Sprintf("UDP does not get through the VPN on %s, though TCP does, so that all connections need a relay.", vpn),
			"Leave kith out of the VPN (split tunnelling), or if that does not help open the hub's UDP port in the firewall of its machine.")
	case len(way.shut) > 0:
		return Fails("blocked", append(lines, way.shut...)...)
	}
	return Fails("blocked", lines...).With("No answer over UDP comes back, though TCP gets through, so that all connections need a relay.",
		"Have the firewall of this network let UDP out, or if it does open the hub's UDP port in the firewall of its machine; meanwhile the hub carries everything over TCP.")
}

// A udpWay is what is known of the way of UDP where no server answers over it.
type udpWay struct {
	open string   // who has seen that UDP gets out of this network; "": nobody
	shut []string // what shows that this network, and not the server, keeps it back
}

// wayOfUDP finds out whether UDP gets out of this network: once in a run.
func wayOfUDP(ctx context.Context, env *Env) udpWay {
	return once(env, "way of udp", func() (w udpWay) {
		asked, _ := Fact[[]stunServer](env, factSilent)
		i := slices.IndexFunc(asked, func(s stunServer) bool { return s.Hub })
		if i < 0 {
			return w
		}
		var udp, tcp passage
		var wg sync.WaitGroup
		wg.Go(func() { udp = passes(ctx, env, "udp", asked[i].Addr) })
		wg.Go(func() { tcp = passes(ctx, env, "tcp", asked[i].Addr) })
		wg.Wait()
		switch { // that the time or DNS answers says nothing: many firewalls let out that UDP alone
		case udp.hops < tcp.hops:
			w.shut = []string{fmt.Sprintf("router %d on the way to %s sees what is sent over TCP, and none after router %d what is sent over UDP", tcp.hops, asked[i].Addr, max(udp.hops, 1))}
		case udp.by.IsValid() && scope(udp.by) == scopePublic:
			w.open = fmt.Sprintf("%s, a router on the internet, sees what is sent over UDP", udp.by)
		}
		return w
	})
}

// A passage is how far packets get, as routers on the way say.
type passage struct {
	hops int        // routers that were passed or reached, as far as is known; 0: nothing is
	by   netip.Addr // the last of those that said so, of UDP
}

const (
	passFar   = 5 // routers that are asked, a count
	passTries = 3 // connections, a count
	passWait  = 700 * time.Millisecond
)

// passes sends packets that live for few hops to a server, over udp or tcp, and returns
// the farthest router that says that one ended there: once in a run.
func passes(ctx context.Context, env *Env, network string, to netip.AddrPort) passage {
	return once(env, "passage "+network+" "+to.String(), func() (far passage) {
		var mu sync.Mutex // guards far
		var wg sync.WaitGroup
		for ttl := 2; ttl <= passFar; ttl++ {
			wg.Go(func() {
				var by netip.Addr
				if network == "udp" {
					by = hop(ctx, env, to, ttl)
				}
				if !by.IsValid() && (network == "udp" || !expires(ctx, env, to, ttl)) {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if ttl > far.hops {
					far = passage{ttl, by}
				}
			})
		}
		wg.Wait()
		return far
	})
}

// expires reports whether a router says that a TCP connection's packets live for too few hops.
func expires(ctx context.Context, env *Env, to netip.AddrPort, ttl int) bool {
	dialer := net.Dialer{Timeout: passWait, Control: func(_, _ string, c syscall.RawConn) error {
		return deviceOptions(c, to.Addr().Is4(), deviceAsk{ttl: ttl})
	}}
	for range passTries {
		if env.Pacer.Wait(ctx, 1) != nil {
			return false
		}
		conn, err := dialer.DialContext(ctx, "tcp", to.String())
		switch {
		case err == nil: // it is nearer
			_ = conn.Close()
			return false
		case deviceUnreachable(err):
			return true
		}
	}
	return false
}

// checkWeb looks for networks that let out connections to ports 80 and 443 alone.
func checkWeb(ctx context.Context, env *Env, _ string) Answer {
	if seen, _ := Fact[[]sighting](env, factSeen); len(seen) > 0 {
		return OK("UDP gets out")
	}
	to := endpoints(env)
	if len(to) == 0 {
		return Unclear("no server is known that could be connected to")
	}
	// The second UDP port of a hub is shut for TCP: if packets get there, its machine says so.
	for _, h := range env.Hubs {
		same := func(e server) bool { return e.Host == h.Host && e.Port == h.AltPort }
		if h.AltPort != 0 && len(to) < 2*maxEndpoints && !slices.ContainsFunc(to, same) {
			to = append(to, server{Host: h.Host, Port: h.AltPort})
		}
	}
	var way udpWay
	var wg sync.WaitGroup
	wg.Go(func() { way = wayOfUDP(ctx, env) })
	all := tryTCP(ctx, env, to)
	wg.Wait()
	if way.open != "" {
		return OK(way.open)
	}
	var lines []string
	web := make(map[string]netip.AddrPort) // by host, where its port of the web is
	var silent []tried
	passed := false
	for _, t := range all {
		lines = append(lines, t.line())
		switch {
		case t.web() && (t.proved() || t.server.TLS == nil && t.connected()):
			web[t.Host] = t.At
		case !t.web() && (t.connected() || t.refused()):
			passed = true
		case !t.web() && t.silent():
			silent = append(silent, t)
		}
	}
	switch {
	case passed:
		return OK(lines...)
	case len(web) == 0:
		return Unclear(lines...)
	case slices.ContainsFunc(silent, func(t tried) bool { return !web[t.Host].IsValid() }):
		return Fails("only443", lines...)
	}
	// A server's own firewall may drop what comes to another port: that says nothing of this network.
	for _, t := range silent {
		if line, kept := keptBack(ctx, env, web[t.Host], t.Port); kept {
			return Fails("only443", append(lines, line)...)
		}
	}
	return Unclear(lines...)
}

// keptBack reports whether this network keeps back connections to a port of a server that
// it lets through to another one.
func keptBack(ctx context.Context, env *Env, open netip.AddrPort, port uint16) (string, bool) {
	var through, back passage
	var wg sync.WaitGroup
	wg.Go(func() { through = passes(ctx, env, "tcp", open) })
	wg.Go(func() { back = passes(ctx, env, "tcp", netip.AddrPortFrom(open.Addr(), port)) })
	wg.Wait()
	return fmt.Sprintf("router %d on the way to %s sees what is sent to port %d, and none after router %d what is sent to port %d",
		through.hops, open.Addr(), open.Port(), max(back.hops, 1), port), back.hops < through.hops
}
