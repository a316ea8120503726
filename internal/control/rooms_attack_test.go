package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/room"
)

// An eve has the code of a room and not its password, and the broker is hers.
type eve struct {
	t    *testing.T
	b    *badBroker
	code code.Room
	keys code.Keys
}

func newEve(t *testing.T, b *badBroker, c code.Room) *eve {
	t.Helper()
	keys, err := c.Keys()
	if err != nil {
		t.Fatal(err)
	}
	return &eve{t, b, c, keys}
}

// self is a new device of hers, and what it says of itself.
func (e *eve) self() (*identity.Identity, pairing.Info) {
	e.t.Helper()
	id, err := identity.Generate()
	if err != nil {
		e.t.Fatal(err)
	}
	return id, pairing.Info{Name: "eve", WireGuard: id.WireGuardPublic(), Version: "1", Day: wire.Day(time.Now())}
}

// listen joins the code's topic and brings its frames.
func (e *eve) listen(ctx context.Context, role pairing.Role) (rendezvous.Session, <-chan []byte, func()) {
	e.t.Helper()
	ex := e.b.exchange(e.t)
	var side uint8 // the offerer's
	if role == pairing.Joiner {
		side = 1
	}
	s, err := ex.Join(ctx, rendezvous.Point{Topic: e.keys.Topic, Side: side})
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	in, done := make(chan []byte), make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := s.Receive(ctx)
			if err != nil {
				return
			}
			select {
			case in <- m.Frame:
			case <-ctx.Done():
				return
			}
		}
	}()
	return s, in, func() {
		cancel()
		<-done
		s.Close()
		ex.Close()
	}
}

// guess asks to be let in with a password as a new device, and says what came of it.
func (e *eve) guess(ctx context.Context, password string) room.EventKind {
	e.t.Helper()
	s, in, end := e.listen(ctx, pairing.Joiner)
	defer end()
	id, info := e.self()
	j, err := room.NewJoiner(room.JoinerConfig{Identity: id, Code: e.code, Password: password, Info: info, Lifetime: 5 * time.Second}, time.Now())
	if err != nil {
		e.t.Error(err)
		return 0
	}
	for {
		for {
			step, ok := j.Poll()
			if !ok {
				break
			}
			if step.Frame != nil {
				_ = s.Publish(ctx, step.Frame) // what is lost comes again
				continue
			}
			switch step.Event.Kind {
			case room.EventWrongPassword, room.EventWaiting, room.EventAdmitted, room.EventFailed:
				return step.Event.Kind
			case room.EventContact, room.EventNeedPassword:
			}
		}
		select {
		case frame := <-in:
			j.Receive(time.Now(), frame)
		case <-time.After(time.Until(j.Next())):
			j.Tick(time.Now())
		case <-ctx.Done():
			return 0
		}
	}
}

// host answers in the host's place until the end, with everything but the host's key, the
// salt and the password. It counts those who tell it anything of themselves.
func (e *eve) host(ctx context.Context, ref room.ID, password string) (learned *atomic.Int32, end func()) {
	e.t.Helper()
	id, info := e.self()
	fake, err := room.Found(id, "the room", "host", room.Open, time.Now(), nil)
	if err != nil {
		e.t.Fatal(err)
	}
	if fake.Room = ref; fake.Sign(id) != nil {
		e.t.Fatal("not signed")
	}
	h, err := room.NewHost(room.HostConfig{Identity: id, Roster: fake, Password: password, Info: info})
	if err != nil {
		e.t.Fatal(err)
	}
	s, in, leave := e.listen(ctx, pairing.Offerer)
	learned = new(atomic.Int32)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case frame := <-in:
				h.Receive(time.Now(), room.TopicLong, frame)
			case <-ctx.Done():
				return
			}
			for {
				a, ok := h.Poll()
				if !ok {
					break
				}
				switch a.Kind {
				case room.ActionSend:
					_ = s.Publish(ctx, a.Frame) // what is lost comes again
				case room.ActionAdmit, room.ActionAsk:
					learned.Add(1)
				case room.ActionTold:
				}
			}
		}
	}()
	return learned, func() { cancel(); <-done; leave() }
}

// replay says again what was said on the code's topic: as it was, and sealed anew, so that
// nobody takes it for a copy; forwards and backwards.
func (e *eve) replay(old []published) (n int) {
	e.t.Helper()
	sealer, err := wire.NewSealer(e.keys.Frame[:])
	if err != nil {
		e.t.Fatal(err)
	}
	back := slices.Clone(old)
	slices.Reverse(back)
	for _, p := range slices.Concat(old, back) {
		f, err := sealer.Open(p.frame)
		if err != nil {
			continue // of another topic
		}
		fresh, err := sealer.Seal(rand.Reader, f)
		if err != nil {
			e.t.Fatal(err)
		}
		e.b.publish(p.topic, p.frame)
		e.b.publish(p.topic, fresh)
		n++
	}
	return n
}

// approve lets a device in that asks, as the host's user does, and waits until it is.
func approve(ctx context.Context, t *testing.T, host, guest *Server, c code.Room, password string) {
	t.Helper()
	entered := make(chan struct{})
	go func() { defer close(entered); enter(ctx, t, guest, c, password) }()
	soon(ctx, t, "it asks", func() bool {
		r, err := host.node.Room(host.node.Rooms()[0].ID.String())
		return err == nil && slices.ContainsFunc(r.Waiting, func(q kith.RoomGuest) bool { return q.ID == guest.node.ID() })
	})
	if _, err := host.node.DecideRoom(host.node.Rooms()[0].ID.String(), guest.node.ID().String(), true); err != nil {
		t.Error(err)
	}
	<-entered
}

// TestRoomWithoutPassword: who has the code of a room, the broker, and as many devices as
// she likes, and not the password, learns no name and no line, is not let in, and keeps
// nobody out who has it.
func TestRoomWithoutPassword(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const password = "correct horse battery"
	b := openBroker(t, 0)
	b.burst = 10_000 // the host is to judge as fast as it can
	hostDir := filepath.Join(t.TempDir(), "host")
	host := b.device(t, hostDir, "hostess-of-it")
	anna := b.device(t, filepath.Join(t.TempDir(), "anna"), "annabel-knits")
	made, err := host.node.CreateRoom(kith.CreateRoomConfig{Name: "sewing-circle", Password: password})
	if err != nil {
		t.Fatal(err)
	}
	c := roomCode(t, host, "sewing-circle")
	e := newEve(t, b, c)

	// An honest join, which she records, and a line.
	enter(ctx, t, anna, c, password)
	soon(ctx, t, "together", func() bool { return sees(host, "sewing-circle", 2) && sees(anna, "sewing-circle", 2) })
	conv := chat.ConvID(made.ID)
	if _, err := anna.chat.Send(ctx, conv, "meet at the old mill"); err != nil {
		t.Fatal(err)
	}
	soon(ctx, t, "the line", func() bool { return len(texts(t, host, conv)) == 1 })
	joined := b.recorded()

	// She answers in the host's place, and guesses as fast as she can.
	poor, endPoor := e.host(ctx, made.ID, "")
	sly, endSly := e.host(ctx, made.ID, "another guess")
	var wrong, waiting, other atomic.Int32
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range 8 {
		wg.Go(func() {
			for k := range 5 {
				switch e.guess(ctx, fmt.Sprint("guess ", i, k)) {
				case room.EventWrongPassword:
					wrong.Add(1)
				case room.EventWaiting:
					waiting.Add(1)
				case room.EventAdmitted:
					t.Error("she was let in")
				default:
					other.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("40 guesses in %v: %d were judged, %d are to be approved, %d came to nothing", time.Since(begin).Round(time.Millisecond), wrong.Load(), waiting.Load(), other.Load())
	if wrong.Load() > room.Guesses || waiting.Load() == 0 {
		t.Errorf("%d passwords were judged, %d are allowed; %d wait", wrong.Load(), room.Guesses, waiting.Load())
	}

	// Who has the password gets in all the same, past her hosts.
	ben := b.device(t, filepath.Join(t.TempDir(), "ben"), "benedict-sews")
	approve(ctx, t, host, ben, c, password)
	for _, s := range []*Server{host, anna, ben} {
		soon(ctx, t, s.node.Name()+" sees all", func() bool { return sees(s, "sewing-circle", 3) })
	}
	endPoor()
	endSly()
	if n := poor.Load() + sly.Load(); n > 0 {
		t.Errorf("%d told her hosts who they are", n)
	}

	// The one whose join she has recorded is put out. Her replays bring nobody back, also at
	// a host that has been restarted.
	if _, err := host.node.KickMember("sewing-circle", anna.node.ID().String(), false); err != nil {
		t.Fatal(err)
	}
	soon(ctx, t, "she is out", func() bool { return len(anna.node.Rooms()) == 0 })
	events, stop := host.node.Events()
	replayed := e.replay(joined)
	stop()
	host.shut(t)()
	host = b.device(t, hostDir, "hostess-of-it")
	events2, stop2 := host.node.Events()
	replayed += e.replay(joined)
	cleo := b.device(t, filepath.Join(t.TempDir(), "cleo"), "cleo-weaves")
	approve(ctx, t, host, cleo, c, password) // after what was replayed
	stop2()
	if replayed < 8 {
		t.Errorf("%d frames of the join were replayed", replayed)
	}
	for _, all := range []<-chan kith.Event{events, events2} {
		for ev := range all {
			if ev.Kind == kith.EventRoomAsked && ev.Subject == anna.node.ID().String() || ev.Kind == kith.EventRoomGuess {
				t.Errorf("a replay was taken: %s %q", ev.Kind, ev.Detail)
			}
		}
	}
	r, err := host.node.Room("sewing-circle")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range r.Members {
		names = append(names, m.Name)
	}
	if want := []string{"hostess-of-it", "benedict-sews", "cleo-weaves"}; !slices.Equal(names, want) {
		t.Errorf("in the room: %q", names)
	}

	// What she saw says nothing, also with the keys that the code gives.
	sealer, err := wire.NewSealer(e.keys.Frame[:])
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for _, p := range b.recorded() {
		all := append([]byte(p.topic), p.frame...)
		if f, err := sealer.Open(p.frame); err == nil {
			opened++
			all = append(all, f.Body...)
		}
		for _, secret := range append(names, "annabel-knits", "sewing-circle", "meet at the old mill", password) {
			if bytes.Contains(all, []byte(secret)) {
				t.Fatalf("%q is in what she saw", secret)
			}
		}
	}
	if opened < 50 {
		t.Errorf("she opened %d frames only", opened)
	}
}
