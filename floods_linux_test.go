package kith_test

import (
	"context"
	bytesof "encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// floodMemory is by how much a daemon may grow under a flood, in MiB: the queues
// of WireGuard and of media fill.
const floodMemory = 128

// garbage returns the i-th packet of a stranger: noise, and what looks like each
// kind of packet that is told apart, with the rest made up. The victim is in what
// poses as a STUN server's answer (RFC 8489 section 6.3).
func garbage(i int, victim netip.AddrPort) []byte {
	b := make([]byte, 1+rand.IntN(1400)) //nolint:gosec // no secret
	for k := range b {
		b[k] = byte(rand.Uint32()) //nolint:gosec // no secret
	}
	head := func(size int, head ...byte) []byte {
		b = append(b, make([]byte, 1500)...)[:size]
		copy(b, head)
		return b
	}
	switch i % 7 {
	case 1:
		return head(148, 1, 0, 0, 0) // WireGuard's first message
	case 2:
		return head(92, 2, 0, 0, 0)
	case 3:
		return head(64, 3, 0, 0, 0)
	case 4:
		return head(200+i%1000, 4, 0, 0, 0)
	case 5:
		return head(128+i%1300, 0xeb, 0x6b, 0x70, 0x01) // a probe
	case 6:
		head(32, 0x01, 0x01, 0, 12, 0x21, 0x12, 0xa4, 0x42)
		ip := victim.Addr().As4()
		copy(b[20:], []byte{0, 0x20, 0, 8, 0, 1})
		bytesof.BigEndian.PutUint16(b[26:], victim.Port()^0x2112)
		for k, x := range []byte{0x21, 0x12, 0xa4, 0x42} {
			b[28+k] = ip[k] ^ x
		}
		return b
	}
	return b
}

// flood sends garbage from sockets, as fast as it can, until stop.
func flood(stop <-chan struct{}, socks []*net.UDPConn, to, victim netip.AddrPort) (count int) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return i
		default:
			_, _ = socks[i/7%len(socks)].WriteToUDPAddrPort(garbage(i, victim), to) // what is refused is lost
		}
	}
}

// TestNetworkFloods lets a stranger on the LAN send garbage, also in the name of
// the hub, and a paired device send all that it can, while two others talk.
func TestNetworkFloods(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*netTimeout)
	defer cancel()
	h := newHostileLab(ctx, t)
	desk := h.nodes[0]
	victim := netip.AddrPortFrom(h.victim.Addrs()[0], 999)
	use := func(t *testing.T, what string) {
		t.Helper()
		start := time.Now()
		desk.run(ctx, "ping", "-c", "1", "laptop")
		pinged := time.Since(start)
		before := desk.residentMiB()
		if err := <-h.transfer(ctx, t); err != nil {
			t.Errorf("transfer: %v", err)
		}
		took := time.Since(start)
		after := desk.residentMiB()
		t.Logf("%s: ping after %v, 100 MB after %v, %.0f MiB before and %.0f after", what, pinged.Round(time.Millisecond), took.Round(time.Millisecond), before, after)
		if after > before+floodMemory {
			t.Errorf("%s: from %.0f MiB to %.0f, at most %d more", what, before, after, floodMemory)
		}
	}
	t.Run("none", func(t *testing.T) { use(t, "no flood") })
	t.Run("stranger", func(t *testing.T) {
		// What has the hub's address comes from here.
		hub := h.hub.host.Addrs()[0]
		h.evil.host.Addr("lo", hub.String()+"/32")
		var socks []*net.UDPConn
		var err error
		h.evil.host.Do(func() {
			for _, from := range []net.UDPAddr{{}, {}, {IP: hub.AsSlice(), Port: 443}, {IP: hub.AsSlice(), Port: 444}} {
				c, bad := net.ListenUDP("udp4", &from)
				if bad != nil {
					err = bad
					return
				}
				socks = append(socks, c)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		stop, count := make(chan struct{}), 0
		var wg sync.WaitGroup
		wg.Go(func() { count = flood(stop, socks, netip.AddrPortFrom(desk.host.Addrs()[0], h.port), victim) })
		start := time.Now()
		use(t, "a stranger's garbage")
		close(stop)
		wg.Wait()
		for _, c := range socks {
			c.Close()
		}
		t.Logf("%d packets, %.0f a second", count, float64(count)/time.Since(start).Seconds())
		if out := desk.run(ctx, "status", "--json"); strings.Contains(out, victim.Addr().String()) {
			t.Errorf("an address out of a forged answer is offered: %s", out)
		}
		h.evil.host.IP("addr", "del", hub.String()+"/32", "dev", "lo")
	})
	for _, mode := range []string{"probes", "chats"} {
		t.Run(mode, func(t *testing.T) {
			p := h.attack(ctx, mode, h.addresses())
			use(t, "a paired device that "+mode)
			p.Kill()
		})
	}
}

// TestNetworkLyingSTUN gives both devices, besides the hub, a STUN server that
// answers every question with the address of a victim: they find each other all
// the same, and the victim gets a few probes.
func TestNetworkLyingSTUN(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	r := newReachLab(ctx, t, nettest.NATEasy, nettest.NATEasy)
	liar, victim := r.inet.Server("liar"), r.inet.Server("victim")
	at := netip.AddrPortFrom(liar.Addrs()[0], 3478)
	var sock *net.UDPConn
	var err error
	liar.Do(func() { sock, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)) })
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := sock.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if n < 20 {
				continue
			}
			lie := garbage(6, netip.AddrPortFrom(victim.Addrs()[0], 999))
			copy(lie[8:20], buf[8:20])
			_, _ = sock.WriteToUDPAddrPort(lie, from)
			asked++
		}
	})
	for _, s := range r.nodes {
		s.up.Stop()
		s.run(ctx, "config", "stun", at.String())
		s.run(ctx, "config", "port", "41641")
	}
	for _, s := range r.sites {
		s.Reboot(true)
	}
	s := sniff(t, r.nodes[1].host, 41641)
	o := r.restart(ctx, t, 10*time.Second)
	t.Logf("first byte %v, straight %v: %s", o.first.Round(time.Millisecond), o.straight.Round(time.Millisecond), o.path)
	if o.straight == 0 {
		t.Errorf("no straight path: %s\n%s", o.path, r.nodes[0].run(ctx, "status"))
	}
	r.nodes[0].run(ctx, "ping", "-c", "3", "laptop")
	var probes []sent
	for _, p := range s.take() {
		if p.to.Addr() == victim.Addrs()[0] {
			probes = append(probes, p)
		}
	}
	perHost, _ := busiest(probes, func(sent) string { return "" })
	sock.Close()
	wg.Wait()
	t.Logf("%d questions to the liar, %d packets to the victim, %d in the busiest second", asked, len(probes), perHost)
	if asked == 0 {
		t.Error("the liar was not asked, so nothing was tested")
	}
	if perHost > hostileRate {
		t.Errorf("%d packets to the victim within a second, at most %d", perHost, hostileRate)
	}
}

// skewed builds the command with a wall clock that is wrong by as many seconds as
// KITH_TEST_SKEW says, or as the 8 bytes of the file KITH_TEST_SKEW_FILE say at the
// moment; the monotonic clock is right.
var skewed = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // built once, as binary is
	dir, err := os.MkdirTemp("", "kith-bin-")
	if err != nil {
		return "", err
	}
	src := filepath.Join(runtime.GOROOT(), "src", "time", "time.go")
	raw, err := os.ReadFile(src)
	if err != nil {
		return "", err
	}
	const read, first = "sec, nsec, mono := runtimeNow()\n", "import (\n"
	text := string(raw)
	if strings.Count(text, "func Now() Time {\n\t"+read) != 1 || strings.Count(text, first) != 1 {
		return "", os.ErrNotExist // another Go
	}
	text = strings.Replace(text, "func Now() Time {\n\t"+read, "func Now() Time {\n\t"+read+"\tsec += *wallSkew\n", 1)
	text = strings.Replace(text, first, first+"\t\"syscall\"\n\t\"unsafe\"\n", 1) + `
var wallSkew = func() *int64 {
	if file, ok := syscall.Getenv("KITH_TEST_SKEW_FILE"); ok {
		fd, err := syscall.Open(file, syscall.O_RDONLY, 0)
		if err != nil {
			panic(err)
		}
		at, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			panic(err)
		}
		return (*int64)(unsafe.Pointer(&at[0]))
	}
	n := new(int64)
	text, _ := syscall.Getenv("KITH_TEST_SKEW")
	for i := range len(text) {
		if text[i] != '-' {
			*n = 10**n + int64(text[i]-'0')
		}
	}
	if text != "" && text[0] == '-' {
		*n = -*n
	}
	return n
}()
`
	changed, overlay, path := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "kith")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {src: changed}})
	if err != nil {
		return "", err
	}
	for file, content := range map[string][]byte{changed: []byte(text), overlay: list} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return "", err
		}
	}
	out, err := exec.Command("go", "build", "-overlay", overlay, "-o", path, "./cmd/kith").CombinedOutput()
	if err != nil {
		return "", &exec.Error{Name: string(out), Err: err}
	}
	return path, nil
})

// TestNetworkClocks has one device whose clock is two days off, ahead and then
// behind, meet another at a hub, with a relay alone between them.
func TestNetworkClocks(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the standard library again, which takes a minute")
	}
	kith, err := skewed()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*netTimeout)
	defer cancel()
	r := newReachLab(ctx, t, nettest.NATHard, nettest.NATHard)
	wrong := r.nodes[0]
	for _, skew := range []string{"172800", "0", "-172800", "172800"} {
		for _, s := range r.nodes {
			s.up.Stop()
		}
		start := time.Now()
		wrong.up = wrong.host.Start("env", append([]string{"KITH_TEST_SKEW=" + skew, kith}, wrong.args("up", "--json")...)...)
		wrong.up.Await(ctx, `"event":"up"`)
		r.nodes[1].daemon(ctx)
		r.nodes[1].run(ctx, "ping", "-c", "1", "--wait", "20s", "desk")
		t.Logf("%s s off: first byte after %v", skew, time.Since(start).Round(time.Millisecond))
		wrong.run(ctx, "ping", "-c", "1", "laptop")
		// Its own restart alone: the other one remembers the last handshake.
		wrong.up.Stop()
		start = time.Now()
		wrong.up = wrong.host.Start("env", append([]string{"KITH_TEST_SKEW=0", kith}, wrong.args("up", "--json")...)...)
		wrong.up.Await(ctx, `"event":"up"`)
		r.nodes[1].run(ctx, "ping", "-c", "1", "--wait", "20s", "desk")
		t.Logf("%s s off and set right: first byte after %v", skew, time.Since(start).Round(time.Millisecond))
	}
}
