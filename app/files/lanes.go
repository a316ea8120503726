package files

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// A LaneKind says over what a stream shall go; what there is, is up to the caller's
// DialFunc.
type LaneKind uint8

// Kinds of streams.
const (
	LaneControl LaneKind = iota // small messages; the safest way there is
	LaneTunnel                  // a stream of the tunnel
	LaneDirect                  // a TLS stream over a TCP connection of its own
)

// String is the kind in one word.
func (k LaneKind) String() string {
	return [...]string{"control", "tunnel", "direct", "other"}[min(k, LaneDirect+1)]
}

// A Lane is one stream that a transfer shall have. Lanes of one transfer differ in
// Kind or Index.
type Lane struct {
	Kind  LaneKind
	Index int // number of the lane among those of its kind, from 0
}

// Lanes returns n lanes of a kind.
func Lanes(kind LaneKind, n int) []Lane {
	out := make([]Lane, n)
	for i := range out {
		out[i] = Lane{Kind: kind, Index: i}
	}
	return out
}

// A DialFunc opens a connection to Port of a peer. It errs if there is no way of
// that kind; the engine tries again later.
type DialFunc func(ctx context.Context, peer string, lane Lane) (net.Conn, error)

// maxLanes is how many streams one transfer has at most.
const maxLanes = 128

const (
	redialFirst = 200 * time.Millisecond
	redialLast  = 10 * time.Second
)

// A laneFunc carries data over one stream until that ends, or stopped is closed.
type laneFunc func(ctx context.Context, conn net.Conn, stopped <-chan struct{}) error

// A laneSet keeps as many streams open as are wanted, on the side that dials. One
// that ends is dialled again while it is wanted.
type laneSet struct {
	dial func(ctx context.Context, lane Lane) (net.Conn, error)
	run  laneFunc
	fail func(error) // a sinkError: the transfer ends

	slots chan struct{} // one for each stream, also for those that are ending

	mu     sync.Mutex
	begin  func(lane Lane, slot *laneSlot) // starts keep
	wanted map[Lane]*laneSlot
	closed bool
	wg     sync.WaitGroup
}

type laneSlot struct{ stopped chan struct{} }

func (s *laneSlot) ended() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

// newLaneSet makes a set whose lanes live until ctx ends.
func newLaneSet(ctx context.Context, redial time.Duration, dial func(context.Context, Lane) (net.Conn, error),
	run laneFunc, fail func(error),
) *laneSet {
	l := &laneSet{dial: dial, run: run, fail: fail, slots: make(chan struct{}, maxLanes), wanted: make(map[Lane]*laneSlot)}
	l.begin = func(lane Lane, slot *laneSlot) { l.wg.Go(func() { l.keep(ctx, redial, lane, slot) }) }
	return l
}

// set changes what is wanted: new lanes are dialled, others are ended in good order.
func (l *laneSet) set(lanes []Lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	lanes = lanes[:min(len(lanes), maxLanes)]
	for lane, slot := range l.wanted {
		if !slices.Contains(lanes, lane) {
			close(slot.stopped)
			delete(l.wanted, lane)
		}
	}
	for _, lane := range lanes {
		if l.wanted[lane] != nil {
			continue
		}
		slot := &laneSlot{stopped: make(chan struct{})}
		l.wanted[lane] = slot
		l.begin(lane, slot)
	}
}

// keep runs one lane until it is not wanted any more.
func (l *laneSet) keep(ctx context.Context, redial time.Duration, lane Lane, slot *laneSlot) {
	wait := redial
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-slot.stopped:
		return
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil && !slot.ended() {
		begin := time.Now()
		conn, err := l.dial(ctx, lane)
		if err == nil {
			err = l.run(ctx, conn, slot.stopped)
		}
		var fatal *sinkError
		if errors.As(err, &fatal) {
			l.fail(fatal.err)
			return
		}
		if time.Since(begin) > time.Second {
			wait = redial // it did some work
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-slot.stopped:
		case <-ctx.Done():
		}
		t.Stop()
		wait = min(2*wait, redialLast)
	}
}

// wait waits for all lanes after ctx has ended.
func (l *laneSet) wait() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
}
