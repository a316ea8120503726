package files

import (
	"context"
	"sync"
	"time"
)

// A Transfer is one that goes on. Its methods may be called at once.
type Transfer struct {
	meter  *meter
	cancel context.CancelCauseFunc
	allow  func() bool // may it go on by the rights there are now? nil: it needs none

	mu    sync.Mutex
	lanes []Lane
	set   *laneSet // of the run that goes on, if this side dials
}

// Progress returns where the transfer is; it never waits.
func (t *Transfer) Progress() Progress { return t.meter.progress() }

// Notes returns the names that did not arrive as they were, at most 200.
func (t *Transfer) Notes() []Note { return t.meter.allNotes() }

// allowed reports whether the transfer may go on by the rights there are now. Who makes
// one asks after it is tracked, as Recheck has not seen it before.
func (t *Transfer) allowed() bool { return t.allow == nil || t.allow() }

// Cancel ends the transfer on both sides. What has arrived is kept for another try,
// before which the receiver is asked again unless its Policy accepts.
func (t *Transfer) Cancel() { t.cancel(cancelledHere()) }

// SetLanes changes which streams carry the transfer, at most 128: new ones are
// dialled, others are ended without loss. It does nothing on the side that did not
// start the transfer, since the other one dials.
func (t *Transfer) SetLanes(lanes []Lane) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lanes = lanes
	if t.set != nil {
		t.set.set(lanes)
	}
}

// use gives the transfer the lanes of a run, and takes them away with nil.
func (t *Transfer) use(set *laneSet) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set = set
	if set != nil {
		set.set(t.lanes)
	}
}

// progressEvery is how often a progress callback is called.
const progressEvery = 200 * time.Millisecond

// watch calls f when something has changed, at most every 200 ms, and at the end. A
// slow f delays only itself.
func (t *Transfer) watch(ctx context.Context, f func(Progress)) {
	if f == nil {
		return
	}
	defer func() { f(t.Progress()) }()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-t.meter.changed:
			f(t.Progress())
		default:
		}
	}
}
