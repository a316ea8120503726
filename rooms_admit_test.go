package kith

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// hostingNode is a node that has founded a room.
func hostingNode(t *testing.T) (*Node, room.ID) {
	t.Helper()
	nw := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	n := openAlone(t, Config{Dir: filepath.Join(t.TempDir(), "s"), Name: "host", Exchanges: []rendezvous.Exchange{nw.Exchange("memory")}})
	made, err := n.CreateRoom(CreateRoomConfig{Name: "friends", Mode: room.Open})
	if err != nil {
		t.Fatal(err)
	}
	return n, made.ID
}

func memberOf(id *identity.Identity, name string) room.Member {
	return room.Member{ID: id.ID(), WireGuard: id.WireGuardPublic(), WGSig: room.SignWireGuard(id), Name: name, Added: time.Now()}
}

// takeMembers has devices that are not there in a room: m0, m1 and so on.
func takeMembers(t *testing.T, n *Node, count int) (ids []*identity.Identity) {
	t.Helper()
	_, err := n.edit("friends", func(r *room.Roster) (*room.Roster, error) {
		for i := range count {
			id, err := identity.Open(filepath.Join(t.TempDir(), fmt.Sprint(i)))
			if err != nil {
				return nil, err
			}
			ids = append(ids, id)
			if r, err = r.Admit(memberOf(id, fmt.Sprint("m", i))); err != nil {
				return nil, err
			}
		}
		return r, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// TestRoomAdmitAfterKick: a member that comes again brings no older roster back, and one
// that was put out meanwhile is not in.
func TestRoomAdmitAfterKick(t *testing.T) {
	n, id := hostingNode(t)
	takeMembers(t, n, 2)
	before, _ := n.rooms.get(id)
	m1, m2 := before.Roster.Members[1], before.Roster.Members[2]
	if _, err := n.KickMember("friends", m2.Name, true); err != nil {
		t.Fatal(err)
	}
	h := n.rooms.hosting(id)
	for _, c := range []struct {
		m    room.Member
		want error
	}{{m1, nil}, {m2, room.ErrBusy}} {
		if err := h.takeIn(room.Admission{Member: c.m, Roster: before.Roster, Base: before.Roster}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.m.Name, err)
		}
		after, _ := n.rooms.get(id)
		if _, in := after.Roster.Member(m2.ID); in || !after.Roster.Banned(m2.ID) {
			t.Errorf("the ban is undone: in %v", in)
		}
	}
}

// TestRoomAdmitAfterEdit: an admission that was decided before an edit does not undo it,
// though it has the same version.
func TestRoomAdmitAfterEdit(t *testing.T) {
	n, id := hostingNode(t)
	for i := range 10 { // which of the two rosters wins depends on their signatures
		mode := room.Approve
		if i%2 == 1 {
			mode = room.Open
		}
		before, _ := n.rooms.get(id)
		guest, err := identity.Open(filepath.Join(t.TempDir(), "guest"))
		if err != nil {
			t.Fatal(err)
		}
		next, err := before.Roster.Admit(memberOf(guest, "guest"))
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Sign(n.id); err != nil {
			t.Fatal(err)
		}
		m, _ := next.Member(guest.ID())
		if _, err := n.SetRoomMode("friends", mode); err != nil {
			t.Fatal(err)
		}
		a := room.Admission{Member: m, Roster: next, Base: before.Roster, New: true}
		if err := n.rooms.hosting(id).takeIn(a); !errors.Is(err, room.ErrBusy) {
			t.Errorf("taken: %v", err)
		}
		if after, _ := n.rooms.get(id); after.Roster.Mode != mode {
			t.Fatalf("the edit is undone after %d others", i)
		}
	}
}

// TestRoomOldBan: a member that sends an old roster of the host's own, with a ban that was
// lifted since, changes nothing.
func TestRoomOldBan(t *testing.T) {
	n, id := hostingNode(t)
	ids := takeMembers(t, n, 2)
	z := ids[1].ID()
	if _, err := n.KickMember("friends", "m1", true); err != nil {
		t.Fatal(err)
	}
	old, _ := n.rooms.get(id)
	raw, err := old.Roster.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.UnbanMember("friends", z.String()); err != nil {
		t.Fatal(err)
	}
	_, err = n.edit("friends", func(r *room.Roster) (*room.Roster, error) { return r.Admit(memberOf(ids[1], "z")) })
	if err != nil {
		t.Fatal(err)
	}
	n.rooms.takeRoster(ids[0].ID(), id, raw)
	if now, _ := n.rooms.get(id); now.Roster.Banned(z) {
		t.Error("a replayed roster banned it again")
	}
}

// TestRoomOldBanOfHost is the same with a roster of another host, which was taken before.
func TestRoomOldBanOfHost(t *testing.T) {
	n, id := hostingNode(t)
	ids := takeMembers(t, n, 2)
	if _, err := n.AddRoomHost("friends", "m0"); err != nil {
		t.Fatal(err)
	}
	now, _ := n.rooms.get(id)
	z := ids[1].ID()
	next, err := now.Roster.Remove(z, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Sign(ids[0]); err != nil {
		t.Fatal(err)
	}
	raw, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	n.rooms.takeRoster(ids[0].ID(), id, raw)
	if now, _ := n.rooms.get(id); !now.Roster.Banned(z) {
		t.Fatal("the host's word does not count")
	}
	if _, err := n.UnbanMember("friends", z.String()); err != nil {
		t.Fatal(err)
	}
	n.rooms.takeRoster(ids[1].ID(), id, raw)
	if now, _ := n.rooms.get(id); now.Roster.Banned(z) {
		t.Error("a replayed roster banned it again")
	}
}

// TestRoomRestarts: many at once do not wait for each other, while members come.
func TestRoomRestarts(t *testing.T) {
	n, id := hostingNode(t)
	takeMembers(t, n, 1)
	rec, _ := n.rooms.get(id)
	a := room.Admission{Member: rec.Roster.Members[1], Roster: rec.Roster, Base: rec.Roster}
	var restarts, comings sync.WaitGroup
	stop := make(chan struct{})
	comings.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Microsecond):
			}
			if h := n.rooms.hosting(id); h != nil {
				h.box.post(func() { _ = h.takeIn(a) })
			}
		}
	})
	for range 4 {
		restarts.Go(func() {
			for range 100 {
				n.rooms.restart(id)
			}
		})
	}
	done := make(chan struct{})
	go func() { restarts.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("restarts wait for each other")
	}
	close(stop)
	comings.Wait()
	if n.rooms.hosting(id) == nil {
		t.Error("the room is not hosted")
	}
}

// TestRoomRefs: who calls itself as another's number or id is not taken for it.
func TestRoomRefs(t *testing.T) {
	n, _ := hostingNode(t)
	takeMembers(t, n, 2)
	rec, err := n.findRoom("friends")
	if err != nil {
		t.Fatal(err)
	}
	m := rec.Roster.Members
	start := m[2].ID.String()[:8]
	m[1].Name = "#3"
	for ref, want := range map[string]uint32{"#3": 3, "#2": 2, "m1": 3, "M1": 3, start: 3, m[2].ID.String(): 3, "m": 0, "": 0, "#4": 0} {
		if got, err := findMember(rec.Roster, ref); got.Number != want || (err == nil) != (want != 0) {
			t.Errorf("%q is %d, %v", ref, got.Number, err)
		}
	}
	m[1].Name = start
	if got, err := findMember(rec.Roster, start); err == nil {
		t.Errorf("two fit, and %d was taken", got.Number)
	}
	m[1].Name = m[2].ID.String()
	if got, err := findMember(rec.Roster, m[2].ID.String()); err != nil || got.Number != 3 {
		t.Errorf("%d, %v", got.Number, err)
	}
	made, err := n.CreateRoom(CreateRoomConfig{Name: rec.Room.String(), Mode: room.Open})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.findRoom(rec.Room.String()); err != nil || got.Room == made.ID {
		t.Errorf("a room that is called as another's id: %v", err)
	}
}
