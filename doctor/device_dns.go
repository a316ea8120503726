package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxResolvers = 3 // that systems ask, a count
	// knownName is a name that every resolver can look up (RFC 2606).
	knownName = "example.com"
)

// nameless are findings that are no wonder where names cannot be looked up.
var nameless = []string{ //nolint:gochecknoglobals // a table
	"relays.resolve/name", "meeting.broker/name", "meeting.waku/name", "meeting.dht/names", "meeting.dht/silent", "meeting.echo/second",
}

func (d *device) dnsCheck() Check {
	return Check{
		Code: "device.dns", Asks: "Can names be looked up (DNS)?", Needs: []Code{"device.outside"}, Limit: 6*time.Second + tcpPatience, Quick: true,
		Findings: []Finding{
			{
				ID: "silent", Severity: Fault, Cause: "No DNS server answers, so that the servers' names cannot be looked up.",
				Explains: nameless,
				Fix:      "Set other DNS servers in the network settings, such as those of the provider, or restart the router.",
			},
			{
				ID: "refuses", Severity: Fault, Cause: "The DNS servers answer, but look no names up.",
				Explains: nameless,
				Fix:      "Set other DNS servers in the network settings, such as those of the provider, or ask those who run the network.",
			},
			{
				ID: "lies", Severity: Fault, Cause: "The DNS server gives false addresses, also for servers that this device needs.",
				Explains: misled,
				Fix:      liesFix,
			},
			{
				ID: "lies-partly", Severity: Limit, Cause: "The DNS server gives false addresses, also for some of the servers of this device.",
				Explains: misled,
				Fix:      liesFix,
			},
			{
				ID: "partly", Severity: Limit, Cause: "No DNS server looks names up, so that of the servers only those are found that are set by their addresses.",
				Explains: nameless,
				Fix:      "Set other DNS servers in the network settings, such as those of the provider, or restart the router.",
			},
			{
				ID: "idle", Severity: Note, Cause: "No DNS server answers, but the servers that this device is told to use are found without one.",
				Fix: "For the names of others, set other DNS servers in the network settings, such as those of the provider, or restart the router.",
			},
			{
				ID: "slow", Severity: Limit, Cause: "The first DNS server does not answer, so that every name takes seconds until another one is asked.",
				Fix: "Take the server that does not answer out of the network settings.",
			},
			{
				ID: "hijack", Severity: Note, Cause: "The DNS server gives an address to names that do not exist.",
				Fix: "Nothing has to be done, and another DNS server tells the truth.",
			},
		},
		Run: d.runDNS,
	}
}

func (d *device) runDNS(ctx context.Context, env *Env, _ string) Answer {
	q := dnsQuery{needed: slices.DeleteFunc(hostNames(env), func(name string) bool {
		_, err := dnsQuestion(name, 0)
		return err != nil // the user has mistyped it
	})}
	if len(q.needed) > 0 {
		q.names = append(q.names, q.needed[0])
	}
	if env.Strangers {
		q.names = append(q.names, knownName)
	}
	servers, err := d.resolverList()
	switch {
	case len(q.names) == 0:
		return Nothing("no server of the settings has a name")
	case err != nil:
		return d.systemDNS(ctx, env, q)
	case len(servers) == 0 && len(q.needed) == 0:
		return Unclear("no DNS server is set, and none is needed")
	}
	q.servers, q.heard = servers, make([]dnsHeard, len(servers))
	var wg sync.WaitGroup
	wg.Go(func() { q.found = findsSome(ctx, env, q.needed) })
	wg.Go(func() { q.lies = lies(ctx, env, q.needed) })
	for i, s := range servers {
		wg.Go(func() { q.heard[i] = d.askDNS(ctx, env, s, q.names) })
	}
	wg.Wait()
	return d.judgeDNS(ctx, env, q)
}

// A dnsQuery is what was asked of DNS, and what came of it.
type dnsQuery struct {
	needed  []string // names of servers of the settings
	names   []string // to ask for, one after the other
	servers []netip.Addr
	heard   []dnsHeard   // of each server
	found   []string     // of those that are needed, the ones that the system finds
	lies    []netip.Addr // what it finds for a name that does not exist
}

func (d *device) judgeDNS(ctx context.Context, env *Env, q dnsQuery) Answer {
	lines := make([]string, len(q.servers))
	for i, h := range q.heard {
		lines[i] = h.line
	}
	if len(q.servers) == 0 {
		lines = []string{"no DNS server is set"}
	}
	lost := len(q.needed) > 0 && len(q.found) == 0
	first := slices.IndexFunc(q.heard, func(h dnsHeard) bool { return h.tells || h.empty && !lost })
	empty := slices.IndexFunc(q.heard, func(h dnsHeard) bool { return h.empty && lost })
	dead := slices.IndexFunc(q.heard, func(h dnsHeard) bool { return !h.answers })
	quiet, _ := Fact[bool](env, factQuiet)
	refused := slices.ContainsFunc(q.heard, func(h dnsHeard) bool { return h.answers })
	found := len(q.found) == len(q.needed)
	fails := func(id string) Answer {
		a := Fails(id, lines...)
		a.About, a.Apart = subjectsAt(env, q.isLost), d.apart(env, q)
		return a
	}
	switch {
	case empty >= 0 && (first < 0 || empty < first):
		return d.judgeEmpty(ctx, env, q, empty, first, lines)
	case first < 0 && found && refused:
		return fails("idle").With("The DNS servers answer, but look no names up; the servers that this device is told to use are found without them.", "")
	case first < 0 && found:
		return fails("idle")
	case first < 0 && meetsByAddress(env):
		return fails("partly")
	case first < 0 && refused && quiet && !slices.ContainsFunc(q.servers, func(a netip.Addr) bool { return !near(env, a) }):
		return fails("refuses").With(
			"The DNS servers of this network answer, but look no names up, and nothing was heard from beyond the router.",
			"See that the router has internet access (its cable or its provider), and if it has, set other DNS servers in the network settings.")
	case first < 0 && refused:
		return fails("refuses")
	case first < 0:
		return fails("silent")
	}
	if a, ok := judgeLies(ctx, env, q, lines); ok {
		return a
	}
	if dead >= 0 && dead < first {
		return fails("slow").With("", fmt.Sprintf("Take %s, which does not answer, out of the network settings.", q.servers[dead]))
	}
	if env.Strangers {
		if a, ok := d.hijacked(ctx, env, q.servers[first]); ok {
			return Fails("hijack", append(lines, "a name that does not exist gets "+deviceJoined(a))...)
		}
	}
	return OK(lines...)
}

// isLost reports whether a host is a name that the system does not find.
func (q dnsQuery) isLost(host string) bool {
	_, err := netip.ParseAddr(host)
	return err != nil && !slices.Contains(q.found, host)
}

// meetsByAddress reports whether a server at which devices can meet needs no name.
func meetsByAddress(env *Env) bool {
	return slices.ContainsFunc(targets(env), func(s server) bool {
		_, err := netip.ParseAddr(s.Host)
		return err == nil && s.meets()
	})
}

// meets reports whether devices can meet at a server.
func (s server) meets() bool { return s.Hub || s.TCP && len(s.ways) == 0 || s.DHT }

// findsSome returns the names whose addresses the system finds, as it also does by a file of
// hosts or by other means than DNS.
func findsSome(ctx context.Context, env *Env, names []string) (found []string) {
	have := make([]bool, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			addrs, err := resolve(ctx, env, name)
			have[i] = err == nil && len(addrs) > 0
		})
	}
	wg.Wait()
	for i, name := range names {
		if have[i] {
			found = append(found, name)
		}
	}
	return found
}

// systemDNS looks names up as the system does, which does not tell its servers.
func (d *device) systemDNS(ctx context.Context, env *Env, q dnsQuery) Answer {
	dead := "silent"
	switch {
	case len(q.needed) == 0:
		dead = "idle"
	case meetsByAddress(env):
		dead = "partly"
	}
	addrs, err := resolve(ctx, env, q.names[0])
	var dns *net.DNSError
	switch {
	case err == nil:
		q.found, q.lies = findsSome(ctx, env, q.needed), lies(ctx, env, q.needed)
		line := fmt.Sprintf("%s is %s", plain(q.names[0]), deviceJoined(addrs))
		if a, ok := judgeLies(ctx, env, q, []string{line}); ok {
			return a
		}
		return OK(line)
	case errors.As(err, &dns) && dns.IsNotFound:
		line := "the system's DNS answers"
		if _, err := resolve(ctx, env, knownName); len(q.names) < 2 || !errors.As(err, &dns) || !dns.IsNotFound {
			return OK(line)
		}
		if q.found = findsSome(ctx, env, q.needed); len(q.found) > 0 {
			return OK(line)
		}
		return d.judgeEmpty(ctx, env, q, -1, -1, []string{"the system's DNS says that there is no " + plain(q.names[0]) + " and no " + knownName})
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return Fails(dead, "the system's DNS does not answer")
	}
	return Unclear(plain(err.Error()))
}

// dnsHeard is what came of asking a DNS server.
type dnsHeard struct {
	line    string
	answers bool
	tells   bool // it looks names up
	knows   bool // the first name is one of those that it has found
	empty   bool // it says of each name that there is none, also of the one that every server knows
}

// askDNS asks a server for names, for the next one if it cannot tell.
func (d *device) askDNS(ctx context.Context, env *Env, server netip.Addr, names []string) (h dnsHeard) {
	none := false // it has said of a name that there is none
	for i, name := range slices.Compact(names) {
		start := time.Now()
		r, _ := d.queryDNS(ctx, env, server, name)
		took := fmt.Sprintf("%s answers after %v", server, time.Since(start).Round(100*time.Microsecond))
		switch {
		case r == nil && !h.answers:
			return dnsHeard{line: server.String() + " does not answer"}
		case r == nil:
			return h
		case r.RCode == dnsmessage.RCodeSuccess:
			return dnsHeard{line: took, answers: true, tells: true, knows: i == 0 && len(r.addrs) > 0}
		case r.RCode == dnsmessage.RCodeNameError && name == knownName && (none || len(names) == 1):
			return dnsHeard{line: fmt.Sprintf("%s says that there is no %s", server, plain(strings.Join(names, " and no "))), answers: true, empty: true}
		case r.RCode == dnsmessage.RCodeNameError:
			h, none = dnsHeard{line: took, answers: true, tells: true}, true
		case none:
			return h
		default:
			h.line, h.answers = fmt.Sprintf("%s cannot look up %s (%v)", server, plain(name), r.RCode), true
		}
	}
	return h
}

// resolvers are the DNS servers of the system.
func (d *device) resolvers() []netip.Addr {
	out, _ := d.resolverList() // none, if they are not known
	return out
}

// resolverList are the DNS servers of the system. It errs where that does not tell them.
func (d *device) resolverList() ([]netip.Addr, error) {
	raw, err := d.read("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	return parseResolvers(raw), nil
}

// hijacked asks for a name that does not exist.
func (d *device) hijacked(ctx context.Context, env *Env, server netip.Addr) ([]netip.Addr, bool) {
	r, ok := d.queryDNS(ctx, env, server, absentName(env))
	return r.addresses(), ok && len(r.addresses()) > 0
}

// A dnsReply is what an answer of DNS says.
type dnsReply struct {
	RCode dnsmessage.RCode
	addrs []netip.Addr
}

func (r *dnsReply) addresses() []netip.Addr {
	if r == nil {
		return nil
	}
	return r.addrs
}

// dnsQuestion packs a question for the IPv4 addresses of a name. It errs for what is none.
func dnsQuestion(name string, id uint16) ([]byte, error) {
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return nil, err
	}
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	return q.Pack()
}

// queryDNS asks a server for the IPv4 addresses of a name. It reports false for what is
// no name.
func (d *device) queryDNS(ctx context.Context, env *Env, server netip.Addr, name string) (*dnsReply, bool) {
	var random [2]byte
	_, _ = rand.Read(random[:]) // never fails
	id := binary.BigEndian.Uint16(random[:])
	raw, err := dnsQuestion(name, id)
	if err != nil {
		return nil, false
	}
	var reply *dnsReply
	d.ask(ctx, env, netip.AddrPortFrom(server, d.dnsPort), raw, deviceAsk{tries: 3, wait: 900 * time.Millisecond, fits: func(b []byte) bool {
		r, ok := parseDNS(b, id)
		if ok {
			reply = r
		}
		return ok
	}})
	return reply, true
}

// parseDNS reads an answer to the query with an ID.
func parseDNS(b []byte, id uint16) (*dnsReply, bool) {
	const most = 32 // addresses, a count
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.ID != id || !h.Response {
		return nil, false
	}
	r := &dnsReply{RCode: h.RCode}
	if p.SkipAllQuestions() != nil {
		return r, true // an answer, if an odd one
	}
	for len(r.addrs) < most {
		head, err := p.AnswerHeader()
		if err != nil {
			break
		}
		if head.Type != dnsmessage.TypeA || head.Class != dnsmessage.ClassINET {
			if p.SkipAnswer() != nil {
				break
			}
			continue
		}
		a, err := p.AResource()
		if err != nil {
			break
		}
		r.addrs = append(r.addrs, netip.AddrFrom4(a.A))
	}
	return r, true
}

// parseResolvers reads the servers of a resolv.conf, as many as systems ask.
func parseResolvers(raw []byte) (out []netip.Addr) {
	for line := range bytes.Lines(raw) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[0] != "nameserver" || len(out) == maxResolvers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
