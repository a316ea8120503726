package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
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
	"relays.resolve/name", "meeting.broker/name", "meeting.waku/name", "meeting.dht/names", "meeting.dht/silent",
}

func (d *device) dnsCheck() Check {
	return Check{
		Code: "device.dns", Asks: "Can names be looked up (DNS)?", Needs: []Code{"device.outside"}, Limit: 6 * time.Second, Quick: true,
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
	needed := slices.DeleteFunc(hostNames(env), func(name string) bool {
		_, err := dnsQuestion(name, 0)
		return err != nil // the user has mistyped it
	})
	var names []string // to ask for, one after the other
	if len(needed) > 0 {
		names = append(names, needed[0])
	}
	if env.Strangers {
		names = append(names, knownName)
	}
	servers, err := d.resolverList()
	switch {
	case len(names) == 0:
		return Nothing("no server of the settings has a name")
	case err != nil:
		return d.systemDNS(ctx, env, names[0], len(needed) > 0)
	case len(servers) == 0 && len(needed) == 0:
		return Unclear("no DNS server is set, and none is needed")
	}
	heard := make([]dnsHeard, len(servers))
	found := false
	var wg sync.WaitGroup
	wg.Go(func() { found = findsAll(ctx, env, needed) })
	for i, s := range servers {
		wg.Go(func() { heard[i] = d.askDNS(ctx, env, s, names) })
	}
	wg.Wait()
	lines := make([]string, len(servers))
	for i, h := range heard {
		lines[i] = h.line
	}
	if len(servers) == 0 {
		lines = []string{"no DNS server is set"}
	}
	first := slices.IndexFunc(heard, func(h dnsHeard) bool { return h.tells })
	dead := slices.IndexFunc(heard, func(h dnsHeard) bool { return !h.answers })
	quiet, _ := Fact[bool](env, factQuiet)
	refused := slices.ContainsFunc(heard, func(h dnsHeard) bool { return h.answers })
	switch {
	case first < 0 && found && refused:
		return Fails("idle", lines...).With("The DNS servers answer, but look no names up; the servers that this device is told to use are found without them.", "")
	case first < 0 && found:
		return Fails("idle", lines...)
	case first < 0 && meetsByAddress(env):
		return Fails("partly", lines...)
	case first < 0 && refused && quiet && !slices.ContainsFunc(servers, func(a netip.Addr) bool { return !near(env, a) }):
		return Fails("refuses", lines...).With(
			"The DNS servers of this network answer, but look no names up, and nothing was heard from beyond the router.",
			"See that the router has internet access (its cable or its provider), and if it has, set other DNS servers in the network settings.")
	case first < 0 && refused:
		return Fails("refuses", lines...)
	case first < 0:
		return Fails("silent", lines...)
	case dead >= 0 && dead < first:
		return Fails("slow", lines...).With("", fmt.Sprintf("Take %s, which does not answer, out of the network settings.", servers[dead]))
	}
	if env.Strangers {
		if a, ok := d.hijacked(ctx, env, servers[first]); ok {
			return Fails("hijack", append(lines, "a name that does not exist gets "+deviceJoined(a))...)
		}
	}
	return OK(lines...)
}

// meetsByAddress reports whether a server at which devices can meet needs no name.
func meetsByAddress(env *Env) bool {
	return slices.ContainsFunc(targets(env), func(s server) bool {
		_, err := netip.ParseAddr(s.Host)
		return err == nil && (s.Hub || s.TCP && len(s.ways) == 0 || s.DHT)
	})
}

// findsAll reports whether the system finds the addresses of names, as it also does by a file of
// hosts or by other means than DNS.
func findsAll(ctx context.Context, env *Env, names []string) bool {
	lost := make([]bool, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			addrs, err := resolve(ctx, env, name)
			lost[i] = err != nil || len(addrs) == 0
		})
	}
	wg.Wait()
	return !slices.Contains(lost, true)
}

// systemDNS looks a name up as the system does.
func (d *device) systemDNS(ctx context.Context, env *Env, name string, needed bool) Answer {
	dead := "silent"
	switch {
	case !needed:
		dead = "idle"
	case meetsByAddress(env):
		dead = "partly"
	}
	addrs, err := resolve(ctx, env, name)
	var dns *net.DNSError
	switch {
	case err == nil:
		return OK(fmt.Sprintf("%s is %s", name, deviceJoined(addrs)))
	case errors.As(err, &dns) && dns.IsNotFound:
		return OK("the system's DNS answers")
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
}

// askDNS asks a server for names, for the next one if it cannot tell.
func (d *device) askDNS(ctx context.Context, env *Env, server netip.Addr, names []string) (h dnsHeard) {
	for _, name := range slices.Compact(names) {
		start := time.Now()
		r, _ := d.queryDNS(ctx, env, server, name)
		switch {
		case r == nil && !h.answers:
			return dnsHeard{line: server.String() + " does not answer"}
		case r == nil:
			return h
		case r.RCode == dnsmessage.RCodeSuccess || r.RCode == dnsmessage.RCodeNameError:
			return dnsHeard{fmt.Sprintf("%s answers after %v", server, time.Since(start).Round(100*time.Microsecond)), true, true}
		}
		h.line, h.answers = fmt.Sprintf("%s cannot look up %s (%v)", server, plain(name), r.RCode), true
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

// hijacked asks for a name that does not exist: with Strangers one of a domain that does,
// since resolvers answer for domains that cannot exist by themselves (RFC 6761 section 6.4).
func (d *device) hijacked(ctx context.Context, env *Env, server netip.Addr) ([]netip.Addr, bool) {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	below := "invalid"
	if env.Strangers {
		below = knownName
	}
	r, ok := d.queryDNS(ctx, env, server, "kith-"+hex.EncodeToString(random[:])+"."+below)
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
