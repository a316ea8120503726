package tunnel

import (
	"io"
	"testing"
	"time"
)

// TestLostHandshake loses handshake messages: the first byte must come well
// before WireGuard itself tries again, after five seconds.
func TestLostHandshake(t *testing.T) {
	for _, tc := range []struct {
		name       string
		initiation int32 // of the dialing side, how many are lost
		response   int32 // of the other side
		within     time.Duration
	}{
		{"first initiation", 1, 0, 2 * time.Second},
		{"three initiations", 3, 0, 3 * time.Second},
		{"first response", 0, 1, 2 * time.Second},
		{"three responses", 0, 3, 3 * time.Second},
		{"both", 1, 1, 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ba, bb := newBind(), newBind()
			ba.lose, bb.lose = typeInitiation, typeResponse
			ba.losses.Store(tc.initiation)
			bb.losses.Store(tc.response)
			a, b := newSide(t, ba), newSide(t, bb)
			introduce(t, a, b)
			serve(t, b, 7, echo)
			start := time.Now()
			c := dial(t, a, b.addr(7))
			if _, err := c.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > tc.within {
				t.Errorf("first byte after %v", took)
			}
			if ba.losses.Load() > 0 || bb.losses.Load() > 0 {
				t.Error("nothing got lost")
			}
		})
	}
}
