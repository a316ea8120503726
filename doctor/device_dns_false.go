package doctor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// liesFix is what helps against false addresses.
const liesFix = "Log in to the network in a browser if it wants that, or set other DNS servers in the network settings, such as those of the provider."

// misled are findings that are no wonder where the servers are looked for at false addresses.
var misled = []string{ //nolint:gochecknoglobals // a table
	"relays.resolve/family", "relays.tcp", "relays.tls", "relays.udp", "relays.auth",
	"meeting.broker", "meeting.waku", "meeting.dht", "meeting.echo/second",
}

// absentName is one that nobody has: with Strangers one of a domain that exists, since resolvers
// answer for domains that cannot exist by themselves (RFC 6761 section 6.4).
func absentName(env *Env) string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	below := "invalid"
	if env.Strangers {
		below = knownName
	}
	return "kith-" + hex.EncodeToString(random[:]) + "." + below
}

// lies are the addresses that the system finds for a name that does not exist, which only
// matter if names are needed.
func lies(ctx context.Context, env *Env, needed []string) []netip.Addr {
	if len(needed) == 0 {
		return nil
	}
	addrs, _ := resolve(ctx, env, absentName(env)+".") // the dot keeps the system from looking for it in domains of its own
	return addrs
}

// judgeLies answers if servers are looked for at addresses that names get that do not exist.
func judgeLies(ctx context.Context, env *Env, q dnsQuery, lines []string) (Answer, bool) {
	if len(q.lies) == 0 {
		return Answer{}, false
	}
	wrong := make([]bool, len(q.needed))
	var wg sync.WaitGroup
	for i, name := range q.needed {
		wg.Go(func() {
			addrs, err := resolve(ctx, env, name)
			wrong[i] = err == nil && len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(q.lies, a) }) && !foundAt(ctx, env, name)
		})
	}
	wg.Wait()
	var names []string
	for i, name := range q.needed {
		if wrong[i] {
			names = append(names, name)
			lines = append(lines, fmt.Sprintf("%s and a name that does not exist get %s", plain(name), deviceJoined(q.lies)))
		}
	}
	if len(names) == 0 {
		return Answer{}, false
	}
	id, at := "lies-partly", func(host string) bool { return slices.Contains(names, host) }
	meeting := slices.DeleteFunc(targets(env), func(s server) bool { return !s.meets() })
	if len(meeting) > 0 && !slices.ContainsFunc(meeting, func(s server) bool { return !at(s.Host) && (!q.isLost(s.Host)) }) {
		id = "lies"
	}
	a := Fails(id, lines...).With(fmt.Sprintf("The DNS server gives false addresses, also for %s.", plain(strings.Join(names, ", "))), "")
	a.About = subjectsAt(env, at)
	return a, true
}

// foundAt reports whether a server proves to be where its name leads to, as in a network whose
// every name is that of one machine.
func foundAt(ctx context.Context, env *Env, host string) bool {
	here := func(s server) bool { return s.Host == host }
	ready := slices.ContainsFunc(env.Media, func(m Medium) bool {
		return m.Exchange != nil && slices.ContainsFunc(m.hosts(), func(h string) bool { return h == host }) && m.Exchange.Health().Ready
	})
	proof := false
	for _, t := range tryTCP(ctx, env, slices.DeleteFunc(endpoints(env), func(s server) bool { return !here(s) })) {
		proof = proof || t.server.TLS != nil
		if t.proved() || t.server.TLS == nil && t.connected() && ready {
			return true
		}
	}
	return !proof && slices.ContainsFunc(servers(env), func(s server) bool { return here(s) && s.answersUDP(env) })
}

// hosts are those of a medium's servers.
func (m Medium) hosts() (out []string) {
	for _, text := range m.Servers {
		host, _, _ := splitHostPort(text, 0) // "": it cannot be read
		out = append(out, host)
	}
	return out
}

// subjectsAt are the subjects of relays and media that are looked for at hosts that are wanted,
// or nobody knows where.
func subjectsAt(env *Env, want func(host string) bool) []string {
	out := []string{}
	for _, s := range servers(env) {
		if want(s.Host) {
			out = append(out, s.Name)
		}
	}
	for _, m := range env.Media {
		if len(m.Servers) == 0 || slices.ContainsFunc(m.hosts(), want) {
			out = append(out, m.Name)
		}
	}
	return out
}

// judgeEmpty answers for a DNS server that says of all names that there are none, and of which
// another one, if any, is asked no more. That is also how one answers that serves a network
// without internet, where the user may have mistyped a name.
func (d *device) judgeEmpty(ctx context.Context, env *Env, q dnsQuery, empty, first int, lines []string) Answer {
	who := "The DNS server"
	if empty >= 0 {
		who += " " + q.servers[empty].String()
	}
	cause, id := who+" knows no names, not even "+knownName, "refuses"
	if meetsByAddress(env) {
		cause, id = cause+", so that of the servers only those are found that are set by their addresses", "partly"
	}
	fails := func(lines []string) Answer {
		a := Fails(id, lines...)
		a.About, a.Apart = subjectsAt(env, q.isLost), keepsUDP()
		return a
	}
	switch {
	case first >= 0 && q.heard[first].knows:
		return fails(lines).With(cause+".", fmt.Sprintf("Take %s, after which no other one is asked, out of the network settings.", q.servers[empty]))
	case first >= 0: // so there may be no such name
		return OK(lines...)
	}
	line := d.onInternet(ctx, env)
	if line == "" {
		return Unclear(append(lines, "it is not known whether that is the DNS server's fault, as nothing of the internet was heard")...)
	}
	return fails(append(lines, line)).With(cause+".", "")
}

// onInternet says who of the internet answers, "" if nobody is known to.
func (d *device) onInternet(ctx context.Context, env *Env) string {
	if line := peerBeyond(env); line != "" {
		return line
	}
	seen, _ := Fact[[]sighting](env, factSeen)
	for _, x := range seen {
		if a := x.Server.Addr.Addr(); !near(env, a) {
			return a.String() + " answers over UDP"
		}
	}
	ways := d.ways()
	hops := make([]netip.Addr, len(ways))
	var wg sync.WaitGroup
	for i, far := range ways {
		wg.Go(func() { hops[i], _ = d.routers(ctx, env, far) })
	}
	wg.Wait()
	for _, a := range hops {
		if a.IsValid() && !near(env, a) {
			return a.String() + ", a router on the internet, answers"
		}
	}
	return ""
}

// stubServers is where systemd-resolved, which answers at this device itself, keeps the servers
// that it asks.
const stubServers = "/run/systemd/resolve/resolv.conf"

// keepsUDP are the checks that find out that this network keeps UDP back.
func keepsUDP() []Code { return []Code{"nat.udp", "nat.web"} }

// apart are the checks whose findings do not explain that servers look no names up: what keeps
// UDP in this network does so only if all of these servers are beyond the router.
func (d *device) apart(env *Env, q dnsQuery) []Code {
	far := func(all ...netip.Addr) bool {
		return len(all) > 0 && !slices.ContainsFunc(all, func(a netip.Addr) bool { return near(env, a) })
	}
	for i, h := range q.heard {
		if h.tells || h.empty || !h.answers && far(q.servers[i]) {
			continue
		}
		raw, _ := d.read(stubServers) // none: there is no such program
		if !q.servers[i].IsLoopback() || !far(parseResolvers(raw)...) {
			return keepsUDP()
		}
	}
	if len(q.servers) == 0 {
		return keepsUDP()
	}
	return nil
}
