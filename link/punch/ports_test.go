package punch

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestPortsCoverEverythingOnce is the promise of Ports, over several attempts.
func TestPortsCoverEverythingOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := anyBehaviour(t, "peer")
		p := NewPorts(b, rapid.Uint64().Draw(t, "seed"))
		for range rapid.IntRange(0, 3).Draw(t, "attempts before") {
			for range rapid.IntRange(0, 3000).Draw(t, "probes") {
				p.Next()
			}
			if rapid.Bool().Draw(t, "changed") {
				b = anyBehaviour(t, "peer")
			}
			p.Resume(b)
		}
		want := anyPorts
		if b.BlockLow > 0 && b.BlockLow < lowestPort {
			want += lowestPort - int(b.BlockLow) - max(0, lowestPort-1-int(b.BlockHigh))
		}
		var seen [1 << 16]bool
		count := 0
		for port, ok := p.Next(); ok; port, ok = p.Next() {
			if seen[port] {
				t.Fatalf("port %d twice", port)
			}
			seen[port] = true
			count++
		}
		if count != want {
			t.Fatalf("%d ports, want %d", count, want)
		}
		if _, ok := p.Next(); ok {
			t.Fatal("there is more after the end")
		}
	})
}

func take(p *Ports, n int) []uint16 {
	var out []uint16
	for range n {
		port, ok := p.Next()
		if !ok {
			break
		}
		out = append(out, port)
	}
	return out
}

func TestPortsOrder(t *testing.T) {
	if got, want := take(NewPorts(Behaviour{Delta: 2, LastPort: 5000}, 1), 6), []uint16{5002, 4998, 5004, 4996, 5006, 4994}; !slices.Equal(got, want) {
		t.Errorf("predicted %v, want %v", got, want)
	}
	if got, want := take(NewPorts(Behaviour{Delta: 1, LastPort: 65535}, 1), 4), []uint16{1024, 65534, 1025, 65533}; !slices.Equal(got, want) {
		t.Errorf("around the end %v, want %v", got, want)
	}
	inBlock := Behaviour{Delta: -1, LastPort: 2048, BlockLow: 2048, BlockHigh: 2111}
	got := take(NewPorts(inBlock, 1), 64)
	if got[0] != 2111 || slices.Max(got) != 2111 || slices.Min(got) != 2048 {
		t.Errorf("a sequence in a block: %v", got)
	}
	block := Behaviour{BlockLow: 4096, BlockHigh: 4607}
	got = take(NewPorts(block, 1), 512)
	if slices.Max(got) != 4607 || slices.Min(got) != 4096 || slices.IsSorted(got) {
		t.Error("the block does not come first, in random order")
	}
	if slices.Equal(got, take(NewPorts(block, 2), 512)) {
		t.Error("another seed gives the same order")
	}
}

func TestPortsGoOnInTheNextAttempt(t *testing.T) {
	peer := Behaviour{Delta: 1, LastPort: 5000}
	p := NewPorts(peer, 1)
	first := take(p, AttemptProbes)
	p.Resume(peer)
	second := take(p, AttemptProbes)
	guesses := 2 * predictions
	if !slices.Equal(first[:guesses], second[:guesses]) {
		t.Error("the next attempt does not begin with the likely ports")
	}
	for _, port := range second[guesses:] {
		if slices.Contains(first, port) {
			t.Fatalf("port %d came in the attempt before", port)
		}
	}
	// A port block that takes more than an attempt does not keep the rest out.
	large := Behaviour{BlockLow: 4096, BlockHigh: 8191}
	if got := take(NewPorts(large, 1), blockQuota+1)[blockQuota]; got >= 4096 && got <= 8191 {
		t.Errorf("port %d after a quarter of the block", got)
	}
}

// TestRingLooksRandom catches a permutation that is none, or hardly one.
func TestRingLooksRandom(t *testing.T) {
	const n = 64512
	r := newRing(n, 42)
	var prev, near, ascending int
	var tenths [10]int
	for i := range uint32(n) {
		v := int(r.value(i))
		if d := v - prev; d > -64 && d < 64 {
			near++
		}
		if v > prev {
			ascending++
		}
		prev = v
		if i < n/32 {
			tenths[v*10/n]++
		}
	}
	if near > 250 || ascending < n*48/100 || ascending > n*52/100 {
		t.Errorf("%d neighbours follow each other, %d ascend", near, ascending)
	}
	for i, count := range tenths {
		if count < 140 || count > 265 {
			t.Errorf("tenth %d gets %d of the first %d", i, count, n/32)
		}
	}
}

func BenchmarkPorts(b *testing.B) {
	p := NewPorts(Behaviour{}, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := p.Next(); !ok {
			p.Resume(Behaviour{})
		}
	}
}
