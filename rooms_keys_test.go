package kith

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// A lair opens nodes on one medium, for tests that look into them.
type lair struct{ network *rendezvoustest.Network }

func (l lair) open(t *testing.T, dir, name string) *Node {
	t.Helper()
	return openAlone(t, Config{Dir: dir, Name: name, Exchanges: []rendezvous.Exchange{l.network.Exchange("memory")}})
}

// openAlone opens a node without LAN and DHT, which meets others as cfg says besides.
func openAlone(t *testing.T, cfg Config) *Node {
	t.Helper()
	cfg.NoLAN, cfg.NoDHT, cfg.Loopback = true, true, true
	n, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// join has a node join the room of another.
func (l lair) join(ctx context.Context, t *testing.T, host, n *Node, ref string) {
	t.Helper()
	long, _, err := host.RoomCode(ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.ParseRoom(long.Words())
	if err != nil {
		t.Fatal(err)
	}
	j, err := n.JoinRoom(ctx, c, JoinRoomConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// until waits for something that gives no other sign.
func until(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}

func waitContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func meets(n, other *Node) bool {
	rec, ok := n.store.MemberByID(other.ID())
	return ok && n.device(rec).Connected
}

// TestRoomLostAnswer: a member that joins again and gives up before the host's answer comes
// is met with the keys of before.
func TestRoomLostAnswer(t *testing.T) {
	ctx := waitContext(t)
	l := lair{rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})}
	annaDir := filepath.Join(t.TempDir(), "anna")
	host, anna := l.open(t, filepath.Join(t.TempDir(), "host"), "host"), l.open(t, annaDir, "anna")
	made, err := host.CreateRoom(CreateRoomConfig{Name: "friends", Mode: room.Open})
	if err != nil {
		t.Fatal(err)
	}
	l.join(ctx, t, host, anna, "friends")
	until(ctx, t, "together", func() bool { return meets(host, anna) && meets(anna, host) })
	if err := anna.Close(); err != nil {
		t.Fatal(err)
	}
	until(ctx, t, "apart", func() bool { return !meets(host, anna) })
	rec, _ := host.rooms.get(made.ID)
	m, in := rec.Roster.Member(anna.ID())
	if !in {
		t.Fatal("she is no member")
	}
	again := room.Admission{Member: m, Roster: rec.Roster, Base: rec.Roster, HasChain: true, PairID: [16]byte{1}, Chain: pairing.Chain{Key: [32]byte{2}, Day: rec.Roster.Day()}}
	if err := host.rooms.hosting(made.ID).takeIn(again); err != nil {
		t.Fatal(err)
	}
	anna = l.open(t, annaDir, "anna")
	until(ctx, t, "together with the keys of before", func() bool { return meets(host, anna) && meets(anna, host) })
}

// TestRoomJoinsAgain: a member that joins again is met with the new keys from then on, also
// if the host was restarted in between.
func TestRoomJoinsAgain(t *testing.T) {
	ctx := waitContext(t)
	l := lair{rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})}
	hostDir := filepath.Join(t.TempDir(), "host")
	host, anna := l.open(t, hostDir, "host"), l.open(t, filepath.Join(t.TempDir(), "anna"), "anna")
	if _, err := host.CreateRoom(CreateRoomConfig{Name: "friends", Mode: room.Open}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"friends", "others"} { // the second room is the host's, too
		if name == "others" {
			if _, err := host.CreateRoom(CreateRoomConfig{Name: name, Mode: room.Open}); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			before, _ := anna.store.MemberByID(host.ID())
			l.join(ctx, t, host, anna, name)
			after, ok := anna.store.MemberByID(host.ID())
			if !ok || after.PairID == before.PairID {
				t.Fatal("no new keys")
			}
			until(ctx, t, "together with the new keys", func() bool {
				rec, ok := host.store.MemberByID(anna.ID())
				return ok && rec.PairID == after.PairID && meets(host, anna) && meets(anna, host)
			})
		}
	}
	before, _ := anna.store.MemberByID(host.ID())
	next := before
	next.PairID, next.Chain = [16]byte{1}, [32]byte{2}
	if _, err := host.store.Update(before.PairID, func(d *registry.Device) {
		d.Next.PairID, d.Next.Chain, d.Next.Day = next.PairID, next.Chain, next.ChainDay
	}); err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := anna.setMember(next); err != nil { // as if the answer had come after the host had stopped
		t.Fatal(err)
	}
	anna.startPeer(next)
	host = l.open(t, hostDir, "host")
	until(ctx, t, "together after a restart", func() bool {
		rec, ok := host.store.MemberByID(anna.ID())
		return ok && rec.PairID == next.PairID && meets(host, anna) && meets(anna, host)
	})
}
