package kith

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// gatesOf returns gates of members 1 to n, of which absent and way say what the node would.
func gatesOf(n int, absent, way map[byte]bool) *gates {
	media := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}).Exchange("memory")
	gs := newGates(media, func(id identity.DeviceID) (bool, bool) { return absent[id[0]], way[id[0]] }, func(string, error) {})
	for i := range n {
		gs.of(identity.DeviceID{byte(i + 1)}, false)
	}
	return gs
}

func (gs *gates) opened() map[byte]bool {
	out := make(map[byte]bool)
	for id, g := range gs.all {
		g.gate.mu.Lock()
		if g.gate.open {
			out[id[0]] = true
		}
		g.gate.mu.Unlock()
	}
	return out
}

// run lets time pass, as watch does.
func (gs *gates) run(t *testing.T, now, until time.Time) time.Time {
	t.Helper()
	for steps := 0; ; steps++ {
		next := gs.update(now)
		if next.IsZero() || next.After(until) {
			return until
		}
		if !next.After(now) || steps > 1000 {
			t.Fatalf("at %v it wants to be called at %v", now, next)
		}
		now = next
	}
}

// TestGateDespiteWay opens a member's gate although somebody says that it passes frames on.
func TestGateDespiteWay(t *testing.T) {
	absent, way := map[byte]bool{1: true, 2: true}, map[byte]bool{1: true}
	gs := gatesOf(3, absent, way)
	start := time.Now()
	now := gs.run(t, start, start.Add(gateLate-time.Second))
	if got := gs.opened(); got[1] || !got[2] || got[3] {
		t.Errorf("soon: %v", got)
	}
	now = gs.run(t, now, start.Add(gateLate))
	if got := gs.opened(); !got[1] {
		t.Errorf("a member who is not connected is not looked for: %v", got)
	}
	absent[1] = false
	now = gs.run(t, now, now.Add(time.Second))
	absent[1] = true
	now = gs.run(t, now, now.Add(time.Second))
	if got := gs.opened(); got[1] {
		t.Errorf("it was connected just now: %v", got)
	}
	gs.run(t, now, now.Add(gateLate))
	if got := gs.opened(); !got[1] {
		t.Errorf("a second time: %v", got)
	}
}

// TestGatesTakeTurns has more members away than are looked for at once.
func TestGatesTakeTurns(t *testing.T) {
	const n = 3 * maxGates
	absent := make(map[byte]bool)
	for i := range n {
		absent[byte(i+1)] = true
	}
	gs := gatesOf(n, absent, nil)
	start := time.Now()
	now := gs.run(t, start, start.Add(gateAfter))
	had := make(map[byte]int)
	for range 3 {
		open := gs.opened()
		if len(open) != maxGates {
			t.Fatalf("%d gates are open", len(open))
		}
		for id := range open {
			had[id]++
		}
		now = gs.run(t, now, now.Add(gateTurn+gateRest))
	}
	if len(had) != n {
		t.Errorf("%d of %d had a turn: %v", len(had), n, slices.Sorted(maps.Keys(had)))
	}
}

// TestGatesRest calls update as often as members like.
func TestGatesRest(t *testing.T) {
	asked := 0
	media := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}).Exchange("memory")
	gs := newGates(media, func(identity.DeviceID) (bool, bool) { asked++; return false, false }, func(string, error) {})
	gs.of(identity.DeviceID{1}, false)
	start := time.Now()
	for i := range 1000 {
		gs.update(start.Add(time.Duration(i) * time.Millisecond))
	}
	if most := int(time.Second/gateRest) + 1; asked > most {
		t.Errorf("looked %d times in a second, at most %d", asked, most)
	}
}
