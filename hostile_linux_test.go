package kith_test

import (
	"cmp"
	"context"
	bytesof "encoding/binary"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kithproject/kith/internal/nettest"
)

// Bounds of what one paired device can have another send (docs/threat-model.md).
const (
	hostileListed = 20  // addresses of one list that are probed
	hostileRate   = 10  // packets a second to one address that never answered
	hostileMost   = 45  // addresses in a few seconds, however often it names others: 32, and one more each second
	hostileAll    = 400 // packets a second to all strangers

	// hostileWindow is for a second: who sends and who records may be late.
	hostileWindow = 900 * time.Millisecond
)

// A sent is one UDP packet that left a socket.
type sent struct {
	at       time.Time
	to       netip.AddrPort
	loopback bool
}

// A sniffer records what leaves one UDP socket of a host over IPv4.
type sniffer struct {
	stop chan struct{}
	done chan struct{}
	mu   sync.Mutex // guards all
	all  []sent
}

func sniff(t *testing.T, h *nettest.Host, port uint16) *sniffer {
	t.Helper()
	s := &sniffer{stop: make(chan struct{}), done: make(chan struct{})}
	const ipv4 = 0x0008 // ETH_P_IP in network order
	fd, lo := -1, 0
	var err error
	h.Do(func() {
		var ifi *net.Interface
		if ifi, err = net.InterfaceByName("lo"); err != nil {
			return
		}
		lo = ifi.Index
		// ETH_P_ALL: only that sees what goes out.
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0x0300); err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		defer unix.Close(fd)
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil { // nothing within the socket's time limit
				select {
				case <-s.stop:
					return
				default:
					continue
				}
			}
			ll, ok := from.(*unix.SockaddrLinklayer)
			if !ok || ll.Protocol != ipv4 || ll.Pkttype != unix.PACKET_OUTGOING || n < 28 || buf[9] != unix.IPPROTO_UDP {
				continue
			}
			udp := buf[4*(buf[0]&15) : n]
			if len(udp) < 8 || bytesof.BigEndian.Uint16(udp) != port {
				continue
			}
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(buf[16:20])), bytesof.BigEndian.Uint16(udp[2:]))
			s.mu.Lock()
			s.all = append(s.all, sent{time.Now(), to, ll.Ifindex == lo})
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() { close(s.stop); <-s.done })
	return s
}

// take returns what was recorded since the last call.
func (s *sniffer) take() []sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.all
	s.all = nil
	return out
}

// busiest returns the most packets within any hostileWindow, of those with the same key.
func busiest[K cmp.Ordered](all []sent, key func(sent) K) (most int, of K) {
	by := make(map[K][]time.Time)
	for _, p := range all {
		by[key(p)] = append(by[key(p)], p.at)
	}
	for k, times := range by {
		first := 0
		for i, at := range times {
			for at.Sub(times[first]) >= hostileWindow {
				first++
			}
			if n := i - first + 1; n > most {
				most, of = n, k
			}
		}
	}
	return most, of
}

// tunnelPort is the UDP port of a station's daemon.
func (s *station) tunnelPort(ctx context.Context) uint16 {
	s.t.Helper()
	var st struct{ Port uint16 }
	if err := json.Unmarshal([]byte(s.run(ctx, "status", "--json")), &st); err != nil {
		s.t.Fatal(err)
	}
	return st.Port
}

// residentMiB is the memory of a station's daemon.
func (s *station) residentMiB() float64 {
	s.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		s.t.Fatal(err)
	}
	want := strings.Join(append([]string{s.kith}, s.args("up")...), "\x00")
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(line), want) {
			continue // it ended meanwhile, or is another
		}
		raw, err := os.ReadFile(filepath.Join(filepath.Dir(f), "status"))
		if err != nil {
			s.t.Fatal(err)
		}
		for l := range strings.Lines(string(raw)) {
			if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
				kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err != nil {
					s.t.Fatal(err)
				}
				return kib / 1024
			}
		}
	}
	s.t.Fatal("the daemon is not among the processes")
	return 0
}

// A hostileLab is an honest device with a friend and a foe, all on one LAN with a
// way out, and a victim on the internet.
type hostileLab struct {
	*reachLab
	evil   *station
	victim *nettest.Host
	port   uint16 // of the honest device
}

func newHostileLab(ctx context.Context, t *testing.T) *hostileLab {
	t.Helper()
	lab := nettest.New(t)
	h := &hostileLab{reachLab: &reachLab{lab: lab, inet: lab.Internet()}}
	h.hub = newStation(t, h.inet.Server("hub"))
	h.startHub(ctx)
	h.victim = h.inet.Server("victim")
	home := h.inet.Site("home", nettest.NATEasy)
	h.sites[0], h.sites[1] = home, home
	for i, name := range []string{"desk", "laptop"} {
		h.nodes[i] = newStation(t, home.Host(name))
		h.nodes[i].run(ctx, "config", "hub", h.text)
		h.nodes[i].daemon(ctx)
	}
	pairStations(ctx, t, h.nodes[0], h.nodes[1], "words")
	h.evil = newStation(t, home.Host("evil"))
	h.evil.daemon(ctx)
	pairStations(ctx, t, h.nodes[0], h.evil, "words")
	h.evil.up.Stop()
	h.port = h.nodes[0].tunnelPort(ctx)
	return h
}

// attack starts the foe, and returns when it does what it is to do.
func (h *hostileLab) attack(ctx context.Context, mode string, names []netip.AddrPort) *nettest.Process {
	var text []string
	for _, a := range names {
		text = append(text, a.String())
	}
	target := netip.AddrPortFrom(h.nodes[0].host.Addrs()[0], h.port)
	p := h.evil.host.Start("env", hostileMode+"="+mode, hostileHome+"="+h.evil.home, hostileTarget+"="+target.String(),
		hostileNames+"="+strings.Join(text, " "), os.Args[0], "-test.run", "^TestHostilePeer$")
	p.Await(ctx, "^hostile: known")
	return p
}

// addresses are 1,000 that a foe names: loopback, groups, the hub, and strangers.
func (h *hostileLab) addresses() []netip.AddrPort {
	victim := h.victim.Addrs()[0]
	out := []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.1:22"), netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("127.9.9.9:1000"),
		netip.MustParseAddrPort("224.0.0.251:5353"), netip.MustParseAddrPort("239.255.255.250:1900"), netip.MustParseAddrPort("255.255.255.255:67"),
		netip.MustParseAddrPort("0.0.0.0:53"), netip.AddrPortFrom(h.hub.host.Addrs()[0], 443), netip.AddrPortFrom(h.sites[0].Gateway(), 53),
		netip.AddrPortFrom(victim, 7),
	}
	for i := range 490 {
		out = append(out, netip.AddrPortFrom(victim, uint16(1000+i)))
	}
	for i := range 500 {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 200, byte(i >> 8), byte(i)}), 9))
	}
	return out
}

// TestNetworkHostilePeer lets a paired device name 1,000 addresses in turn, one
// list all the time, and others with each of its runs, and counts what the honest
// one sends to those who never answered.
func TestNetworkHostilePeer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	h := newHostileLab(ctx, t)
	names := h.addresses()
	friends := []netip.Addr{h.nodes[1].host.Addrs()[0], h.evil.host.Addrs()[0]}
	friends = append(friends, h.hub.host.Addrs()...) // they answer, as STUN servers do
	s := sniff(t, h.nodes[0].host, h.port)
	for _, c := range []struct {
		mode, until string
		most        int // addresses
	}{
		{"names", "", hostileListed}, {"rotates", "1000 presences", hostileMost}, {"restarts", "20 runs", hostileMost},
	} {
		s.take()
		start := time.Now()
		p := h.attack(ctx, c.mode, names)
		if c.until != "" {
			p.Await(ctx, c.until)
		}
		// Long enough for the rate to show, by the rounds of an honest ping.
		h.nodes[0].run(ctx, "ping", "-c", "3", "laptop")
		p.Kill()
		all := s.take()
		took := time.Since(start)
		var strange []sent
		addrs := make(map[netip.AddrPort]bool)
		for _, one := range all {
			to := one.to.Addr()
			if one.loopback || to.IsLoopback() || to.IsMulticast() || to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || to.IsUnspecified() {
				t.Fatalf("%s: sent to %v, loopback %v", c.mode, one.to, one.loopback)
			}
			if slices.Contains(friends, to) {
				continue
			}
			strange = append(strange, one)
			addrs[one.to] = true
		}
		perAddr, which := busiest(strange, func(p sent) string { return p.to.String() })
		perHost, host := busiest(strange, func(p sent) string { return p.to.Addr().String() })
		whole, _ := busiest(strange, func(sent) string { return "" })
		t.Logf("%s, %v: %d packets to %d addresses of strangers; in the busiest second %d to one address (%s), %d to one host (%s), %d in all",
			c.mode, took.Round(time.Millisecond), len(strange), len(addrs), perAddr, which, perHost, host, whole)
		if len(strange) == 0 {
			t.Errorf("%s: nothing was sent to anybody, so nothing was tested", c.mode)
		}
		if len(addrs) > c.most {
			t.Errorf("%s: %d addresses, at most %d", c.mode, len(addrs), c.most)
		}
		if whole > hostileAll {
			t.Errorf("%s: %d packets within a second to strangers, at most %d", c.mode, whole, hostileAll)
		}
		if perAddr > hostileRate {
			t.Errorf("%s: %d packets within a second to %s, at most %d", c.mode, perAddr, which, hostileRate)
		}
	}
}
