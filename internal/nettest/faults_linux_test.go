package nettest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// short is how long a packet is waited for that must not come.
const short = 500 * time.Millisecond

// hears is a socket of a host at a UDP port that is a member of a group, if one is given.
func hears(t *testing.T, h *Host, port int, group netip.Addr) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	var err error
	h.Do(func() { conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if group.IsValid() {
		h.join(conn, "eth0", group)
	}
	return conn
}

// comes says whether a packet comes.
func comes(t *testing.T, conn *net.UDPConn, wait time.Duration) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	_, _, err := conn.ReadFrom(make([]byte, 2000))
	return err == nil
}

// sends sends so many bytes from a host to an address.
func sends(t *testing.T, h *Host, to string, size int) {
	t.Helper()
	var err error
	h.Do(func() {
		var lc net.ListenConfig
		var conn net.PacketConn
		if conn, err = lc.ListenPacket(context.Background(), "udp4", ":0"); err != nil {
			return
		}
		defer conn.Close()
		_, err = conn.WriteTo(make([]byte, size), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// web is a web client on a host, which trusts everybody and follows nobody.
func web(h *Host) *http.Client {
	c := h.Browser()
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // who answers is looked at
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

func TestDropMulticast(t *testing.T) {
	l := New(t)
	b := l.Bridge("lan")
	from, to := l.Host("a").Attach(b, "10.0.0.1/24"), l.Host("b").Attach(b, "10.0.0.2/24")
	group := netip.MustParseAddr("239.1.2.3")
	conn := hears(t, to, 7000, group)
	from.IP("route", "add", "224.0.0.0/4", "dev", "eth0")
	sends(t, from, group.String()+":7000", 5)
	if !comes(t, conn, patience) {
		t.Fatal("multicast does not pass before")
	}
	b.DropMulticast()
	sends(t, from, group.String()+":7000", 5)
	if comes(t, conn, short) {
		t.Error("multicast passes")
	}
	sends(t, from, "10.0.0.2:7000", 5)
	if !comes(t, conn, patience) {
		t.Error("unicast does not pass")
	}
	b.PassMulticast()
	sends(t, from, group.String()+":7000", 5)
	if !comes(t, conn, patience) {
		t.Error("multicast does not pass afterwards")
	}
}

func TestIsolate(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("home", NATEasy)
	a, b := s.Host("a"), s.Host("b")
	conn, server := hears(t, b, 7000, netip.Addr{}), echoes(t, in, false)[0]
	to := netip.AddrPortFrom(b.Addrs()[0], 7000).String()
	sends(t, a, to, 5)
	if !comes(t, conn, patience) {
		t.Fatal("they do not reach each other before")
	}
	s.LAN.Isolate(a, b)
	sends(t, a, to, 5)
	if comes(t, conn, short) {
		t.Error("they reach each other")
	}
	newClient(t, a).ask(t, server)
	s.LAN.Reunite(a, b)
	sends(t, a, to, 5)
	if !comes(t, conn, patience) {
		t.Error("they do not reach each other afterwards")
	}
}

func TestUnplug(t *testing.T) {
	l := New(t)
	b := l.Bridge("lan")
	from, to := l.Host("a").Attach(b, "10.0.0.1/24"), l.Host("b").Attach(b, "10.0.0.2/24")
	conn := hears(t, to, 7000, netip.Addr{})
	for i, out := range []bool{false, true, false} {
		from.Unplug(out)
		if carrier := strings.TrimSpace(from.Output(t.Context(), "cat", "/sys/class/net/eth0/operstate")); (carrier == "up") == out {
			t.Errorf("unplugged: %v, and the interface is %q", out, carrier)
		}
		if addrs := from.Output(t.Context(), "ip", "-4", "addr", "show", "dev", "eth0"); !strings.Contains(addrs, "10.0.0.1/24") {
			t.Errorf("the address is gone: %s", addrs)
		}
		if sends(t, from, "10.0.0.2:7000", 5); comes(t, conn, map[bool]time.Duration{false: patience, true: short}[out]) == out {
			t.Errorf("step %d: unplugged: %v, and a packet came: %v", i, out, !out)
		}
	}
}

func TestCount(t *testing.T) {
	l := New(t)
	b := l.Bridge("lan")
	from, to := l.Host("a").Attach(b, "10.0.0.1/24"), l.Host("b").Attach(b, "10.0.0.2/24")
	conn, back := hears(t, to, 7000, netip.Addr{}), hears(t, from, 7000, netip.Addr{})
	sent := from.Count("meta l4proto udp @th,64,8 0")
	if n := sent(); n != 0 {
		t.Errorf("%d packets before the first", n)
	}
	for range 3 {
		sends(t, from, "10.0.0.2:7000", 5)
		sends(t, to, "10.0.0.1:7000", 5)
		if !comes(t, conn, patience) || !comes(t, back, patience) {
			t.Fatal("nothing comes")
		}
	}
	sends(t, from, "10.0.0.2:7000", 0) // there is nothing to match
	if n := sent(); n != 3 {
		t.Errorf("%d packets are counted, want 3", n)
	}
}

// TestMute has a router say that nobody listens at a port, and then not.
func TestMute(t *testing.T) {
	s := New(t).Internet().Site("home", NATEasy)
	h := s.Host("a")
	for _, mute := range []bool{false, true} {
		if mute {
			s.Router.Mute()
		}
		var conn net.Conn
		var err error
		h.Do(func() { conn, err = net.Dial("udp4", netip.AddrPortFrom(s.Gateway(), 7000).String()) })
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err = conn.Write([]byte("x")); err == nil {
			err = conn.SetReadDeadline(time.Now().Add(map[bool]time.Duration{false: patience, true: short}[mute]))
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 10)); errors.Is(err, unix.ECONNREFUSED) == mute {
			t.Errorf("mute: %v, and what comes back is: %v", mute, err)
		}
	}
}

func TestNTP(t *testing.T) {
	server := New(t).Internet().Server("time")
	at := server.Addrs()[0]
	server.ServeNTP(at)
	var conn net.Conn
	var err error
	server.Do(func() { conn, err = net.Dial("udp4", netip.AddrPortFrom(at, 123).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := append([]byte{0x23, 39: 0}, "8 octets"...)
	out := make([]byte, 100)
	if _, err = conn.Write(req); err == nil {
		err = conn.SetReadDeadline(time.Now().Add(patience))
	}
	n, failed := conn.Read(out)
	if err = errors.Join(err, failed); err != nil || n != len(req) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	const from1900 = 2208988800 // seconds, to 1970
	told := time.Unix(int64(binary.BigEndian.Uint32(out[40:]))-from1900, 0)
	if out[0] != 0x24 || string(out[24:32]) != "8 octets" || time.Since(told).Abs() > patience {
		t.Errorf("it says % x, which is %v", out[:n], told)
	}
}

func TestLetOut(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("home", NATEasy)
	h, server := s.Host("a"), in.Server("srv")
	at := server.Addrs()[0]
	for _, port := range []uint16{443, 8080} {
		server.web(netip.AddrPortFrom(at, port), http.NotFoundHandler(), nil)
	}
	conn := hears(t, server, 7000, netip.Addr{})
	for _, tt := range []struct {
		match               string
		udp, port443, other bool
	}{
		{"meta l4proto != udp", false, true, true},
		{"tcp dport 443", false, true, false},
		{"meta l4proto != tcp", true, false, false},
	} {
		s.LetOut(tt.match)
		sends(t, h, at.String()+":7000", 5)
		if wait := map[bool]time.Duration{true: patience, false: short}[tt.udp]; comes(t, conn, wait) != tt.udp {
			t.Errorf("%s: UDP passes is %v", tt.match, !tt.udp)
		}
		for port, want := range map[int]bool{443: tt.port443, 8080: tt.other} {
			c := web(h)
			if !want {
				c.Timeout = short
			}
			resp, err := c.Get(fmt.Sprintf("http://%s:%d/", at, port))
			if err == nil {
				resp.Body.Close()
			}
			if (err == nil) != want {
				t.Errorf("%s: TCP port %d: %v", tt.match, port, err)
			}
		}
		s.Reboot(false)
	}
}

func TestHole(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("home", NATEasy)
	h, server := s.Host("a"), in.Server("srv")
	conn, to := hears(t, server, 7000, netip.Addr{}), server.Addrs()[0].String()+":7000"
	s.Hole(1400)
	const headers = 28
	sends(t, h, to, 1401-headers)
	if comes(t, conn, short) {
		t.Error("a packet of 1401 bytes passes")
	}
	sends(t, h, to, 1400-headers)
	if !comes(t, conn, patience) {
		t.Error("a packet of 1400 bytes does not pass")
	}
}

func TestForget(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("home", NATEasy)
	c, es := newClient(t, s.Host("a")), echoes(t, in, false)
	s.Forget(time.Second)
	at := c.ask(t, es[0])
	es[0].say(t, "in time", at)
	c.await(t, "in time")
	if text := c.read(t, 3*time.Second); text != "" {
		t.Fatalf("%q came", text)
	}
	es[0].say(t, "too late", at)
	c.refuse(t, es[1], "too late")
}

func TestDeadIPv6(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("home", NATEasy)
	h, server := s.Host("a"), in.Server("srv")
	s.DeadIPv6()
	router := v6(s.k, 1, 1)
	for _, tt := range []struct {
		host *Host
		addr netip.Addr
		want bool
	}{{s.Router, router, true}, {server, server.Addrs()[2], false}, {server, server.Addrs()[0], true}} {
		tt.host.web(netip.AddrPortFrom(tt.addr, 8081), http.NotFoundHandler(), nil)
		// The router's firewall lets in from its LAN what is for itself.
		c := web(h)
		if !tt.want {
			c.Timeout = short
		}
		resp, err := c.Get("http://" + netip.AddrPortFrom(tt.addr, 8081).String())
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != tt.want {
			t.Errorf("%s: %v", tt.addr, err)
		}
	}
}

func TestBehindAndGuest(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("home", NATEasy)
	server := echoes(t, in, false)[0]
	inner, second := s.Behind("inner")
	guest, host := s.Guest("guest"), s.Host("host")
	for _, h := range []*Host{inner, guest, host} {
		if at := newClient(t, h).ask(t, server); at.Addr() != s.Public() {
			t.Errorf("%s is seen at %s, not %s", h.Name, at, s.Public())
		}
	}
	if n := conntracks(t, second); n == 0 {
		t.Error("the second router translates nothing")
	}
	conn := hears(t, guest, 7000, netip.Addr{})
	sends(t, host, "10.65.0.2:7000", 5)
	if comes(t, conn, short) {
		t.Error("the router routes between the two LANs")
	}
}

func TestVPNAndDecoy(t *testing.T) {
	in := New(t).Internet()
	h, server := in.Site("home", NATEasy).Host("a"), in.Server("srv")
	conn, to := hears(t, server, 7000, netip.Addr{}), server.Addrs()[0].String()+":7000"
	h.Decoy("docker0", "172.17.0.1/16")
	before := h.Sent()
	sends(t, h, to, 5)
	if !comes(t, conn, patience) {
		t.Fatal("nothing passes before")
	}
	if h.Sent() <= before {
		t.Error("what was sent is not counted")
	}
	h.VPN("tun0", "10.8.0.2/24")
	h.Route("0.0.0.0/1", "dev", "tun0")
	sends(t, h, to, 5)
	if comes(t, conn, short) {
		t.Error("the VPN does not capture what is sent")
	}
	h.IP("route", "del", "0.0.0.0/1")
	sends(t, h, to, 5)
	if !comes(t, conn, patience) {
		t.Error("nothing passes without the VPN")
	}
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	fill, free := New(t).Disk(dir, 1<<20)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	fill()
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte("x"), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk takes more: %v", err)
	}
	free()
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte("x"), 0o600); err != nil {
		t.Errorf("it takes nothing when space is free again: %v", err)
	}
}

// asks looks up a name as a host does.
func asks(h *Host, server netip.Addr, name string) ([]netip.Addr, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		h.Do(func() {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, netip.AddrPortFrom(server, 53).String())
		})
		return conn, err
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return r.LookupNetIP(ctx, "ip", name)
}

func TestDNS(t *testing.T) {
	s := New(t).Internet().Site("home", NATEasy)
	h, want := s.Host("a"), netip.MustParseAddr("11.9.9.9")
	six := netip.MustParseAddr("2a0e:fade:9::9")
	s.ServeDNS(Names(map[string]netip.Addr{"broker.test": want, "six.test": six}))
	if got, err := asks(h, s.Gateway(), "Broker.Test."); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%v, %v", got, err)
	}
	var dns *net.DNSError
	if got, err := asks(h, s.Gateway(), "other.test."); !errors.As(err, &dns) || !dns.IsNotFound {
		t.Errorf("a name that does not exist: %v, %v", got, err)
	}
	if got, err := asks(h, s.Gateway(), "six.test."); err != nil || len(got) != 1 || got[0] != six {
		t.Errorf("%v, %v", got, err)
	}
	s.Cut(true)
	if got, err := asks(h, s.Gateway(), "broker.test."); !errors.As(err, &dns) || dns.IsNotFound {
		t.Errorf("with the uplink cut: %v, %v", got, err)
	}
	h.Resolver(s.Gateway(), want)
	if got := h.Output(t.Context(), "cat", "/etc/resolv.conf"); got != fmt.Sprintf("nameserver %s\nnameserver %s\n", s.Gateway(), want) {
		t.Errorf("the host's resolv.conf is %q", got)
	}
	h.Resolver()
	if got := h.Output(t.Context(), "cat", "/etc/resolv.conf"); got != "" {
		t.Errorf("the host's resolv.conf is %q", got)
	}
}

// FuzzAnswerDNS answers anything, or not.
func FuzzAnswerDNS(f *testing.F) {
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06broker\x04test\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out := answerDNS(b, func(string) netip.Addr { return netip.MustParseAddr("11.9.9.9") })
		if out != nil && (!bytes.Equal(out[:2], b[:2]) || len(out) > len(b)+16) {
			t.Errorf("%x was answered with %x", b, out)
		}
	})
}

func TestPortal(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("cafe", NATEasy)
	h, server := s.Host("a"), in.Server("srv")
	conn := hears(t, server, 7000, netip.Addr{})
	s.Portal(Names(map[string]netip.Addr{"any.name.test": server.Addrs()[1]}))
	at := server.Addrs()[0]
	resp, err := web(h).Get("http://" + at.String() + "/page")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if to, err := resp.Location(); err != nil || to.Host != s.Gateway().String() {
		t.Errorf("a page leads to %v, %v", to, err)
	}
	if resp, err = web(h).Get("https://" + at.String() + "/page"); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if names := resp.TLS.PeerCertificates[0].DNSNames; len(names) != 1 || names[0] != "login.portal.test" {
		t.Errorf("over TLS %v answers", names)
	}
	if got, err := asks(h, s.Gateway(), "any.name.test."); err != nil || len(got) != 1 || got[0] != s.Gateway() {
		t.Errorf("a name is %v, %v", got, err)
	}
	sends(t, h, at.String()+":7000", 5)
	if comes(t, conn, short) {
		t.Error("UDP passes")
	}
	if resp, err = web(h).Post("http://"+s.Gateway().String()+"/login", "text/plain", nil); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("to log in: %s", resp.Status)
	}
	sends(t, h, at.String()+":7000", 5)
	if !comes(t, conn, patience) {
		t.Error("UDP does not pass after the login")
	}
	if got, err := asks(h, s.Gateway(), "any.name.test."); err != nil || len(got) != 1 || got[0] != server.Addrs()[1] {
		t.Errorf("after the login a name is %v, %v", got, err)
	}
}

func TestLyingNATPMP(t *testing.T) {
	in := New(t).Internet()
	s := in.Site("home", NATEasy)
	s.LyingNATPMP()
	h := s.Host("a")
	es, c := echoes(t, in, false), newClient(t, h)
	mapped := mapPort(t, s, h, c)
	if mapped.Port() != 40001 {
		t.Errorf("mapped at %s", mapped)
	}
	es[2].say(t, "invited", mapped)
	c.refuse(t, es[0], "invited")
}

func TestLyingUPnP(t *testing.T) {
	s := New(t).Internet().Site("home", NATEasy)
	s.LyingUPnP()
	h := s.Host("a")
	for _, to := range []string{s.Gateway().String(), "239.255.255.250"} {
		c := newClient(t, h)
		c.send(t, "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\r\n",
			netip.MustParseAddrPort(to+":1900"))
		said := c.read(t, patience)
		_, at, _ := strings.Cut(said, "LOCATION: ")
		at, _, ok := strings.Cut(at, "\r\n")
		if !ok {
			t.Fatalf("%s says %q", to, said)
		}
		resp, err := web(h).Get(at)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Contains(body, []byte("<controlURL>/control</controlURL>")) {
			t.Fatalf("%q, %v", body, err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, strings.Replace(at, "/root.xml", "/control", 1),
			strings.NewReader("<x><NewExternalPort>4000</NewExternalPort></x>"))
		if err != nil {
			t.Fatal(err)
		}
		for action, want := range map[string]string{"AddPortMapping": "AddPortMappingResponse", "AddAnyPortMapping": "<NewReservedPort>4000<", "GetExternalIPAddress": s.Public().String()} {
			req.Header.Set("SOAPAction", `"urn:schemas-upnp-org:service:WANIPConnection:1#`+action+`"`)
			req.Body, _ = req.GetBody()
			resp, err := web(h).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(want)) {
				t.Errorf("%s: %s %q, %v", action, resp.Status, body, err)
			}
		}
	}
}
