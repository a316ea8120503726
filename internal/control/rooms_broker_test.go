package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/mqtt"
)

// A badBroker is an MQTT broker that records everything, and may drop, copy and reorder it.
type badBroker struct {
	broker.HookBase
	srv   *broker.Server
	url   string
	burst int // how many frames a device may say at once; 0: as by default

	mu     sync.Mutex // guards the fields below
	random *rand.Rand
	part   float64 // of what is published: so much is dropped, so much copied, so much late
	seen   []published
	faults faults
}

// faults are how often the broker did what it should not.
type faults struct{ dropped, copied, late int }

// published is what a client gave the broker.
type published struct {
	topic string
	frame []byte
}

func openBroker(t *testing.T, part float64) *badBroker {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &badBroker{
		srv: broker.New(&broker.Options{Logger: slog.New(slog.DiscardHandler), InlineClient: true}), url: "mqtt://" + ln.Addr().String(),
		random: rand.New(rand.NewPCG(1, 2)), part: part, //nolint:gosec // faults, no secrets
	}
	err = errors.Join(b.srv.AddHook(new(auth.AllowHook), nil), b.srv.AddHook(b, nil), b.srv.AddListener(listeners.NewNet("l", ln)), b.srv.Serve())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.srv.Close() })
	return b
}

// ID and what follows make it a hook of the broker's library.
func (*badBroker) ID() string              { return "bad" }
func (*badBroker) Provides(what byte) bool { return what == broker.OnPublish }

func (b *badBroker) OnPublish(cl *broker.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline { // what this publishes itself
		return pk, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	frame := slices.Clone(pk.Payload)
	b.seen = append(b.seen, published{pk.TopicName, frame})
	happens := func() bool { return b.part > 0 && b.random.Float64() < b.part }
	later := func() {
		time.AfterFunc(time.Duration(b.random.IntN(400))*time.Millisecond, func() { b.publish(pk.TopicName, frame) })
	}
	if happens() {
		b.faults.copied++
		later()
	}
	switch {
	case happens():
		b.faults.dropped++
		return pk, packets.ErrRejectPacket
	case happens():
		b.faults.late++
		later()
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// publish is what nobody but the broker does; it may have ended.
func (b *badBroker) publish(topic string, frame []byte) { _ = b.srv.Publish(topic, frame, false, 0) }

func (b *badBroker) recorded() []published {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.seen)
}

func (b *badBroker) done() faults {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults
}

// exchange is a new user of the broker.
func (b *badBroker) exchange(t *testing.T) *mqtt.Exchange {
	t.Helper()
	e, err := mqtt.New(mqtt.Config{URL: b.url, Burst: b.burst})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// device opens a device that meets others at the broker alone, with all that a daemon has.
func (b *badBroker) device(t *testing.T, dir, name string) *Server {
	t.Helper()
	n, err := kith.Open(t.Context(), kith.Config{
		Dir: dir, Name: name, NoLAN: true, NoDHT: true, Loopback: true, Exchanges: []rendezvous.Exchange{b.exchange(t)},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(n, filepath.Join(dir, "inbox"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(errors.Join(err, n.Close()))
	}
	t.Cleanup(s.shut(t))
	return s
}

// shut returns what ends a device, once.
func (s *Server) shut(t *testing.T) func() {
	return func() {
		if err := errors.Join(s.Close(), s.node.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
}

// roomCode is the long code of a room, as people pass it on.
func roomCode(t *testing.T, host *Server, ref string) code.Room {
	t.Helper()
	long, _, err := host.node.RoomCode(ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.ParseRoom(long.Words())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// enter has a device join a room.
func enter(ctx context.Context, t *testing.T, s *Server, c code.Room, password string) {
	t.Helper()
	j, err := s.node.JoinRoom(ctx, c, kith.JoinRoomConfig{Password: password})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.Wait(ctx); err != nil {
		t.Fatalf("%s: %v", s.node.Name(), err)
	}
}

// soon waits for something that gives no other sign.
func soon(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}

// sees reports whether a device is connected to all other members of a room of so many.
func sees(s *Server, ref string, members int) bool {
	r, err := s.node.Room(ref)
	if err != nil || len(r.Members) != members {
		return false
	}
	return !slices.ContainsFunc(r.Members, func(m kith.RoomMember) bool { return !m.Self && !m.Direct })
}

// texts are the lines of a conversation that a device has, in order, with their authors.
func texts(t *testing.T, s *Server, conv chat.ConvID) (out []string) {
	t.Helper()
	all, err := s.chat.History(conv, nil, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		out = append(out, m.Author.Short()+" "+m.Text)
	}
	return out
}

// TestRoomByBadBroker: at a broker that drops 30 % of all frames, copies 30 % and reorders
// 30 %, three devices join a room with a password, all see all, and each line arrives once.
func TestRoomByBadBroker(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	b := openBroker(t, 0.3)
	var all []*Server
	for _, name := range []string{"host", "anna", "ben", "cleo"} {
		all = append(all, b.device(t, filepath.Join(t.TempDir(), name), name))
	}
	made, err := all[0].node.CreateRoom(kith.CreateRoomConfig{Name: "friends", Password: "correct horse"})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	c := roomCode(t, all[0], "friends")
	var wg sync.WaitGroup
	for _, s := range all[1:] {
		wg.Go(func() { enter(ctx, t, s, c, "correct horse") })
	}
	wg.Wait()
	joined := time.Since(begin)
	for _, s := range all {
		soon(ctx, t, s.node.Name()+" sees all", func() bool { return sees(s, "friends", 4) })
	}
	did := b.done()
	t.Logf("joined after %v, all see all after %v; of %d frames %d were dropped, %d copied, %d late",
		joined.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond), len(b.recorded()), did.dropped, did.copied, did.late)

	const lines = 20
	conv := chat.ConvID(made.ID)
	for _, s := range all {
		soon(ctx, t, "the conversation", func() bool {
			_, err := s.chat.History(conv, nil, 1)
			return err == nil
		})
	}
	for _, s := range all {
		wg.Go(func() {
			for i := range lines {
				if _, err := s.chat.Send(ctx, conv, fmt.Sprint("line ", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range all {
		soon(ctx, t, s.node.Name()+" has all lines", func() bool { return len(texts(t, s, conv)) >= lines*len(all) })
	}
	want := texts(t, all[0], conv)
	if len(want) != lines*len(all) {
		t.Errorf("%d lines", len(want))
	}
	for _, s := range all {
		got := texts(t, s, conv)
		if !slices.Equal(got, want) {
			t.Errorf("%s has other lines: %d", s.node.Name(), len(got))
		}
		slices.Sort(got)
		if len(slices.Compact(got)) != lines*len(all) {
			t.Errorf("%s has a line twice", s.node.Name())
		}
	}
	if did.dropped == 0 || did.copied == 0 || did.late == 0 {
		t.Errorf("the broker is good: %+v", did)
	}
}
