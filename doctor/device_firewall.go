package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous/lan"
)

// maxFirewallServers is how many servers the firewall is asked about, a count.
const maxFirewallServers = 3

func (d *device) firewallCheck() Check {
	// What is no wonder where nothing goes out, or no answer comes in.
	shutOff := andCutOff("relays.udp/silent", "device.gateway/silent", "device.dns/silent", "device.dns/partly", "device.dns/refuses", "device.dns/idle", "device.outside/nothing", "device.ipv6/broken")
	return Check{
		Code: "device.firewall", Asks: "Does the firewall of this device let kith through?", Needs: []Code{"device.routes"}, Limit: 5 * time.Second, Quick: true,
		RootAdds: "what the firewall of this device drops of what others send",
		Findings: []Finding{
			{
				ID: "out", Severity: Fault, Cause: "The firewall of this device forbids kith to send.",
				Fix:      "Allow kith to send UDP in the firewall of this device.",
				Explains: shutOff,
			},
			{
				ID: "answers", Severity: Fault, Cause: "The firewall of this device drops the answers to what kith sends.",
				Fix:      "Have the firewall accept packets of connections that are established (nftables: ct state established,related accept).",
				Explains: shutOff,
			},
			{
				ID: "hub", Severity: Limit, Cause: "The firewall of this device forbids TCP connections to the hub.",
				Fix:      "Allow kith to open TCP connections to the hub's port in the firewall of this device.",
				Explains: []string{"relays.tcp/hub", "relays.tcp/hub-silent", "meeting.broker/refused", "meeting.broker/silent", "nat.tcp"},
			},
			{
				ID: "lan", Severity: Limit, Cause: "The firewall of this device drops what others in the same network send to find it (UDP port 27491).",
				Fix: "Allow UDP port 27491 from the own network in the firewall of this device.",
			},
		},
		Run: d.runFirewall,
	}
}

func (d *device) runFirewall(ctx context.Context, env *Env, _ string) Answer {
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		// There a packet cannot be kept from going further than the own link.
		return Unclear("this system does not show what its firewall forbids")
	}
	servers, known := d.firewallServers(ctx, env)
	sent := d.firewallSends(ctx, env, servers)
	var lines []string
	passed, first := false, servers[0]
	for i, err := range sent {
		if deviceForbidden(err) {
			if len(lines) == 0 {
				first = servers[i]
			}
			lines = append(lines, fmt.Sprintf("sending to %s: %v", servers[i], err))
		} else if !deviceNoWay(err) {
			passed = true
		}
	}
	switch {
	case !passed && len(lines) == 0:
		return Unclear("there is no way to the servers")
	case !passed && known:
		var rules fwRules // which program has made them
		if env.Root {
			rules, _, _ = d.rules(ctx)
			lines = append(lines, d.dropsOut(env, rules, first.AddrPort)...)
		}
		return Fails("out", lines...).With("", rules.outFix("UDP", first.AddrPort))
	case !passed:
		return Unclear(append(lines, "no server is known that kith would send to")...)
	case !env.Root:
		return OK(append(lines, "kith may send")...)
	}
	rules, how, err := d.rules(ctx)
	if err != nil {
		return Unclear("kith may send", "the rules for what comes in could not be read: "+plain(err.Error()))
	}
	return d.judgeFirewall(env, rules, servers, sent, append(lines, how))
}

// dropsOut says which chain drops what kith sends to a server, if that is known.
func (d *device) dropsOut(env *Env, rules fwRules, to netip.AddrPort) []string {
	list, err := env.interfaces()
	if err != nil {
		return nil
	}
	self, err := d.outbound(to.Addr())
	if err != nil {
		return nil
	}
	i, owned := deviceOwner(list, self)
	if !owned {
		return nil
	}
	var drops fwDrops
	drops.judge(rules, "what kith sends", fwPacket{proto: "udp", ifi: i.Name}.sent("new", netip.AddrPortFrom(self, env.Port), to))
	return drops
}

// A firewallServer is where kith sends UDP to, and to a hub also TCP.
type firewallServer struct {
	netip.AddrPort
	hub bool
}

// firewallServers are addresses that kith sends UDP to: servers of the settings, or those
// of DNS that are needed to find them. Known is false if there is none, and one far away
// stands for them.
func (d *device) firewallServers(ctx context.Context, env *Env) (out []firewallServer, known bool) {
	for _, t := range targets(env) {
		if !t.UDP && !t.DHT || len(out) == maxFirewallServers {
			continue
		}
		if addrs, err := resolve(ctx, env, t.Host); err == nil && len(addrs) > 0 {
			out = append(out, firewallServer{netip.AddrPortFrom(addrs[0], t.Port), t.Hub})
		}
	}
	if len(out) == 0 && len(hostNames(env)) > 0 {
		for _, a := range d.resolvers() {
			if !a.IsLoopback() { // a stub's: what it sends itself is not known
				out = append(out, firewallServer{netip.AddrPortFrom(a, d.dnsPort), false})
			}
		}
	}
	if len(out) > 0 {
		return out, true
	}
	return []firewallServer{{netip.AddrPortFrom(deviceFar4[0], 33434), false}}, false
}

// firewallSends sends to each address what goes no further than this device's own link, so
// that only the firewall here is asked, and returns what the system says to it.
func (d *device) firewallSends(ctx context.Context, env *Env, to []firewallServer) []error {
	out := make([]error, len(to))
	var wg sync.WaitGroup
	for i, a := range to {
		wg.Go(func() {
			out[i] = d.ask(ctx, env, a.AddrPort, []byte{0}, deviceAsk{ttl: 1, wait: 300 * time.Millisecond}).Err
		})
	}
	wg.Wait()
	return out
}

// judgeFirewall asks rules about what kith sends and gets, where some of it was sent. What
// comes before the hooks of input and output is not looked at.
func (d *device) judgeFirewall(env *Env, rules fwRules, servers []firewallServer, sent []error, evidence []string) Answer {
	list, err := env.interfaces()
	if err != nil {
		return Unclear(err.Error())
	}
	var out, answers, tcp, hear []fwSays
	var hub netip.AddrPort
	var drops fwDrops
	for n, s := range servers {
		self, err := d.outbound(s.Addr())
		if err != nil || deviceNoWay(sent[n]) || self == s.Addr() || self.IsLoopback() {
			continue // no way, or one that does not leave this device
		}
		i, owned := deviceOwner(list, self)
		if !owned {
			return Unclear(append(evidence, fmt.Sprintf("it is not known by which interface %s is reached", s.Addr()))...)
		}
		p := fwPacket{proto: "udp", ifi: i.Name}
		answers = append(answers, drops.judge(rules, "what comes back", p.got("established", s.AddrPort, netip.AddrPortFrom(self, env.Port))))
		goes, _ := rules.judge(p.sent("new", netip.AddrPortFrom(self, env.Port), s.AddrPort))
		// Rules that drop what could be sent are not those that decide.
		wrong := goes == fwDrop && !deviceForbidden(sent[n])
		if wrong {
			goes = fwMaybe
		}
		out = append(out, goes)
		if s.hub {
			hub = s.AddrPort
			p.proto = "tcp"
			goes = drops.judge(rules, "TCP to the hub", p.sent("new", netip.AddrPortFrom(self, 40000), hub))
			if wrong && goes == fwDrop {
				goes = fwMaybe
			}
			tcp = append(tcp, goes)
		}
	}
	var closed []string
	for name, i := range env.networks() {
		here := rules.hears(i, &drops)
		if fwBest(here) == fwDrop {
			closed = append(closed, name)
		}
		hear = append(hear, here...)
	}
	unclear := func(what string) Answer {
		return Unclear(append(evidence, "rules that are not understood decide about "+what)...)
	}
	switch o, a, t, h := fwBest(out), fwBest(answers), fwBest(tcp), fwBest(hear); {
	case a == fwDrop:
		return Fails("answers", append(evidence, drops.of("what comes back")...)...)
	case t == fwDrop:
		return Fails("hub", append(evidence, drops.of("TCP to the hub")...)...).With("", rules.outFix("TCP", hub))
	case h == fwDrop:
		return Fails("lan", append(evidence, drops.of("what others send to find it")...)...).With("", rules.lanFix())
	case o == fwMaybe:
		return unclear("what kith sends")
	case a == fwMaybe:
		return unclear("the answers to what kith sends")
	case t == fwMaybe:
		return unclear("TCP connections to the hub")
	case h == fwMaybe:
		return unclear("what others in the same network send")
	}
	slices.Sort(closed)
	if len(closed) > 0 {
		evidence = append(evidence, "what others send to find it is dropped on "+strings.Join(closed, ", "))
	} else if slices.Contains(hear, fwDrop) {
		evidence = append(evidence, fmt.Sprintf("not all that others send to UDP ports %d and %d comes in, but enough to find them", lan.Port, mdnsPort))
	}
	return OK(evidence...)
}

// fwDrops are lines that say which chains drop what.
type fwDrops []string

// judge judges a packet, and notes who drops it.
func (d *fwDrops) judge(rules fwRules, what string, p fwPacket) fwSays {
	says, by := rules.judge(p)
	if line := what + " is dropped by the chain " + strings.TrimPrefix(by, "legacy "); says == fwDrop && !slices.Contains(*d, line) {
		*d = append(*d, line)
	}
	return says
}

// of are the lines of one kind of packet.
func (d fwDrops) of(what string) (lines []string) {
	for _, line := range d {
		if strings.HasPrefix(line, what+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// hears says what becomes of what others in an interface's networks send to all: over each
// family to kith's own group, and by mDNS.
func (r fwRules) hears(i netmon.Interface, drops *fwDrops) (out []fwSays) {
	p := fwPacket{proto: "udp", ifi: i.Name}
	for _, six := range []bool{false, true} {
		at := slices.IndexFunc(i.Addrs, func(a netip.Prefix) bool { return a.Addr().Is6() == six })
		if at < 0 {
			continue
		}
		from, group, mdns := deviceNeighbour(i.Addrs[at].Addr()), lan.Group4(), deviceMDNS4
		if six {
			from, group, mdns = deviceLink6, lan.Group6(), deviceMDNS6
		}
		for to, port := range map[netip.Addr]uint16{group: lan.Port, mdns: mdnsPort} {
			out = append(out, drops.judge(r, "what others send to find it", p.got("new", netip.AddrPortFrom(from, port), netip.AddrPortFrom(to, port))))
		}
	}
	return out
}

// fwBest is what becomes of the luckiest of packets of which one is enough: fwNo without any.
func fwBest(all []fwSays) fwSays {
	for _, s := range []fwSays{fwAccept, fwMaybe, fwDrop} {
		if slices.Contains(all, s) {
			return s
		}
	}
	return fwNo
}

// Where devices of a link send what is for all of them.
var (
	deviceLink6 = netip.MustParseAddr("fe80::7")     //nolint:gochecknoglobals // an address of the link
	deviceMDNS4 = netip.MustParseAddr("224.0.0.251") //nolint:gochecknoglobals // RFC 6762 section 3
	deviceMDNS6 = netip.MustParseAddr("ff02::fb")    //nolint:gochecknoglobals // RFC 6762 section 3
)

// deviceNeighbour is another address of the same network.
func deviceNeighbour(a netip.Addr) netip.Addr {
	if next := a.Next(); next.IsValid() {
		return next
	}
	return a.Prev()
}

// lanFix is how the LAN's port is opened with the program that has made the rules, "" if
// that is not known.
func (r fwRules) lanFix() string {
	switch {
	case r.made("inet firewalld "):
		return fmt.Sprintf("Allow UDP port %d: sudo firewall-cmd --permanent --add-port=%d/udp && sudo firewall-cmd --reload.", lan.Port, lan.Port)
	case r.made("ip filter ufw-"):
		return fmt.Sprintf("Allow UDP port %d: sudo ufw allow %d/udp.", lan.Port, lan.Port)
	}
	return ""
}

// outFix is how the way to a server is opened, "" if its address is not known.
func (r fwRules) outFix(proto string, to netip.AddrPort) string {
	switch {
	case !to.IsValid():
		return ""
	case r.made("ip filter ufw-"):
		return fmt.Sprintf("Allow %s to %s: sudo ufw allow out proto %s to %s port %d.", proto, to, strings.ToLower(proto), to.Addr(), to.Port())
	}
	return fmt.Sprintf("Allow %s to %s to go out in the firewall of this device.", proto, to)
}

// made reports whether there are chains whose names begin so.
func (r fwRules) made(prefix string) bool {
	for name := range r {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// rules reads the rules of nftables and iptables. What iptables has made of nftables is
// read from iptables, which tells all of it. It errs if neither can be read.
func (d *device) rules(ctx context.Context) (fwRules, string, error) {
	raw, err := d.command(ctx, "nft", "-j", "list", "ruleset")
	rules := make(fwRules)
	if err == nil {
		rules, err = parseNft(raw)
	}
	for _, x := range []struct{ family, name string }{{"ip", "iptables"}, {"ip6", "ip6tables"}} {
		raw, saveErr := d.command(ctx, x.name+"-save")
		if saveErr != nil {
			continue
		}
		mine, saveErr := parseIptables(raw, x.family)
		if saveErr == nil && strings.Contains(string(raw), "legacy tables present") {
			if raw, saveErr = d.command(ctx, x.name+"-legacy-save"); saveErr == nil {
				var old fwRules
				old, saveErr = parseIptables(raw, x.family)
				for name, c := range old {
					mine["legacy "+name] = c
				}
			}
		}
		if saveErr != nil {
			return nil, "", saveErr
		}
		err = nil
		rules.replace(mine)
	}
	return rules, fmt.Sprintf("chains of the firewall's rules: %d", len(rules)), err
}
