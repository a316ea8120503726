package kith_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// TestNoteViaErrors asks for what cannot be. What can is TestNetworkChatByMulticast.
func TestNoteViaErrors(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
	pairNodes(ctx, t, a, b, code.MethodWords)
	b.HandleNotes(func(kith.Device, []byte) bool { t.Error("a note came"); return true })
	for _, c := range []struct{ ref, medium, want string }{
		{"nobody", kith.ViaMulticast, ""},
		{"laptop", "pigeon", "is no medium for notes"},
		{"laptop", kith.ViaMulticast, "does not use it"}, // NoLAN
	} {
		err := a.NoteVia(ctx, c.ref, c.medium, []byte("hello"))
		if err == nil || !strings.Contains(err.Error(), c.want) || c.want == "" && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s by %s: %v", c.ref, c.medium, err)
		}
	}
	said := (&kith.NoAnswerError{Device: kith.Device{Name: "laptop"}, Via: kith.ViaMulticast, Waited: 10*time.Second + time.Millisecond}).Error()
	if said != "laptop does not answer by multicast (waited 10s)" {
		t.Error(said)
	}
}
