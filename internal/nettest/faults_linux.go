package nettest

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DropMulticast has the switch drop multicast between the ports that it has now, but for
// what finds neighbours of IPv6. Broadcast passes.
func (b *Bridge) DropMulticast() {
	b.lab.t.Helper()
	var ports []string
	for _, e := range b.ends {
		ports = append(ports, strconv.Quote(e.port))
	}
	b.lab.sw.Nft(fmt.Sprintf(`table bridge %s {
	chain pass {
		type filter hook forward priority 0; policy accept
		ether daddr & ff:ff:ff:00:00:00 == 33:33:ff:00:00:00 accept
		iifname { %s } ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 ether daddr != ff:ff:ff:ff:ff:ff drop
	}
}
`, b.name, strings.Join(ports, ", ")))
}

// PassMulticast ends DropMulticast.
func (b *Bridge) PassMulticast() {
	b.lab.t.Helper()
	b.lab.sw.Nft("delete table bridge " + b.name + "\n")
}

// Isolate keeps hosts of the switch from each other, as the client isolation of an access
// point does: each reaches only those that are not among them, such as the router.
func (b *Bridge) Isolate(hosts ...*Host) { b.isolate("on", hosts) }

// Reunite ends Isolate for these hosts.
func (b *Bridge) Reunite(hosts ...*Host) { b.isolate("off", hosts) }

func (b *Bridge) isolate(state string, hosts []*Host) {
	b.lab.t.Helper()
	for _, h := range hosts {
		found := false
		for _, e := range b.ends {
			if e.host == h {
				found = true
				b.lab.run("bridge", "-n", b.lab.sw.ns, "link", "set", "dev", e.port, "isolated", state)
			}
		}
		if !found {
			b.lab.t.Fatalf("%s is not at the switch", h.Name)
		}
	}
}

// LetOut has the home's router forward out of the LAN only what fits a match of nft, such
// as "tcp dport 443"; all else vanishes without an answer. The router itself still
// answers. It lasts until Reboot.
func (s *Site) LetOut(match string) {
	s.inet.lab.t.Helper()
	s.Router.Nft("table inet letout {\n chain pass {\n type filter hook forward priority -20; policy accept\n" +
		"iifname != \"eth1\" accept\n" + match + " accept\n drop\n }\n}\n")
}

// Hole has the home's router drop IPv4 packets of more than size bytes both ways and tell
// nobody: an MTU black hole. It lasts until Reboot.
func (s *Site) Hole(size int) {
	s.inet.lab.t.Helper()
	s.Router.Nft(fmt.Sprintf("table ip hole {\n chain pass {\n type filter hook forward priority -20; policy accept\n ip length > %d drop\n }\n}\n", size))
}

// Forget has the home's router forget mappings of UDP after a time without traffic, in
// whole seconds.
func (s *Site) Forget(after time.Duration) {
	s.inet.lab.t.Helper()
	seconds := strconv.Itoa(int(after / time.Second))
	s.Router.sysctl("net/netfilter/nf_conntrack_udp_timeout", seconds)
	s.Router.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", seconds)
}

// DeadIPv6 gives the LAN a public IPv6 network: its hosts get addresses and a default
// route, the router answers, and what it is to forward vanishes.
func (s *Site) DeadIPv6() {
	s.inet.lab.t.Helper()
	s.Router.Addr("eth1", v6(s.k, 1, 1).String()+"/64")
	s.Router.IP("-6", "route", "add", "blackhole", "default")
	for _, h := range s.hosts {
		h.Addr(h.at.ifi, v6(s.k, 1, 100+h.at.n).String()+"/64")
		h.IP("-6", "route", "add", "default", "via", v6(s.k, 1, 1).String(), "dev", h.at.ifi)
	}
}

// Behind makes a host behind a second router, of the kind NATEasy, that is in the site's
// LAN as a host: a double NAT. Its network is 10.64.0.0/24.
func (s *Site) Behind(name string) (host, router *Host) {
	t := s.inet.lab.t
	t.Helper()
	router = s.inet.lab.Host("r2-" + name).Router()
	s.plug(router) // eth0, as of a home's router
	inner := s.inet.lab.Bridge("in" + strconv.Itoa(s.k))
	router.Attach(inner, "10.64.0.1/24")
	g := &gateway{host: router, kind: NATEasy}
	g.load()
	g.wake()
	host = s.inet.lab.Host(name).Attach(inner, "10.64.0.2/24").Route("default", "via", "10.64.0.1")
	return host, router
}

// Unplug pulls the cables of the host, or plugs them in again: it sees that the carrier is
// gone, and keeps its addresses and routes.
func (h *Host) Unplug(out bool) {
	h.lab.t.Helper()
	state := "up"
	if out {
		state = "down"
	}
	for _, p := range h.ports {
		h.lab.sw.IP("link", "set", p, state)
	}
}

// Mute has the host, a router as a rule, tell nobody that a packet went no further: no
// ICMP that says so leaves it.
func (h *Host) Mute() {
	h.lab.t.Helper()
	h.Nft("table inet mute {\n chain out {\n type filter hook output priority 0; policy accept\n" +
		" icmp type { destination-unreachable, time-exceeded } drop\n icmpv6 type { destination-unreachable, time-exceeded } drop\n }\n}\n")
}

// Guest makes a host in a second LAN of the site's router, with the network
// 10.65.0.0/24. The router has a NAT for it, too, and routes nothing between the two.
func (s *Site) Guest(name string) *Host {
	t := s.inet.lab.t
	t.Helper()
	guests := s.inet.lab.Bridge("gu" + strconv.Itoa(s.k))
	ifi, _ := s.Router.attach(guests)
	s.Router.Addr(ifi, "10.65.0.1/24")
	s.Router.Nft(fmt.Sprintf("add rule inet fw forward iifname %q oifname eth0 accept\nadd rule inet fw input iifname %q fib daddr . iif type { local, broadcast, multicast } accept\n", ifi, ifi))
	return s.inet.lab.Host(name).Attach(guests, "10.65.0.2/24").Route("default", "via", "10.65.0.1")
}

// Decoy gives the host an interface that is up and leads nowhere, such as a container's.
func (h *Host) Decoy(name, addr string) {
	h.lab.t.Helper()
	h.lab.n++
	h.lab.run("ip", "link", "add", fmt.Sprintf("p%d", h.lab.n), "netns", h.lab.sw.ns, "type", "veth", "peer", "name", name, "netns", h.ns)
	h.lab.sw.IP("link", "set", fmt.Sprintf("p%d", h.lab.n), "up")
	h.IP("link", "set", name, "up")
	h.Addr(name, addr)
}

// VPN gives the host a TUN interface with an address, as a VPN whose server is silent:
// what is sent into it vanishes. Routes to it are the caller's.
func (h *Host) VPN(name, addr string) {
	t := h.lab.t
	t.Helper()
	fd, err := -1, error(nil)
	h.Do(func() {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return
		}
		var req *unix.Ifreq
		if req, err = unix.NewIfreq(name); err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
	})
	if fd >= 0 { // nobody reads it: the queue fills, and the kernel drops the rest
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	if err != nil {
		Skip(t, "a VPN needs a TUN interface: "+err.Error())
	}
	h.IP("link", "set", name, "up")
	h.Addr(name, addr)
}

// Sent counts the packets that the host has sent on its interfaces eth0, eth1 and so on;
// those that are gone by now are not in it.
func (h *Host) Sent() (n int64) {
	h.lab.t.Helper()
	var failed error
	h.Do(func() { n, failed = sentHere() })
	if failed != nil {
		h.lab.t.Fatal(failed)
	}
	return n
}

// Count counts, from now on, the packets that the host sends on the cables that it has now
// and that fit a match of nft for a switch.
func (h *Host) Count(match string) (sent func() int64) {
	t := h.lab.t
	t.Helper()
	var ports []string
	for _, p := range h.ports {
		ports = append(ports, strconv.Quote(p))
	}
	h.lab.n++
	table := fmt.Sprintf("count%d", h.lab.n)
	h.lab.sw.Nft(fmt.Sprintf("table bridge %s {\n counter seen { }\n chain in {\n type filter hook prerouting priority -300; policy accept\n iifname { %s } %s counter name seen\n }\n}\n",
		table, strings.Join(ports, ", "), match))
	return func() int64 {
		t.Helper()
		out := h.lab.sw.Output(t.Context(), "nft", "list", "counter", "bridge", table, "seen")
		_, rest, _ := strings.Cut(out, "packets ")
		text, _, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		return n
	}
}

// Disk mounts a file system of size bytes, in memory, at an existing directory until the
// end of the test, and returns functions that fill what is left of it, and that free it.
func (l *Lab) Disk(dir string, size int) (fill, free func()) {
	l.t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		Skip(l.t, "a file system of its own: "+err.Error())
	}
	l.t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			l.t.Errorf("%s stays mounted: %v", dir, err)
		}
	})
	check := func(err error) {
		l.t.Helper()
		if err != nil {
			l.t.Fatal(err)
		}
	}
	return func() { check(ballast(dir)) }, func() { check(os.Remove(filepath.Join(dir, ballastFile))) }
}

// Elsewhere returns an address of the site's LAN that nobody has.
func (s *Site) Elsewhere() netip.Addr {
	net, _ := s.lan()
	return nth(net, 254)
}
