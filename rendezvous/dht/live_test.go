package dht

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// TestFlood sends 100,000 datagrams of garbage to a device's socket while frames
// pass: unknown tags, its own tag with a wrong seal, replays, and broken KRPC.
func TestFlood(t *testing.T) {
	n := startNet(t, 20, 0)
	a, b := n.device(t, nil), n.device(t, nil)
	topic := newTopic(t)
	sa, sb := join(t, a, rendezvous.Point{Topic: topic}), join(t, b, rendezvous.Point{Topic: topic, Side: 1})
	k := derive(topic)
	replay := k.datagram(0, frame(0xee))
	tagged := append(append([]byte(nil), k.tags[0][:]...), make([]byte, frameDatagram-tagSize)...)
	random := make([]byte, frameDatagram)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	random[0] = 'x'
	kinds := [][]byte{random, tagged, replay, append([]byte("d1:rd2:id20:"), random...), []byte("d1:q13:announce_peer1:t1:a1:y1:qe"), k.tags[0][:]}
	const total = 100_000
	sent := make(chan struct{})
	conn := n.conn(t)
	defer conn.Close()
	go func() {
		defer close(sent)
		for i := range total {
			_, _ = conn.WriteTo(kinds[i%len(kinds)], net.UDPAddrFromAddrPort(b.Addrs()[0]))
		}
	}()
	defer func() { <-sent }()
	start := time.Now()
	passed := 0
	for flooding := true; flooding; {
		passed++
		begun := time.Now()
		f := frame(byte(passed))
		f[1] = 0xff
		for arrived := false; !arrived; {
			if err := sa.Publish(t.Context(), f); err != nil && !isUnreachable(err) {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			for {
				m, err := sb.Receive(ctx)
				if err != nil {
					break
				}
				if arrived = bytes.Equal(m.Frame, f); arrived {
					break
				}
			}
			cancel()
			select {
			case <-sent:
				flooding = false
			default:
			}
			if time.Since(begun) > patience {
				t.Fatal("a frame is held up")
			}
		}
	}
	st := b.Stats()
	t.Logf("%d frames passed in %v beside %d datagrams; %d forged, %d malformed, %d came directly, %d as items", passed, time.Since(start), total,
		st.Forged, st.Malformed, st.Direct, st.Items)
	if st.Forged == 0 || st.Malformed == 0 {
		t.Error("the flood did not come in")
	}
	if st.Direct > int64(40*passed+100) {
		t.Errorf("%d frames came directly: replays were taken", st.Direct)
	}
}

// TestLoneNode is the smallest network: one device that serves and one that only
// asks, which is all the other knows.
func TestLoneNode(t *testing.T) {
	n := &testNet{}
	a, err := New(Config{Conn: n.conn(t), Private: true, Serve: true, NoShortcut: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := New(Config{Conn: n.conn(t), Private: true, NoShortcut: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if h := b.Health(); h.Ready || h.Err == nil || !strings.Contains(h.Detail, "no node is known") {
		t.Errorf("health of a node that knows none: %+v", h)
	}
	b.AddNodes(a.Addrs()...)
	topic := newTopic(t)
	sa, sb := join(t, a, rendezvous.Point{Topic: topic}), join(t, b, rendezvous.Point{Topic: topic, Side: 1})
	publish := func(s rendezvous.Session, f []byte) {
		if err := s.Publish(t.Context(), f); err != nil && !isUnreachable(err) {
			t.Fatal(err)
		}
	}
	publish(sa, frame(1))
	receive(t, sb, frame(1))
	publish(sb, frame(2))
	receive(t, sa, frame(2))
	if h := a.Health(); !h.Ready || !strings.Contains(h.Detail, "serving") {
		t.Errorf("health of a node that serves: %+v", h)
	}
	if h := b.Health(); h.Detail != "1 good node, read-only" {
		t.Errorf("health: %+v", h)
	}
	c, err := New(Config{Conn: n.conn(t), Private: true, Serve: true, NoShortcut: true, Bootstrap: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	await(t, "it hears itself", func() bool { return c.Stats().Received > 0 })
	if h := c.Health(); h.Ready || !errors.Is(h.Err, ErrSilent) {
		t.Errorf("health of a node that serves and whose nodes to begin with are dead: %+v", h)
	}
}

// TestReadOnly holds that a device answers nobody until it is told that it can be
// reached, says so in its questions, and is silent again afterwards.
func TestReadOnly(t *testing.T) {
	n := startNet(t, 3, 0)
	e := n.device(t, nil)
	asker := newEngine(n.conn(t), true, nil, newLimiter(1000, 1000))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { asker.read(ctx); close(done) }()
	defer func() { cancel(); asker.conn.Close(); <-done }()
	ping := func() error {
		_, err := asker.ask(ctx, e.Addrs()[0], &query{method: "ping"})
		return err
	}
	if err := ping(); !errors.Is(err, errTimeout) {
		t.Errorf("a read-only node: %v", err)
	}
	e.SetPublic(true)
	if err := ping(); err != nil {
		t.Errorf("a node that serves: %v", err)
	}
	await(t, "others know it", func() bool {
		for _, o := range n.own {
			o.e.engines[0].mu.Lock()
			known := o.e.engines[0].table.byAddr[e.Addrs()[0]] != nil
			o.e.engines[0].mu.Unlock()
			if known {
				return true
			}
		}
		e.AddNodes(n.addrs...) // has it ask them
		return false
	})
	e.SetPublic(false)
	if err := ping(); !errors.Is(err, errTimeout) {
		t.Errorf("read-only again: %v", err)
	}
}

func TestIPv6(t *testing.T) {
	six := func() net.PacketConn {
		c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
		if err != nil {
			t.Skipf("no IPv6 here: %v", err)
		}
		return c
	}
	first, err := NewNode(Config{Conn: six(), Private: true})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for range 5 {
		o, err := NewNode(Config{Conn: six(), Private: true, Bootstrap: []string{first.Addr().String()}})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
	}
	var all []rendezvous.Session
	topic := newTopic(t)
	for side := range 2 {
		e, err := New(Config{Conn: six(), Private: true, Bootstrap: []string{first.Addr().String()}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		all = append(all, join(t, e, rendezvous.Point{Topic: topic, Side: uint8(side)}))
	}
	for i := range all {
		if err := all[i].Publish(t.Context(), frame(byte(i+1))); err != nil && !isUnreachable(err) {
			t.Fatal(err)
		}
		receive(t, all[1-i], frame(byte(i+1)))
	}
}

// TestOwnSockets opens sockets of both families by itself.
func TestOwnSockets(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if got := e.Addrs(); len(got) == 0 || got[0].Port() == 0 {
		t.Errorf("addresses: %v", got)
	}
}

func TestConfig(t *testing.T) {
	for _, bad := range []string{"", "host", "host:", ":6881", "host:0", "host:99999", "http://host:1", "a b:1"} {
		if e, err := New(Config{Bootstrap: []string{bad}}); !errors.Is(err, ErrBootstrap) {
			t.Errorf("%q: %v", bad, err)
			if e != nil {
				e.Close()
			}
		}
	}
	for _, good := range append(DefaultBootstrap(), "192.0.2.1:1", "[2001:db8::1]:2") {
		if _, err := (&Exchange{}).bootstrap([]string{good}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

// TestNames holds that looking a name up delays nothing, that a name that is not
// found is told, and that it is looked up again.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 10, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		tries := 0
		e := s.device(func(c *Config) {
			c.Bootstrap = []string{"dht.example:6881"}
			c.LookupHost = func(ctx context.Context, host string) ([]netip.Addr, error) {
				if tries++; tries < 3 {
					<-ctx.Done() // no resolver answers
					return nil, ctx.Err()
				}
				return []netip.Addr{netip.MustParseAddrPort(publicAddr(0)).Addr()}, nil
			}
		})
		defer e.Close()
		start := time.Now()
		one := join(t, e, rendezvous.Point{Topic: newTopic(t)})
		if err := one.Publish(t.Context(), frame(1)); !isUnreachable(err) || time.Since(start) != 0 {
			t.Errorf("publish: %v after %v", err, time.Since(start))
		}
		time.Sleep(lookupLimit + time.Second)
		if h := e.Health(); h.Ready || !strings.Contains(h.Detail, "names not found: dht.example") {
			t.Errorf("health: %+v", h)
		}
		time.Sleep(time.Minute)
		if h := e.Health(); !h.Ready || h.Err != nil {
			t.Errorf("health once the name is found: %+v", h)
		}
		if e.Stats().Puts != 1 {
			t.Errorf("the frame that waited was put %d times", e.Stats().Puts)
		}
	})
}

// TestOutage cuts a device off for an hour. It asks little meanwhile, and is back
// soon after Check.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 40, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		a, b := s.device(nil), s.device(nil)
		defer a.Close()
		defer b.Close()
		topic := newTopic(t)
		sa, sb := join(t, a, rendezvous.Point{Topic: topic}), join(t, b, rendezvous.Point{Topic: topic, Side: 1})
		exchange(t, sa, sb, 2)
		conn := a.cfg.Conn.(*simConn)
		conn.drop.Store(true)
		time.Sleep(10 * time.Minute)
		before := a.Stats()
		time.Sleep(50 * time.Minute)
		after := a.Stats()
		if rate := float64(after.SentBytes-before.SentBytes) / 3000; rate > 100 {
			t.Errorf("%.0f B/s into the void", rate)
		}
		if h := a.Health(); h.Ready || !strings.Contains(h.Detail, "no DHT node answered") {
			t.Errorf("health: %+v", h)
		}
		conn.drop.Store(false)
		a.Check()
		b.Check()
		took := exchange(t, sa, sb, 2)
		t.Logf("back after %v", took)
		if took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestCloseWhileBusy closes an exchange in the middle of everything, and a session
// whose frame nobody has yet: it is still put.
func TestCloseWhileBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 20, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		a, b := s.device(nil), s.device(nil)
		topic := newTopic(t)
		sa := join(t, a, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
		time.Sleep(5 * time.Second)
		s.publish(sa, frame(1))
		sa.Close()
		time.Sleep(5 * time.Second)
		start := time.Now()
		if err := a.Close(); err != nil || time.Since(start) != 0 {
			t.Errorf("close: %v after %v", err, time.Since(start))
		}
		sb := join(t, b, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
		receive(t, sb, frame(1))
		s.publish(join(t, b, rendezvous.Point{Topic: newTopic(t)}), frame(2))
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestAmplification holds how much somebody can make a device send to a victim by
// announcing the victim's address at a home.
func TestAmplification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 20, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		topic := newTopic(t)
		k := derive(topic)
		for i := range 20 { // twenty victims, announced by themselves
			conn := s.net.listen(publicAddr(300+i), false)
			eng := newEngine(conn, false, nil, newLimiter(1000, 1000))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { eng.read(ctx); close(done) }()
			for j := range 20 {
				to := netip.MustParseAddrPort(publicAddr(j))
				if m, err := eng.ask(ctx, to, &query{method: "get_peers", target: k.home}); err == nil {
					_, _ = eng.ask(ctx, to, &query{method: "announce_peer", target: k.home, token: m.token})
				}
			}
			cancel()
			conn.Close()
			<-done
		}
		victims := make([]*simConn, 20)
		for i := range victims {
			victims[i] = s.net.listen(publicAddr(300+i), false)
			defer victims[i].Close()
		}
		e := s.device(nil)
		defer e.Close()
		one := join(t, e, rendezvous.Point{Topic: topic})
		for range 600 {
			s.publish(one, frame(1))
			time.Sleep(100 * time.Millisecond)
		}
		hit, most, total := 0, 0, 0
		for _, v := range victims {
			if n := len(v.in); n > 0 {
				hit, most, total = hit+1, max(most, n), total+n
			}
		}
		t.Logf("in a minute %d addresses got %d datagrams, at most %d each", hit, total, most)
		if hit == 0 || total > 60*maxLinks || most > tryMost {
			t.Errorf("%d addresses got %d datagrams, at most %d each", hit, total, most)
		}
	})
}
