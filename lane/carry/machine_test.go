package carry

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A span is some bytes of a stream, by their offsets.
type span struct{ from, to uint64 }

// A queue is bytes on their way.
type queue []span

func (q *queue) add(from, to uint64) {
	if from < to {
		*q = append(*q, span{from, to})
	}
}

// take takes up to n bytes, which must be those from an offset on.
func (q *queue) take(n int, at uint64) (taken int, right bool) {
	for n > 0 && len(*q) > 0 {
		s := &(*q)[0]
		if s.from != at {
			return taken, false
		}
		m := min(uint64(n), s.to-s.from)
		s.from, at, taken, n = s.from+m, at+m, taken+int(m), n-int(m)
		if s.from == s.to {
			*q = (*q)[1:]
		}
	}
	return taken, true
}

// A modelEnd is a machine with the carriers around it, as a Conn is, but all in one thread.
type modelEnd struct {
	m       machine
	dialer  bool
	peer    *modelEnd
	control []message // on their way to here
	tunnel  queue     // the same
	tunFin  bool
	lane    queue // of this epoch, on its way to here
	cut     bool  // the lane to here has ended: what has come can be read
	held    span  // what is kept
	most    int   // of the Read under way
	again   bool  // resend waits for its turn
	answer  bool  // the other side's answer on the lane is on its way to here
}

func (e *modelEnd) flush() {
	e.peer.control = append(e.peer.control, e.m.out...)
	e.m.out = nil
}

// write is what Conn.put does.
func (e *modelEnd) write(n int, now time.Time) {
	if e.m.fin {
		return
	}
	to, most := e.m.writing(now)
	from := e.m.sent
	switch to {
	case tunnel:
		e.m.wrote(n, now)
		e.peer.tunnel.add(from, e.m.sent)
	case lane:
		if e.held.from == e.held.to {
			e.held = span{from, from}
		}
		e.m.wrote(min(n, most), now)
		e.held.to = e.m.sent
		if !e.peer.cut { // what is written to a dead lane is lost
			e.peer.lane.add(from, e.m.sent)
		}
	}
	e.flush()
}

// read is what Conn.Read does; it reports whether the bytes are right.
func (e *modelEnd) read(n int, now time.Time) (right bool) {
	from, most := e.m.reading()
	right = true
	if e.m.busy { // it began to wait there before what has happened since
		from, most = lane, e.most
	}
	switch from {
	case tunnel:
		if n, right = e.tunnel.take(min(n, most), e.m.got); n == 0 && e.tunFin && len(e.tunnel) == 0 && most > 0 {
			if !e.m.tunnelEnd() {
				return false
			}
		}
		e.m.read(tunnel, n, now)
	case lane:
		if !e.m.bound {
			return false
		}
		e.m.busy = true
		n, right = e.lane.take(min(n, most), e.m.got)
		e.m.read(lane, n, now)
		if n == 0 && e.cut {
			e.leave()
		}
	}
	e.flush()
	return right
}

// begin begins a Read of the lane, which read ends.
func (e *modelEnd) begin() {
	if from, most := e.m.reading(); from == lane && !e.m.busy {
		e.m.busy, e.most = true, most
	}
}

// lost says that the lane is aborted: both directions end, and what was on the way to
// here is lost, but for what a Read has already.
func (e *modelEnd) lost() {
	e.cut, e.peer.cut = true, true
	if !e.m.busy {
		e.lane = nil
	}
}

func (e *modelEnd) leave() {
	e.m.leave()
	if e.m.bound {
		e.lost()
	}
	e.flush()
}

// deliver takes the next message. It errs as the machine does.
func (e *modelEnd) deliver(now time.Time) error {
	if len(e.control) == 0 {
		return nil
	}
	g := e.control[0]
	e.control = e.control[1:]
	was := e.m.gone
	again, err := e.m.receive(g, now, e.dialer)
	if err != nil {
		return err
	}
	if g.kind == kindAck && e.m.switched {
		e.held.from = min(max(e.held.from, e.m.acked), e.held.to)
	}
	if e.m.gone && !was && e.m.bound {
		e.lost()
	}
	e.again = e.again || again
	e.flush()
	return nil
}

// resend is what Conn.again does.
func (e *modelEnd) resend() {
	if !e.again {
		return
	}
	e.again = false
	if e.held.from < e.held.to {
		e.peer.tunnel.add(max(e.m.resend, e.held.from), e.held.to)
	}
	e.held = span{}
	if e.m.resent() {
		e.peer.tunFin = true
	}
	e.flush()
}

func (e *modelEnd) end() {
	if e.m.end() {
		e.peer.tunFin = true
	}
	e.flush()
}

// join opens a lane as the dialer. how says what comes of it: 0 it stands on both sides,
// 1 it does not get there, 2 it gets there and the answer is lost, 3 the answer comes later.
func join(a, b *modelEnd, how int, now time.Time) {
	if a.m.start(a.m.epoch+1) != nil {
		return
	}
	epoch := a.m.epoch
	if how != 1 && b.m.start(epoch) == nil {
		a.cut, b.cut, a.lane, b.lane = false, false, nil, nil
		b.m.bind(now)
		switch how {
		case 0:
			a.m.bind(now)
			return
		case 3:
			a.answer = true
			return
		}
		a.cut, b.cut = true, true
	}
	a.leave()
}

// answered is what Conn.Join does at last.
func (e *modelEnd) answered(now time.Time) {
	if !e.answer {
		return
	}
	e.answer = false
	if e.cut || !e.m.bind(now) {
		e.lost()
		e.leave()
	}
}

// TestMachine has two ends write, read, move to lanes and lose them in any order: each byte
// comes once and in order, nothing waits for ever, and no end takes the other for a cheat.
func TestMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		a, b := &modelEnd{dialer: true}, &modelEnd{}
		a.peer, b.peer = b, a
		ends := []*modelEnd{a, b}
		pick := rapid.IntRange(0, 1)
		size := rapid.SampledFrom([]int{0, 1, 7, 300, 70_000, 3 << 20})
		step := func(what string, e *modelEnd, n int) {
			switch what {
			case "write":
				e.write(n, now)
			case "read":
				if !e.read(n, now) {
					t.Fatalf("wrong bytes near %d, or an end before it", e.m.got)
				}
			case "begin":
				e.begin()
			case "deliver":
				var g message
				if len(e.control) > 0 {
					g = e.control[0]
				}
				if err := e.deliver(now); err != nil {
					t.Fatalf("%+v: %v: %+v", g, err, e.m)
				}
			case "resend":
				e.resend()
			case "leave":
				if e.m.bound {
					e.leave()
				}
			case "cut":
				e.cut, e.peer.cut = true, true
			case "join":
				join(a, b, n%4, now)
			case "answer":
				e.answered(now)
			case "tick":
				now = now.Add(time.Duration(n%3) * time.Second)
				if e.m.tick(now) {
					e.leave()
				}
				e.flush()
			case "end":
				if n <= 1 {
					e.end()
				}
			}
		}
		what := rapid.SampledFrom([]string{
			"write", "write", "read", "read", "begin", "deliver", "deliver", "deliver", "resend", "leave", "cut", "join", "join", "answer", "tick", "end",
		})
		for range rapid.SampledFrom([]int{4, 12, 40, 150, 400}).Draw(t, "steps") {
			step(what.Draw(t, "what"), ends[pick.Draw(t, "end")], size.Draw(t, "size"))
		}
		for _, e := range ends {
			e.end()
		}
		// From here on nothing fails any more: all must arrive.
		for range 40 {
			for _, e := range ends {
				for len(e.control) > 0 {
					step("deliver", e, 0)
				}
				step("answer", e, 0)
				step("resend", e, 0)
				step("read", e, 1<<30)
				step("tick", e, 1)
			}
		}
		for i, e := range ends {
			if !e.m.ended || e.m.got != e.m.ends || e.m.got != ends[1-i].m.sent {
				t.Fatalf("end %d has read %d of %d, ended %v\n%+v\n%+v", i, e.m.got, ends[1-i].m.sent, e.m.ended, e.m, ends[1-i].m)
			}
			if e.held.to-e.held.from > window {
				t.Fatalf("%v is held", e.held)
			}
		}
	})
}

// TestMachineRefuses has what another device may claim, and must not.
func TestMachineRefuses(t *testing.T) {
	now := time.Unix(1e9, 0)
	for name, g := range map[string]message{
		"an ack beyond what was sent":     {kindAck, 1, 101},
		"back beyond what was sent":       {kindBack, 1, 101},
		"back before what was asked for":  {kindBack, 1, 49},
		"another epoch":                   {kindAck, 2, 50},
		"back of the next epoch":          {kindBack, 2, 100},
		"a switch before what was read":   {kindSwitch, 1, 9},
		"an end before what was read":     {kindEnd, 1, 9},
		"a second switch":                 {kindSwitch, 1, 30},
		"an end before the lane's begin":  {kindEnd, 1, 19},
		"a hello in the middle of things": {kindHello, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := machine{sent: 40, got: 10}
			if err := m.start(1); err != nil || !m.bind(now) {
				t.Fatal("no lane")
			}
			m.writing(now)
			m.wrote(60, now)
			for _, ok := range []message{{kindAck, 1, 50}, {kindAck, 1, 45}} { // an older ack is none
				if _, err := m.receive(ok, now, false); err != nil {
					t.Fatal(err)
				}
			}
			if g.kind == kindEnd && g.offset == 19 || g.offset == 30 {
				if _, err := m.receive(message{kindSwitch, 1, 20}, now, false); err != nil {
					t.Fatal(err)
				}
			}
			if m.acked != 50 {
				t.Fatalf("acked %d", m.acked)
			}
			if _, err := m.receive(g, now, false); err == nil {
				t.Errorf("%+v was taken", g)
			}
		})
	}
	// Who asks and asks, and never listens, is not answered for ever.
	var m machine
	var err error
	n := 0
	for ; err == nil && n < 10*maxWaiting; n++ {
		_, err = m.receive(message{kindBack, uint32(n + 1), 0}, now, false)
	}
	if len(m.out) > maxWaiting+1 || n > maxWaiting+2 {
		t.Errorf("%d messages wait after %d", len(m.out), n)
	}
}

// FuzzMessage holds that what is parsed is what was sent, and that a machine survives all
// of it within its bounds.
func FuzzMessage(f *testing.F) {
	m1, m2 := message{kindSwitch, 1, 0}.encode(), message{kindBack, 1, 1 << 63}.encode()
	lane1 := names(kindLane, Ports{1, 2}, 3)
	f.Add(m1[:], m2[:])
	f.Add(lane1[:], m1[:])
	f.Fuzz(func(t *testing.T, x, y []byte) {
		now := time.Unix(1e9, 0)
		for _, dialer := range []bool{false, true} {
			m := machine{sent: 100, got: 100}
			_ = m.start(1)
			m.bind(now)
			m.writing(now)
			m.wrote(window, now)
			for _, raw := range [][]byte{x, y, x} {
				if len(raw) < Size {
					return
				}
				b := [Size]byte(raw)
				if p, epoch, err := parseNames(b[0], b); err == nil && names(b[0], p, epoch) != b {
					t.Fatalf("%x is read as %v %d", b, p, epoch)
				}
				g, err := parse(b)
				if err != nil {
					continue
				}
				if g.encode() != b {
					t.Fatalf("%x is read as %+v", b, g)
				}
				if _, err := m.receive(g, now, dialer); err != nil {
					break
				}
				m.tick(now.Add(time.Second))
				if from, most := m.reading(); most < 0 || from == over && m.got != m.ends {
					t.Fatalf("reads %d of %v: %+v", most, from, m)
				}
				if m.acked > m.sent || m.resend > m.sent || m.send == lane && m.sent-m.acked > window {
					t.Fatalf("%+v", m)
				}
			}
		}
	})
}

// TestMachineLeaves holds when a lane is left: when nothing is acknowledged, when nothing
// is carried, and when its keys have carried enough.
func TestMachineLeaves(t *testing.T) {
	start := time.Unix(1e9, 0)
	after := func(d time.Duration) time.Time { return start.Add(d) }
	on := func() *machine {
		m := &machine{}
		if err := m.start(1); err != nil || !m.bind(start) {
			t.Fatal("no lane")
		}
		m.writing(start)
		return m
	}
	m := on()
	if m.tick(after(idleAfter-1)) || !m.tick(after(idleAfter)) {
		t.Error("an idle lane is left too soon, or never")
	}
	m = on()
	m.wrote(10, after(time.Second))
	m.progress = after(time.Second)
	if m.tick(after(time.Second+stallAfter-1)) || !m.tick(after(time.Second+stallAfter)) {
		t.Error("a dead lane is left too soon, or never")
	}
	if _, err := m.receive(message{kindAck, 1, 5}, after(2*time.Second), true); err != nil || m.tick(after(2*time.Second+stallAfter-1)) {
		t.Errorf("a slow lane is left: %v", err)
	}
	m = on()
	for range maxLane / window {
		if m.tick(start) {
			t.Fatalf("left after %d bytes", m.sent)
		}
		m.wrote(window, start)
		if _, err := m.receive(message{kindAck, 1, m.sent}, start, true); err != nil {
			t.Fatal(err)
		}
	}
	if !m.tick(start) {
		t.Error("its keys carry for ever")
	}
}
