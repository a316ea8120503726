package punch

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestChancesOfTheManual proves the sentence about 256 sockets in the package
// comment by simulation: all sockets are open, ports are random, probes go at the
// pacer's rate.
func TestChancesOfTheManual(t *testing.T) {
	const trials = 4000
	rng := rand.New(rand.NewPCG(1, 2))
	var took []time.Duration
	for i := range trials {
		open := map[uint16]bool{}
		for len(open) < 256 {
			open[uint16(lowestPort+rng.IntN(anyPorts))] = true
		}
		plan := Decide(Behaviour{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent},
			Behaviour{Mapping: AddressAndPortDependent, Public: publicB})
		a, err := NewAttempt(plan, NewPorts(Behaviour{}, uint64(i)), 0, epoch)
		if err != nil {
			t.Fatal(err)
		}
		var pacer Pacer
		for now := epoch; ; {
			shot, at, ok := a.Next(now, &pacer)
			if ok {
				if open[shot.To.Port()] {
					took = append(took, now.Sub(epoch))
					break
				}
				continue
			}
			if at.IsZero() {
				took = append(took, time.Hour)
				break
			}
			now = at
		}
	}
	slices.Sort(took)
	median, most, all := took[trials/2], took[trials*98/100], took[trials*999/1000]
	t.Logf("median %v, 98 %% within %v, 99.9 %% within %v", median, most, all)
	if median < 300*time.Millisecond || median > 400*time.Millisecond {
		t.Errorf("median %v, the manual says 0.36 s", median)
	}
	if most > 2100*time.Millisecond {
		t.Errorf("98 %% within %v, the manual says 2 s", most)
	}
	if all > AttemptTime {
		t.Errorf("99.9 %% within %v: more than one in a thousand attempts fails", all)
	}
}

// TestChanceTable is the first table of the package comment, in percent.
func TestChanceTable(t *testing.T) {
	probes := []int{64, 174, 256, 512, 978, 1024, 2048}
	for open, want := range map[int][]float64{
		64:  {6, 16, 22, 40, 62, 64, 87},
		128: {12, 29, 40, 64, 86, 87, 98},
		256: {22, 50, 64, 87, 98, 98, 99.97},
	} {
		for i, n := range probes {
			if got := 100 * Chance(open, anyPorts, n); got < want[i]-0.6 || got > want[i]+0.6 {
				t.Errorf("%d ports, %d probes: %.2f %%, the manual says %v", open, n, got, want[i])
			}
		}
	}
	if got := Chance(64, 512, 32); got < 0.985 {
		t.Errorf("64 of a block of 512 with 32 probes: %.3f", got)
	}
	if Chance(10, 100, 91) != 1 || Chance(10, 5, 1) != 1 || Chance(10, 100, 0) != 0 {
		t.Error("the edges are wrong")
	}
}

// TestAttemptsMeet lets both sides of each interesting pair of routers sample,
// classify, decide and shoot, with both attempts beginning at once, 20 ms apart.
func TestAttemptsMeet(t *testing.T) {
	const trials = 120
	lossy := func(rng *rand.Rand) func() bool { return func() bool { return rng.IntN(20) == 0 } }
	for _, c := range []struct {
		a, b   string
		least  float64       // of the attempts that get through
		most   float64       // 0: no bound
		median time.Duration // at most
		late   time.Duration
		lossy  bool
	}{
		{a: "easy", b: "random", least: 0.99, median: 700 * time.Millisecond},
		{a: "firewalled", b: "random", least: 0.99, median: 700 * time.Millisecond},
		{a: "easy", b: "random adm", least: 0.99, median: 700 * time.Millisecond},
		{a: "easy", b: "random", least: 0.99, median: 900 * time.Millisecond, lossy: true, late: 200 * time.Millisecond},
		{a: "random", b: "easy", least: 0.99, median: 900 * time.Millisecond, late: 500 * time.Millisecond},
		{a: "easy", b: "sequential", least: 0.99, median: 100 * time.Millisecond},
		{a: "easy", b: "down by two", least: 0.99, median: 100 * time.Millisecond},
		{a: "easy", b: "sequential adm", least: 0.99, median: 100 * time.Millisecond, lossy: true},
		{a: "easy", b: "block 512", least: 0.99, median: 150 * time.Millisecond},
		{a: "easy", b: "block 1024", least: 0.99, median: 200 * time.Millisecond},
		{a: "sequential", b: "sequential", least: 0.95, median: 400 * time.Millisecond},
		{a: "sequential", b: "down by two", least: 0.95, median: 400 * time.Millisecond, late: 300 * time.Millisecond, lossy: true},
		{a: "sequential", b: "sequential adm", least: 0.9, median: 400 * time.Millisecond},
		{a: "sequential adm", b: "sequential adm", least: 0.95, median: 400 * time.Millisecond},
		{a: "sequential", b: "block 512", least: 0.22, most: 0.55, median: time.Second},
		{a: "block 512", b: "block 512", least: 0.1, most: 0.4, median: time.Second},
	} {
		t.Run(c.a+" with "+c.b, func(t *testing.T) {
			t.Parallel()
			var took []time.Duration
			var chance float64
			for i := range trials {
				rng := rand.New(rand.NewPCG(uint64(i), 7))
				lost := noLoss
				if c.lossy {
					lost = lossy(rng)
				}
				a, b := natOf(c.a, publicA, rng), natOf(c.b, publicB, rng)
				x, _, d, ok := meet(a, b, uint64(i)*10, c.late, 20*time.Millisecond, lost)
				chance += x.plan.Chance
				if ok {
					took = append(took, d)
				}
			}
			slices.Sort(took)
			rate := float64(len(took)) / trials
			if rate < c.least || c.most != 0 && rate > c.most {
				t.Fatalf("%.2f of the attempts got through, want %.2f to %.2f", rate, c.least, c.most)
			}
			if median := took[len(took)/2]; median > c.median {
				t.Errorf("median %v, at most %v", median, c.median)
			}
			if plan := chance / trials; rate < plan-0.12 {
				t.Errorf("%.2f got through; the plans said %.2f", rate, plan)
			}
			t.Logf("%.2f, plans %.2f, median %v", rate, chance/trials, took[len(took)/2])
		})
	}
}

// TestDriftingSequences lets others take ports between sampling and punching.
func TestDriftingSequences(t *testing.T) {
	for _, drift := range []int{5, 15, 20} {
		hits := 0
		const trials = 60
		for i := range trials {
			rng := rand.New(rand.NewPCG(uint64(i), 11))
			a, b := natOf("sequential", publicA, rng), natOf("sequential", publicB, rng)
			ba, bb := Classify(a.sample()), Classify(b.sample())
			for range drift {
				a.allocate()
				b.allocate()
			}
			x, y := &side{nat: a, plan: Decide(ba, bb)}, &side{nat: b, plan: Decide(bb, ba)}
			var err1, err2 error
			x.attempt, err1 = NewAttempt(x.plan, nil, uint64(i), epoch)
			y.attempt, err2 = NewAttempt(y.plan, nil, uint64(i)+1000, epoch)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			if _, ok := simulate(x, y, 0, 20*time.Millisecond, noLoss); ok {
				hits++
			}
		}
		t.Logf("%d ports taken by others on each side: %d of %d", drift, hits, trials)
		if want := map[int]int{5: 57, 15: 55, 20: 42}[drift]; hits < want {
			t.Errorf("%d ports taken by others: %d of %d got through, want %d", drift, hits, trials, want)
		}
	}
}
