package doctor

import (
	"context"
	"sync"
	"time"
)

const (
	// Rate is how much probes of a run may send, in packets a second.
	Rate = 150
	// Burst is how many packets they may send at once, a count.
	Burst = 20
)

// A Pacer holds senders back so that all together keep to a rate. It is safe for
// concurrent use. The zero value allows nothing until a second has passed; make
// one with NewPacer.
type Pacer struct {
	mu   sync.Mutex
	next time.Time // when the bucket, if nothing more is taken, is empty again
}

// NewPacer returns a Pacer of Rate and Burst.
func NewPacer() *Pacer { return new(Pacer) }

// Wait returns when n packets may be sent. A TCP connection counts as 4, one with
// TLS as 12. It errs with the context's error.
func (p *Pacer) Wait(ctx context.Context, n int) error {
	if p == nil {
		return ctx.Err()
	}
	const each = time.Second / Rate
	p.mu.Lock()
	now := time.Now()
	if full := now.Add(-Burst * each); p.next.Before(full) {
		p.next = full
	}
	p.next = p.next.Add(time.Duration(n) * each)
	wait := p.next.Sub(now)
	p.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
