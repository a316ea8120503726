package kith_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/kithproject/kith/internal/nettest"
)

// TestNetworkTun reaches a device as any program would: by address and by name, over
// TCP, UDP and ICMP, for as long as it has the right to.
func TestNetworkTun(t *testing.T) {
	for _, mount := range []bool{false, true} {
		t.Run(map[bool]string{false: "a file", true: "a mount"}[mount], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*netTimeout)
			defer cancel()
			l := newTunLab(ctx, t, mount)
			l.names(ctx, t)
			l.reach(ctx, t)
			if !mount {
				l.withdraw(ctx, t)
				l.away(ctx, t)
			}
			l.desk.up.Stop()
			l.desk.gone(ctx)
		})
	}
}

func (l *tunLab) names(ctx context.Context, t *testing.T) {
	t.Helper()
	web := ":" + strconv.Itoa(webPort) + "/"
	for _, host := range []string{"[" + l.addr.String() + "]", "laptop.kith", "LAPTOP.Kith"} {
		if out := l.desk.must(ctx, "curl", "-gsS", "--noproxy", "*", "http://"+host+web); out != pageText {
			t.Errorf("%s: %q", host, out)
		}
	}
	if out, err := l.desk.ask(ctx, "curl", "-sS", "--noproxy", "*", "http://nobody.kith"+web); exitCode(err) != 6 {
		t.Errorf("nobody.kith: %v: %s", err, out) // 6: could not resolve
	}
	if out := l.desk.must(ctx, "getent", "hosts", l.addr.String()); !strings.Contains(out, "laptop.kith") {
		t.Errorf("the name of %s: %s", l.addr, out)
	}
	l.otherNames(t)
	if out := l.desk.must(ctx, "getent", "ahostsv4", "elsewhere.test"); !strings.Contains(out, "192.0.2.7") {
		t.Errorf("a name that is not ours: %s", out)
	}
	if out := l.desk.run(ctx, "status"); !strings.Contains(out, "kith0, names in .kith by /etc/resolv.conf") || strings.Count(out, "kith0") != 1 {
		t.Errorf("status: %s", out) // nobody is met there
	}
}

// otherNames has a DNS server where the former resolv.conf says.
func (l *tunLab) otherNames(t *testing.T) {
	t.Helper()
	var pc net.PacketConn
	var err error
	l.desk.host.Do(func() { pc, err = net.ListenPacket("udp", "127.0.0.1:53") })
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "elsewhere.test." && q.Question[0].Qtype == dns.TypeA {
			rr, _ := dns.NewRR("elsewhere.test. 60 IN A 192.0.2.7")
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = srv.Shutdown() })
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

func (l *tunLab) reach(ctx context.Context, t *testing.T) {
	t.Helper()
	const size = 64 << 20
	out := l.desk.must(ctx, "sh", "-c", fmt.Sprintf("curl -sS --noproxy '*' 'http://laptop.kith:%d/bytes?%d' | wc -c", webPort, size))
	if got := strings.TrimSpace(out); got != strconv.Itoa(size) {
		t.Errorf("%s bytes of %d came", got, size)
	}
	// What is not allowed is refused fast, and so is an address that is nobody's.
	if _, took, err := l.dial("tcp", closedPort); !errors.Is(err, syscall.ECONNREFUSED) || took > 2*time.Second {
		t.Errorf("a port without a right: %v after %v", err, took)
	}
	stranger := l.addr.As16()
	stranger[15] ^= 1
	there := l.addr
	l.addr = netip.AddrFrom16(stranger)
	if _, took, err := l.dial("tcp", webPort); !errors.Is(err, syscall.ENETUNREACH) || took > 2*time.Second {
		t.Errorf("nobody's address: %v after %v", err, took)
	}
	l.addr = there
	for _, n := range []int{1, 1200, 1400, 9000} {
		conn, _, err := l.dial("udp", echoPort)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := roundTrip(ctx, conn, bytes.Repeat([]byte{'x'}, n)); err != nil || len(got) != n {
			t.Errorf("a datagram of %d bytes: %d came back, %v", n, len(got), err)
		}
		conn.Close()
	}
	conn, _, err := l.dial("udp", closedPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := roundTrip(ctx, conn, []byte("x")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a UDP port without a right: %v", err)
	}
	if err := l.ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
}

// roundTrip sends a datagram until one comes back.
func roundTrip(ctx context.Context, conn net.Conn, b []byte) ([]byte, error) {
	buf := make([]byte, 65535)
	for ctx.Err() == nil {
		if _, err := conn.Write(b); err != nil {
			return nil, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return nil, err
		}
		n, err := conn.Read(buf)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return buf[:n], err
		}
	}
	return nil, ctx.Err()
}

// ping sends an echo request from the desk, with a raw socket.
func (l *tunLab) ping(ctx context.Context) error {
	var conn net.PacketConn
	var err error
	l.desk.host.Do(func() { conn, err = net.ListenPacket("ip6:ipv6-icmp", "::") })
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	request := append([]byte{128, 0, 0, 0, 0x12, 0x34, 0, 1}, "hello"...) // the kernel sets the checksum
	if _, err := conn.WriteTo(request, &net.IPAddr{IP: l.addr.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n >= 8 && buf[0] == 129 {
			if !bytes.Equal(buf[4:n], request[4:]) {
				return fmt.Errorf("the answer is %q", buf[:n])
			}
			return nil
		}
		if of := l.addr.AsSlice(); buf[0] == 1 && n >= 48 && bytes.Equal(buf[32:48], of) { // not of another packet
			return fmt.Errorf("unreachable, code %d", buf[1])
		}
	}
}

// withdraw takes the right back while a download runs.
func (l *tunLab) withdraw(ctx context.Context, t *testing.T) {
	t.Helper()
	conn, _, err := l.dial("tcp", webPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /endless HTTP/1.1\r\nHost: laptop\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	if _, err := io.ReadFull(conn, buf); err != nil {
		t.Fatal(err)
	}
	l.laptop.run(ctx, "deny", "desk", strconv.Itoa(webPort))
	start := time.Now()
	for err == nil {
		_, err = conn.Read(buf)
	}
	if took := time.Since(start); !errors.Is(err, syscall.ECONNRESET) || took > 2*time.Second {
		t.Errorf("the connection ended with %v after %v", err, took)
	}
	if _, took, err := l.dial("tcp", webPort); !errors.Is(err, syscall.ECONNREFUSED) || took > 2*time.Second {
		t.Errorf("a withdrawn right: %v after %v", err, took)
	}
	l.laptop.run(ctx, "allow", "desk", strconv.Itoa(webPort))
}

// away lets the laptop go, and come back.
func (l *tunLab) away(ctx context.Context, t *testing.T) {
	t.Helper()
	l.laptop.up.Stop()
	if _, took, err := l.dial("tcp", webPort); !errors.Is(err, syscall.EHOSTUNREACH) || took < 5*time.Second || took > 25*time.Second {
		t.Errorf("a device that is away: %v after %v", err, took)
	}
	if err := l.ping(ctx); err == nil || !strings.Contains(err.Error(), "unreachable, code 3") {
		t.Errorf("ping: %v", err)
	}
	l.laptop.daemon(ctx)
	if out := l.desk.must(ctx, "curl", "-sS", "--noproxy", "*", "http://laptop.kith:"+strconv.Itoa(webPort)+"/"); out != pageText {
		t.Errorf("back again: %q", out)
	}
}

// TestNetworkTunLeavesNothing ends the daemon in each way, with a connection open, and
// starts it again.
func TestNetworkTunLeavesNothing(t *testing.T) {
	for _, mount := range []bool{false, true} {
		t.Run(map[bool]string{false: "a file", true: "a mount"}[mount], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			l := newTunLab(ctx, t, mount)
			for _, end := range []struct {
				name string
				end  func()
				left bool // resolv.conf is mended by the next start
			}{
				{"SIGTERM", func() { _ = syscall.Kill(l.desk.up.PID(), syscall.SIGTERM); l.desk.up.Wait(ctx) }, false},
				{"SIGKILL", func() { l.desk.up.Kill() }, false},
				{"SIGKILL, also to the guard", func() { l.desk.killGuard(t); l.desk.up.Kill() }, true},
				{"kith down", func() { l.desk.run(ctx, "down"); l.desk.up.Wait(ctx) }, false},
				{"the interface is removed", func() {
					l.desk.host.IP("link", "del", "kith0")
					if status := l.desk.up.Wait(ctx); status != 1 {
						t.Errorf("exit status %d", status)
					}
				}, false},
				{"SIGINT", func() { l.desk.up.Stop() }, false},
			} {
				if now := l.desk.conf(); equalFiles(now, l.desk.before) {
					t.Fatalf("%s: resolv.conf is as it was", end.name)
				}
				conn, _, err := l.dial("tcp", webPort)
				if err != nil {
					t.Fatal(err)
				}
				end.end()
				if !end.left {
					l.desk.gone(ctx)
				}
				conn.Close()
				l.desk.daemon(ctx)
				l.desk.must(ctx, "curl", "-sS", "--noproxy", "*", "http://laptop.kith:"+strconv.Itoa(webPort)+"/")
			}
			l.desk.up.Stop()
			l.desk.gone(ctx)
		})
	}
}

// TestNetworkTunRefused says what is missing: a right of the system's, or that there is
// one already.
func TestNetworkTunRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	lab := nettest.New(t)
	h := lab.Host("desk")
	s := newTunStation(t, h, false)
	s.daemon(ctx)
	other := newStation(t, h)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{other.kith, "--home", other.home, "up", "--tun"}, "kith0 leads to"},
		{[]string{"setpriv", "--bounding-set", "-net_admin", other.kith, "--home", other.home, "up", "--tun"}, "needs root, or the capability CAP_NET_ADMIN"},
	} {
		out, err := h.Command(ctx, c.args[0], c.args[1:]...).CombinedOutput()
		if exitCode(err) != 8 || !strings.Contains(string(out), c.want) || strings.Count(string(out), "\n") != 2 {
			t.Errorf("%v: %v: %s", c.args, err, out)
		}
	}
}

// TestNetworkTunSpeed compares one download through the interface with one through
// kith forward, in turn, KITH_TUN (1) times.
func TestNetworkTunSpeed(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("KITH_TUN"))
	if err != nil || runs < 1 {
		runs = 1
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(runs+1)*netTimeout)
	defer cancel()
	l := newTunLab(ctx, t, false)
	fwd := l.desk.start("forward", "18080", "laptop:"+strconv.Itoa(webPort))
	defer fwd.Stop()
	fwd.Await(ctx, "is port "+strconv.Itoa(webPort))
	size := 128 << 20 * min(runs, 4)
	for run := range runs {
		for _, host := range []string{"laptop.kith:" + strconv.Itoa(webPort), "127.0.0.1:18080"} {
			out := l.desk.must(ctx, "curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{speed_download} %{size_download}",
				fmt.Sprintf("http://%s/bytes?%d", host, size))
			var speed, got float64
			if _, err := fmt.Sscan(out, &speed, &got); err != nil || int(got) != size {
				t.Fatalf("%s: %q, %v", host, out, err)
			}
			t.Logf("run %d, %s: %.0f Mbit/s", run+1, host, speed*8/1e6)
		}
	}
}
