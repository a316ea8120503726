package control

import (
	"encoding/json"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/identity"
)

// TestShownOfEach has a member write by the log ID of another, ahead of it. The other's
// lines are shown, each once.
func TestShownOfEach(t *testing.T) {
	near, far := net.Pipe()
	var wg sync.WaitGroup
	var got []string
	wg.Go(func() {
		in := json.NewDecoder(far)
		for {
			var r Reply
			if err := in.Decode(&r); err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				return
			}
			got = append(got, r.Chat.Text)
		}
	})
	k := &talk{st: newStream(near), shown: make(map[logOf]uint64)}
	for i, text := range []string{"of mallory", "of anna", "of anna", "in another room"} {
		m := &chat.Message{Author: identity.DeviceID{byte(min(i, 1))}, Log: chat.LogID{7}, Seq: 9, Text: text}
		if i == 1 || i == 2 { // before the one of mallory
			m.Seq = 1
		}
		m.Conv[0] = byte(i / 3)
		if !k.show(chat.Event{Kind: chat.EventMessage, Message: m}) {
			t.Fatal("not shown")
		}
	}
	near.Close()
	wg.Wait()
	if want := []string{"of mallory", "of anna", "in another room"}; !slices.Equal(got, want) {
		t.Errorf("shown: %q, want %q", got, want)
	}
}
