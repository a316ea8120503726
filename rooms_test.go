package kith_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// awaitRoom waits until a room looks as it should at a node.
func awaitRoom(ctx context.Context, t *testing.T, n *kith.Node, ref, what string, ok func(kith.Room) bool) kith.Room {
	t.Helper()
	for {
		r, err := n.Room(ref)
		if err == nil && ok(r) {
			return r
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %s: %+v, %v", n.Name(), what, r, err)
		}
	}
}

// joinRoom has a node join the room of another one.
func joinRoom(ctx context.Context, t *testing.T, host, n *kith.Node, ref, password string) kith.Room {
	t.Helper()
	long, _, err := host.RoomCode(ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.ParseRoom(long.Words())
	if err != nil {
		t.Fatal(err)
	}
	j, err := n.JoinRoom(ctx, c, kith.JoinRoomConfig{Password: password, Patience: 3 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	r, err := j.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func members(n int, direct bool) func(kith.Room) bool {
	return func(r kith.Room) bool {
		for _, m := range r.Members {
			if !m.Self && (!m.Online || direct && !m.Direct) {
				return false
			}
		}
		return len(r.Members) == n
	}
}

func TestRoom(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	hostDir, annaDir := stateDir(t), stateDir(t)
	host, anna, ben := openNode(t, network, hostDir, "host"), openNode(t, network, annaDir, "anna"), openNode(t, network, stateDir(t), "ben")
	made, err := host.CreateRoom(kith.CreateRoomConfig{Name: "friends", Password: "correct horse"})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*kith.Node{anna, ben} {
		joinRoom(ctx, t, host, n, "friends", "correct horse")
	}
	for _, n := range []*kith.Node{host, anna, ben} {
		r := awaitRoom(ctx, t, n, "friends", "not all there", members(3, true))
		if r.ID != made.ID {
			t.Errorf("%s: room %v", n.Name(), r.ID)
		}
	}
	// Members reach what is shared with the room, and nothing else.
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
			_, _ = io.WriteString(c, "shared")
			c.Close()
		}
	}()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	get := func(n *kith.Node, member string) (string, error) {
		conn, err := n.Dial(ctx, "tcp", net.JoinHostPort(member, strconv.Itoa(int(port))))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		b, err := io.ReadAll(conn)
		return string(b), err
	}
	if text, err := get(anna, "ben@friends"); err == nil {
		t.Errorf("not shared, and got %q", text)
	}
	if _, err := ben.ShareRoomPort("friends", "tcp", port, true); err != nil {
		t.Fatal(err)
	}
	if text, err := get(anna, "ben@friends"); err != nil || text != "shared" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := ben.ShareRoomPort("friends", "tcp", port, false); err != nil {
		t.Fatal(err)
	}
	if text, err := get(anna, "ben@friends"); err == nil {
		t.Errorf("no longer shared, and got %q", text)
	}
	if len(anna.Devices()) != 0 {
		t.Errorf("members are paired devices: %+v", anna.Devices())
	}
	// A member who comes back is the same.
	if err := anna.Close(); err != nil {
		t.Fatal(err)
	}
	anna = openNode(t, network, annaDir, "anna")
	awaitRoom(ctx, t, anna, "friends", "not back", members(3, true))
	// So is the host.
	before, err := ben.Room("friends")
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ben.Ping(ctx, "anna@friends"); err != nil {
		t.Errorf("members without their host: %v", err)
	}
	host = openNode(t, network, hostDir, "host")
	after := awaitRoom(ctx, t, host, "friends", "not back", members(3, true))
	for i, m := range after.Members {
		if b := before.Members[i]; b.ID != m.ID || b.Number != m.Number || b.Name != m.Name || b.Addr != m.Addr {
			t.Errorf("member %d is %+v, was %+v", i, m, b)
		}
	}
	// Who is put out is out everywhere, and hears of it.
	left, stop := anna.Events()
	defer stop()
	if _, err := host.KickMember("friends", "anna", true); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*kith.Node{host, ben} {
		awaitRoom(ctx, t, n, "friends", "anna is in it", members(2, true))
		if _, err := n.Dial(ctx, "tcp", "anna@friends:80"); err == nil {
			t.Errorf("%s reaches who is out", n.Name())
		}
	}
	for ev := range left {
		if ev.Kind == kith.EventRoomLeft {
			if ev.Detail != "a host banned this device" || ev.Room.Name != "friends" {
				t.Errorf("%q of %q", ev.Detail, ev.Room.Name)
			}
			break
		}
	}
	if rooms := anna.Rooms(); len(rooms) != 0 {
		t.Errorf("%+v", rooms)
	}
	long, _, err := host.RoomCode("friends")
	if err != nil {
		t.Fatal(err)
	}
	j, err := anna.JoinRoom(ctx, long, kith.JoinRoomConfig{Password: "correct horse"})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var refused *kith.RoomError
	if _, err := j.Wait(ctx); !errors.As(err, &refused) || refused.Reason != room.Banned {
		t.Errorf("a banned device: %v", err)
	}
	awaitRoom(ctx, t, ben, "friends", "not with the host", members(2, true))
	if told, err := ben.LeaveRoom(ctx, "friends"); err != nil || !told {
		t.Fatal(told, err)
	}
	if len(ben.Rooms()) != 0 {
		t.Error("ben is in it still")
	}
	if r, err := host.Room("friends"); err != nil || len(r.Members) != 1 {
		t.Errorf("the host still counts on ben: %+v, %v", r, err)
	}
}

// TestRoomFork has two hosts, each away in turn, make different rosters of one version.
func TestRoomFork(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	dirs, names := []string{stateDir(t), stateDir(t)}, []string{"host", "anna"}
	nodes := []*kith.Node{openNode(t, network, dirs[0], names[0]), openNode(t, network, dirs[1], names[1])}
	made, err := nodes[0].CreateRoom(kith.CreateRoomConfig{Name: "friends", Mode: room.Open})
	if err != nil {
		t.Fatal(err)
	}
	joinRoom(ctx, t, nodes[0], nodes[1], "friends", "")
	ref := made.ID.String()
	awaitRoom(ctx, t, nodes[0], ref, "not together", members(2, true))
	if _, err := nodes[0].AddRoomHost(ref, "anna"); err != nil {
		t.Fatal(err)
	}
	awaitRoom(ctx, t, nodes[1], ref, "no host", func(r kith.Room) bool { return r.Host })
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[1].RenameRoom(ref, "annas"); err != nil {
		t.Fatal(err)
	}
	if err := nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	nodes[0] = openNode(t, network, dirs[0], names[0])
	if _, err := nodes[0].RenameRoom(ref, "hosts"); err != nil {
		t.Fatal(err)
	}
	nodes[1] = openNode(t, network, dirs[1], names[1])
	for _, n := range nodes {
		awaitRoom(ctx, t, n, ref, "not one", func(r kith.Room) bool { return r.Name == "hosts" && members(2, true)(r) })
	}
}
