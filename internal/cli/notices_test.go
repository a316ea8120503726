package cli

import (
	"strings"
	"testing"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/room"
)

// TestNoticesActOnTheirOwn holds that what a key does at a notice is about the guest, the
// pair or the offer that the notice is about, and not about the last one of a list.
func TestNoticesActOnTheirOwn(t *testing.T) {
	asks, other := identity.DeviceID{1}, identity.DeviceID{2}
	laptop := kith.Device{ID: identity.DeviceID{3}, Name: "laptop", State: kith.Paired}
	in := &kith.Room{ID: room.ID{4}, Name: "friends", Waiting: []kith.RoomGuest{{ID: asks, Name: "anna"}, {ID: other, Name: "mallory"}}}
	b := &chatBackend{self: identity.DeviceID{9}.String()}
	for _, c := range []struct {
		ev   kith.Event
		want string // ID of the action
	}{
		{kith.Event{Kind: kith.EventRoomAsked, Room: in, Subject: asks.String(), Detail: "anna"}, "admit " + in.ID.String() + " " + asks.String()},
		{kith.Event{Kind: kith.EventNewPair, Device: laptop, Subject: "3f60c1d2"}, "undo " + laptop.ID.String() + ":3f60c1d2"},
		{kith.Event{Kind: kith.EventNewPair, Device: laptop, Detail: "that pair is over"}, ""},
	} {
		n := b.notice(c.ev)
		got := ""
		if n.Action != nil {
			got = n.Action.ID
		}
		if got != c.want {
			t.Errorf("%s: the key does %q, want %q", c.ev.Kind, got, c.want)
		}
	}
	line := roomEvent(kith.Event{Kind: kith.EventRoomAsked, Room: in, Subject: asks.String(), Detail: "anna"})
	if !strings.HasSuffix(line, "kith room approve friends "+asks.Short()) {
		t.Errorf("kith up prints %q", line)
	}
	if want := chat.ConvID(in.ID).String(); b.notice(kith.Event{Kind: kith.EventRoomAsked, Room: in}).Conv != want {
		t.Errorf("not shown in %s", want)
	}
}
