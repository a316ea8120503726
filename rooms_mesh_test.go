package kith

import (
	"context"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// hostOf opens a node that hosts a room with some other members in it, who are away.
func hostOf(t *testing.T, members int) (*Node, room.ID, []*identity.Identity) {
	t.Helper()
	nw := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	n, err := Open(t.Context(), Config{
		Dir: filepath.Join(t.TempDir(), "state"), Name: "host", NoLAN: true, NoDHT: true, Loopback: true,
		Exchanges: []rendezvous.Exchange{nw.Exchange("memory")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	made, err := n.CreateRoom(CreateRoomConfig{Name: "friends", Mode: room.Open})
	if err != nil {
		t.Fatal(err)
	}
	var ids []*identity.Identity
	for i := range members {
		id, err := identity.Generate()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		admitAgain(t, n, id, "m"+strconv.Itoa(i))
	}
	return n, made.ID, ids
}

func admitAgain(t *testing.T, n *Node, id *identity.Identity, name string) {
	t.Helper()
	_, err := n.edit("friends", func(r *room.Roster) (*room.Roster, error) {
		return r.Admit(room.Member{ID: id.ID(), WireGuard: id.WireGuardPublic(), WGSig: room.SignWireGuard(id), Name: name, Added: time.Now()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPartingBeginsOnce asks for the notices of a device that was put out over and over, and
// puts it out again after it came back.
func TestPartingBeginsOnce(t *testing.T) {
	n, _, ids := hostOf(t, 1)
	r, id := n.rooms, ids[0].ID()
	have, ok := n.store.MemberByID(id)
	if !ok {
		t.Fatal("it is no member")
	}
	partings := func() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.leaving) }
	for times := 1; times <= 2; times++ {
		if _, err := n.KickMember("friends", "m0", false); err != nil {
			t.Fatal(err)
		}
		if !r.owed(have) {
			t.Errorf("put out %d times, and not to be told", times)
		}
		before := runtime.NumGoroutine()
		for range 500 {
			if len(r.removed(id)) != 1 {
				t.Fatal("no notice for it")
			}
		}
		if more := runtime.NumGoroutine() - before; more > 50 || partings() != times {
			t.Errorf("%d goroutines and %d partings for %d", more, partings(), times)
		}
		admitAgain(t, n, ids[0], "m0")
		if r.owed(have) || len(r.removed(id)) != 0 {
			t.Error("it is a member, and told that it is not")
		}
	}
}

// TestRostersEncodedOnce gives a roster to many members.
func TestRostersEncodedOnce(t *testing.T) {
	n, id, ids := hostOf(t, 2)
	one, ok1 := n.rooms.rosterFor(id, ids[0].ID())
	two, ok2 := n.rooms.rosterFor(id, ids[1].ID())
	if !ok1 || !ok2 || &one[0][0] != &two[0][0] {
		t.Error("it is made anew for each")
	}
	if _, err := n.RenameRoom("friends", "foes"); err != nil {
		t.Fatal(err)
	}
	now, _ := n.rooms.rosterFor(id, ids[0].ID())
	if r, err := room.DecodeRoster(now[len(now)-1]); err != nil || r.Name != "foes" {
		t.Errorf("the old one is given: %v", err)
	}
}

// TestFarLetGo lets a member go that somebody says looks for this device, when it has not
// come and nothing needs it, and not before.
func TestFarLetGo(t *testing.T) {
	n, _, ids := hostOf(t, 2)
	r, id := n.rooms, ids[0].ID()
	rec, ok := n.known(id)
	if !ok {
		t.Fatal("it is not known")
	}
	running := func() *peer { n.mu.Lock(); defer n.mu.Unlock(); return n.peers[rec.PairID] }
	near := func(is bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.near = map[identity.DeviceID]bool{id: is, ids[1].ID(): true}
	}
	n.stopPeer(rec.PairID, "a test")
	r.knock(id)
	p := running()
	if p == nil {
		t.Fatal("it is not looked for")
	}
	r.knock(id)
	now := time.Now()
	far := afar{r: r}
	pass := func(d time.Duration) (next time.Time) { now = now.Add(d); return far.sweep(now) }
	ended := func() bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	}
	if next := pass(farQuiet); !next.IsZero() || ended() {
		t.Error("one that is near is thought to be far")
	}
	near(false)
	for _, step := range []struct {
		what  string
		begin func()
		quiet time.Duration
	}{
		{"it has just come", func() {}, farQuiet - farStep},
		{"somebody waits for it", func() { p.wanted.Add(1) }, 3 * farQuiet},
		{"nobody waits any more", func() { p.wanted.Add(-1) }, farQuiet - farStep},
		{"it is near", func() { near(true) }, 3 * farQuiet},
		{"it is far again", func() { near(false) }, farQuiet},
	} {
		step.begin()
		for at := time.Duration(0); at < step.quiet; at += farStep {
			if pass(farStep); ended() {
				t.Fatalf("%s, and it is let go after %v", step.what, at)
			}
		}
	}
	if pass(farStep) != (time.Time{}) {
		t.Error("it is still to be looked at")
	}
	select {
	case <-p.done:
	case <-t.Context().Done():
		t.Error("it is still looked for")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.await(ctx, rec); err == nil || running() == nil {
		t.Errorf("who calls for it: %v", err)
	}
}
