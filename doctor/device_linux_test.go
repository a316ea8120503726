package doctor

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pion/stun/v4"
	"golang.org/x/sys/unix"

	"github.com/kithproject/kith/internal/nettest"
)

// deviceNodeEnv has this test binary look at the host that it runs on, in a namespace of
// TestDeviceLab: the settings as JSON.
const deviceNodeEnv = "KITH_DOCTOR_DEVICE"

// deviceNode are the settings of such a host.
type deviceNode struct {
	Dir      string
	STUN     []string
	Resolver string // of names; none: there is no resolv.conf
	Wrong    time.Duration
	Port     uint16
	Failed   bool // no node could be opened
	Nobody   bool // without any rights
}

// TestDeviceNode is no test but such a host.
func TestDeviceNode(t *testing.T) {
	text := os.Getenv(deviceNodeEnv)
	if text == "" {
		t.Skip("runs on the hosts of TestDeviceLab")
	}
	var n deviceNode
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	if n.Nobody {
		const nobody = 65534
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			t.Fatal(err)
		}
		n.Dir = "" // of another user
	}
	d := systemDevice()
	d.read = func(path string) ([]byte, error) {
		if path != "/etc/resolv.conf" {
			return deviceRead(path)
		}
		if n.Resolver == "" {
			return nil, fs.ErrNotExist
		}
		return []byte("nameserver " + n.Resolver + "\n"), nil
	}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, net.JoinHostPort(n.Resolver, "53"))
	}}
	env := &Env{Dir: n.Dir, Root: !n.Nobody, Port: n.Port, STUN: n.STUN, Pacer: NewPacer(), Now: func() time.Time { return time.Now().Add(n.Wrong) }}
	env.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
		if n.Resolver == "" {
			return nil, &net.DNSError{IsNotFound: true}
		}
		return resolver.LookupNetIP(ctx, "ip", host)
	}
	env.NTP = slices.Clone(n.STUN[:1]) // the lab's server answers both
	for i, s := range env.NTP {
		host, _, _ := net.SplitHostPort(s)
		env.NTP[i] = net.JoinHostPort(host, "123")
	}
	env.STUN, env.Strangers = n.STUN, true
	if n.Failed {
		env.OpenErr = errors.New("no node")
	}
	out, err := json.Marshal(Run(t.Context(), Config{Table: d.checks(), Env: env}))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("REPORT %s\n", out)
}

// look runs the checks on a host and returns their report.
func (n deviceNode) look(t *testing.T, h *nettest.Host) Report {
	t.Helper()
	n.Dir = t.TempDir()
	deviceChmod(t, n.Dir, 0o700)
	text, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	before := h.Counter(t.Context(), "eth0", "tx_packets")
	out := h.Output(t.Context(), "env", deviceNodeEnv+"="+string(text), os.Args[0], "-test.run=^TestDeviceNode$")
	_, out, _ = strings.Cut(out, "REPORT ")
	var r Report
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&r); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	sent := h.Counter(t.Context(), "eth0", "tx_packets") - before
	t.Logf("%v, %d packets", r.Took.Round(time.Millisecond), sent)
	if rate := float64(sent) / max(r.Took.Seconds(), 1); rate > 200 {
		t.Errorf("%.0f packets a second", rate)
	}
	if t.Failed() || testing.Verbose() {
		for _, x := range r.Results {
			t.Logf("%-20s %-8s %v %v because %q, %v", x.Name(), x.State, x.Cause, x.Evidence, x.Because, x.Took.Round(time.Millisecond))
		}
	}
	return r
}

// deviceLabServer answers STUN and network time on a public host.
func deviceLabServer(t *testing.T, h *nettest.Host) {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	serve := func(at netip.AddrPort, answer func([]byte, net.Addr) []byte) {
		var conn *net.UDPConn
		var err error
		h.Do(func() { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		wg.Go(func() {
			buf := make([]byte, 4096)
			for {
				n, from, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				if out := answer(buf[:n], from); out != nil {
					_, _ = conn.WriteTo(out, from)
				}
			}
		})
	}
	binding := func(b []byte, from net.Addr) []byte {
		m := &stun.Message{Raw: slices.Clone(b)}
		if m.Decode() != nil {
			return nil
		}
		at := from.(*net.UDPAddr)
		out, err := stun.Build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess, &stun.XORMappedAddress{IP: at.IP, Port: at.Port})
		if err != nil {
			return nil
		}
		if pad := len(b) - len(out.Raw) - 4; pad > 0 {
			out.Add(stun.AttrPadding, make([]byte, pad))
		}
		return out.Raw
	}
	clock := func(b []byte, _ net.Addr) []byte {
		if len(b) < ntpSize {
			return nil
		}
		return ntpAnswer(b, time.Now())
	}
	for _, a := range h.Addrs() {
		serve(netip.AddrPortFrom(a, 3478), binding)
		serve(netip.AddrPortFrom(a, 123), clock)
	}
}

// TestDeviceLab breaks homes in one way each: the first cause must be that one, and
// there must be none in those that are only unusual.
func TestDeviceLab(t *testing.T) {
	lab := nettest.New(t)
	inet := lab.Internet()
	server := inet.Server("server")
	deviceLabServer(t, server)
	var servers []string
	for _, a := range server.Addrs() { // two of IPv4, one of IPv6
		servers = append(servers, netip.AddrPortFrom(a, 3478).String())
	}
	// One server alone that is silent says nothing of the network.
	twoOfIPv6 := append(slices.Clone(servers), netip.AddrPortFrom(inet.Server("six").Addrs()[2], 3478).String())
	node := func(n deviceNode) deviceNode {
		n.STUN = servers
		return n
	}
	swallow := func(h *nettest.Host, name string, addrs ...string) {
		h.IP("link", "add", name, "type", "veth", "peer", "name", "far"+name)
		h.IP("link", "set", name, "up", "arp", "off")
		h.IP("link", "set", "far"+name, "up")
		for _, a := range addrs {
			h.Addr(name, a)
		}
	}
	ip6 := func(s *nettest.Site, h *nettest.Host) {
		s.Router.Addr("eth1", "2a0e:fade:99::1/64")
		h.Addr("eth0", "2a0e:fade:99::20/64")
		h.Route("default", "via", "2a0e:fade:99::1")
	}
	common, second := inet.Site("common", nettest.NATEasy), inet.Site("second", nettest.NATEasy)
	for _, test := range []struct {
		name  string
		node  deviceNode
		own   bool // the home is broken, not the host alone
		brk   func(*nettest.Site, *nettest.Host)
		want  string // the first cause, "" if there must be none
		worst Severity
	}{
		{"healthy", node(deviceNode{}), false, func(*nettest.Site, *nettest.Host) {}, "", Fine},
		{"containers", node(deviceNode{}), false, func(_ *nettest.Site, h *nettest.Host) {
			swallow(h, "docker0", "172.17.0.1/16")
			swallow(h, "virbr0", "192.168.122.1/24")
		}, "", Fine},
		{"a VPN for some", node(deviceNode{}), false, func(_ *nettest.Site, h *nettest.Host) {
			swallow(h, "wg0", "10.8.0.2/24")
			h.Route("10.0.0.0/8", "dev", "wg0")
		}, "", Fine},
		{"two networks", node(deviceNode{Nobody: true}), false, func(_ *nettest.Site, h *nettest.Host) {
			lan := netip.PrefixFrom(second.Gateway().Next().Next(), 24)
			h.Attach(second.LAN, lan.String()).Route("default", "via", second.Gateway().String(), "metric", "200")
		}, "", Fine},
		{"a firewall", node(deviceNode{Port: 5555}), false, func(_ *nettest.Site, h *nettest.Host) {
			h.Nft("table inet f { chain in { type filter hook input priority 0; policy drop; ct state vmap { established : accept, related : accept }; iif lo accept; udp dport { 5353, 27491 } accept; }; }")
		}, "", Fine},
		{"a third is lost", node(deviceNode{}), true, func(s *nettest.Site, _ *nettest.Host) {
			s.Router.Nft("table ip lossy { chain f { type filter hook forward priority -10; numgen random mod 10 < 3 drop; }; }")
		}, "", Fine},
		{"dead default route", node(deviceNode{Nobody: true}), true, func(s *nettest.Site, h *nettest.Host) {
			h.IP("route", "replace", "default", "via", s.Gateway().Next().Next().String())
		}, "device.gateway/silent", Fault},
		{"no route", node(deviceNode{}), false, func(_ *nettest.Site, h *nettest.Host) { h.IP("route", "del", "default") }, "device.routes/none", Fault},
		{"nothing beyond", node(deviceNode{Nobody: true}), true, func(s *nettest.Site, _ *nettest.Host) { s.Cut(true) }, "device.outside/nothing", Fault},
		{"MTU black hole", node(deviceNode{Nobody: true}), true, func(s *nettest.Site, _ *nettest.Host) {
			s.Router.Nft("table ip hole { chain f { type filter hook forward priority -10; meta length > 1400 drop; }; }")
		}, "device.pmtu/hole", Limit},
		{"a small path that says so", node(deviceNode{Nobody: true}), true, func(s *nettest.Site, _ *nettest.Host) { s.Router.IP("link", "set", "eth0", "mtu", "1400") }, "", Fine},
		{"IPv6 half broken", deviceNode{STUN: twoOfIPv6, Nobody: true}, true, func(s *nettest.Site, h *nettest.Host) {
			ip6(s, h)
			s.Router.IP("-6", "route", "add", "blackhole", "default")
		}, "device.ipv6/broken", Limit},
		{"IPv6 without a router", node(deviceNode{}), true, func(s *nettest.Site, h *nettest.Host) {
			h.Addr("eth0", "2a0e:fade:99::20/64")
			h.Route("default", "via", "2a0e:fade:99::99")
		}, "device.ipv6/broken", Limit},
		{"portal", node(deviceNode{Nobody: true}), true, func(s *nettest.Site, _ *nettest.Host) {
			deviceLabPortal(t, s)
		}, "device.portal/login", Fault},
		{"clock", node(deviceNode{Wrong: 48 * time.Hour}), false, func(*nettest.Site, *nettest.Host) {}, "device.clock/wrong", Fault},
		// Nobody has the resolver's address, and nothing is known but names.
		{"DNS dead", deviceNode{STUN: []string{"stun.example.com:3478"}, Resolver: "11.250.0.53"}, false, func(*nettest.Site, *nettest.Host) {
		}, "device.dns/silent", Fault},
		{"VPN takes all", node(deviceNode{}), false, func(_ *nettest.Site, h *nettest.Host) {
			swallow(h, "tun0", "10.8.0.2/24")
			h.Route("0.0.0.0/1", "dev", "tun0")
			h.Route("128.0.0.0/1", "dev", "tun0")
		}, "device.vpn/captures", Limit},
		{"ten decoys", node(deviceNode{}), false, func(_ *nettest.Site, h *nettest.Host) {
			for i := range 10 {
				swallow(h, fmt.Sprintf("decoy%d", i), fmt.Sprintf("10.77.%d.1/24", i))
			}
		}, "device.decoys/many", Note},
		{"firewall forbids to send", node(deviceNode{Nobody: true}), false, func(_ *nettest.Site, h *nettest.Host) {
			h.Nft("table inet f { chain out { type filter hook output priority 0; meta l4proto udp drop; }; }")
		}, "device.firewall/out", Fault},
		{"firewall drops answers", node(deviceNode{Port: 5555}), false, func(_ *nettest.Site, h *nettest.Host) {
			h.Nft("table inet f { chain in { type filter hook input priority 0; policy drop; iif lo accept; tcp dport 22 accept; meta l4proto { icmp, icmpv6 } accept; }; }")
		}, "device.firewall/answers", Fault},
		{"firewall hides the LAN", node(deviceNode{Port: 5555}), false, func(_ *nettest.Site, h *nettest.Host) {
			h.Nft("table inet f { chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept; }; }")
		}, "device.firewall/lan", Limit},
		{"firewalld hides the LAN", node(deviceNode{Port: 5555}), false, func(_ *nettest.Site, h *nettest.Host) {
			h.Output(t.Context(), "nft", "-j", "-f", "testdata/firewall/firewalld-public.json")
		}, "device.firewall/lan", Limit},
		{"LAN port taken", node(deviceNode{}), false, func(_ *nettest.Site, h *nettest.Host) { deviceLabHold(t, h, 27491) }, "device.ports/lan", Limit},
		{"port taken", node(deviceNode{Port: 5555, Failed: true}), false, func(_ *nettest.Site, h *nettest.Host) { deviceLabHold(t, h, 5555) }, "device.ports/tunnel", Fault},
	} {
		site := common
		if test.own {
			site = inet.Site(strings.ReplaceAll(test.name, " ", ""), nettest.NATEasy)
		}
		h := site.Host("h-" + strings.ReplaceAll(test.name, " ", ""))
		test.brk(site, h)
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := test.node.look(t, h)
			got := ""
			if len(r.Causes) > 0 {
				got = r.Causes[0].Name()
			}
			if got != test.want || got != "" && r.Causes[0].Severity != test.worst {
				t.Errorf("the first cause is %q, want %q; of %q", got, test.want, codes(r.Causes))
			}
			if most := map[bool]time.Duration{true: 15 * time.Second, false: 28 * time.Second}[test.want == ""]; r.Took > most {
				t.Errorf("it took %v", r.Took)
			}
		})
	}
}

// deviceLabPortal has a router show a login to all that asks for pages, and let nothing
// else pass.
func deviceLabPortal(t *testing.T, s *nettest.Site) {
	t.Helper()
	var ln net.Listener
	var err error
	s.Router.Do(func() { ln, err = net.Listen("tcp4", net.JoinHostPort(s.Gateway().String(), "80")) })
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.RedirectHandler("http://"+s.Gateway().String()+"/login", http.StatusFound), ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		srv.Close()
		wg.Wait()
	})
	s.Router.Nft("table ip portal { chain pre { type nat hook prerouting priority -110; iifname eth1 tcp dport 80 dnat to " + s.Gateway().String() +
		"; }; chain f { type filter hook forward priority -10; drop; }; }")
}

// deviceLabHold has another process's socket at a port.
func deviceLabHold(t *testing.T, h *nettest.Host, port int) {
	t.Helper()
	var conn *net.UDPConn
	var err error
	h.Do(func() { conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}

// TestDeviceFullDisk fills a small file system.
func TestDeviceFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=700"); err != nil {
		nettest.Skip(t, "a file system of its own needs root: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	d, env := systemDevice(), &Env{Dir: dir}
	deviceExpect(t, d.stateCheck(), env, "low")
	f, err := os.Create(dir + "/ballast")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !deviceFull(err) {
		t.Fatal(err)
	}
	if a := deviceExpect(t, d.stateCheck(), env, "full"); !strings.Contains(a.Cause, dir) {
		t.Errorf("cause %q", a.Cause)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("the check leaves %v, %v", left, err)
	}
}

// TestDeviceLink: what the kernel says of a datagram that nobody takes is read as it is
// meant.
func TestDeviceLink(t *testing.T) {
	lab := nettest.New(t)
	a, b := lab.Host("a"), lab.Host("b")
	net1 := lab.Bridge("one")
	a.Attach(net1, "10.0.0.1/24").Route("default", "via", "10.0.0.2")
	b.Attach(net1, "10.0.0.2/24").Router()
	b.Route("default", "via", "10.0.0.77")
	ask := func(to string, how deviceAsk) (got deviceAnswer) {
		a.Do(func() { got = deviceAskUDP(t.Context(), new(Env), netip.MustParseAddrPort(to), []byte{0}, how) })
		return got
	}
	if got := ask("10.0.0.9:9", deviceAsk{wait: gatewayWait}); !got.late() {
		t.Errorf("nobody there: %+v", got)
	}
	if got := ask("10.0.0.2:9", deviceAsk{}); !got.Refused || got.Hop.IsValid() {
		t.Errorf("nobody listens: %+v", got)
	}
	if got := ask("11.1.1.1:9", deviceAsk{ttl: 1}); !got.Expired || got.Hop.String() != "10.0.0.2" {
		t.Errorf("the hop limit: %+v", got)
	}
	// The router finds nobody where its own way leads; and it has a firewall, which is no host.
	b.Nft("table inet f { chain pass { type filter hook forward priority 0; ip daddr 11.2.2.2 reject with icmp port-unreachable; ip daddr 11.3.3.3 reject with icmp admin-prohibited; }; }")
	if got := ask("11.1.1.1:9", deviceAsk{wait: gatewayWait}); !got.NoWay || got.Hop.String() != "10.0.0.2" {
		t.Errorf("no way on: %+v", got)
	}
	for _, to := range []string{"11.2.2.2:9", "11.3.3.3:9"} {
		if got := ask(to, deviceAsk{}); got.alive() || got.NoWay || got.Hop.String() != "10.0.0.2" {
			t.Errorf("a firewall on the way to %s: %+v", to, got)
		}
	}
}

// FuzzDeviceMessage reads control messages of an error queue.
func FuzzDeviceMessage(f *testing.F) {
	good := make([]byte, unix.CmsgSpace(32))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&good[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_RECVERR
	h.SetLen(unix.CmsgLen(32))
	data := good[unix.CmsgLen(0):]
	binary.NativeEndian.PutUint32(data, uint32(unix.EMSGSIZE))
	data[4], data[5] = 2, 3
	binary.NativeEndian.PutUint32(data[8:], 1400)
	binary.NativeEndian.PutUint16(data[16:], unix.AF_INET)
	copy(data[20:], []byte{11, 0, 0, 1})
	if m := parseDeviceMessage(good); m.mtu != 1400 || !m.remote || m.by.String() != "11.0.0.1" || m.expired {
		f.Errorf("%+v", m)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if m := parseDeviceMessage(b); m.mtu < 0 || m.mtu > 1<<16 || m.remote && !m.by.IsValid() {
			t.Errorf("%+v", m)
		}
	})
}
