package hub

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/hub/hubaddr"
)

const (
	loadPairs   = 100                    // of relayed clients, each of which sends to the other
	loadTalkers = 10                     // pairs of MQTT clients, one of which publishes
	loadPacket  = 1200                   // bytes of a relayed packet
	loadEvery   = 10 * time.Millisecond  // between two packets of a client
	loadPublish = 100 * time.Millisecond // between two messages of a talker
	loadLost    = 5 * time.Second        // a client that waits so long for an answer is starved
	clockTicks  = 100                    // of /proc/PID/stat in a second (USER_HZ)
)

// cpu returns the processor time that a process has used.
func (c *child) cpu(t testing.TB) time.Duration {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+2:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * time.Second / clockTicks
}

// quantiles sorts and prints the median, the 99th percentile and the worst.
func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	slices.Sort(d)
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("median %v, p99 %v, worst %v of %d", round(d[len(d)/2]), round(d[len(d)*99/100]), round(d[len(d)-1]), len(d))
}

// spread runs f for 0 to n-1 in some goroutines and stops at the first error.
func spread(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	const workers = 16
	var wg sync.WaitGroup
	var next atomic.Int64
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && !t.Failed(); i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// relayed is a client of the relay that sends to one other.
type relayed struct {
	rawTURN
	relay    net.Addr
	sent     int
	got      int
	took     []time.Duration
	received chan struct{} // closed when nothing more comes
}

// loadRelay makes the pairs of relayed clients; each has a channel to its peer.
func loadRelay(t testing.TB, a hubaddr.Address) []*relayed {
	t.Helper()
	all := make([]*relayed, 2*loadPairs)
	hp := net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
	for i := range all {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: source(i)}}
		conn, err := d.DialContext(t.Context(), "udp", hp)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.(*net.UDPConn).SetReadBuffer(1 << 20)
		c := &relayed{rawTURN: rawTURN{Conn: conn}, received: make(chan struct{})}
		c.user = fmt.Sprintf("%d:client %d", time.Now().Add(time.Hour).Unix(), i)
		c.password = turnPassword(a.TURNSecret(), c.user)
		m := c.ask(t, stun.MethodAllocate, wantUDP)
		var x stun.XORMappedAddress
		if err := x.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil {
			t.Fatalf("client %d: %v: %v", i, err, m)
		}
		c.relay = &net.UDPAddr{IP: x.IP, Port: x.Port}
		all[i] = c
	}
	for i, c := range all {
		if m := c.ask(t, stun.MethodChannelBind, channelAttr(0x4000), peerAttr(all[i^1].relay)); m.Type.Class != stun.ClassSuccessResponse {
			t.Fatalf("client %d: %v", i, m)
		}
	}
	return all
}

// send sends one packet with the time in it.
func (c *relayed) send(buf []byte, start time.Time) {
	binary.BigEndian.PutUint64(buf[4:], uint64(time.Since(start)))
	if _, err := c.Write(buf); err == nil {
		c.sent++
	}
}

// receive counts what comes until the deadline for reading.
func (c *relayed) receive(start time.Time) {
	defer close(c.received)
	buf := make([]byte, 2048)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if n == 4+loadPacket && buf[0] == channelFirst {
			c.got++
			if c.got%16 == 0 {
				c.took = append(c.took, time.Since(start)-time.Duration(binary.BigEndian.Uint64(buf[4:])))
			}
		}
	}
}

// talk publishes from one client to another until stop, and returns how long each
// message took.
func talk(t testing.TB, a hubaddr.Address, i int, stop <-chan struct{}) (took []time.Duration) {
	topic := randomTopic()
	to, err := idle(i, a, "tls", subscribePacket(t, topic))
	if err != nil {
		t.Error(err)
		return nil
	}
	defer to.Close()
	from, err := idle(i, a, "tls", subscribeTo(t, 1))
	if err != nil {
		t.Error(err)
		return nil
	}
	defer from.Close()
	message := publishPacket(t, topic, make([]byte, 1000))
	buf := make([]byte, len(message))
	tick := time.NewTicker(loadPublish)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-stop:
			return took
		}
		start := time.Now()
		_ = to.SetReadDeadline(start.Add(loadLost))
		if _, err = from.Write(message); err == nil {
			_, err = io.ReadFull(to, buf)
		}
		if err != nil {
			t.Errorf("talker %d: %v", i, err)
			return took
		}
		took = append(took, time.Since(start))
	}
}

// ping asks every client's connection once, spread over the time d, and returns
// how long each answer took.
func ping(t testing.TB, conns []net.Conn, d time.Duration) []time.Duration {
	const workers = 50
	took := make([]time.Duration, len(conns))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			tick := time.NewTicker(d * workers / time.Duration(len(conns)+workers))
			defer tick.Stop()
			for i := w; i < len(conns); i += workers {
				<-tick.C
				var answer [2]byte
				start := time.Now()
				_ = conns[i].SetDeadline(start.Add(loadLost))
				_, err := conns[i].Write([]byte{0xc0, 0})
				if err == nil {
					_, err = io.ReadFull(conns[i], answer[:])
				}
				if err != nil || answer != [2]byte{0xd0, 0} {
					t.Errorf("client %d: % x, %v", i, answer, err)
				}
				took[i] = time.Since(start)
			}
		})
	}
	wg.Wait()
	return took
}

// TestLoad measures a hub in a process of its own, with its default limits, under
// KITH_HUB_CLIENTS (10,000) MQTT clients over TLS that each ask for a sign of life
// once, 100 pairs of relayed clients that send to each other, and ten pairs that
// publish, for KITH_HUB_LOAD (such as 20s). See docs/hub.md.
func TestLoad(t *testing.T) {
	d, err := time.ParseDuration(os.Getenv("KITH_HUB_LOAD"))
	if err != nil {
		t.Skip("KITH_HUB_LOAD says for how long: make hubload")
	}
	count := 10000
	if n, err := strconv.Atoi(os.Getenv("KITH_HUB_CLIENTS")); err == nil {
		count = n
	}
	limit := syscall.Rlimit{Cur: uint64(count) + 2000, Max: uint64(count) + 2000}
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	if now.Cur < limit.Cur {
		limit.Max = max(limit.Max, now.Max)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Skipf("%d files are needed, there may be %d: %v", limit.Cur, now.Max, err)
		}
	}
	hub := startChild(t, false)
	hub.collect(t)
	empty := hub.rss(t)

	conns := make([]net.Conn, count)
	started := time.Now()
	spread(t, count, func(i int) (err error) {
		conns[i], err = idle(i, hub.addr, "tls", subscribeTo(t, 3))
		return err
	})
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	logins := float64(count) / time.Since(started).Seconds()
	peak := hub.rss(t)
	if n := hub.collect(t); n != count {
		t.Fatalf("%d clients of %d", n, count)
	}
	idleRSS := hub.rss(t)
	used := hub.cpu(t)
	quiet := time.NewTimer(d / 2)
	<-quiet.C
	idleCPU := (hub.cpu(t) - used).Seconds() / (d / 2).Seconds()

	pairs := loadRelay(t, hub.addr)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var talked [loadTalkers][]time.Duration
	for i := range talked {
		wg.Go(func() { talked[i] = talk(t, hub.addr, count+i, stop) })
	}
	start := time.Now()
	used = hub.cpu(t)
	for _, c := range pairs {
		_ = c.SetReadDeadline(start.Add(d + 2*time.Second))
		go c.receive(start)
	}
	wg.Go(func() { // a few at a time, so that the sender is no burst
		buf := channelData(0x4000, make([]byte, loadPacket))
		const steps = 10
		tick := time.NewTicker(loadEvery / steps)
		defer tick.Stop()
		for n := 0; time.Since(start) < d; {
			<-tick.C
			for due := int(time.Since(start) * steps / loadEvery); n < due; n++ {
				for i := n % steps; i < len(pairs); i += steps {
					pairs[i].send(buf, start)
				}
			}
		}
	})
	pings := ping(t, conns, d)
	loaded := hub.rss(t)
	busy := (hub.cpu(t) - used).Seconds() / time.Since(start).Seconds()
	close(stop)
	wg.Wait()
	shares := make([]float64, 0, len(pairs))
	var lag, messages []time.Duration
	sent, got := 0, 0
	for i, c := range pairs {
		<-c.received
		from := pairs[i^1]
		shares = append(shares, float64(c.got)/float64(from.sent))
		lag = append(lag, c.took...)
		sent, got = sent+from.sent, got+c.got
	}
	slices.Sort(shares)
	for _, took := range talked {
		messages = append(messages, took...)
	}
	if n := hub.collect(t); n != count {
		t.Errorf("%d clients are left of %d", n, count)
	}
	// The farewell.
	_ = hub.in.Close()
	started = time.Now()
	var farewells atomic.Int64
	spread(t, count, func(i int) error {
		_ = conns[i].SetReadDeadline(started.Add(testLimit))
		if raw, _ := io.ReadAll(conns[i]); len(raw) > 2 && raw[0] == 0xe0 && raw[2] == 0x8b {
			farewells.Add(1)
		}
		return nil
	})
	bye := time.Since(started)

	const mb = 1e6
	t.Logf("clients         %d, %.0f logins a second", count, logins)
	t.Logf("memory          empty %.0f MB, logging in %.0f MB, idle %.0f MB (%.1f kB a client), loaded %.0f MB",
		empty/mb, peak/mb, idleRSS/mb, (idleRSS-empty)/float64(count)/1e3, loaded/mb)
	t.Logf("processor       idle %.1f %% of a core, loaded %.0f %%", 100*idleCPU, 100*busy)
	t.Logf("relayed         %d flows, %.0f packets a second each, %.1f MB/s in all", len(pairs), float64(sent)/float64(len(pairs))/d.Seconds(), float64(got*loadPacket)/mb/d.Seconds())
	t.Logf("delivered       worst flow %.2f %%, median %.2f %%; %s", 100*shares[0], 100*shares[len(shares)/2], quantiles(lag))
	t.Logf("signs of life   %s", quantiles(pings))
	t.Logf("messages        %s", quantiles(messages))
	t.Logf("farewells       %d, in %v", farewells.Load(), bye.Round(10*time.Millisecond))
	if shares[0] < shares[len(shares)/2]/2 {
		t.Error("a flow was starved")
	}
	if farewells.Load() < int64(count)*99/100 {
		t.Error("clients were not told that the hub stops")
	}
}
