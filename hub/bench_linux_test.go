package hub

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/kithproject/kith/hub/hubaddr"
)

const childEnv = "KITH_HUB_BENCH_DIR"

// benchChild runs a hub in a process of its own, so that its memory can be told
// from that of its clients: it prints the address, collects garbage for each line
// on standard input, and ends with it.
func benchChild() bool {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return false
	}
	h, err := Open(context.Background(), Config{Dir: dir, Listen: "127.0.0.1:0", AllowPrivate: true})
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return true
	}
	defer h.Close()
	fmt.Fprintln(os.Stdout, h.Address().Text())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		debug.FreeOSMemory()
		fmt.Fprintln(os.Stdout, metric(h, "kith_hub_clients"))
	}
	return true
}

// child is the process of benchChild.
type child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	addr hubaddr.Address
}

// startChild starts it, if wanted on one processor.
func startChild(b testing.TB, one bool) *child {
	b.Helper()
	dir := b.TempDir()
	if err := chmod700(dir); err != nil {
		b.Fatal(err)
	}
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childEnv+"="+dir)
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if one {
		pinned(b, c.cmd)
	} else if err := c.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.in.Close()
		_ = c.cmd.Wait()
	})
	c.out = bufio.NewScanner(out)
	c.out.Scan()
	if c.addr, err = hubaddr.Parse(c.out.Text()); err != nil {
		b.Fatalf("%q: %v", c.out.Text(), err)
	}
	return c
}

// collect has garbage collected and returns the clients that are logged in.
func (c *child) collect(b testing.TB) int {
	b.Helper()
	if _, err := io.WriteString(c.in, "\n"); err != nil || !c.out.Scan() {
		b.Fatal("the hub ended")
	}
	n, _ := strconv.Atoi(c.out.Text())
	return n
}

// rss returns the resident memory, in bytes.
func (c *child) rss(b testing.TB) float64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb * 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// source is an address of this machine for client i: so few share one that the
// hub's limits for an address are not reached.
func source(i int) net.IP {
	const sharing = 20
	return net.IPv4(127, 1+byte(i/sharing>>8), byte(i/sharing), 1)
}

// idle connects client i and subscribes it to three topics.
func idle(i int, a hubaddr.Address, via string, topics []byte) (net.Conn, error) {
	hp := net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: source(i)}}
	conn, err := d.Dial("tcp", hp)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(via, "tls") {
		conn = tls.Client(conn, a.TLSConfig())
	}
	if strings.HasPrefix(via, "websocket") {
		under := conn
		hc := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return under, nil }}}
		ws, resp, err := websocket.Dial(context.Background(), "ws://"+hp+"/mqtt", &websocket.DialOptions{HTTPClient: hc, Subprotocols: []string{"mqtt"}})
		if err != nil {
			return nil, err
		}
		if resp.Body != nil {
			_ = resp.Body.Close()
		}
		conn = websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
	}
	if err := login(conn, a.MQTTPassword(), maxKeepalive); err != nil {
		return conn, err
	}
	if _, err := conn.Write(topics); err != nil {
		return conn, err
	}
	_, err = conn.Read(make([]byte, 64)) // SUBACK
	return conn, err
}

// subscribeTo returns a SUBSCRIBE for n random topics.
func subscribeTo(t testing.TB, n int) []byte {
	var topics []string
	for range n {
		topics = append(topics, randomTopic())
	}
	return subscribePacket(t, topics...)
}

// BenchmarkIdleClients measures the memory of a hub with clients that wait. The
// number of clients is KITH_HUB_CLIENTS, 2000 by default.
func BenchmarkIdleClients(b *testing.B) {
	count := 2000
	if n, err := strconv.Atoi(os.Getenv("KITH_HUB_CLIENTS")); err == nil {
		count = n
	}
	for _, via := range []string{"plain", "tls", "websocket", "websocket-tls"} {
		b.Run(via, func(b *testing.B) {
			for b.Loop() {
				c := startChild(b, false)
				c.collect(b)
				before := c.rss(b)
				conns := make([]net.Conn, count)
				var wg sync.WaitGroup
				var failed sync.Once
				start := time.Now()
				const workers = 16
				for w := range workers {
					wg.Go(func() {
						for i := w; i < count; i += workers {
							var err error
							if conns[i], err = idle(i, c.addr, via, subscribeTo(b, 3)); err != nil {
								failed.Do(func() { b.Errorf("client %d: %v", i, err) })
								return
							}
						}
					})
				}
				wg.Wait()
				took := time.Since(start)
				peak := c.rss(b)
				if n := c.collect(b); n != count {
					b.Errorf("%d clients of %d", n, count)
				}
				after := c.rss(b)
				b.ReportMetric((after-before)/float64(count), "B/client")
				b.ReportMetric((peak-before)/float64(count), "peak-B/client")
				b.ReportMetric(float64(count)/took.Seconds(), "logins/s")
				b.ReportMetric(0, "ns/op")
				for _, conn := range conns {
					if conn != nil {
						_ = conn.Close()
					}
				}
				_ = c.in.Close()
				_ = c.cmd.Wait()
			}
		})
	}
}
