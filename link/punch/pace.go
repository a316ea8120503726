package punch

import (
	"context"
	"sync"
	"time"
)

const (
	// Rate is the most packets a [Pacer] lets through in any second.
	Rate = 500
	// burst is how many packets may go at once: timers are not exact.
	burst = 8
	// interval is the time per packet that leaves room for the burst.
	interval = time.Second / (Rate - burst)
)

// A Pacer lets through at most [Rate] packets in any second, at most 8 of them
// at once. The zero value is ready. It has no clock; not safe for concurrent use.
type Pacer struct {
	due time.Time // when the last packet would have gone, one per interval
}

// Take asks for leave to send one packet now. If that is too early, it returns
// when to ask again.
func (p *Pacer) Take(now time.Time) (at time.Time, ok bool) {
	// A clock that went back must not stop us for long.
	if p.due.Before(now) || p.due.Sub(now) > burst*interval {
		p.due = now
	}
	if early := p.due.Sub(now) - (burst-1)*interval; early > 0 {
		return now.Add(early), false
	}
	p.due = p.due.Add(interval)
	return time.Time{}, true
}

// A Gate lets one attempt at a time go on a node, in the order in which they
// asked, and keeps the one [Pacer] they share. The zero value is ready. Safe for
// concurrent use.
type Gate struct {
	mu    sync.Mutex
	taken bool
	queue []chan struct{} // of those who wait; closed: it is your turn
	pacer Pacer
}

// A Turn is the leave to run one attempt.
type Turn struct {
	// Pacer is the node's, for the holder of the turn alone.
	Pacer *Pacer
	gate  *Gate
	once  sync.Once
}

// Enter waits for its turn. It returns the context's error if that ends first.
// Leave has to be called when the attempt is over.
func (g *Gate) Enter(ctx context.Context) (*Turn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	turn := &Turn{gate: g, Pacer: &g.pacer}
	g.mu.Lock()
	if !g.taken {
		g.taken = true
		g.mu.Unlock()
		return turn, nil
	}
	wait := make(chan struct{})
	g.queue = append(g.queue, wait)
	g.mu.Unlock()
	select {
	case <-wait:
		return turn, nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	for i, w := range g.queue {
		if w == wait {
			g.queue = append(g.queue[:i], g.queue[i+1:]...)
			g.mu.Unlock()
			return nil, ctx.Err()
		}
	}
	g.mu.Unlock()
	turn.Leave() // the turn came in the same moment: pass it on
	return nil, ctx.Err()
}

// Leave ends the turn and lets the next one in. Further calls do nothing.
func (t *Turn) Leave() {
	t.once.Do(func() {
		g := t.gate
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.queue) == 0 {
			g.taken = false
			return
		}
		close(g.queue[0])
		g.queue = append(g.queue[:0], g.queue[1:]...)
	})
}

var delays = [...]time.Duration{ //nolint:gochecknoglobals // never changed
	10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute,
}

// A Backoff says when the next attempt at one peer may begin: 10 s after the
// first failure, then 30 s, 1, 2, 5 and 10 minutes. The zero value is ready at
// once. It has no clock; not safe for concurrent use.
type Backoff struct {
	failed int
	next   time.Time
}

// Failed notes that an attempt has failed, and returns when the next may begin.
func (b *Backoff) Failed(now time.Time) time.Time {
	b.next = now.Add(delays[min(b.failed, len(delays)-1)])
	b.failed++
	return b.next
}

// Ready returns when the next attempt may begin, and whether that is now. A
// clock that was set back does not prolong the wait.
func (b *Backoff) Ready(now time.Time) (at time.Time, ok bool) {
	if b.failed > 0 {
		if longest := now.Add(delays[min(b.failed, len(delays))-1]); b.next.After(longest) {
			b.next = longest
		}
	}
	return b.next, !now.Before(b.next)
}

// Reset forgets all failures: after a success, or when something has changed
// that may make a difference, such as either side's network.
func (b *Backoff) Reset() { *b = Backoff{} }
