package link

import (
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
)

// TestReset has the peer die and come back on another port, as a program does
// that was killed: the same Link reaches its next run, and nothing of the last one
// is left, neither a path nor an event.
func TestReset(t *testing.T) {
	a, b := connected(t)
	for round := 1; round <= 3; round++ {
		if err := b.socket.Close(); err != nil {
			t.Fatal(err)
		}
		next := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
		_ = a.say("to the old run")
		a.Reset()
		a.SetRemote(loopback(next.socket, "127.0.0.1"))
		for ev := range a.events {
			if ev.Round == round && ev.Kind != Up {
				t.Fatalf("round %d begins with %v", round, ev)
			}
			if ev.Round == round {
				break
			}
		}
		path, ok := a.Path()
		if !ok || path.Remote != next.addr() {
			t.Fatalf("path after the reset: %v, want %v", path, next.addr())
		}
		for _, p := range a.Paths() {
			if p.Remote == b.addr() {
				t.Errorf("the old run's path is still there: %v", p)
			}
		}
		// A last ping of the old run may come after the reset, and claims no more
		// than its address.
		if a.socket.table.Load().sources[onSocket(b.addr())].proven {
			t.Error("the old run's address still counts as proven")
		}
		next.wait(t, Up, 5*time.Second)
		if err := a.say("hello"); err != nil {
			t.Fatal(err)
		}
		next.hear(t, "hello")
		if err := next.say("hello back"); err != nil {
			t.Fatal(err)
		}
		a.hear(t, "hello back")
		b = next
	}
}
