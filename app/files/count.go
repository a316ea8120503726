package files

import (
	"context"
	"sync"
	"time"
)

// countAfter is how long a transfer runs before what it brings is counted beside it, if
// a look at it before the offer did not see all: a short one is over by then.
const countAfter = 2 * time.Second

// countSoon has all counted that is to be sent, so that it is known how much is left,
// until the returned function is called.
func (s *source) countSoon(ctx context.Context) (stop func()) {
	if s.meter.progress().TotalKnown {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTimer(s.count)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		var files, bytes int64
		if walk(ctx, s.roots, func(it item) error { files++; bytes += it.size; return nil }, func(Note) {}) == nil {
			s.meter.update(func(p *Progress) {
				p.TotalFiles, p.TotalBytes, p.TotalKnown = max(p.TotalFiles, files), max(p.TotalBytes, bytes), true
			})
		}
	})
	return func() { cancel(); wg.Wait() }
}
