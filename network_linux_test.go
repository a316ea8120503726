package kith_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// binary builds the command once for all network tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kith-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kith")
	out, err := exec.Command("go", "build", "-o", path, "./cmd/kith").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// netTimeout bounds a whole network test.
const netTimeout = 90 * time.Second

// A station is one device of a network test: the real command on a host.
type station struct {
	t    *testing.T
	host *nettest.Host
	home string
	kith string
	up   *nettest.Process

	hiding []string // flags of pair and join
}

func newStation(t *testing.T, h *nettest.Host) *station {
	t.Helper()
	kith, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kn") // unix sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &station{t: t, host: h, home: filepath.Join(dir, h.Name), kith: kith}
	s.run(t.Context(), "config", "name", h.Name)
	s.run(t.Context(), "config", "rendezvous", "dht", "off") // where a test is not about it
	return s
}

func (s *station) args(args ...string) []string { return append([]string{"--home", s.home}, args...) }

// run runs a command to its end; a failure ends the test.
func (s *station) run(ctx context.Context, args ...string) string {
	s.t.Helper()
	return s.host.Output(ctx, s.kith, s.args(args...)...)
}

func (s *station) start(args ...string) *nettest.Process {
	return s.host.Start(s.kith, s.args(args...)...)
}

func (s *station) daemon(ctx context.Context) {
	s.t.Helper()
	args := []string{"up", "--json"}
	if os.Getenv("KITH_TEST_VERBOSE") != "" {
		args = append(args, "-v")
	}
	s.up = s.start(args...)
	s.up.Await(ctx, `"event":"up"`)
}

// stationsOn returns two stations on a LAN of their own, with addresses, or with those
// alone that IPv6 gives itself where they are empty, and with rules of nft, if any.
func stationsOn(t *testing.T, a, b, rules string) (desk, laptop *station) {
	t.Helper()
	lab := nettest.New(t)
	sw := lab.Bridge("lan")
	attach := func(name, addr string) *station {
		h := lab.Host(name)
		if addr == "" {
			h.Attach(sw)
		} else {
			h.Attach(sw, addr)
		}
		if rules != "" {
			h.Nft(rules)
		}
		return newStation(t, h)
	}
	return attach("desk", a), attach("laptop", b)
}

// offer shows a code and returns it.
func (s *station) offer(ctx context.Context, form string) (code string, p *nettest.Process) {
	s.t.Helper()
	p = s.start(append([]string{"pair", "--yes", "--json", "--" + form}, s.hiding...)...)
	line := p.Await(ctx, `"event":"code"`)
	var ev struct{ Words, URI string }
	if err := json.Unmarshal([]byte(line), &ev); err != nil {
		s.t.Fatal(err)
	}
	if form == "qr" {
		return ev.URI, p
	}
	return ev.Words, p
}

// join enters a code and returns the exit status and what was said.
func (s *station) join(ctx context.Context, code string) (int, string) {
	s.t.Helper()
	cmd := s.host.Command(ctx, s.kith, s.args(append([]string{"join", "--yes"}, s.hiding...)...)...)
	cmd.Stdin = strings.NewReader(code + "\n")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// pairStations pairs two stations by a form of code.
func pairStations(ctx context.Context, t *testing.T, a, b *station, form string) (code string) {
	t.Helper()
	code, p := a.offer(ctx, form)
	if status, out := b.join(ctx, code); status != 0 {
		t.Fatalf("join: exit status %d: %s", status, out)
	}
	if status := p.Wait(ctx); status != 0 {
		t.Fatalf("pair: exit status %d", status)
	}
	return code
}

// useStations pings, chats, reaches a port and survives a kill.
func useStations(ctx context.Context, t *testing.T, a, b *station) {
	t.Helper()
	for _, way := range []struct{ from, to *station }{{a, b}, {b, a}} {
		out := way.from.run(ctx, "ping", "-c", "1", way.to.host.Name)
		t.Logf("ping: %s", strings.TrimSpace(out))
	}
	cmd := a.host.Command(ctx, a.kith, a.args("chat", b.host.Name)...)
	cmd.Stdin = strings.NewReader("hello\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("chat: %v: %s", err, out)
	}
	if out := b.run(ctx, "chat", a.host.Name); !strings.Contains(out, "hello") {
		t.Errorf("chat line did not come: %q", out)
	}
	reachPort(ctx, t, a, b)
	b.up.Kill()
	start := time.Now()
	b.daemon(ctx)
	b.run(ctx, "ping", "-c", "1", a.host.Name)
	t.Logf("first ping %v after kill -9", time.Since(start))
	a.run(ctx, "ping", "-c", "1", b.host.Name)
}

// reachPort forwards a port of a to one on b's localhost.
func reachPort(ctx context.Context, t *testing.T, a, b *station) {
	t.Helper()
	reachPortOf(ctx, t, a, b, b.host.Name, "allow", a.host.Name, "8099")
}

// reachPortOf is the same for what a calls b, after b has run a command that allows it.
func reachPortOf(ctx context.Context, t *testing.T, a, b *station, name string, allow ...string) {
	t.Helper()
	var ln net.Listener
	var err error
	b.host.Do(func() { ln, err = net.Listen("tcp", "127.0.0.1:8099") })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("from localhost of the other side\n"))
			conn.Close()
		}
	}()
	b.run(ctx, allow...)
	fwd := a.start("forward", "18099", name+":8099")
	defer fwd.Stop()
	fwd.Await(ctx, "is port 8099")
	var got bytes.Buffer
	a.host.Do(func() {
		var conn net.Conn
		if conn, err = net.Dial("tcp", "127.0.0.1:18099"); err != nil {
			return
		}
		defer conn.Close()
		_, err = got.ReadFrom(conn)
	})
	if err != nil || !strings.Contains(got.String(), "from localhost") {
		t.Errorf("forwarded port gave %q, %v", got.String(), err)
	}
}

// TestNetworkOneLAN pairs and uses two hosts on one LAN of each kind. None has a
// default route.
func TestNetworkOneLAN(t *testing.T) {
	for _, lan := range []struct{ name, form, a, b, rules string }{
		{"IPv4", "words", "10.0.0.1/24", "10.0.0.2/24", ""},
		{"IPv6 only", "words", "fd00:1::1/64", "fd00:1::2/64", ""},
		{"link-local IPv6 only", "words", "", "", ""},
		{"multicast blocked, QR endpoints", "qr", "10.0.0.1/24", "10.0.0.2/24", noMulticast},
		{"own groups blocked, mDNS passes", "words", "10.0.0.1/24", "10.0.0.2/24", onlyMDNS},
	} {
		t.Run(lan.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			a, b := stationsOn(t, lan.a, lan.b, lan.rules)
			a.daemon(ctx)
			b.daemon(ctx)
			pairStations(ctx, t, a, b, lan.form)
			useStations(ctx, t, a, b)
		})
	}
}

// TestNetworkInterfacesComeAndGo starts both devices with no network at all, gives
// them one, takes it away, and gives them another.
func TestNetworkInterfacesComeAndGo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	lab := nettest.New(t)
	first, second := lab.Bridge("one"), lab.Bridge("two")
	a, b := newStation(t, lab.Host("desk")), newStation(t, lab.Host("laptop"))
	a.daemon(ctx)
	b.daemon(ctx)
	a.host.Attach(first, "10.1.0.1/24")
	b.host.Attach(first, "10.1.0.2/24")
	pairStations(ctx, t, a, b, "words")
	a.run(ctx, "ping", "-c", "1", "laptop")
	for _, s := range []*station{a, b} {
		s.host.IP("link", "set", "eth0", "down")
	}
	a.host.Attach(second, "10.2.0.1/24")
	b.host.Attach(second, "10.2.0.2/24")
	start := time.Now()
	a.run(ctx, "ping", "--wait", "60s", "-c", "1", "laptop")
	t.Logf("first ping %v after the move to another network", time.Since(start))
	b.run(ctx, "ping", "--wait", "60s", "-c", "1", "desk")
}

// noMulticast drops all multicast but what IPv6 needs to resolve neighbours.
const noMulticast = `table inet f {
	chain in { type filter hook input priority 0;
		ip daddr 224.0.0.0/4 drop
		ip6 daddr ff02::1:ff00:0/104 accept
		ip6 daddr ff00::/8 drop
	}
}`

// onlyMDNS drops multicast but mDNS and what IPv6 needs.
const onlyMDNS = `table inet f {
	chain in { type filter hook input priority 0;
		udp dport 5353 accept
		ip daddr 224.0.0.0/4 drop
		ip6 daddr ff02::1:ff00:0/104 accept
		ip6 daddr ff00::/8 drop
	}
}`

// TestNetworkBroker pairs two hosts of different LANs that meet only at an MQTT
// broker and reach each other through a router.
func TestNetworkBroker(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	lab := nettest.New(t)
	if _, err := exec.LookPath("mosquitto"); err != nil {
		nettest.Skip(t, "the command mosquitto is not installed")
	}
	left, right := lab.Bridge("left"), lab.Bridge("right")
	router := lab.Host("router").Attach(left, "10.1.0.1/24").Attach(right, "10.2.0.1/24").Router()
	ha := lab.Host("desk").Attach(left, "10.1.0.2/24").Route("default", "via", "10.1.0.1")
	hb := lab.Host("laptop").Attach(right, "10.2.0.2/24").Route("default", "via", "10.2.0.1")
	dir := t.TempDir()
	conf := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(conf, []byte("listener 1883 0.0.0.0\nallow_anonymous true\nuser root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := router.Start("mosquitto", "-v", "-c", conf)
	broker.Await(ctx, "running")
	a, b := newStation(t, ha), newStation(t, hb)
	for _, s := range []*station{a, b} {
		s.run(ctx, "config", "mqtt", map[*station]string{a: "mqtt://10.1.0.1", b: "mqtt://10.2.0.1"}[s])
		s.daemon(ctx)
	}
	pairStations(ctx, t, a, b, "words")
	useStations(ctx, t, a, b)
	// The broker dies and comes back: the devices still find each other after it.
	broker.Kill()
	broker = router.Start("mosquitto", "-v", "-c", conf)
	broker.Await(ctx, "running")
	b.up.Kill()
	b.daemon(ctx)
	b.run(ctx, "ping", "-c", "1", "desk")
}

// TestNetworkEve has a third host that records everything, injects garbage and
// replays, and enters the used code itself.
func TestNetworkEve(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	lab := nettest.New(t)
	sw := lab.Bridge("lan")
	rec := sw.Record()
	ha := lab.Host("deskdesk").Attach(sw, "10.0.0.1/24")
	hb := lab.Host("laptoptop").Attach(sw, "10.0.0.2/24")
	eve := newStation(t, lab.Host("eve").Attach(sw, "10.0.0.3/24"))
	a, b := newStation(t, ha), newStation(t, hb)
	a.hiding, b.hiding = []string{"--hidden"}, []string{"--hidden"}
	a.daemon(ctx)
	b.daemon(ctx)

	var out *net.UDPConn
	var err error
	eve.host.Do(func() { out, err = net.ListenUDP("udp4", nil) })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { replay(stop, rec, out) })
	code := pairStations(ctx, t, a, b, "words")
	if status, said := eve.join(ctx, code); status != 3 || !strings.Contains(said, "used") {
		t.Errorf("a third device with the used code: exit status %d: %s", status, said)
	}
	useStations(ctx, t, a, b)
	close(stop)
	wg.Wait()

	words := strings.Fields(code)
	for _, f := range rec.Stop() {
		for _, secret := range []string{"deskdesk", "laptoptop", strings.Join(words[:3], " ")} {
			if bytes.Contains(f, []byte(secret)) {
				t.Fatalf("%q crosses the LAN in clear", secret)
			}
		}
	}
}

// replay sends what was recorded again, whole and damaged, to the group and to
// where it had gone, until stop.
func replay(stop <-chan struct{}, rec *nettest.Recording, out *net.UDPConn) {
	next := 0
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		frames := rec.Frames()
		if next >= len(frames) {
			next = 0
			continue
		}
		f := frames[next]
		next += 1 + len(frames)/500 // all of it in a second or so
		const ethernet, ipv4, udp = 14, 20, 8
		if len(f) < ethernet+ipv4+udp || f[12] != 8 || f[13] != 0 || f[ethernet+9] != 17 {
			continue
		}
		to, _ := netip.AddrFromSlice(f[ethernet+16 : ethernet+20])
		port := uint16(f[ethernet+ipv4+2])<<8 | uint16(f[ethernet+ipv4+3])
		payload := bytes.Clone(f[ethernet+ipv4+udp:])
		_, _ = out.WriteToUDPAddrPort(payload, netip.AddrPortFrom(to, port))
		if len(payload) > 40 {
			payload[len(payload)/2] ^= 1
			_, _ = out.WriteToUDPAddrPort(payload, netip.AddrPortFrom(to, port))
		}
	}
}

// TestNetworkSystemMDNS pairs two hosts on which avahi has port 5353 already, over
// mDNS alone.
func TestNetworkSystemMDNS(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	lab := nettest.New(t)
	if _, err := exec.LookPath("avahi-daemon"); err != nil {
		nettest.Skip(t, "the command avahi-daemon is not installed")
	}
	sw := lab.Bridge("lan")
	attach := func(name, addr string) *station {
		h := lab.Host(name).Attach(sw, addr)
		h.Nft(onlyMDNS)
		conf := filepath.Join(t.TempDir(), "avahi.conf")
		if err := os.WriteFile(conf, []byte(avahiConf+"host-name="+name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		// Each has a /run of its own for its pid file and socket.
		avahi := h.Start("unshare", "-m", "sh", "-c",
			`mount -t tmpfs none /run && exec avahi-daemon --debug --no-drop-root --no-chroot --no-rlimits -f "$0"`, conf)
		avahi.Await(ctx, "Server startup complete")
		return newStation(t, h)
	}
	a, b := attach("desk", "10.0.0.1/24"), attach("laptop", "10.0.0.2/24")
	a.daemon(ctx)
	b.daemon(ctx)
	pairStations(ctx, t, a, b, "words")
	a.run(ctx, "ping", "-c", "1", "laptop")
}

const avahiConf = `[publish]
disable-publishing=no
publish-workstation=yes
[server]
enable-dbus=no
use-ipv4=yes
use-ipv6=yes
`
