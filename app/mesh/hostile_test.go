package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
)

// speak opens a session of a member by hand, which says what the test has it say; what it
// hears goes to hear.
func (w *world) speak(t *testing.T, from, to int, hear io.Writer, say ...[]byte) net.Conn {
	t.Helper()
	c, err := w.members[to].ln.dial(t.Context(), w.members[from].id.ID())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(hear, c) // until the test ends it
	}()
	t.Cleanup(func() { c.Close(); <-done })
	if _, err := c.Write(slices.Concat(append([][]byte{{connSession}}, say...)...)); err != nil {
		t.Fatal(err)
	}
	return c
}

// lies makes a member a hostile one, which says to member 0 that it is near to member 2,
// and answers every connection as it likes.
func (w *world) lies(t *testing.T, i int, answer func(net.Conn)) {
	t.Helper()
	if err := w.members[i].s.Close(); err != nil {
		t.Fatal(err)
	}
	ln := newPipeListener()
	w.mu.Lock()
	w.members[i].ln = ln
	w.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go answer(c)
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	w.speak(t, i, 0, io.Discard, message(msgNear, encodeIDs([]identity.DeviceID{w.members[2].id.ID()})))
}

// TestDialPastLiar has a member, a host even, say that it is connected to the other end.
func TestDialPastLiar(t *testing.T) {
	for name, answer := range map[string]func(w *world, c net.Conn){
		"stalls": func(*world, net.Conn) {},
		"refuses": func(_ *world, c net.Conn) {
			defer c.Close()
			_, _ = io.ReadFull(c, make([]byte, 1+identity.IDSize))
			_, _ = c.Write([]byte{statusDenied})
		},
		"answers itself": func(w *world, c net.Conn) {
			defer c.Close()
			_, _ = io.ReadFull(c, make([]byte, 1+identity.IDSize))
			_, _ = c.Write([]byte{statusOK})
			if sec, err := w.members[1].s.secure(c, w.members[0].id.ID(), true); err == nil {
				_, _ = io.Copy(sec, sec)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 4)
			w.hosts[1] = true
			w.lies(t, 1, func(c net.Conn) { answer(w, c) })
			w.connect(0, 3)
			w.connect(3, 2)
			a, b := w.members[0], w.members[2]
			a.until("no two ways", func() bool { return a.by(2) == 2 })
			b.open(80)
			ctx, cancel := context.WithTimeout(t.Context(), 2*wayTime+helloTime)
			defer cancel()
			conn, err := a.s.Dial(ctx, b.id.ID(), 80)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			(<-b.ports[80]).Close()
		})
	}
}

// TestFramesPastLiars has more members say that they pass frames on than a frame is sent by.
func TestFramesPastLiars(t *testing.T) {
	w := newWorld(t, 7)
	for i := 4; i < 7; i++ {
		w.lies(t, i, func(net.Conn) {})
	}
	w.connect(0, 3)
	w.connect(3, 2)
	a, b := w.members[0], w.members[2]
	a.until("not all ways", func() bool { return a.by(2) == 4 })
	topic := rendezvous.Point{Topic: rendezvous.Topic{5}}
	from, err := a.s.Exchange(b.id.ID()).Join(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	to, err := b.s.Exchange(a.id.ID()).Join(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := from.Publish(t.Context(), make([]byte, rendezvous.FrameSize)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := to.Receive(ctx); err != nil {
		t.Errorf("no frame came: %v", err)
	}
}

// TestFlap opens and closes sessions as fast as it goes: others keep theirs.
func TestFlap(t *testing.T) {
	const n = 40
	w := newWorld(t, n)
	for j := 2; j < n; j++ {
		w.connect(0, j)
	}
	m := w.members[0]
	sessions := func() map[identity.DeviceID]*session {
		m.s.mu.Lock()
		defer m.s.mu.Unlock()
		out := make(map[identity.DeviceID]*session)
		for id, ses := range m.s.sessions {
			if id != w.members[1].id.ID() {
				out[id] = ses
			}
		}
		return out
	}
	m.until("not all", func() bool { return len(sessions()) == n-2 })
	before := sessions()
	hello := []byte{connSession}
	for range 3000 {
		c, err := m.ln.dial(t.Context(), w.members[1].id.ID())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(hello) // it may be closed already
		c.Close()
	}
	for id, ses := range sessions() {
		if before[id] != ses {
			t.Errorf("the session of %s is another one", id.Short())
		}
	}
	if got := len(sessions()); got != n-2 {
		t.Errorf("%d of %d sessions are left", got, n-2)
	}
	// What has changed is told, and once it is over everybody knows the same.
	w.connect(0, 1)
	for j := 2; j < n; j++ {
		w.members[j].until("it was not told", func() bool { return w.members[j].by(1) == 1 })
	}
}

// TestFork brings rosters of one version to each other.
func TestFork(t *testing.T) {
	w := newWorld(t, 2)
	w.members[0].rooms[room1], w.members[1].rooms[room1] = 5, 5
	w.members[1].marks[room1] = [8]byte{1}
	w.connect(0, 1)
	for _, m := range w.members {
		m.until("it was not given", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return slices.Contains(m.gave, 5) })
	}
}

// kinds counts messages by their kind as they come.
type kinds struct {
	in  chan kind
	buf bytes.Buffer
}

func (k *kinds) Write(p []byte) (int, error) {
	k.buf.Write(p)
	for {
		raw := k.buf.Bytes()
		if len(raw) < headerSize {
			return len(p), nil
		}
		n := int(binary.BigEndian.Uint32(raw) & 0xffffff)
		if len(raw) < headerSize+n {
			return len(p), nil
		}
		k.in <- kind(raw[0])
		k.buf.Next(headerSize + n)
	}
}

// TestRostersForOneAsker asks for one roster over and over.
func TestRostersForOneAsker(t *testing.T) {
	for name, flood := range map[string][]byte{
		"in one list": message(msgRooms, encodeStates(slices.Repeat([]State{{Room: room1}}, maxRooms))),
		"many times":  bytes.Repeat(message(msgWant, room1[:]), 1000),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			got := &kinds{in: make(chan kind, 1<<14)}
			w.speak(t, 1, 0, got, flood, message(msgRooms, encodeStates([]State{{Room: room1, Version: 9}})))
			most := 2 * (giveMost + 2*giveRate) // each brings two
			if name == "in one list" {
				most = 4
			}
			given := 0.0
			for k := range got.in {
				if k == msgRoster {
					given++
				}
				if k == msgWant { // all before has been heard
					break
				}
			}
			if given > most {
				t.Errorf("%v rosters were sent, at most %v are due", given, most)
			}
		})
	}
}

// TestRostersTakenSlowly sends more rosters than are judged at once.
func TestRostersTakenSlowly(t *testing.T) {
	const more = 8
	w := newWorld(t, 3)
	began := time.Now()
	w.speak(t, 1, 0, io.Discard, bytes.Repeat(message(msgRoster, room1[:], []byte{0}), takeMost+more),
		message(msgNear, encodeIDs([]identity.DeviceID{w.members[2].id.ID()})))
	w.members[0].until("what came after was not heard", func() bool { return w.members[0].by(2) == 1 })
	if took := time.Since(began); took < time.Second*(more-1)/takeRate {
		t.Errorf("%d were judged in %v", int(takeMost)+more, took)
	}
}

// TestKnocks has one member say that others look for this one.
func TestKnocks(t *testing.T) {
	w := newWorld(t, 3)
	a := w.members[0].id.ID()
	frame := relayed{to: a, from: w.members[2].id.ID(), frame: make([]byte, rendezvous.FrameSize)}.encode()
	w.speak(t, 1, 0, io.Discard, bytes.Repeat(frame, 500), message(msgNear, encodeIDs([]identity.DeviceID{w.members[2].id.ID()})))
	w.members[0].until("what came after was not heard", func() bool { return w.members[0].by(2) == 1 })
	if n := w.members[0].knocks.Load(); n == 0 || n > knockMost+5 {
		t.Errorf("%d knocks", n)
	}
}

// TestStreamsByOrigin fills a device with streams that one member passes on.
func TestStreamsByOrigin(t *testing.T) {
	w := newWorld(t, 3)
	s := w.members[0].s
	add := func(peer, origin identity.DeviceID) bool {
		c, other := net.Pipe()
		t.Cleanup(func() { c.Close(); other.Close() })
		s.mu.Lock()
		s.conns[c] = &served{peer: peer}
		s.mu.Unlock()
		ok := s.claim(c, origin)
		if !ok {
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}
		return ok
	}
	via := w.members[1].id.ID()
	for i := range maxConns {
		if !add(via, identity.DeviceID{byte(i / perPeer)}) {
			t.Fatalf("stream %d of %d members was refused", i, i/perPeer)
		}
	}
	if add(via, identity.DeviceID{0}) {
		t.Error("one member has more than its share")
	}
	for range someConns {
		if !add(via, identity.DeviceID{0xff}) {
			t.Error("another one has none")
		}
	}
	if add(via, identity.DeviceID{0xff}) {
		t.Error("it has more than some while there are so many")
	}
	w.connect(0, 1) // sessions have room, also with who passed all that on
	w.members[0].until("no session", func() bool { return w.members[0].near(1) })
	s.mu.Lock()
	clear(s.conns) // which nobody serves
	s.mu.Unlock()
}

// TestUnprovedStreams has a member open streams by way of another one, and not say who it is.
func TestUnprovedStreams(t *testing.T) {
	w := newWorld(t, 4)
	ask := func(from int) error {
		c, err := w.members[0].ln.dial(t.Context(), w.members[1].id.ID())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		id := w.members[from].id.ID()
		if _, err := c.Write(append([]byte{connRelayed}, id[:]...)); err != nil {
			t.Fatal(err)
		}
		return status(c)
	}
	for range unproved {
		if err := ask(2); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(2); !errors.Is(err, ErrRefused) {
		t.Errorf("one more: %v", err)
	}
	if err := ask(3); err != nil {
		t.Errorf("of another member, by the same one: %v", err)
	}
}
