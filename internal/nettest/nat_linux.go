package nettest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// NAT is a kind of home router, named by how it maps addresses and what it lets
// in (RFC 4787 sections 4 and 5). No kind answers, or remembers, a packet from
// outside that it does not let in, and none connects hosts of its LAN through its
// public address (no hairpinning). A mapping without traffic lives as long as
// Linux says: 30 s, or 120 s with traffic both ways. All but [NATv6Firewall] have
// IPv4 alone.
type NAT string

// The kinds of routers.
const (
	// NATEasy maps endpoint-independently, keeps the port where it is free, and
	// filters by address and port: Linux's masquerade, and most home routers.
	NATEasy NAT = "easy"
	// NATEIM is NATEasy that never keeps the port: it takes a random one, and most
	// likely another one after Reboot.
	NATEIM NAT = "eim"
	// NATFullCone is NATEasy that lets in everybody. It forgets after 300 s.
	NATFullCone NAT = "fullcone"
	// NATRestricted is NATEasy that filters by address alone. It forgets after 300 s.
	NATRestricted NAT = "restricted"
	// NATHard maps by address and port to random ports and filters by both.
	NATHard NAT = "hard"
	// NATSeq is NATHard with one port after another, of 4096.
	NATSeq NAT = "seq"
	// NATCGN is NATEasy behind a carrier's NATEasy.
	NATCGN NAT = "cgn"
	// NATCGNHard is NATEasy behind a carrier's NATHard.
	NATCGNHard NAT = "cgnhard"
	// NATNone routes a public network to the LAN and filters nothing.
	NATNone NAT = "none"
	// NATv6Firewall routes a public IPv6 network to the LAN and lets in only
	// answers. It has no IPv4.
	NATv6Firewall NAT = "v6firewall"
	// NATUDPBlocked is NATEasy that lets out TCP to ports 80 and 443, nothing else.
	NATUDPBlocked NAT = "udpblocked"
	// NATUPnP is NATEasy with a server for UPnP IGD, NAT-PMP and PCP. It needs the
	// program miniupnpd, built for nftables.
	NATUPnP NAT = "upnp"
	// NATHardUPnP is NATHard with the server of NATUPnP.
	NATHardUPnP NAT = "hardupnp"
)

// NATs returns all kinds, for a test of each.
func NATs() []NAT {
	return []NAT{
		NATNone, NATv6Firewall, NATEasy, NATEIM, NATFullCone, NATRestricted, NATHard, NATSeq,
		NATCGN, NATCGNHard, NATUDPBlocked, NATUPnP, NATHardUPnP,
	}
}

// natV6 marks a gateway that has no IPv4.
const natV6 = NATv6Firewall

func (n NAT) upnp() bool { return n == NATUPnP || n == NATHardUPnP }

// kinds returns what the home's router and the carrier's, if any, do.
func (n NAT) kinds(t testing.TB) (home, carrier NAT) {
	t.Helper()
	if n.upnp() {
		if _, err := exec.LookPath("miniupnpd"); err != nil {
			Skip(t, "a router with UPnP needs the command miniupnpd (Debian's miniupnpd-nftables)")
		}
	}
	switch n {
	case NATEasy, NATEIM, NATFullCone, NATRestricted, NATHard, NATSeq, NATNone, NATv6Firewall:
		return n, ""
	case NATCGN:
		return NATEasy, NATEasy
	case NATCGNHard:
		return NATEasy, NATHard
	case NATUDPBlocked, NATUPnP:
		return NATEasy, ""
	case NATHardUPnP:
		return NATHard, ""
	default:
		t.Fatalf("there is no NAT %q", n)
		return "", ""
	}
}

// A gateway is a router between eth0, outside, and eth1, inside.
type gateway struct {
	host  *Host
	kind  NAT
	web   bool // lets out TCP to ports 80 and 443 alone
	upnp  bool
	noUDP bool
}

// load replaces the rules, after which nothing passes until wake.
func (g *gateway) load() {
	g.host.lab.t.Helper()
	var b strings.Builder
	b.WriteString("flush ruleset\n" + asleep)
	switch g.kind {
	case NATNone:
	case NATv6Firewall:
		b.WriteString(g.firewall())
	default:
		b.WriteString(g.firewall())
		b.WriteString(g.translation())
	}
	if g.upnp {
		b.WriteString(upnpTable)
	}
	if g.noUDP {
		b.WriteString(noUDPTable)
	}
	g.host.Nft(b.String())
}

func (g *gateway) wake() {
	g.host.lab.t.Helper()
	g.host.Nft("delete table inet asleep\n")
}

const asleep = `table inet asleep {
	chain in {
		type filter hook prerouting priority -400; policy drop
	}
	chain out {
		type filter hook output priority -400; policy drop
	}
}
`

// firewall returns the filters. What is dropped here leaves no entry in the
// connection table (the kernel confirms one at the end of its way): otherwise the
// peer's early packet would occupy the port that an inside host is to get for
// this peer.
func (g *gateway) firewall() string {
	out := "accept"
	if g.web {
		out = "tcp dport { 80, 443 } accept"
	}
	return `table inet fw {
	chain input {
		type filter hook input priority 0; policy drop
		ct state established,related accept
		iifname "lo" accept
		meta l4proto { icmp, icmpv6 } accept
		iifname "eth1" fib daddr . iif type { local, broadcast, multicast } accept
	}
	chain forward {
		type filter hook forward priority 0; policy drop
		ct state established,related accept
		ct status dnat accept
		iifname "eth1" oifname "eth0" ` + out + `
	}
}
`
}

// translation returns the rules that translate addresses.
//
// Linux's masquerade keeps a port where it can, and reuses the mapping of the same
// inside address and port where the wanted range of ports allows: that makes it
// endpoint-independent. With random ports it does not look for such a mapping, and
// with a range of a single new port it cannot use one.
func (g *gateway) translation() string {
	udp, other := "masquerade", "masquerade"
	var b strings.Builder
	b.WriteString("table ip nat {\n")
	switch g.kind {
	case NATEIM:
		// Two ranges, so that no port is in the range it is mapped to.
		udp = "udp sport < 30000 masquerade to :30000-59999\n\t\toifname \"eth0\" meta l4proto udp masquerade to :2048-29999"
	case NATHard:
		udp, other = "masquerade random,fully-random", "masquerade random,fully-random"
	case NATSeq:
		// A generated number has the machine's order of bytes and a port the
		// network's: only a map keeps the ports in sequence.
		first := 20000 + rand.IntN(30000) //nolint:gosec // no secret
		var m strings.Builder
		for k := range seqPorts {
			fmt.Fprintf(&m, "%d : %d, ", k, first+k)
		}
		udp = fmt.Sprintf("masquerade to :numgen inc mod %d map { %s }", seqPorts, m.String())
	case NATFullCone:
		b.WriteString(cone(`udp sport`, `udp dport`, "inet_service"))
	case NATRestricted:
		b.WriteString(cone(`ip daddr . udp sport`, `ip saddr . udp dport`, "ipv4_addr . inet_service"))
	}
	fmt.Fprintf(&b, `	chain post {
		type nat hook postrouting priority 100; policy accept
		oifname "eth0" meta l4proto udp %s
		oifname "eth0" %s
	}
}
`, udp, other)
	return b.String()
}

const seqPorts = 4096

// cone returns rules that remember mappings, after translation, and let in what
// fits one. Packets of a connection that began outside keep a mapping alive, too;
// its inside is the source of what is sent in reply. An update does not replace
// who has had the port before, therefore the delete.
func cone(out, in, key string) string {
	return fmt.Sprintf(`	map known {
		type %[3]s : ipv4_addr . inet_service
		flags dynamic,timeout
		timeout 300s
		size 65535
	}
	chain pre {
		type nat hook prerouting priority -100; policy accept
		iifname "eth0" meta l4proto udp dnat ip to %[2]s map @known
	}
	chain learn {
		type filter hook postrouting priority 300; policy accept
		oifname "eth0" meta l4proto udp ct state new delete @known { %[1]s : ct original ip saddr . ct original proto-src }
		oifname "eth0" meta l4proto udp ct direction original update @known { %[1]s : ct original ip saddr . ct original proto-src }
		oifname "eth0" meta l4proto udp ct direction reply update @known { %[1]s : ct reply ip saddr . ct reply proto-src }
	}
`, out, in, key)
}

const noUDPTable = `table inet noudp {
	chain pre {
		type filter hook prerouting priority -350; policy accept
		iifname "eth0" meta l4proto udp drop
		iifname "eth1" meta l4proto udp fib daddr type unicast drop
	}
}
`

// DropUDP lets no UDP packet pass the home's router, in or out, or lets it pass
// again. What is mapped expires meanwhile; it outlasts Reboot.
func (s *Site) DropUDP(drop bool) {
	s.inet.lab.t.Helper()
	g := s.gws[0]
	switch {
	case drop && !g.noUDP:
		g.host.Nft(noUDPTable)
	case !drop && g.noUDP:
		g.host.Nft("delete table inet noudp\n")
	}
	g.noUDP = drop
}

// Reboot lets the router, and the carrier's where there is one, forget all
// mappings, those asked for by UPnP, too. With newIP the site has another public
// address afterwards; behind a router without NAT its hosts have other ones, too,
// and with [NATv6Firewall] they alone.
func (s *Site) Reboot(newIP bool) {
	s.inet.lab.t.Helper()
	s.stopDaemons()
	for _, g := range s.gws {
		g.load()
	}
	if newIP {
		s.renumber()
	}
	for _, g := range s.gws {
		g.flush()
		g.wake()
	}
	s.startDaemons()
}

// flush empties the connection table.
func (g *gateway) flush() {
	g.host.lab.t.Helper()
	var err error
	g.host.Do(func() { err = netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		g.host.lab.t.Fatalf("flush the connections of %s: %v", g.host.Name, err)
	}
}

const upnpTable = `table inet miniupnpd {
	chain miniupnpd {
	}
	chain prerouting_miniupnpd {
	}
	chain postrouting_miniupnpd {
	}
	chain forward {
		type filter hook forward priority -1; policy accept
		jump miniupnpd
	}
	chain prerouting {
		type nat hook prerouting priority -101; policy accept
		jump prerouting_miniupnpd
	}
	chain postrouting {
		type nat hook postrouting priority 98; policy accept
		jump postrouting_miniupnpd
	}
}
`

// upnpConfig has the LAN's prefix and the number of the site.
const upnpConfig = `ext_ifname=eth0
listening_ip=eth1
port=0
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
system_uptime=no
min_lifetime=20
max_lifetime=86400
notify_interval=900
ipv6_disable=yes
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=5e2c0c8e-0000-4000-8000-0000000000%02x
allow 1024-65535 %s 1024-65535
`

// startDaemons starts what runs on the router and returns when it listens.
func (s *Site) startDaemons() {
	t := s.inet.lab.t
	t.Helper()
	if !s.gws[0].upnp {
		return
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "miniupnpd.conf")
	net, bits := s.lan()
	if err := os.WriteFile(conf, fmt.Appendf(nil, upnpConfig, s.k, fmt.Sprintf("%v/%d", net, bits)), 0o600); err != nil {
		t.Fatal(err)
	}
	p := s.Router.Start("miniupnpd", "-d", "-f", conf, "-P", filepath.Join(dir, "pid"))
	s.daemons = append(s.daemons, p)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p.Await(ctx, "(?i)listening .*(nat-pmp|pcp)")
}

func (s *Site) stopDaemons() {
	for _, p := range s.daemons {
		p.Kill()
	}
	s.daemons = nil
}
