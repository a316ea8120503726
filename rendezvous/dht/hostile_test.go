package dht

import (
	"bytes"
	"context"
	"crypto/rand"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// A liar is a node that answers what its test says.
type liar struct {
	conn *simConn
	id   id
	wg   sync.WaitGroup
	told atomic.Int32 // questions that it had
}

// lie starts a liar. answer returns datagrams for a question; nil is silence.
func (s *sim) lie(addr string, self id, answer func(l *liar, m *message, from netip.AddrPort) []byte) *liar {
	l := &liar{conn: s.net.listen(addr, false), id: self}
	l.wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, a, err := l.conn.ReadFrom(buf)
			if err != nil {
				return
			}
			m, err := parse(bytes.Clone(buf[:n]))
			if err != nil || m.kind != 'q' {
				continue
			}
			if m.method == "get" {
				l.told.Add(1)
			}
			ask := answer
			if m.method == "ping" || m.method == "find_node" { // as it gets into routing tables
				ask = func(l *liar, m *message, from netip.AddrPort) []byte {
					return (&message{id: l.id, tid: m.tid}).encodeReply(from)
				}
			}
			if out := ask(l, &m, addrPort(a)); out != nil {
				_, _ = l.conn.WriteTo(out, a)
			}
		}
	})
	return l
}

// known makes honest nodes know a liar, by asking them.
func (s *sim) known(l *liar) {
	for i := range s.nodes {
		q := query{method: "find_node", target: l.id}
		_, _ = l.conn.WriteTo(q.encode(l.id, []byte("abcd"), false), simAddr(publicAddr(i)))
	}
}

func (l *liar) close() {
	l.conn.Close()
	l.wg.Wait()
}

func garbage(n int) []byte {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		panic(err)
	}
	return b
}

// beside returns an id next to another.
func beside(target id, n byte) id {
	target[19] ^= n
	target[12] ^= n
	return target
}

// TestHostileNodes has nodes near the home of a topic that answer wrongly, each
// in its own way, and holds that a frame arrives each way nevertheless.
func TestHostileNodes(t *testing.T) {
	var old struct {
		sync.Mutex
		items map[id]item
	}
	old.items = make(map[id]item)
	polite := func(l *liar, m *message) *message { // takes everything, has nothing
		out := &message{id: l.id, tid: m.tid}
		if m.method == "get" || m.method == "get_peers" {
			out.token = []byte("yes")
		}
		return out
	}
	for _, c := range []struct {
		name   string
		answer func(l *liar, m *message, from netip.AddrPort) []byte
	}{
		{"silent", func(*liar, *message, netip.AddrPort) []byte { return nil }},
		{"swallows", func(l *liar, m *message, from netip.AddrPort) []byte { return polite(l, m).encodeReply(from) }},
		{"garbage", func(*liar, *message, netip.AddrPort) []byte { return garbage(1400) }},
		{"garbage in KRPC", func(_ *liar, m *message, _ netip.AddrPort) []byte {
			b := append([]byte("d1:rd2:id20:"), garbage(500)...)
			return append(append(b, "e1:t4:"...), m.tid...)
		}},
		{"huge", func(l *liar, m *message, from netip.AddrPort) []byte {
			out := polite(l, m)
			out.token = garbage(60_000)
			return out.encodeReply(from)
		}},
		{"random values of 1000 bytes, wrongly signed", func(l *liar, m *message, from netip.AddrPort) []byte {
			out := polite(l, m)
			if m.method == "get" {
				out.hasSeq, out.item = true, item{value: appendBytes(nil, garbage(996)), mutable: true, seq: m.item.seq + 1}
				copy(out.item.key[:], garbage(32))
			}
			return out.encodeReply(from)
		}},
		{"a high sequence number without proof", func(l *liar, m *message, from netip.AddrPort) []byte {
			out := polite(l, m)
			out.hasSeq, out.item.seq = m.method == "get", maxSeq-1
			return out.encodeReply(from)
		}},
		{"old items", func(l *liar, m *message, from netip.AddrPort) []byte {
			old.Lock()
			defer old.Unlock()
			out := polite(l, m)
			if m.method == "put" {
				target := mutableTarget(m.item.key, m.item.salt)
				if _, ok := old.items[target]; !ok {
					old.items[target] = m.item
				}
			} else if it, ok := old.items[m.target]; ok {
				out.hasSeq, out.item = true, it
			}
			return out.encodeReply(from)
		}},
		{"refuses puts as old", func(l *liar, m *message, from netip.AddrPort) []byte {
			if m.method == "put" {
				return encodeError(m.tid, errSeq, "sequence number less than current")
			}
			return polite(l, m).encodeReply(from)
		}},
		{"names nodes that do not exist", func(l *liar, m *message, from netip.AddrPort) []byte {
			out := polite(l, m)
			for i := range 8 {
				a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{99, garbage(1)[0], byte(i), 1}), 1)
				out.nodes = append(out.nodes, contact{beside(m.target, garbage(1)[0]), a})
			}
			return out.encodeReply(from)
		}},
		{"says we are somebody else", func(l *liar, m *message, _ netip.AddrPort) []byte {
			return polite(l, m).encodeReply(netip.MustParseAddrPort("8.8.8.8:53"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old.Lock()
				clear(old.items)
				old.Unlock()
				s := newSim(t, 40, 50*time.Millisecond, 0)
				defer s.close()
				time.Sleep(time.Minute)
				topic := newTopic(t)
				home := derive(topic).home
				var all []*liar
				for i := range 12 { // each in a network of its own
					l := s.lie(publicAddr(200+i), beside(home, byte(i+1)), c.answer)
					defer l.close()
					s.known(l)
					all = append(all, l)
				}
				time.Sleep(10 * time.Second)
				change := func(cfg *Config) { cfg.NoShortcut = true }
				a, b := s.device(change), s.device(change)
				defer a.Close()
				defer b.Close()
				sa := join(t, a, rendezvous.Point{Topic: topic})
				sb := join(t, b, rendezvous.Point{Topic: topic, Side: 1})
				took := exchange(t, sa, sb, 4)
				asked := 0
				for _, l := range all {
					if l.told.Load() > 0 {
						asked++
					}
				}
				t.Logf("four frames in %v; %d of 12 hostile nodes were asked", took, asked)
				if asked < 6 {
					t.Error("the hostile nodes were not in the way")
				}
				if took > 30*time.Second {
					t.Errorf("four frames took %v", took)
				}
			})
		})
	}
}

// TestPrivateSybils has six nodes next to a home in a private network, where ids
// are free and every address counts: two honest ones are among the eight.
func TestPrivateSybils(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t: t, net: newSimNet(20*time.Millisecond, 0)}
		defer s.close()
		addr := func(i int) string { return "10.1.0." + strconv.Itoa(i+1) + ":6881" }
		for i := range 30 {
			n, err := NewNode(Config{Conn: s.net.listen(addr(i), false), Private: true, Bootstrap: s.boot, Rate: 1000})
			if err != nil {
				t.Fatal(err)
			}
			s.nodes = append(s.nodes, n)
			s.boot = []string{addr(0), addr(1)}
		}
		time.Sleep(time.Minute)
		topic := newTopic(t)
		home := derive(topic).home
		for i := range 6 {
			l := s.lie(addr(100+i), beside(home, byte(i+1)), func(l *liar, m *message, from netip.AddrPort) []byte {
				out := &message{id: l.id, tid: m.tid, token: []byte("yes")}
				return out.encodeReply(from)
			})
			defer l.close()
			for j := range s.nodes {
				q := query{method: "find_node", target: l.id}
				_, _ = l.conn.WriteTo(q.encode(l.id, []byte("abcd"), false), simAddr(addr(j)))
			}
		}
		time.Sleep(10 * time.Second)
		open := func(i int) *Exchange {
			e, err := New(Config{Conn: s.net.listen(addr(200+i), false), Private: true, Bootstrap: s.boot, NoShortcut: true})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		a, b := open(0), open(1)
		defer a.Close()
		defer b.Close()
		sa := join(t, a, rendezvous.Point{Topic: topic})
		sb := join(t, b, rendezvous.Point{Topic: topic, Side: 1})
		t.Logf("four frames in %v", exchange(t, sa, sb, 4))
	})
}

// TestHalfKilled kills half of the nodes after a frame was put, and lets a device
// look for it that knew nothing before; then both restart elsewhere.
func TestHalfKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 60, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		topic := newTopic(t)
		a := s.device(nil)
		sa := join(t, a, rendezvous.Point{Topic: topic})
		time.Sleep(5 * time.Second)
		s.publish(sa, frame(1))
		time.Sleep(5 * time.Second)
		killed := s.kill(0.5)
		start := time.Now()
		b := s.device(nil)
		sb := join(t, b, rendezvous.Point{Topic: topic, Side: 1})
		receive(t, sb, frame(1))
		t.Logf("%d of 60 nodes killed: the frame was there after %v", killed, time.Since(start))
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		a.Close()
		b.Close()
		a, b = s.device(nil), s.device(nil)
		defer a.Close()
		defer b.Close()
		sa = join(t, a, rendezvous.Point{Topic: topic})
		sb = join(t, b, rendezvous.Point{Topic: topic, Side: 1})
		took := exchange(t, sa, sb, 4)
		t.Logf("both moved and restarted: four frames in %v", took)
		if took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestClockOff restarts a writer whose clock was two days ahead: its next frame
// counts nevertheless, and what came is never given twice.
func TestClockOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 40, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		change := func(cfg *Config) { cfg.NoShortcut = true }
		topic := newTopic(t)
		b := s.device(change)
		defer b.Close()
		sb := join(t, b, rendezvous.Point{Topic: topic, Side: 1})
		for i, off := range []time.Duration{48 * time.Hour, 0, -48 * time.Hour} {
			a := s.device(change)
			a.clock = func() time.Time { return time.Now().Add(off) }
			sa := join(t, a, rendezvous.Point{Topic: topic})
			s.publish(sa, frame(byte(i+1)))
			m, err := sb.Receive(t.Context())
			if err != nil || m.Frame[0] != byte(i+1) {
				t.Fatalf("got %x, %v; want frame %d", m.Frame[:1], err, i+1)
			}
			a.Close()
		}
		b.Check()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if m, err := sb.Receive(ctx); err == nil {
			t.Errorf("frame %x was given twice", m.Frame[:1])
		}
	})
}

// TestRepublish holds that a frame stays readable while its writer is there, and no longer than
// two hours after its writer has gone.
func TestRepublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 30, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		topic := newTopic(t)
		a := s.device(nil)
		sa := join(t, a, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
		s.publish(sa, frame(1))
		look := func() bool {
			b := s.device(func(cfg *Config) { cfg.NoShortcut = true })
			defer b.Close()
			sb := join(t, b, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := sb.Receive(ctx)
			return err == nil
		}
		time.Sleep(6 * time.Hour)
		if !look() {
			t.Error("after six hours the frame is gone")
		}
		a.Close()
		time.Sleep(itemFor + time.Minute)
		if look() {
			t.Error("two hours after its writer has gone the frame is still there")
		}
	})
}

// TestBurst publishes different frames in short time.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 40, 50*time.Millisecond, 0)
		defer s.close()
		time.Sleep(time.Minute)
		topic := newTopic(t)
		a, b := s.device(nil), s.device(nil)
		defer a.Close()
		defer b.Close()
		sa, sb := join(t, a, rendezvous.Point{Topic: topic}), join(t, b, rendezvous.Point{Topic: topic, Side: 1})
		exchange(t, sa, sb, 4)
		time.Sleep(10 * time.Second)
		for i := range 5 {
			s.publish(sa, frame(byte(0x10+i)))
		}
		for i := range 5 { // over the shortcut; the order is free
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if _, err := sb.Receive(ctx); err != nil {
				t.Errorf("frame %d of a burst: %v", i, err)
			}
			cancel()
		}
	})
}
