package tunnel

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A wireBind has a wire behind it that takes its time and can be cut.
type wireBind struct {
	conn.Bind
	delay time.Duration
	rate  int           // bytes a second; 0: no limit
	queue time.Duration // how long a packet waits for its turn at the most; else it is lost
	cut   atomic.Bool
	line  chan sent
	done  sync.WaitGroup

	mu   sync.Mutex // guards free
	free time.Time  // when all before has left
}

// sent is a batch on the wire.
type sent struct {
	due  time.Time
	bufs [][]byte
	to   conn.Endpoint
}

func newWire(t *testing.T, delay time.Duration) (*portBind, *wireBind) {
	t.Helper()
	outer := newBind()
	w := &wireBind{Bind: outer.Bind, delay: delay, line: make(chan sent, 1<<14)}
	outer.Bind = w
	w.done.Go(w.carry)
	t.Cleanup(func() { // after the tunnel was closed
		close(w.line)
		w.done.Wait()
	})
	return outer, w
}

func (w *wireBind) Send(bufs [][]byte, to conn.Endpoint) error {
	if w.cut.Load() {
		return nil
	}
	s := sent{to: to}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.free.Before(now) {
		w.free = now
	}
	for _, b := range bufs {
		if w.rate > 0 {
			if w.free.Sub(now) > w.queue {
				continue
			}
			w.free = w.free.Add(time.Duration(len(b)) * time.Second / time.Duration(w.rate))
		}
		s.bufs = append(s.bufs, append([]byte(nil), b...))
	}
	s.due = w.free.Add(w.delay)
	select {
	case w.line <- s:
	default: // full: lost
	}
	return nil
}

func (w *wireBind) carry() {
	for s := range w.line {
		wait(time.Until(s.due))
		if !w.cut.Load() {
			_ = w.Bind.Send(s.bufs, s.to)
		}
	}
}

func wait(d time.Duration) { <-time.After(d) }

// TestOutage cuts the wire during a transfer: once it is there again, bytes flow
// within some round trips, and all come.
func TestOutage(t *testing.T) {
	for _, tc := range []struct {
		name   string
		revive bool          // somebody tells that the path is back
		cut    time.Duration // between two repetitions, of which there are at 0.2, 0.6, 1.4 and 3 s
		flow   time.Duration // until bytes flow
	}{
		{"told", true, 1600 * time.Millisecond, 1200 * time.Millisecond},
		{"not told", false, 1600 * time.Millisecond, maxRTO + time.Second},
		{"told, before any repetition", true, 100 * time.Millisecond, 900 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const size = 24 << 20
			ba, wa := newWire(t, 10*time.Millisecond)
			bb, wb := newWire(t, 10*time.Millisecond)
			a, b := newSide(t, ba), newSide(t, bb)
			introduce(t, a, b)
			got := count(t, b)
			c := dial(t, a, b.addr(7))
			wrote := make(chan error, 1)
			go func() {
				_, err := io.Copy(c, io.LimitReader(zeros{}, size))
				wrote <- err
			}()
			got.more(t, size/4)
			wa.cut.Store(true)
			wb.cut.Store(true)
			wait(tc.cut)
			before := got.n.Load()
			wa.cut.Store(false)
			wb.cut.Store(false)
			back := time.Now()
			if tc.revive {
				a.Revive(b.id.ID())
				b.Revive(a.id.ID())
			}
			got.more(t, before)
			flow := time.Since(back)
			got.more(t, size-1)
			t.Logf("bytes flow after %v, all came after %v", flow, time.Since(back))
			if flow > tc.flow {
				t.Errorf("bytes flow after %v, not %v", flow, tc.flow)
			}
			if err := <-wrote; err != nil {
				t.Error(err)
			}
		})
	}
}

// A tally counts what a side receives on port 7.
type tally struct {
	n    atomic.Int64
	news chan struct{}
}

func count(t *testing.T, s *side) *tally {
	t.Helper()
	got := &tally{news: make(chan struct{}, 1)}
	serve(t, s, 7, func(c net.Conn) {
		defer c.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			got.n.Add(int64(n))
			select {
			case got.news <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	})
	return got
}

// more waits until more bytes have come.
func (c *tally) more(t *testing.T, than int64) {
	t.Helper()
	for c.n.Load() <= than {
		select {
		case <-c.news:
		case <-patient(t).Done():
			t.Fatalf("%d bytes came, not more than %d", c.n.Load(), than)
		}
	}
}

// TestNarrowWire sends through a wire that is narrower than its ends and loses what
// does not fit its queue.
func TestNarrowWire(t *testing.T) {
	const size, rate = 16 << 20, 100_000_000 / 8
	ba, wa := newWire(t, 10*time.Millisecond)
	bb, _ := newWire(t, 10*time.Millisecond)
	wa.rate, wa.queue = rate, 40*time.Millisecond
	a, b := newSide(t, ba), newSide(t, bb)
	introduce(t, a, b)
	got := count(t, b)
	c := dial(t, a, b.addr(7))
	start := time.Now()
	wrote := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, io.LimitReader(zeros{}, size))
		wrote <- err
	}()
	// With the other way of repairing losses, the stack's own default, this goes well
	// too often for a test of its own: mostly it is slow only after a timeout.
	var recovery tcpip.TCPRecovery
	if err := a.nic.stack.TransportProtocolOption(tcp.ProtocolNumber, &recovery); err != nil || recovery != 0 {
		t.Errorf("losses are repaired by %d, %v", recovery, err)
	}
	got.more(t, size-1)
	t.Logf("%.1f MB/s of %.1f", size/time.Since(start).Seconds()/1e6, rate/1e6)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestReviveDial begins a connection while nothing gets through.
func TestReviveDial(t *testing.T) {
	ba, wa := newWire(t, time.Millisecond)
	bb, _ := newWire(t, time.Millisecond)
	a, b := newSide(t, ba), newSide(t, bb)
	introduce(t, a, b)
	serve(t, b, 7, echo)
	if _, err := a.Ping(patient(t), b.id.ID().Addr()); err != nil {
		t.Fatal(err)
	}
	wa.cut.Store(true)
	dialed := make(chan error, 1)
	go func() {
		c, err := a.DialContext(patient(t), "tcp", b.addr(7))
		if err == nil {
			c.Close()
		}
		dialed <- err
	}()
	wait(1200 * time.Millisecond) // the next repetition comes at 3 s
	wa.cut.Store(false)
	start := time.Now()
	a.Revive(b.id.ID())
	if err := <-dialed; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("connected %v after the path was back", took)
	}
}

// TestRestart resets a connection only when it has repeated data twice.
func TestRestart(t *testing.T) {
	ba, wa := newWire(t, time.Millisecond)
	bb, _ := newWire(t, time.Millisecond)
	a, b := newSide(t, ba), newSide(t, bb)
	introduce(t, a, b)
	serve(t, b, 7, echo)
	c := dial(t, a, b.addr(7)).(*tracked)
	info := func() (i tcpip.TCPInfoOption) {
		if err := c.ep.GetSockOpt(&i); err != nil {
			t.Fatal(err)
		}
		return i
	}
	if c.restart() {
		t.Error("a connection that waits for nothing is taken for one that does")
	}
	wa.cut.Store(true)
	if _, err := c.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		until func(tcpip.TCPInfoOption) bool
		reset bool
	}{
		{"once", func(i tcpip.TCPInfoOption) bool { return i.CcState == tcpip.RTORecovery }, false},
		{"twice", func(i tcpip.TCPInfoOption) bool { return i.SndSsthresh <= collapsed }, true},
	} {
		ctx := patient(t)
		for !tc.until(info()) && ctx.Err() == nil {
			wait(time.Millisecond)
		}
		before := info().SndSsthresh
		if !c.restart() {
			t.Errorf("%s: does not wait", tc.name)
		}
		if after := info().SndSsthresh; (after > before) != tc.reset {
			t.Errorf("%s: threshold was %d and is %d", tc.name, before, after)
		}
	}
	if len(a.nic.words.to(time.Now(), b.id.ID().Addr(), func(ports uint32) bool { return ports == c.ports() })) != 1 {
		t.Error("the last word is not known")
	}
}

func packetTo(peer netip.Addr, port uint16, flags byte, data int) []byte {
	p := make([]byte, tcpRest+data)
	p[0], p[ipNext], p[tcpOffset], p[tcpFlags] = 0x60, 6, 5<<4, flags
	copy(p[ipTarget:], peer.AsSlice())
	binary.BigEndian.PutUint16(p[tcpPorts:], port)
	return p
}

// TestLastWords checks what is kept, for how long, and of how many.
func TestLastWords(t *testing.T) {
	one, other := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	each := func(uint32) bool { return true }
	const ack, syn = 0x10, 0x02
	for _, tc := range []struct {
		name string
		p    []byte
		word bool
	}{
		{"data", packetTo(one, 1, ack, 5), true},
		{"beginning", packetTo(one, 1, syn, 0), true},
		{"acknowledgement", packetTo(one, 1, ack, 0), false},
		{"short", packetTo(one, 1, ack, 5)[:ipHeader], false},
		{"empty", nil, false},
		{"other protocol", append(packetTo(one, 1, ack, 5)[:ipNext], make([]byte, 80)...), false},
	} {
		if got := isWord(tc.p); got != tc.word {
			t.Errorf("%s: a word: %v", tc.name, got)
		}
	}
	var l lastWords
	now := time.Unix(100, 0)
	l.note(now, packetTo(one, 1, ack, 5))
	l.note(now, packetTo(one, 1, ack, 7))
	l.note(now, packetTo(other, 1, ack, 9))
	if got := l.to(now, one, each); len(got) != 1 || len(got[0]) != tcpRest+7 {
		t.Errorf("last words: %v", got)
	}
	if got := l.to(now, one, func(ports uint32) bool { return ports != 1<<16 }); len(got) != 0 {
		t.Errorf("words of a connection that was not asked for: %v", got)
	}
	if got := l.to(now.Add(memory+1), one, each); len(got) != 0 {
		t.Errorf("old words: %v", got)
	}
	for i := range uint16(2 * maxWords) {
		l.note(now, packetTo(one, i, ack, 1))
	}
	if len(l.of) != maxWords {
		t.Errorf("%d words are kept", len(l.of))
	}
	if got := l.to(now, one, each); len(got) != maxSaid {
		t.Errorf("%d words are said", len(got))
	}
	now = now.Add(memory + 1)
	l.note(now, packetTo(other, 2, ack, 1))
	if got := l.to(now, other, each); len(got) != 1 || len(l.of) != 1 {
		t.Errorf("after all got old: %d of %d words", len(got), len(l.of))
	}
}

// TestHearing checks when a peer counts as back.
func TestHearing(t *testing.T) {
	var h hearing
	peer, now := netip.MustParseAddr("fd00::1"), time.Unix(100, 0)
	for _, tc := range []struct {
		after time.Duration
		back  bool
	}{{0, false}, {time.Millisecond, false}, {silence / 2, false}, {silence, false}, {silence + 1, true}, {1, false}} {
		now = now.Add(tc.after)
		if got := h.heard(now, peer); got != tc.back {
			t.Errorf("heard %v later: back %v", tc.after, got)
		}
	}
	h.forget(peer)
	if h.heard(now.Add(time.Hour), peer) {
		t.Error("a peer that was forgotten is back")
	}
}
