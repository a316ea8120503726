package control

import (
	"context"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// TestMembersAreNotPaired holds that a member of a room who is not paired leaves no
// letters here, and has nothing to say about pairs.
func TestMembersAreNotPaired(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	host, guest := openServer(t, medium, "host"), openServer(t, medium, "guest")
	if err := host.KeepMail(); err != nil {
		t.Fatal(err)
	}
	if _, err := host.node.CreateRoom(kith.CreateRoomConfig{Name: "friends", Mode: room.Open}); err != nil {
		t.Fatal(err)
	}
	joinRoom(ctx, t, host, guest, "friends")
	for _, port := range []int{mail.Port, kin.Port} {
		conn, err := guest.node.Dial(ctx, "tcp", net.JoinHostPort(host.node.ID().String(), strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		_ = conn.SetDeadline(deadline)
		_, _ = conn.Write([]byte{0, 20, 6, 0xa1, 1, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // a kin.LetterAsk; the mail speaks first
		if raw, _ := io.ReadAll(io.LimitReader(conn, 1)); len(raw) > 0 {
			t.Errorf("port %d answers a member who is not paired", port)
		}
	}
}
