package kith_test

import (
	"testing"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// TestWhoAsked holds that the event that a device asks to be let in names that device,
// whoever else waits, so that what answers it admits no other.
func TestWhoAsked(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	host := openNode(t, network, stateDir(t), "host")
	if _, err := host.CreateRoom(kith.CreateRoomConfig{Name: "friends", Mode: room.Approve}); err != nil {
		t.Fatal(err)
	}
	long, _, err := host.RoomCode("friends")
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.ParseRoom(long.Words())
	if err != nil {
		t.Fatal(err)
	}
	events, end := host.Events()
	defer end()
	names := make(map[identity.DeviceID]string)
	for _, name := range []string{"anna", "ben", "carl", "dora"} { // by chance their IDs are in this order in one of 24
		guest := openNode(t, network, stateDir(t), name)
		names[guest.ID()] = name
		j, err := guest.JoinRoom(ctx, c, kith.JoinRoomConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		for asked := false; !asked; {
			select {
			case ev := <-events:
				if ev.Kind != kith.EventRoomAsked {
					continue
				}
				if asked = true; ev.Detail != name || ev.Subject != guest.ID().String() {
					t.Errorf("%q asked: %q, %q", name, ev.Detail, ev.Subject)
				}
			case <-ctx.Done():
				t.Fatalf("%s: %v", name, ctx.Err())
			}
		}
	}
}
