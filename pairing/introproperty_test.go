package pairing

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// begins starts a handshake of an introduction where the node does: the offerer as long as
// it has no active pair, the joiner as long as it has no record.
func (w *world) begins(i int) {
	p := w.sides[i]
	if p.m != nil && p.m.phase != failed && p.m.phase != committing { // it does not wait for ever in that
		return
	}
	for _, r := range p.disk {
		if r.State == Active || r.State == Prepared && p.cfg.Role == Joiner {
			return
		}
	}
	p.writes = slices.DeleteFunc(p.writes, func(j write) bool { return j.m != nil })
	p.start(w)
	w.drain(i)
}

// newIntroduction is a world of two devices that were introduced, and have said yes.
func newIntroduction(t *rapid.T, tb testing.TB) *world {
	oc, jc, _ := introduced(tb)
	w := &world{t: t, now: t0, others: true}
	for i, cfg := range []Config{oc, jc} {
		w.sides[i] = &party{
			cfg: cfg, commits: make(map[pairID]*Commit), disk: make(map[pairID]*Record), told: make(map[pairID]bool),
			spoke: make(map[pairID]bool), ended: make(map[pairID]bool), slow: rapid.IntRange(0, 2).Draw(t, "slow disk") == 0,
		}
	}
	return w
}

// TestIntroductionAnySchedule runs an introduction under random losses, repeats,
// reorderings, reflections, crashes, slow and full disks. S1 to S3 hold after every step,
// a joiner never has a record without the offerer, and in the end, when both devices are
// there, they are paired, by one and the same pair.
func TestIntroductionAnySchedule(t *testing.T) {
	worlds, crashed := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		w := newIntroduction(rt, t)
		crashes := 4
		all := w.actions()
		for _, name := range []string{"reject", "unpair", "start again", "accept", "wait", "crash"} {
			delete(all, name)
		}
		all["crash"] = func(rt *rapid.T) {
			if crashes == 0 || rapid.IntRange(0, 3).Draw(rt, "seldom") > 0 {
				rt.Skip()
			}
			crashes--
			w.crash(rapid.IntRange(0, 1).Draw(rt, "side"))
			crashed++
		}
		all["begin"] = func(rt *rapid.T) { w.begins(rapid.IntRange(0, 1).Draw(rt, "side")) }
		all[""] = func(rt *rapid.T) {
			for id := range w.sides[1].disk {
				if w.sides[0].disk[id] == nil {
					rt.Fatal("the joiner has a record that the offerer never had")
				}
			}
		}
		rt.Repeat(all)
		for range 8 {
			for i := range w.sides {
				w.begins(i)
			}
			w.settle()
		}
		var active [2][]pairID
		for i, p := range w.sides {
			for id, r := range p.disk {
				if r.State == Active {
					active[i] = append(active[i], id)
				}
			}
		}
		if len(active[0]) != 1 || !slices.Equal(active[0], active[1]) {
			for i, p := range w.sides {
				for id, r := range p.disk {
					rt.Logf("side %d: %x %v", i, id[:3], r.State)
				}
			}
			rt.Fatalf("active pairs: %x and %x", active[0], active[1])
		}
		worlds++
	})
	if worlds >= 50 && crashed == 0 {
		t.Error("nothing crashed")
	}
	t.Logf("%d worlds, %d crashes", worlds, crashed)
}
