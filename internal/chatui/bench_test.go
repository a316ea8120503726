package chatui

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// long is a conversation of n lines, all of which are held, and the window shows the
// middle.
func long(n int) *rig {
	f := newFake()
	f.convs = []Conv{{ID: "c1", Name: "laptop", Members: []Member{{ID: "aa11", Name: "laptop", Online: true}}}}
	for i := range n {
		f.add("c1", []string{"aa11", "me"}[i%2], fmt.Sprintf("line %d, as long as lines of a chat are wont to be, which is about this much", i))
	}
	r := newRig(f, 80, 24)
	k := r.m.current()
	k.follow = false
	for !k.whole {
		r.do(r.m.load(k))
	}
	k.top = place{k.items[n/2].key, 0}
	return r
}

// BenchmarkView draws a window, and scrolls by a row, for histories of several lengths.
func BenchmarkView(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		r := long(n)
		for name, do := range map[string]func(){
			"same":   func() {},
			"scroll": func() { r.m.scroll(1); r.m.scroll(-1) },
			"cold":   func() { clear(r.m.wraps) },
			"typing": func() { r.keys("'x", "backspace") },
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					do()
					r.m.lines()
				}
			})
		}
	}
}

// TestViewIgnoresHistory holds that a window costs the same whatever is above it: the
// same bytes, and not much more time.
func TestViewIgnoresHistory(t *testing.T) {
	cost := func(n int) (uint64, time.Duration) {
		r := long(n)
		r.m.lines()
		best := time.Hour
		var mem uint64
		for range 20 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			for range 20 {
				r.m.scroll(3)
				r.m.lines()
				r.m.scroll(-3)
			}
			best = min(best, time.Since(start))
			runtime.ReadMemStats(&after)
			mem = after.TotalAlloc - before.TotalAlloc
		}
		if len(r.m.wraps) > mostWraps {
			t.Errorf("%d broken texts are held", len(r.m.wraps))
		}
		return mem, best
	}
	memShort, short := cost(1000)
	memLong, long := cost(100_000)
	t.Logf("20 views and scrolls: %v and %d KiB with 1,000 lines, %v and %d KiB with 100,000", short, memShort>>10, long, memLong>>10)
	if memLong > memShort*3/2+(64<<10) || long > 20*short {
		t.Error("the cost grows with the history")
	}
}
