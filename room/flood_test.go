package room

import (
	"crypto/rand"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/wire"
)

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// flood gives a host frames and reports what that cost.
func flood(t *testing.T, h *Host, now *time.Time, step time.Duration, frames func(i int) []byte, n int) (took time.Duration, grew int64) {
	t.Helper()
	before := heap()
	for i := range n {
		f := frames(i)
		begin := time.Now()
		h.Receive(*now, TopicLong, f)
		for {
			if _, ok := h.Poll(); !ok {
				break
			}
		}
		took += time.Since(begin)
		*now = now.Add(step)
	}
	return took, int64(heap()) - int64(before)
}

// TestFloods: 10^5 frames of garbage, and 10^4 well-formed hellos by somebody who
// has the code, cost bounded memory and little time, and a joiner gets in after
// them. The times are measured and printed; the bounds are far above them.
func TestFloods(t *testing.T) {
	garbage, hellos := 100_000, 10_000
	if testing.Short() {
		garbage, hellos = 10_000, 1_000
	}
	n := newNetwork(t)
	r := found(t, "host", Password)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "p"})
	c := longCode(t, r.Room)
	keys, err := c.Keys()
	if err != nil {
		t.Fatal(err)
	}
	sealer := h.host.sealers[0]

	random := make([]byte, wire.FrameSize)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	now := start
	took, grew := flood(t, h.host, &now, 0, func(i int) []byte {
		random[i%wire.FrameSize]++
		return random
	}, garbage)
	t.Logf("%d frames of garbage: %v, %v each, %d bytes more", garbage, took, took/time.Duration(garbage), grew)
	if grew > 1<<20 || took > 30*time.Second {
		t.Errorf("garbage cost %v and %d bytes", took, grew)
	}

	// Frames with the right key and nonsense in them.
	took, grew = flood(t, h.host, &now, 0, func(i int) []byte {
		var f wire.Frame
		f.Type, f.Body = byte(frameJ1+i%5), make([]byte, i%wire.MaxBody)
		if f.Type == frameJ1 && len(f.Body) > 2 {
			f.Body[0] = byte(i % 4)
			f.SID = sidOf(f.Body[1:])
		}
		raw, err := sealer.Seal(rand.Reader, f)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}, hellos)
	t.Logf("%d sealed frames of nonsense: %v, %v each, %d bytes more", hellos, took, took/time.Duration(hellos), grew)
	if grew > 8<<20 || len(h.host.open) > maxOpen {
		t.Errorf("nonsense: %d handshakes, %d bytes", len(h.host.open), grew)
	}

	// Hellos that are right. A few are made, and sealed anew each time with a
	// changed first message: only real ones open a handshake.
	var starts [][]byte
	for range 200 {
		j, err := newJoinerStart(keys.PSK[:], code.RoomWords, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, j.j1)
	}
	most := 0
	took, grew = flood(t, h.host, &now, time.Millisecond, func(i int) []byte {
		most = max(most, len(h.host.open))
		j1 := starts[i%len(starts)]
		raw, err := sealer.Seal(rand.Reader, wire.Frame{Type: frameJ1, SID: sidOf(j1), Body: append([]byte{byte(code.RoomWords)}, j1...)})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}, hellos)
	t.Logf("%d hellos in %v of the host's time: %v, %v each, %d handshakes at once, %d bytes more",
		hellos, time.Duration(hellos)*time.Millisecond, took, took/time.Duration(hellos), most, grew)
	if most > maxOpen || grew > 8<<20 || len(h.host.settled) > maxSettled {
		t.Errorf("%d handshakes, %d settled, %d bytes", most, len(h.host.settled), grew)
	}

	n.now = now.Add(openIdle)
	j := n.addJoiner("ann", JoinerConfig{Code: c, Password: "p"})
	n.join(j)
	agreed(t, h, j)
}

// TestFloodOfDevices: somebody with the code asks with many keys. What waits for
// the user is bounded, and a device that keeps asking gets its turn.
func TestFloodOfDevices(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Approve)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
	c := longCode(t, r.Room)
	busy := 0
	for i := range maxWaiting + 20 {
		e := n.addJoiner(fmt.Sprintf("eve %d", i), JoinerConfig{Code: c})
		n.run(10*time.Second, func() bool { return len(e.events) >= 2 })
		e.joiner.Stop()
		if e.failed == Busy {
			busy++
		}
		n.sides = n.sides[:1]
		if len(h.host.waiting) > maxWaiting || len(h.host.open) > maxOpen || len(h.host.settled) > maxSettled {
			t.Fatalf("%d wait, %d open, %d settled", len(h.host.waiting), len(h.host.open), len(h.host.settled))
		}
	}
	if busy == 0 || len(h.asked) != maxWaiting {
		t.Errorf("%d were told that too many wait, the user was asked %d times", busy, len(h.asked))
	}
	n.now = n.now.Add(stale)
	ann := n.addJoiner("ann", JoinerConfig{Code: c})
	n.run(time.Minute, func() bool { return len(ann.events) >= 2 })
	if err := h.host.Decide(n.now, device(t, "ann").ID(), true); err != nil {
		t.Fatal(err)
	}
	n.join(ann)
	agreed(t, h, ann)
	// Handshakes are bounded in time, too: a burst, then 20 a second.
	n.now = n.now.Add(time.Hour)
	began := h.host.began
	for i := range 500 {
		n.addJoiner(fmt.Sprintf("fast %d", i), JoinerConfig{Code: c})
		n.settle()
		n.sides = n.sides[:1]
	}
	if got := h.host.began - began; got > burst {
		t.Errorf("%d handshakes in an instant", got)
	}
}

// TestManyJoinAtOnce: 50 devices that get the code at the same moment are all in
// soon.
func TestManyJoinAtOnce(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Password)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "p"})
	c := longCode(t, r.Room)
	var all []*side
	for i := range 50 {
		all = append(all, n.addJoiner(fmt.Sprintf("member %d", i), JoinerConfig{Code: c, Password: "p"}))
	}
	begin := time.Now()
	n.run(time.Minute, func() bool { return len(h.host.Roster().Members) == 51 })
	t.Logf("50 joined in %v of the room's time, %v of this machine's", n.now.Sub(start), time.Since(begin))
	for _, j := range all {
		agreed(t, h, j)
	}
	if n.now.Sub(start) > 10*time.Second {
		t.Errorf("it took %v", n.now.Sub(start))
	}
}
