package portmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	self6  = netip.MustParseAddr("2001:db8::23")
	other6 = netip.MustParseAddr("2001:db8::24")
	gw6    = netip.MustParseAddr("fe80::1%eth0")
	host6  = netip.MustParseAddr("::1")
)

// A fakeHole is one pinhole of a fakeFirewall.
type fakeHole struct{ client, port, protocol, lease string }

// A fakeFirewall is a WANIPv6FirewallControl:1. A fakeIGD's mutex guards it.
type fakeFirewall struct {
	enabled, allowed string
	holes            map[int]fakeHole
	next             int    // number of the next one
	id               string // not empty: AddPinhole answers this
	code             int    // not 0: AddPinhole answers this error
}

func newFakeFirewall() *fakeFirewall {
	return &fakeFirewall{enabled: "1", allowed: "1", holes: map[int]fakeHole{}, next: 7}
}

// action returns the answer's arguments, or an error code.
func (w *fakeFirewall) action(name string, arg map[string]string) (string, int) {
	id, _ := strconv.Atoi(arg["UniqueID"])
	have, found := w.holes[id]
	switch {
	case name == "GetFirewallStatus" && w.enabled == "":
		return "", 401
	case name == "GetFirewallStatus":
		return "<FirewallEnabled>" + w.enabled + "</FirewallEnabled><InboundPinholeAllowed>" + w.allowed + "</InboundPinholeAllowed>", 0
	case name == "AddPinhole" && w.code != 0:
		return "", w.code
	case name == "AddPinhole":
		if life, err := strconv.Atoi(arg["LeaseTime"]); err != nil || life < 1 || life > 86400 || arg["RemoteHost"] != "" || arg["RemotePort"] != "0" {
			return "", upnpInvalidArgs
		}
		w.holes[w.next] = fakeHole{arg["InternalClient"], arg["InternalPort"], arg["Protocol"], arg["LeaseTime"]}
		w.next++
		if w.id != "" {
			return "<UniqueID>" + w.id + "</UniqueID>", 0
		}
		return fmt.Sprintf("<UniqueID>%d</UniqueID>", w.next-1), 0
	case !found:
		return "", upnpNoSuchPinhole
	case name == "UpdatePinhole":
		have.lease = arg["NewLeaseTime"]
		w.holes[id] = have
		return "", 0
	case name == "DeletePinhole":
		delete(w.holes, id)
		return "", 0
	case name == "GetPinholePackets":
		return "<PinholePackets>0</PinholePackets>", 0
	}
	return "", 401
}

func newFakeFirewallIGD(t testing.TB, set ...func(*fakeFirewall)) *fakeIGD {
	t.Helper()
	at := "[::1]:0"
	if pc, err := net.ListenPacket("udp6", at); err != nil {
		t.Skip("there is no IPv6 loopback address: ", err)
	} else {
		_ = pc.Close()
	}
	w := newFakeFirewall()
	for _, change := range set {
		change(w)
	}
	return newFakeIGDAt(t, at, func(f *fakeIGD) { f.kind, f.firewall = firewallTypes[0], w })
}

func (f *fakeIGD) holes() []fakeHole {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []fakeHole
	for _, h := range f.firewall.holes {
		out = append(out, h)
	}
	return out
}

// TestPinhole is the life of a pinhole on a UPnP gateway.
func TestPinhole(t *testing.T) {
	f := newFakeFirewallIGD(t)
	c, err := discoverIGD6(t.Context(), host6, host6, f.ssdp)
	if err != nil {
		t.Fatal(err)
	}
	add := func(lease time.Duration, want string) {
		t.Helper()
		if addr, err := c.add(t.Context(), ourPort, ourPort, lease); err != nil || addr != host6 {
			t.Fatalf("add: %v, %v", addr, err)
		}
		if h := f.holes(); len(h) != 1 || h[0] != (fakeHole{"::1", strconv.Itoa(ourPort), "17", want}) {
			t.Fatalf("the gateway has %+v, want a lease of %s", h, want)
		}
	}
	check := func(want bool) {
		t.Helper()
		if addr, gone, err := c.check(t.Context(), ourPort, ourPort); addr != host6 || gone != want || err != nil {
			t.Fatalf("check: %v, gone %v, %v, want gone %v", addr, gone, err, want)
		}
	}
	check(true)
	add(time.Hour, "3600")
	add(2*time.Hour, "7200") // renewed
	add(0, "86400")          // there is none without end
	check(false)
	f.mu.Lock()
	clear(f.firewall.holes) // it restarted
	f.mu.Unlock()
	check(true)
	add(time.Hour, "3600")
	check(false)
	for range 2 {
		err = c.remove(t.Context(), ourPort, ourPort)
		if h := f.holes(); err != nil || len(h) != 0 {
			t.Fatalf("the gateway has %+v after removal: %v", h, err)
		}
	}
}

// TestPinholeRefused are gateways that open nothing.
func TestPinholeRefused(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(*fakeFirewall)
		found bool // as a gateway
		code  int
	}{
		"no firewall":          {func(w *fakeFirewall) { w.enabled = "0" }, false, 0},
		"not allowed":          {func(w *fakeFirewall) { w.allowed = "False" }, false, 0},
		"no status, and full":  {func(w *fakeFirewall) { w.enabled, w.code = "", 701 }, true, 701},
		"id is no number":      {func(w *fakeFirewall) { w.id = "x" }, true, 0},
		"id is too large":      {func(w *fakeFirewall) { w.id = "65536" }, true, 0},
		"no id":                {func(w *fakeFirewall) { w.id = " " }, true, 0},
		"not authorized to it": {func(w *fakeFirewall) { w.code = 606 }, true, 606},
	} {
		f := newFakeFirewallIGD(t, c.set)
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		d, err := discoverIGD6(ctx, host6, host6, f.ssdp)
		if c.found != (err == nil) {
			t.Errorf("%s: discovered: %v", name, err)
		}
		cancel()
		if err != nil {
			continue
		}
		ctx = t.Context()
		if _, err := d.add(ctx, 1, ourPort, time.Hour); err == nil || upnpCode(err) != c.code {
			t.Errorf("%s: add: %v, want code %d", name, err, c.code)
		}
		if _, gone, err := d.check(ctx, 1, ourPort); !gone || err != nil {
			t.Errorf("%s: check: gone %v, %v", name, gone, err)
		}
	}
}

// TestPinholeByUPnP is the whole Mapper beside a gateway that maps no IPv4 port.
func TestPinholeByUPnP(t *testing.T) {
	f := newFakeFirewallIGD(t)
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(pc.LocalAddr().String())
	_ = pc.Close()
	m := onLoopback(nobody, netip.AddrPort{})
	m.cfg.Gateway6 = func() (netip.Addr, []netip.Addr, bool) { return host6, []netip.Addr{host6}, true }
	m.discover6 = func(ctx context.Context, gw, self netip.Addr) (control, error) {
		return discoverIGD6(ctx, gw, self, f.ssdp)
	}
	reports, stop := runMapper(t, m)
	n := next(t, reports)
	if m := n.mapping; !n.ok || m.Protocol != "upnp" || m.External != netip.AddrPortFrom(host6, ourPort) || !m.Pinhole || m.Gateway != host6 {
		t.Fatalf("reported %+v", n)
	}
	if h := f.holes(); len(h) != 1 || h[0].lease != "7200" {
		t.Errorf("the gateway has %+v", h)
	}
	stop()
	if h := f.holes(); len(h) != 0 {
		t.Errorf("the gateway has %+v in the end", h)
	}
}

// TestPinholesFollowAddresses lets addresses come and go.
func TestPinholesFollowAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ours []netip.Addr
		all := map[netip.Addr]*fakeGateway{}
		for i := range 6 {
			a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)})
			all[a] = &fakeGateway{pcp: true, external: a, boot: time.Now()}
			ours = append(ours, a)
		}
		set := func(some ...netip.Addr) {
			mu.Lock()
			defer mu.Unlock()
			ours = some
		}
		first := ours
		m := New(Config{
			Gateway: func() (gw, self netip.Addr, ok bool) { return },
			Gateway6: func() (netip.Addr, []netip.Addr, bool) {
				mu.Lock()
				defer mu.Unlock()
				return gw6, ours, true
			},
		})
		m.dial = func(gw, self netip.Addr) (io.ReadWriteCloser, error) {
			if gw != gw6 {
				return nil, errors.New("not the gateway")
			}
			return all[self].pipe(), nil
		}
		m.discover6 = func(context.Context, netip.Addr, netip.Addr) (control, error) { return nil, errNoIGD }
		open := func(want ...netip.Addr) {
			t.Helper()
			synctest.Wait()
			for a, g := range all {
				if port, _ := g.state(); (port != 0) != slices.Contains(want, a) {
					t.Fatalf("%v: port %d, want open %v", a, port, want)
				}
			}
		}
		reports, stop := runMapper(t, m)
		<-time.After(time.Second)
		open(first[:maxPinholes]...)
		synctest.Wait()
		for range maxPinholes {
			if n := <-reports; !n.ok || !n.mapping.Pinhole || n.mapping.External.Port() != ourPort {
				t.Fatalf("reported %+v", n)
			}
		}
		// One goes, another comes, and back, faster than it is removed.
		set(first[1], first[5])
		m.Refresh()
		set(first[0], first[5])
		m.Refresh()
		<-time.After(5 * time.Second)
		open(first[0], first[5])
		// Nobody tells.
		set(first[4])
		<-time.After(2 * noGateway)
		open(first[4])
		<-time.After(24 * time.Hour)
		open(first[4])
		if _, maps := all[first[4]].state(); maps < 24 || maps > 26 {
			t.Errorf("%d requests in a day, want about 24", maps)
		}
		set()
		m.Refresh()
		<-time.After(2 * time.Second)
		open()
		set(first[2])
		m.Refresh()
		<-time.After(time.Second)
		open(first[2])
		start := time.Now()
		stop()
		open()
		if d := time.Since(start); d != 0 {
			t.Errorf("ended after %v", d)
		}
		if len(first) != 6 || gw6.Zone() == "" {
			t.Error("the list of the system was changed")
		}
	})
}

func TestRoutes6(t *testing.T) {
	const (
		zero = "00000000000000000000000000000000"
		ll   = "fe800000000000000000000000000001"
		glob = "20010db8000000000000000000000001"
	)
	line := func(dst, bits, hop, metric, flags, ifi string) string {
		return fmt.Sprintf("%s %s %s 00 %s %s 00000001 00000000 %s %8s\n", dst, bits, zero, hop, metric, flags, ifi)
	}
	for name, c := range map[string]struct{ table, gw, ifi string }{
		"link-local":        {line(zero, "00", ll, "00000400", "00450003", "eth0"), "fe80::1%eth0", "eth0"},
		"global":            {line(zero, "00", glob, "00000400", "00000003", "eth0"), "2001:db8::1", "eth0"},
		"smallest metric":   {line(zero, "00", ll, "00000401", "00000003", "eth0") + line(zero, "00", ll, "00000400", "00000003", "wlan0"), "fe80::1%wlan0", "wlan0"},
		"first of equals":   {line(zero, "00", ll, "00000400", "00000003", "eth0") + line(zero, "00", ll, "00000400", "00000003", "wlan0"), "fe80::1%eth0", "eth0"},
		"no gateway":        {line(zero, "00", zero, "00000400", "00000001", "ppp0"), "", ""},
		"unreachable":       {line(zero, "00", zero, "ffffffff", "00200200", "lo"), "", ""},
		"not up":            {line(zero, "00", ll, "00000400", "00000002", "eth0"), "", ""},
		"multicast":         {line(zero, "00", "ff020000000000000000000000000001", "00000400", "00000003", "eth0"), "", ""},
		"another network":   {line(glob, "40", ll, "00000400", "00000003", "eth0"), "", ""},
		"not all of it":     {line(zero, "01", ll, "00000400", "00000003", "eth0"), "", ""},
		"cut":               {line(zero, "00", ll, "00000400", "00000003", "eth0")[:90], "", ""},
		"no hexadecimal":    {line(zero, "00", "xe80000000000000000000000000000x", "00000400", "00000003", "eth0"), "", ""},
		"nothing":           {"", "", ""},
		"mapped":            {line(zero, "00", "00000000000000000000ffff0a000001", "00000400", "00000003", "eth0"), "", ""},
		"beside the others": {line(glob, "40", zero, "00000100", "00000001", "eth0") + line(zero, "00", ll, "00000400", "00000003", "eth0"), "fe80::1%eth0", "eth0"},
	} {
		gw, ifi, ok := parseRoutes6([]byte(c.table))
		if ok != (c.gw != "") || ok && gw.String() != c.gw || ifi != c.ifi {
			t.Errorf("%s: %v on %q, %v, want %q", name, gw, ifi, ok, c.gw)
		}
	}
}

func TestAddrs6(t *testing.T) {
	line := func(last byte, head string, flags byte, ifi string) string {
		return fmt.Sprintf("%s0000000000000000000000%02x 02 40 00 %02x %8s\n", head, last, flags, ifi)
	}
	const glob, ula, ll = "20010db8", "fd000000", "fe800000"
	for name, c := range map[string]struct {
		table string
		want  []string
	}{
		"one":                    {line(1, glob, 0x80, "eth0"), []string{"2001:db8::1"}},
		"stays and temporary":    {line(1, glob, 0x01, "eth0") + line(2, glob, 0, "eth0"), []string{"2001:db8::2"}},
		"temporary alone":        {line(1, glob, 0x01, "eth0"), []string{"2001:db8::1"}},
		"deprecated, tentative":  {line(1, glob, 0x20, "eth0") + line(2, glob, 0x40, "eth0") + line(3, glob, 0x08, "eth0"), nil},
		"private and link-local": {line(1, ula, 0, "eth0") + line(1, ll, 0, "eth0"), nil},
		"of another interface":   {line(1, glob, 0, "wlan0"), nil},
		"twice, and many":        {line(9, glob, 0, "eth0") + line(9, glob, 0, "eth0") + line(1, glob, 0, "eth0") + line(2, glob, 0, "eth0") + line(3, glob, 0, "eth0") + line(4, glob, 0, "eth0"), []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"}},
		"nonsense":               {"x\n\n1 2 3 4 5 eth0\n", nil},
		"nothing":                {"", nil},
	} {
		var got []string
		for _, a := range parseAddrs6([]byte(c.table), "eth0") {
			got = append(got, a.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestLocation6 says where a description may be.
func TestLocation6(t *testing.T) {
	for u, want := range map[string]string{
		"http://[fe80::1]:5000/d":         "fe80::1%eth0",
		"http://[fe80::1%25lan]:5000/d":   "fe80::1%eth0", // its own name for the network
		"http://[2001:db8::1]:5000/d":     "2001:db8::1",
		"http://[2001:db8::1]/":           "2001:db8::1",
		"http://[2001:db8::23]:5000/d":    "", // ourselves
		"http://[2001:db8:0:1::1]:5000/d": "",
		"http://[fe80::2]:5000/d":         "",
		"http://[::1]:5000/d":             "",
		"http://[::ffff:10.0.0.1]:5000/d": "",
		"http://192.168.1.1:5000/d":       "",
		"http://[ff02::1]:5000/d":         "",
		"https://[2001:db8::1]:5000/d":    "",
		"http://x@[2001:db8::1]:5000/d":   "",
		"http://[2001:db8::1]:0/d":        "",
		"http://gateway/d":                "",
		"":                                "",
	} {
		_, host, err := parseSSDP6(ssdpAnswer(u), gw6, self6)
		if (err == nil) != (want != "") || err == nil && host.String() != want {
			t.Errorf("%s: %v, %v, want %q", u, host, err, want)
		}
	}
}

// TestPinholeCore chooses between protocols, and takes what a firewall grants.
func TestPinholeCore(t *testing.T) {
	for name, c := range map[string]struct {
		g     *fakeGateway
		by    string
		hole  bool
		delay time.Duration // of PCP
	}{
		"both":          {g: &fakeGateway{pcp: true, upnp: true}, by: "pcp", hole: true},
		"upnp alone":    {g: &fakeGateway{upnp: true}, by: "upnp", hole: true},
		"PCP says no":   {g: &fakeGateway{pcp: true, upnp: true, pcpError: 8}, by: "upnp", hole: true},
		"translated":    {g: &fakeGateway{pcp: true, external: other6}, by: "pcp"},
		"IPv4 outside":  {g: &fakeGateway{pcp: true, external: public}},
		"only NAT-PMP":  {g: &fakeGateway{pmp: true}},
		"PCP is slower": {g: &fakeGateway{pcp: true, upnp: true}, by: "pcp", hole: true, delay: grace / 2},
	} {
		if !c.g.external.IsValid() {
			c.g.external = self6
		}
		s := newSim(t, c.g)
		s.gw, s.self, s.delay[kindPCP] = gw6, self6, c.delay
		s.network()
		s.run(20 * time.Second)
		if c.by == "" {
			if len(s.notices) != 0 {
				t.Errorf("%s: reported %+v", name, s.last())
			}
			continue
		}
		if m := s.last().mapping; m.Protocol != c.by || m.Pinhole != c.hole || m.External.Addr() != c.g.external || m.Gateway != gw6 {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func FuzzRoutes6(f *testing.F) {
	f.Add([]byte("00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		gw, ifi, ok := parseRoutes6(b)
		if ok && (!gw.Is6() || gw.IsUnspecified() || gw.IsMulticast() || ifi == "" || gw.IsLinkLocalUnicast() != (gw.Zone() != "")) {
			t.Fatalf("taken: %v on %q", gw, ifi)
		}
	})
}

func FuzzAddrs6(f *testing.F) {
	f.Add([]byte("20010db8000000000000000000000001 02 40 00 80     eth0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseAddrs6(b, "eth0")
		if len(got) > maxPinholes {
			t.Fatalf("%d addresses", len(got))
		}
		for _, a := range got {
			if natted(a) || !a.Is6() {
				t.Fatalf("taken: %v", a)
			}
		}
	})
}

func FuzzSSDP6(f *testing.F) {
	f.Add(ssdpAnswer("http://[2001:db8::1]:5000/desc.xml"))
	f.Add(ssdpAnswer("http://[fe80::1%25x]/"))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, host, err := parseSSDP6(b, gw6, self6)
		if err != nil {
			return
		}
		at, bad := netip.ParseAddr(u.Hostname())
		if bad != nil || u.Scheme != "http" || at.WithZone("") != host.WithZone("") || host == self6 ||
			host != gw6 && !netip.PrefixFrom(self6, 64).Masked().Contains(host) {
			t.Fatalf("taken: %v at %v", u, host)
		}
	})
}
