package kith

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// give is a roster that a device signs, as others get it.
func give(t *testing.T, n *Node, id room.ID, by *identity.Identity, change func(*room.Roster)) []byte {
	t.Helper()
	rec, _ := n.rooms.get(id)
	next := rec.Roster.Rename("hers")
	change(next)
	if err := next.Sign(by); err != nil {
		t.Fatal(err)
	}
	raw, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestRoomHostileHost: a second host cannot count the room to its end, and its word counts
// until the day for which it was named.
func TestRoomHostileHost(t *testing.T) {
	n, id := hostingNode(t)
	ids := takeMembers(t, n, 2)
	if _, err := n.AddRoomHost("friends", "m0"); err != nil {
		t.Fatal(err)
	}
	evil := ids[0]
	for name, change := range map[string]func(*room.Roster){
		"the last epoch":   func(r *room.Roster) { r.Epoch = 1<<24 - 1 },
		"the last version": func(r *room.Roster) { r.Version = 1<<40 - 1 },
		"the last number":  func(r *room.Roster) { r.Next = 1<<32 - 1 },
		"an older room":    func(r *room.Roster) { r.Created = r.Created.Add(-24 * time.Hour) },
	} {
		n.rooms.takeRoster(ids[1].ID(), id, give(t, n, id, evil, change))
		if rec, _ := n.rooms.get(id); rec.Roster.Name != "friends" {
			t.Fatalf("%s was taken", name)
		}
	}
	n.rooms.takeRoster(ids[1].ID(), id, give(t, n, id, evil, func(*room.Roster) {}))
	if rec, _ := n.rooms.get(id); rec.Roster.Name != "hers" {
		t.Fatal("what she may do is not taken")
	}
	// Who has the furthest that she can make takes the founder's word when she is put out.
	far, err := room.DecodeRoster(give(t, n, id, evil, func(r *room.Roster) { r.Epoch += room.HostEpochs - 1 }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.KickMember("hers", "m0", true); err != nil {
		t.Fatal(err)
	}
	rec, _ := n.rooms.get(id)
	if err := rec.Roster.Verify(far, id); err != nil {
		t.Error(err)
	}
	if len(n.Rooms()[0].Members) != 2 {
		t.Error("she is in it")
	}
}

// TestRoomHostInTime: after its last day a second host signs nothing, and what it signed
// goes on by the founder's hand alone.
func TestRoomHostInTime(t *testing.T) {
	n, id := hostingNode(t)
	ids := takeMembers(t, n, 1)
	day := wire.Day(time.Now())
	_, err := n.edit("friends", func(r *room.Roster) (*room.Roster, error) {
		return r.AddHost(n.id, ids[0].ID(), day-20, day-10)
	})
	if err != nil {
		t.Fatal(err)
	}
	base, _ := n.rooms.get(id)
	late := give(t, n, id, ids[0], func(*room.Roster) {})
	roster, err := room.DecodeRoster(late)
	if err != nil {
		t.Fatal(err)
	}

	// A member has been given the founder's, and then hers.
	l := lair{rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})}
	m := l.open(t, filepath.Join(t.TempDir(), "state"), "m")
	if err := m.rooms.store.Put(room.Record{Room: id, Roster: base.Roster}); err != nil {
		t.Fatal(err)
	}
	m.rooms.takeRoster(ids[0].ID(), id, late)
	if rec, _ := m.rooms.get(id); rec.Roster.Name != "friends" {
		t.Error("a member has taken what a host signed after its time")
	}
	n.rooms.takeRoster(ids[0].ID(), id, late)
	rec, _ := n.rooms.get(id)
	if rec.Roster.Name != "hers" || rec.Roster.Signer != n.ID() || !rec.Roster.Beats(roster) {
		t.Error("the founder does not go on from there")
	}
	raw, err := rec.Roster.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m.rooms.takeRoster(n.ID(), id, raw)
	if rec, _ := m.rooms.get(id); rec.Roster.Name != "hers" {
		t.Error("a member does not take the founder's")
	}

	// She herself is told that she is none any more.
	late2 := l.open(t, filepath.Join(t.TempDir(), "late"), "late")
	made, err := late2.CreateRoom(CreateRoomConfig{Name: "own"})
	if err != nil {
		t.Fatal(err)
	}
	own, _ := late2.rooms.get(made.ID)
	other := own.Roster.Rename("own")
	other.Hosts = append([]room.HostEntry{{ID: ids[0].ID()}}, room.HostEntry{ID: late2.ID(), Until: day - 1})
	if err := late2.rooms.store.Update(made.ID, func(rec *room.Record) error { rec.Roster = other; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := late2.RenameRoom("own", "x"); !errors.Is(err, room.ErrNotHost) {
		t.Errorf("a host whose time is over: %v", err)
	}
}

// TestRoomJudgedOutside: the signatures of a roster are judged while somebody else changes
// the room, and again if that is done first.
func TestRoomJudgedOutside(t *testing.T) {
	n, id := hostingNode(t)
	ids := takeMembers(t, n, 1)
	if _, err := n.AddRoomHost("friends", "m0"); err != nil {
		t.Fatal(err)
	}
	raw := give(t, n, id, ids[0], func(r *room.Roster) { r.Version++ })
	n.rooms.change.Lock()
	taken := make(chan struct{})
	go func() {
		n.rooms.takeRoster(ids[0].ID(), id, raw)
		close(taken)
	}()
	err := n.rooms.store.Update(id, func(rec *room.Record) error {
		next := rec.Roster.Rename("meanwhile")
		if err := next.Sign(n.id); err != nil {
			return err
		}
		n.rooms.follow(rec, next)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n.rooms.change.Unlock()
	<-taken
	if rec, _ := n.rooms.get(id); rec.Roster.Name != "hers" {
		t.Errorf("the higher version is not the one that is taken: %q", rec.Roster.Name)
	}
	forged := append([]byte(nil), raw...)
	forged[0] ^= 1
	n.rooms.takeRoster(ids[0].ID(), id, forged)
	if _, err := n.RenameRoom("hers", "after"); err != nil {
		t.Error(err)
	}
}

// held is a node with a member whose peer does nothing until it is released, and ends then.
func held(t *testing.T) (n *Node, rec registry.Device, release func(), stop func() <-chan struct{}) {
	t.Helper()
	n, _ = hostingNode(t)
	ids := takeMembers(t, n, 1)
	rec, ok := n.known(ids[0].ID())
	if !ok {
		t.Fatal("it is not known")
	}
	begun, hold := make(chan struct{}), make(chan struct{})
	n.startPeer(rec).post(func() { close(begun); <-hold })
	<-begun
	stop = func() <-chan struct{} {
		done := make(chan struct{})
		go func() { n.stopPeer(rec.PairID, "test"); close(done) }()
		return done
	}
	return n, rec, func() { close(hold) }, stop
}

// TestStopPeerTwice: who stops a peer that is being stopped waits, too.
func TestStopPeerTwice(t *testing.T) {
	ctx := waitContext(t)
	n, rec, release, stop := held(t)
	one := stop()
	until(ctx, t, "it is being stopped", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.peers[rec.PairID] == nil })
	two := stop()
	select {
	case <-one:
		t.Error("the first does not wait")
	case <-two:
		t.Error("the second does not wait")
	case <-time.After(100 * time.Millisecond):
	}
	release()
	<-one
	<-two
}

// TestStartPeerThatStops: who starts a peer that is being stopped gets one that begins when
// the old one has ended.
func TestStartPeerThatStops(t *testing.T) {
	ctx := waitContext(t)
	n, rec, release, stop := held(t)
	stopped := stop()
	until(ctx, t, "it is being stopped", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.peers[rec.PairID] == nil })
	opened := make(chan struct{})
	n.startPeer(rec).post(func() { close(opened) })
	select {
	case <-opened:
		t.Error("it works beside the old one")
	case <-time.After(100 * time.Millisecond):
	}
	release()
	<-stopped
	select {
	case <-opened:
	case <-ctx.Done():
		t.Fatal("it does not work")
	}
	if _, ok := n.tunnel.Stats(rec.ID); !ok {
		t.Error("the tunnel does not have it")
	}
}

// TestStopPeerThatFailed: a peer that could not be started is stopped at once, and leaves
// nothing behind.
func TestStopPeerThatFailed(t *testing.T) {
	ctx := waitContext(t)
	n, _ := hostingNode(t)
	ids := takeMembers(t, n, 1)
	rec, _ := n.known(ids[0].ID())
	n.stopPeer(rec.PairID, "test")
	if _, err := n.store.Update(rec.PairID, func(d *registry.Device) { d.WireGuard = n.id.WireGuardPublic() }); err != nil {
		t.Fatal(err)
	}
	p := n.startPeer(rec)
	until(ctx, t, "it has failed", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.looking) > 11 && p.looking[:11] == "not started"
	})
	done := make(chan struct{})
	go func() { n.stopPeer(rec.PairID, "test"); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("it is not stopped")
	}
	n.rooms.gates.mu.Lock()
	defer n.rooms.gates.mu.Unlock()
	if n.rooms.gates.all[rec.ID] != nil {
		t.Error("its gate is left")
	}
}

// TestRoomNothingLost: however many members come at once, each is looked after.
func TestRoomNothingLost(t *testing.T) {
	ctx := waitContext(t)
	n, _ := hostingNode(t)
	r := n.rooms
	left := func() (int, bool) { r.mu.Lock(); defer r.mu.Unlock(); return len(r.moved), r.pairs }
	r.change.Lock()
	r.happened(EventPaired, n.ID())
	until(ctx, t, "busy", func() bool { _, pairs := left(); return !pairs })
	for i := range 4 * eventQueue {
		n.tell(EventConnected, Device{}, "")
		r.happened(EventConnected, identity.DeviceID{byte(i), byte(i >> 8), 1})
	}
	if count, _ := left(); count != 4*eventQueue {
		t.Errorf("%d of %d wait", count, 4*eventQueue)
	}
	r.change.Unlock()
	until(ctx, t, "all are looked after", func() bool { count, _ := left(); return count == 0 })
}

// TestRoomForgotten: a room that was left long ago is forgotten.
func TestRoomForgotten(t *testing.T) {
	l := lair{rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})}
	dir := filepath.Join(t.TempDir(), "state")
	n := l.open(t, dir, "n")
	var ids []room.ID
	for _, ago := range []time.Duration{0, leftFor - time.Hour, leftFor + time.Hour} {
		made, err := n.CreateRoom(CreateRoomConfig{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, made.ID)
		if ago > 0 {
			if err := n.rooms.store.Update(made.ID, func(rec *room.Record) error { rec.Left = time.Now().Add(-ago); return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = l.open(t, dir, "n")
	for i, want := range []bool{true, true, false} {
		if _, ok := n.rooms.store.Get(ids[i]); ok != want {
			t.Errorf("room %d is there: %v", i, ok)
		}
	}
}

// TestRoomJoinBySecondHost: a device that a second host lets in is given the founder's
// roster first, in which it is not, and stays.
func TestRoomJoinBySecondHost(t *testing.T) {
	ctx := waitContext(t)
	l := lair{rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})}
	founder, second := l.open(t, filepath.Join(t.TempDir(), "f"), "founder"), l.open(t, filepath.Join(t.TempDir(), "s"), "second")
	if _, err := founder.CreateRoom(CreateRoomConfig{Name: "friends", Mode: room.Open}); err != nil {
		t.Fatal(err)
	}
	l.join(ctx, t, founder, second, "friends")
	takeMembers(t, founder, fullMesh-3)
	if _, err := founder.AddRoomHost("friends", "second"); err != nil {
		t.Fatal(err)
	}
	until(ctx, t, "a second host", func() bool { r, err := second.Room("friends"); return err == nil && r.Host })
	if err := founder.Close(); err != nil {
		t.Fatal(err)
	}
	late := l.open(t, filepath.Join(t.TempDir(), "l"), "late")
	l.join(ctx, t, second, late, "friends")
	until(ctx, t, "in the room", func() bool {
		r, err := late.Room("friends")
		return err == nil && len(r.Members) == fullMesh && meets(late, second)
	})
}

// TestPairOutlivesMember: the end of a device's membership takes nothing from the pair that
// the device is by then, in whatever order the two are started and ended.
func TestPairOutlivesMember(t *testing.T) {
	ctx := waitContext(t)
	n, _ := hostingNode(t)
	ids := takeMembers(t, n, 1)
	member, _ := n.known(ids[0].ID())
	opened := func(rec registry.Device) *peer {
		p := n.startPeer(rec)
		ran := make(chan struct{})
		p.post(func() { close(ran) })
		select {
		case <-ran:
		case <-ctx.Done():
			t.Fatal("not started")
		}
		return p
	}
	opened(member)
	pair := member
	pair.PairID, pair.Room, pair.Name = registry.PairID{7}, [16]byte{}, "pair"
	pair, err := n.store.Put(pair)
	if err != nil {
		t.Fatal(err)
	}
	opened(pair)
	n.stopPeer(member.PairID, "test") // as who else drops the member does, later
	if _, ok := n.tunnel.Stats(pair.ID); !ok {
		t.Error("the tunnel has lost the pair")
	}
	late := n.startPeer(member)
	until(ctx, t, "the member is refused", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return late.looking == "not started: "+errPaired.Error()
	})
	n.stopPeer(member.PairID, "test")
	if _, ok := n.tunnel.Stats(pair.ID); !ok {
		t.Error("the tunnel has lost the pair to one that came late")
	}
	n.stopPeer(pair.PairID, "test")
	if _, ok := n.tunnel.Stats(pair.ID); ok {
		t.Error("the tunnel has it still")
	}
}
