package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	echoCount = 40               // echoes to each device
	echoWait  = 5 * time.Second  // longest wait for one
	echoLimit = 12 * time.Second // of the check

	lossLeast = 5           // lost echoes that mean something, a count
	lateEcho  = time.Second // a round trip that is too long
	slowRate  = 16 << 10    // bytes a second that are little
)

// factTrain is the echoes to a device, an *echoTrain, by its name.
const factTrain = "peers.echo."

// factRate is what the path to a device was measured to carry, a Measurement, by its name.
const factRate = "peers.rate."

// An echoTrain is sent once in a run, for all checks that want to know what came of it.
type echoTrain struct {
	done  chan struct{} // closed when it has come back; then the others are set
	sent  int
	whole bool            // there was time for all
	trips []time.Duration // of those that came back, the shortest first
}

// back reports whether an echo of it has come back by now.
func (e *echoTrain) back() bool {
	select {
	case <-e.done:
		return len(e.trips) > 0
	default:
		return false
	}
}

func (e *echoTrain) median() time.Duration { return e.trips[len(e.trips)/2] }

// train returns what came of the echoes to a device, when they have.
func train(ctx context.Context, env *Env, p Peer) *echoTrain {
	env.mu.Lock()
	e, ok := env.facts[factTrain+p.Name].(*echoTrain)
	if !ok {
		e = &echoTrain{done: make(chan struct{})}
		if env.facts == nil {
			env.facts = make(map[string]any)
		}
		env.facts[factTrain+p.Name] = e
	}
	env.mu.Unlock()
	if !ok {
		defer close(e.done)
		e.run(ctx, env, p)
		return e
	}
	select {
	case <-e.done:
		return e
	case <-ctx.Done():
		return new(echoTrain)
	}
}

func (e *echoTrain) run(ctx context.Context, env *Env, p Peer) {
	if p.Echo == nil {
		return
	}
	results := make(chan time.Duration, echoCount)
	for range echoCount {
		go func() { // ends with ctx
			took, err := echo(ctx, env, p)
			if err != nil {
				took = -1
			}
			results <- took
		}()
	}
	e.sent = echoCount
	for range echoCount {
		if took := <-results; took >= 0 {
			e.trips = append(e.trips, took)
		}
	}
	e.whole = ctx.Err() == nil
	slices.Sort(e.trips)
}

// echo is one round trip through the tunnel.
func echo(ctx context.Context, env *Env, p Peer) (time.Duration, error) {
	if err := env.Pacer.Wait(ctx, 2); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, echoWait)
	defer cancel()
	return p.Echo(ctx)
}

func checkLoss(ctx context.Context, env *Env, name string) Answer {
	p := asked(env, name).peer
	e := train(ctx, env, p)
	if e.sent == 0 {
		return Unclear("there is no way to send echoes")
	}
	lost := e.sent - len(e.trips)
	seen := fmt.Sprintf("%d of %d echoes came back", len(e.trips), e.sent)
	switch {
	case !p.now().Connected:
		return Unclear(seen, "it went meanwhile")
	case !e.whole && lost > 0:
		return Unclear(seen)
	case len(e.trips) == 0:
		return Fails("dead", seen).With("Nothing comes back from "+name+" through the tunnel.", "")
	case lost >= lossLeast:
		return Fails("lossy", seen).With(fmt.Sprintf("Of packets to %s and back %d %% get lost.", name, 100*lost/e.sent), "")
	}
	return OK(seen)
}

func checkLatency(ctx context.Context, env *Env, name string) Answer {
	e := train(ctx, env, asked(env, name).peer)
	if len(e.trips) == 0 {
		return Unclear("no echo came back")
	}
	took := e.median()
	seen := fmt.Sprintf("round trip %s, the best %s, the worst %s", show(took), show(e.trips[0]), show(e.trips[len(e.trips)-1]))
	if took >= lateEcho {
		return Fails("late", seen).With(fmt.Sprintf("Packets take %s to %s and back.", show(took), name), "")
	}
	return OK(seen)
}

func show(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func checkRate(ctx context.Context, env *Env, name string) Answer {
	p := asked(env, name).peer
	train(ctx, env, p) // before the path is full
	m, err := p.Measure(ctx, env.Force)
	if err != nil {
		why := strings.TrimPrefix(err.Error(), "kith: ")
		if errors.Is(err, ErrNoPath) {
			return Fails("no-path", why).With(fmt.Sprintf("There is no path of the kind %q to %s.", env.Force, name), "")
		}
		return Unclear("not measured: " + why)
	}
	env.Remember(factRate+name, m)
	seen := []string{
		"path: " + m.Path,
		fmt.Sprintf("to %s: %s, %.0f %% lost, latency %s, jitter %s", name, bits(m.RateOut), 100*m.LossOut, show(m.LatencyOut), show(m.JitterOut)),
		fmt.Sprintf("from %s: %s, %.0f %% lost, latency %s, jitter %s", name, bits(m.RateIn), 100*m.LossIn, show(m.LatencyIn), show(m.JitterIn)),
		fmt.Sprintf("round trip %s, of which the quickest packets are taken to need half each way", show(m.RTT)),
		fmt.Sprintf("%.1f MB to it and %.1f MB from it, in %s", float64(m.BytesOut)/1e6, float64(m.BytesIn)/1e6, m.Duration.Round(100*time.Millisecond)),
	}
	if m.RateOut < slowRate || m.RateIn < slowRate {
		return Fails("slow", seen...).With(fmt.Sprintf("The path to %s carries %s to it and %s from it.", name, bits(m.RateOut), bits(m.RateIn)), "")
	}
	return OK(seen...)
}

// bits is a rate in bytes a second for people.
func bits(rate float64) string {
	switch b := 8 * rate; {
	case b >= 1e9:
		return fmt.Sprintf("%.1f Gbit/s", b/1e9)
	case b >= 1e6:
		return fmt.Sprintf("%.1f Mbit/s", b/1e6)
	default:
		return fmt.Sprintf("%.0f kbit/s", b/1e3)
	}
}
