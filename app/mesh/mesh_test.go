package mesh

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is some members, each a Service, that are connected as links say.
type world struct {
	t       *testing.T
	mu      sync.Mutex
	members []*member
	cut     map[[2]int]bool // pairs that cannot connect
	hosts   map[int]bool
}

// A member is one device. Its rosters are just numbers: the version of each room.
type member struct {
	w       *world
	i       int
	id      *identity.Identity
	s       *Service
	ln      *pipeListener
	rooms   map[[16]byte]uint64
	marks   map[[16]byte][8]byte
	gave    []byte             // rosters that were judged
	in      map[[16]byte][]int // members of a room
	removed map[int][]byte
	told    []string
	knocks  atomic.Int32
	reach   chan struct{}
	ports   map[uint16]chan net.Conn
}

var room1, room2 = [16]byte{1}, [16]byte{2}

func newWorld(t *testing.T, n int) *world {
	w := &world{t: t, cut: make(map[[2]int]bool), hosts: make(map[int]bool)}
	for i := range n {
		id, err := identity.Generate()
		if err != nil {
			t.Fatal(err)
		}
		all := make([]int, n)
		for j := range all {
			all[j] = j
		}
		w.members = append(w.members, &member{
			w: w, i: i, id: id, ln: newPipeListener(), rooms: map[[16]byte]uint64{room1: 1}, marks: make(map[[16]byte][8]byte), in: map[[16]byte][]int{room1: all},
			removed: make(map[int][]byte), reach: make(chan struct{}, 1), ports: make(map[uint16]chan net.Conn),
		})
	}
	for _, m := range w.members {
		m.s = New(m.config())
		t.Cleanup(func() {
			if err := m.s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return w
}

func (w *world) index(id identity.DeviceID) int {
	return slices.IndexFunc(w.members, func(m *member) bool { return m.id.ID() == id })
}

func (m *member) config() Config {
	return Config{
		Self: m.id, Listener: m.ln,
		Dial: func(ctx context.Context, peer identity.DeviceID) (net.Conn, error) {
			j := m.w.index(peer)
			m.w.mu.Lock()
			cut := j < 0 || m.w.cut[[2]int{min(m.i, j), max(m.i, j)}]
			m.w.mu.Unlock()
			if cut {
				return nil, errors.New("no way")
			}
			return m.w.members[j].ln.dial(ctx, m.id.ID())
		},
		Who: func(a net.Addr) (identity.DeviceID, bool) { id, ok := a.(pipeAddr); return identity.DeviceID(id), ok },
		Rooms: func(peer identity.DeviceID) (out []State) {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			for room, v := range m.rooms {
				if slices.Contains(m.in[room], m.w.index(peer)) {
					out = append(out, State{room, v, m.marks[room]})
				}
			}
			return out
		},
		State: func(room [16]byte) (State, bool) {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			v, ok := m.rooms[room]
			return State{room, v, m.marks[room]}, ok
		},
		Roster: func(room [16]byte, to identity.DeviceID) ([][]byte, bool) {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			return [][]byte{{0}, {byte(m.rooms[room])}}, slices.Contains(m.in[room], m.w.index(to))
		},
		TakeRoster: func(_ identity.DeviceID, room [16]byte, roster []byte) {
			m.w.mu.Lock()
			m.gave = append(m.gave, roster...)
			newer := len(roster) == 1 && uint64(roster[0]) > m.rooms[room]
			if newer {
				m.rooms[room] = uint64(roster[0])
			}
			m.w.mu.Unlock()
			if newer {
				m.s.Changed()
			}
			m.poke()
		},
		Removed: func(peer identity.DeviceID) [][]byte {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			if notice := m.removed[m.w.index(peer)]; notice != nil {
				return [][]byte{notice}
			}
			return nil
		},
		TakeRemoved: func(_ identity.DeviceID, notice []byte) {
			m.w.mu.Lock()
			m.told = append(m.told, string(notice))
			m.w.mu.Unlock()
			m.poke()
		},
		Left: func(from identity.DeviceID, room [16]byte) bool {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			j := m.w.index(from)
			if !m.w.hosts[m.i] || !slices.Contains(m.in[room], j) {
				return false
			}
			m.in[room] = slices.DeleteFunc(slices.Clone(m.in[room]), func(k int) bool { return k == j })
			return true
		},
		Together: func(a, b identity.DeviceID) bool {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			for room := range m.rooms {
				if slices.Contains(m.in[room], m.w.index(a)) && slices.Contains(m.in[room], m.w.index(b)) {
					return true
				}
			}
			return false
		},
		Reachable: m.poke,
		Host: func(peer identity.DeviceID) bool {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			return m.w.hosts[m.w.index(peer)]
		},
		Knock: func(identity.DeviceID) { m.knocks.Add(1); m.poke() },
		Accept: func(_ identity.DeviceID, port uint16) (func(net.Conn), bool) {
			m.w.mu.Lock()
			defer m.w.mu.Unlock()
			ch, ok := m.ports[port]
			return func(c net.Conn) { ch <- c }, ok
		},
	}
}

func (m *member) poke() {
	select {
	case m.reach <- struct{}{}:
	default:
	}
}

// until waits for something that events bring about.
func (m *member) until(what string, ok func() bool) {
	m.w.t.Helper()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-m.reach:
		case <-timeout:
			m.w.t.Fatal(what)
		}
	}
}

func (w *world) connect(i, j int) {
	w.members[i].s.Connected(w.members[j].id.ID())
	w.members[j].s.Connected(w.members[i].id.ID())
}

func (w *world) disconnect(i, j int) {
	w.members[i].s.Gone(w.members[j].id.ID())
	w.members[j].s.Gone(w.members[i].id.ID())
}

func (m *member) near(j int) bool { d, _ := m.s.Near(m.w.members[j].id.ID()); return d }

func (m *member) by(j int) int { _, by := m.s.Near(m.w.members[j].id.ID()); return len(by) }

// open makes a port of a member take streams.
func (m *member) open(port uint16) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.ports[port] = make(chan net.Conn, 1)
}

// star connects all members to the first one, and no two others.
func star(t *testing.T, n int) *world {
	w := newWorld(t, n)
	w.mu.Lock()
	for j := 1; j < n; j++ {
		for k := 1; k < j; k++ {
			w.cut[[2]int{k, j}] = true
		}
	}
	w.mu.Unlock()
	for j := 1; j < n; j++ {
		w.connect(0, j)
	}
	for j := 1; j < n; j++ {
		w.members[j].until("no way between members", func() bool {
			for k := 1; k < n; k++ {
				if k != j && w.members[j].by(k) == 0 {
					return false
				}
			}
			return w.members[j].near(0)
		})
	}
	return w
}

func TestRosters(t *testing.T) {
	w := newWorld(t, 3)
	w.members[2].rooms[room1] = 9
	w.connect(0, 1)
	w.connect(1, 2)
	for _, m := range w.members {
		m.until("roster did not come", func() bool { v, _ := m.config().State(room1); return v.Version == 9 })
	}
	// One that changes while they are connected goes to all.
	w.mu.Lock()
	w.members[0].rooms[room1] = 10
	w.mu.Unlock()
	w.members[0].s.Changed()
	for _, m := range w.members {
		m.until("newer roster did not come", func() bool { v, _ := m.config().State(room1); return v.Version == 10 })
	}
}

// TestLeave: a host takes a member at its word that it leaves, and nobody else does.
func TestLeave(t *testing.T) {
	w := newWorld(t, 3)
	w.hosts[0] = true
	one := w.members[1]
	if err := one.s.Leave(t.Context(), w.members[2].id.ID(), room1); !errors.Is(err, ErrRefused) {
		t.Errorf("no host: %v", err)
	}
	if err := one.s.Leave(t.Context(), w.members[0].id.ID(), room2); !errors.Is(err, ErrRefused) {
		t.Errorf("another room: %v", err)
	}
	if err := one.s.Leave(t.Context(), w.members[0].id.ID(), room1); err != nil {
		t.Error(err)
	}
	if in := w.members[0].in[room1]; !slices.Equal(in, []int{0, 2}) {
		t.Errorf("the host has %v", in)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := one.s.Leave(ctx, w.members[0].id.ID(), room1); !errors.Is(err, context.Canceled) {
		t.Errorf("no time: %v", err)
	}
}

func TestRemoved(t *testing.T) {
	w := newWorld(t, 2)
	w.members[0].in[room1] = []int{0}
	w.members[0].removed[1] = []byte("out")
	w.members[0].rooms[room1] = 7
	w.connect(0, 1)
	m := w.members[1]
	m.until("notice did not come", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return slices.Contains(m.told, "out") })
	if v, _ := m.config().State(room1); v.Version != 1 {
		t.Errorf("it got roster %+v of a room that it is not in", v)
	}
}

func TestFramesByWay(t *testing.T) {
	w := star(t, 3)
	a, b := w.members[1], w.members[2]
	topic := rendezvous.Topic{5}
	exA, exB := a.s.Exchange(b.id.ID()), b.s.Exchange(a.id.ID())
	sa, err := exA.Join(t.Context(), rendezvous.Point{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := exB.Join(t.Context(), rendezvous.Point{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		frame := bytes.Repeat([]byte{byte(i)}, rendezvous.FrameSize)
		if err := sa.Publish(t.Context(), frame); err != nil {
			t.Fatal(err)
		}
		got, err := sb.Receive(t.Context())
		if err != nil || !bytes.Equal(got.Frame, frame) || got.Exchange != "room" {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if h := exA.Health(); !h.Ready {
		t.Errorf("%+v", h)
	}
	if err := sa.Publish(t.Context(), make([]byte, 10)); !errors.Is(err, rendezvous.ErrFrameSize) {
		t.Error(err)
	}
	w.disconnect(0, 2)
	a.until("it is still thought to be near", func() bool { return a.by(2) == 0 })
	if err := sa.Publish(t.Context(), make([]byte, rendezvous.FrameSize)); !errors.Is(err, rendezvous.ErrUnreachable) {
		t.Error(err)
	}
	if err := errors.Join(exA.Close(), exB.Close()); err != nil {
		t.Error(err)
	}
	if _, err := sb.Receive(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := exA.Join(t.Context(), rendezvous.Point{}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestStreamByWay(t *testing.T) {
	w := star(t, 3)
	a, b := w.members[1], w.members[2]
	b.open(80)
	conn, err := a.s.Dial(t.Context(), b.id.ID(), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far := <-b.ports[80]
	if got := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != a.id.ID().Addr() {
		t.Errorf("comes from %v", got)
	}
	data := bytes.Repeat([]byte("kith"), 100_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer far.Close()
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, err := far.Write(data[:1000]); err != nil {
			t.Error(err)
		}
	})
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if back, err := io.ReadAll(conn); err != nil || !bytes.Equal(back, data[:1000]) {
		t.Errorf("%d bytes back, %v", len(back), err)
	}
	wg.Wait()
	if _, err := a.s.Dial(t.Context(), b.id.ID(), 81); !errors.Is(err, ErrRefused) {
		t.Errorf("a port that is not open: %v", err)
	}
}

// TestStreamRefused asks for what a member in the middle or at the end must not give.
func TestStreamRefused(t *testing.T) {
	w := star(t, 4)
	a, b, c := w.members[1], w.members[2], w.members[3]
	b.open(80)
	// c is in no room with b, says the one in the middle.
	w.mu.Lock()
	w.members[0].in[room1] = []int{0, 1, 2}
	w.members[0].in[room2] = []int{0, 3}
	w.members[0].rooms[room2] = 1
	w.mu.Unlock()
	if _, err := c.s.Dial(t.Context(), b.id.ID(), 80); !errors.Is(err, ErrNoWay) {
		t.Errorf("between rooms: %v", err)
	}
	// The one at the end knows nothing of a.
	w.mu.Lock()
	b.in[room1] = []int{0, 2}
	w.mu.Unlock()
	if _, err := a.s.Dial(t.Context(), b.id.ID(), 80); !errors.Is(err, ErrNoWay) {
		t.Errorf("to one that does not know it: %v", err)
	}
	// Nobody is connected to the other.
	w.mu.Lock()
	b.in[room1] = []int{0, 1, 2}
	w.mu.Unlock()
	w.disconnect(0, 2)
	a.until("it is still thought to be near", func() bool { return a.by(2) == 0 })
	if _, err := a.s.Dial(t.Context(), b.id.ID(), 80); !errors.Is(err, ErrNoWay) {
		t.Errorf("with no way: %v", err)
	}
}

// TestStreamOfAnother has the member in the middle answer in the place of the other end,
// and name another origin.
func TestStreamOfAnother(t *testing.T) {
	w := star(t, 3)
	a, b, m := w.members[1], w.members[2], w.members[0]
	b.open(80)
	// The middle is a TLS server with its own key.
	left, right := net.Pipe()
	defer left.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer right.Close()
		sec, err := m.s.secure(right, a.id.ID(), true)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.ReadFull(sec, make([]byte, 2)) // the caller must have gone
	})
	sec, err := a.s.secure(left, b.id.ID(), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := sec.HandshakeContext(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("a wrong end: %v", err)
	}
	left.Close()
	wg.Wait()
	// The middle says that it is a who calls b.
	conn, err := b.ln.dial(t.Context(), m.id.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := a.id.ID()
	if _, err := conn.Write(append([]byte{connRelayed}, from[:]...)); err != nil {
		t.Fatal(err)
	}
	if err := status(conn); err != nil {
		t.Fatal(err)
	}
	fake, err := m.s.secure(conn, b.id.ID(), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fake.Write([]byte{0, 80}); err == nil {
		_, err = fake.Read(make([]byte, 1))
		if err == nil {
			t.Error("another device was taken for a member")
		}
	}
	select {
	case <-b.ports[80]:
		t.Error("it got a stream of another device")
	default:
	}
}

// TestHostileSession sends what no honest member sends.
func TestHostileSession(t *testing.T) {
	for name, raw := range map[string][]byte{
		"nothing":         {},
		"another kind":    {9},
		"too long":        {connSession, byte(msgWant), 0xff, 0xff, 0xff},
		"half a state":    append([]byte{connSession}, message(msgRooms, make([]byte, 7))...),
		"half an id":      append([]byte{connSession}, message(msgNear, make([]byte, 33))...),
		"a short frame":   append([]byte{connSession}, message(msgFrame, make([]byte, 100))...),
		"an empty roster": append([]byte{connSession}, message(msgRoster, room1[:])...),
		"floods":          append([]byte{connSession}, bytes.Repeat(message(msgWant, room2[:]), 3000)...),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			conn, err := w.members[0].ln.dial(t.Context(), w.members[1].id.ID())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = conn.Write(raw) // it may be cut off in the middle
				if len(raw) == 0 {
					conn.Close()
				}
			})
			_, _ = io.Copy(io.Discard, conn) // until the other side has ended it
			wg.Wait()
		})
	}
	t.Run("not a member", func(t *testing.T) {
		w := newWorld(t, 3)
		w.members[0].in[room1] = []int{0, 1}
		conn, err := w.members[0].ln.dial(t.Context(), w.members[2].id.ID())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{connSession}); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, conn); n > 0 || err != nil {
			t.Errorf("it was told %d bytes, %v", n, err)
		}
	})
}

// TestFramesNotForwardedTwice holds that a frame goes one step and under one's own name.
func TestFramesNotForwardedTwice(t *testing.T) {
	w := star(t, 4)
	b := w.members[2]
	s, err := b.s.Exchange(w.members[1].id.ID()).Join(t.Context(), rendezvous.Point{Topic: rendezvous.Topic{1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := w.members[1]
	send := func(from identity.DeviceID, mark byte) {
		frame := bytes.Repeat([]byte{mark}, rendezvous.FrameSize)
		a.s.sendTo(w.members[0].id.ID(), relayed{to: b.id.ID(), from: from, topic: rendezvous.Topic{1}, frame: frame}.encode())
	}
	send(w.members[3].id.ID(), 1) // under another's name
	send(a.id.ID(), 2)
	msg, err := s.Receive(t.Context())
	if err != nil || msg.Frame[0] != 2 {
		t.Errorf("frame %d came first, %v", msg.Frame[0], err)
	}
	// For a topic that is not open the member is told that somebody looks for it.
	a.s.sendTo(w.members[0].id.ID(), relayed{to: b.id.ID(), from: a.id.ID(), topic: rendezvous.Topic{2}, frame: make([]byte, rendezvous.FrameSize)}.encode())
	b.until("no knock", func() bool { return b.knocks.Load() == 1 })
}

// TestForget ends what a device has that is no member any more.
func TestForget(t *testing.T) {
	w := star(t, 3)
	a, b := w.members[1], w.members[2]
	b.open(80)
	conn, err := a.s.Dial(t.Context(), b.id.ID(), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far := <-b.ports[80]
	b.s.Forget(a.id.ID())
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes of a stream that was ended", n)
	}
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the stream goes on")
	}
	w.members[0].s.Forget(a.id.ID())
	a.until("the session goes on", func() bool { return !a.near(0) || !w.members[0].near(1) })
}

func TestCallsAgain(t *testing.T) {
	w := newWorld(t, 2)
	w.connect(0, 1)
	a, b := w.members[0], w.members[1]
	a.until("no session", func() bool { return a.near(1) })
	b.until("no session", func() bool { return b.near(0) })
	a.s.mu.Lock()
	ses := a.s.sessions[b.id.ID()]
	a.s.mu.Unlock()
	ses.conn.Close() // as a network would
	a.until("no new session", func() bool {
		a.s.mu.Lock()
		defer a.s.mu.Unlock()
		now := a.s.sessions[b.id.ID()]
		return now != nil && now != ses
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(message(msgRooms, encodeStates([]State{{room1, 3, [8]byte{4}}})))
	f.Add(message(msgNear, make([]byte, 64)))
	f.Add(relayed{frame: make([]byte, rendezvous.FrameSize)}.encode())
	f.Add(message(msgRoster, append(room1[:], "roster"...)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, body, err := readMessage(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if len(body) > maxBody(k) {
			t.Fatalf("%d bytes", len(body))
		}
		if states, err := parseStates(body); err == nil && !bytes.Equal(encodeStates(states), body) {
			t.Error("states")
		}
		if ids, err := parseIDs(body); err == nil && !bytes.Equal(encodeIDs(ids), body) {
			t.Error("ids")
		}
		if r, err := parseRelayed(body); err == nil && !bytes.Equal(r.encode(), message(msgFrame, body)) {
			t.Error("frame")
		}
		if room, roster, err := parseRoster(body); err == nil && !bytes.Equal(append(room[:], roster...), body) {
			t.Error("roster")
		}
	})
}
