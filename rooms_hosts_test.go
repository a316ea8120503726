package kith_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// A party is a room that is open to whoever has the code, with all of its members there.
type party struct {
	nodes   []*kith.Node
	dirs    []string
	network *rendezvoustest.Network
}

func newParty(ctx context.Context, t *testing.T, name string, names ...string) *party {
	t.Helper()
	p := &party{network: rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})}
	for i, n := range names {
		p.dirs = append(p.dirs, stateDir(t))
		p.nodes = append(p.nodes, openNode(t, p.network, p.dirs[i], n))
	}
	if _, err := p.nodes[0].CreateRoom(kith.CreateRoomConfig{Name: name, Mode: room.Open}); err != nil {
		t.Fatal(err)
	}
	for _, n := range p.nodes[1:] {
		joinRoom(ctx, t, p.nodes[0], n, name, "")
	}
	for _, n := range p.nodes {
		awaitRoom(ctx, t, n, name, "not all there", members(len(names), true))
	}
	return p
}

func (p *party) stop(t *testing.T, i int) {
	t.Helper()
	if err := p.nodes[i].Close(); err != nil {
		t.Fatal(err)
	}
}

func (p *party) start(t *testing.T, i int, name string) {
	t.Helper()
	p.nodes[i] = openNode(t, p.network, p.dirs[i], name)
}

// coHost makes member 1 a host, too, and waits until all know.
func (p *party) coHost(ctx context.Context, t *testing.T, ref, name string) {
	t.Helper()
	if _, err := p.nodes[0].AddRoomHost(ref, name); err != nil {
		t.Fatal(err)
	}
	for _, n := range p.nodes[1:] {
		awaitRoom(ctx, t, n, ref, "no second host", func(r kith.Room) bool { return r.Members[1].Host })
	}
}

// TestRoomLongName has a room whose members' names here do not fit: they are cut, and are
// still there after a restart.
func TestRoomLongName(t *testing.T) {
	ctx := testContext(t)
	name := strings.Repeat("r", 62)
	p := newParty(ctx, t, name, "host", "anna")
	p.stop(t, 1)
	p.stop(t, 0)
	p.start(t, 0, "host")
	p.start(t, 1, "anna")
	for _, n := range p.nodes {
		if all := n.Problems(); len(all) > 0 {
			t.Errorf("%s: %v", n.Name(), all)
		}
		awaitRoom(ctx, t, n, name, "not back", members(2, true))
	}
}

// TestRoomClosed: all members hear that a room was closed, also who was away, and are apart
// then.
func TestRoomClosed(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna", "ben", "cleo")
	p.stop(t, 3)
	if _, err := p.nodes[0].CloseRoom("friends"); err != nil {
		t.Fatal(err)
	}
	p.start(t, 3, "cleo")
	for _, n := range p.nodes {
		awaitRoom(ctx, t, n, "friends", "not closed and apart", func(r kith.Room) bool {
			for _, m := range r.Members {
				if !m.Self && m.Online {
					return false
				}
			}
			return r.Closed
		})
		if _, err := n.Device("anna@friends"); err == nil {
			t.Errorf("%s knows anna still", n.Name())
		}
	}
}

// TestRoomNewHost: who is named a host lets others in at once.
func TestRoomNewHost(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna")
	p.coHost(ctx, t, "friends", "anna")
	p.stop(t, 0)
	ben := openNode(t, p.network, stateDir(t), "ben")
	joinRoom(ctx, t, p.nodes[1], ben, "friends", "")
}

// awaitKeys waits until a node has followed members 2 and 3 to keys made after some time.
func awaitKeys(ctx context.Context, t *testing.T, n *kith.Node, after time.Time) {
	t.Helper()
	awaitRoom(ctx, t, n, "friends", "no new keys", func(r kith.Room) bool {
		for _, m := range r.Members[2:4] {
			if d, err := n.Device(m.ID.String()); err != nil || !d.Connected || !d.Paired.After(after) {
				return false
			}
		}
		return true
	})
}

// TestRoomSecondHostKicks: while the founder is away its members follow the second host to
// the new keys, also one that was away then.
func TestRoomSecondHostKicks(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna", "ben", "cleo", "dora", "eve")
	p.coHost(ctx, t, "friends", "anna")
	p.stop(t, 0)
	p.stop(t, 5)
	awaitRoom(ctx, t, p.nodes[1], "friends", "eve is there", func(r kith.Room) bool { return !r.Members[5].Online })
	kicked := time.Now()
	if _, err := p.nodes[1].KickMember("friends", "cleo", false); err != nil {
		t.Fatal(err)
	}
	away := "eve"
	all := func(r kith.Room) bool { // but for the founder
		for _, m := range r.Members[1:] {
			if !m.Self && !m.Direct && m.Name != away {
				return false
			}
		}
		return len(r.Members) == 5
	}
	for _, i := range []int{1, 2, 4} {
		awaitRoom(ctx, t, p.nodes[i], "friends", "cleo is in it", all)
	}
	awaitKeys(ctx, t, p.nodes[1], kicked)
	away = ""
	p.start(t, 5, "eve")
	for _, i := range []int{5, 1, 2, 4} {
		awaitRoom(ctx, t, p.nodes[i], "friends", "eve has not followed", all)
	}
	if _, err := p.nodes[2].Ping(ctx, "dora@friends"); err != nil {
		t.Error(err)
	}
}

// TestRoomKickedWhileAway: a member hears that it was put out when it comes back, whichever
// of the two ids is the lesser, and its host drops it then.
func TestRoomKickedWhileAway(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna", "ben", "cleo", "dora")
	for i, name := range []string{1: "anna", 2: "ben", 3: "cleo", 4: "dora"} {
		if name == "" {
			continue
		}
		p.stop(t, i)
		awaitRoom(ctx, t, p.nodes[0], "friends", "it is there", func(r kith.Room) bool { return !r.Members[1].Direct })
		if _, err := p.nodes[0].KickMember("friends", name, false); err != nil {
			t.Fatal(err)
		}
		p.start(t, i, name)
		for len(p.nodes[i].Rooms()) > 0 {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("%s was not told; the host's id is the lesser: %v", name, p.nodes[0].ID().String() < p.nodes[i].ID().String())
			}
		}
	}
}

// TestRoomRenamed: members are called after the room's new name.
func TestRoomRenamed(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna", "ben")
	if err := p.nodes[0].Rename("ben@friends", "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.nodes[0].RenameRoom("friends", "foes"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"anna@foes", "b"} {
		if _, err := p.nodes[0].Ping(ctx, name); err != nil {
			t.Error(err)
		}
	}
}

// TestRoomPasswordMode: a room without a password does not become one that needs it, and
// goes on.
func TestRoomPasswordMode(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna")
	if _, err := p.nodes[0].SetRoomMode("friends", room.Password); err == nil {
		t.Error("password mode without a password")
	}
	if _, err := p.nodes[0].CreateRoom(kith.CreateRoomConfig{Name: "other", Mode: room.Password}); err == nil {
		t.Error("a room in password mode without a password")
	}
	ben := openNode(t, p.network, stateDir(t), "ben")
	joinRoom(ctx, t, p.nodes[0], ben, "friends", "")
}

// TestRoomMemberIsNoPair: what is for pairs alone is refused for a member, which stays.
func TestRoomMemberIsNoPair(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna")
	if _, err := p.nodes[0].Unpair(ctx, "anna@friends"); err == nil {
		t.Error("a member was unpaired")
	}
	if _, err := p.nodes[0].SetOwn("anna@friends", true); err == nil {
		t.Error("a member is an own device")
	}
	if _, err := p.nodes[0].Verify("anna@friends", "123456"); err == nil {
		t.Error("a member is verified")
	}
	if _, err := p.nodes[0].Ping(ctx, "anna@friends"); err != nil {
		t.Error(err)
	}
}

// TestRoomMemberPairs: a member that is paired is the pair alone; what it reaches because
// of the room ends when it is put out, and the pair goes on.
func TestRoomMemberPairs(t *testing.T) {
	ctx := testContext(t)
	p := newParty(ctx, t, "friends", "host", "anna")
	host, anna := p.nodes[0], p.nodes[1]
	pairNodes(ctx, t, host, anna, code.MethodWords)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	if _, err := host.ShareRoomPort("friends", "tcp", port, true); err != nil {
		t.Fatal(err)
	}
	c, err := anna.Dial(ctx, "tcp", net.JoinHostPort(host.ID().String(), strconv.Itoa(int(port))))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	awaitRoom(ctx, t, host, "friends", "known as a member, too", func(kith.Room) bool {
		_, err := host.Device("anna@friends")
		return err != nil
	})
	if _, err := host.KickMember("friends", "anna", true); err != nil {
		t.Fatal(err)
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	var out net.Error
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.As(err, &out) && out.Timeout() {
		t.Errorf("who is banned still reaches what was shared with the room: %v", err)
	}
	if _, err := host.Ping(ctx, anna.ID().String()); err != nil {
		t.Error(err)
	}
}
