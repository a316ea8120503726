package files

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// An outFrame is a frame on its way out. Its data is let go once it is written;
// what is needed to read it again is kept until it is acknowledged.
type outFrame struct {
	kind  frameKind
	meta  []byte
	sum   digest
	buf   *buffer // nil after it was written, unless pinned
	len   int     // bytes of data
	size  int64   // bytes that it counts for
	files int64   // files that it counts for

	file   *bigFile // a chunk's or hole's or end's
	off    int64
	items  []item // a batch's
	pinned bool   // a pipe's chunk cannot be read again

	writing bool // a lane reads buf; guarded by the queue's mutex
	sentAt  time.Time
}

// A bigFile is a large file that is being sent: open until its last frame is
// acknowledged, as chunks of a lane that dies are read again.
type bigFile struct {
	item item
	f    *os.File
	refs atomic.Int32
	gone atomic.Bool
	left func() // called when nothing of it is out any more; may be nil
}

func (b *bigFile) hold() { b.refs.Add(1) }

func (b *bigFile) release() {
	if b.refs.Add(-1) != 0 {
		return
	}
	if b.f != nil {
		b.f.Close()
	}
	if b.left != nil {
		b.left()
	}
}

// headroom is what a buffer has before its data, in bytes, so that the header and
// a meta of usual size go out in one write with it.
const headroom = 1024

type buffer struct {
	b       [headroom + chunkSize]byte
	bounded bool // one of the bounded ones; otherwise of the pool
}

func (b *buffer) data() []byte { return b.b[headroom:] }

// queueDepth is how many frames are read ahead at most: one for each lane and one more.
// What waits longer than need be is out of the processor's cache when it is sent.
const queueDepth = 12

// A queue hands frames to lanes: those of a lane that died before others.
type queue struct {
	mu    sync.Mutex
	cond  *sync.Cond
	ready []*outFrame
	retry []*outFrame
	lanes int   // streams that take frames
	open  int   // frames that are not acknowledged
	done  bool  // nothing more will be added
	err   error // why all stops

	lasting bool // a pipe's queue, which outlives a run
}

func newQueue() *queue {
	q := &queue{}
	q.cond = sync.NewCond(&q.mu)
	return q
}

// put adds a frame and waits while there are enough, with one lane until it is written.
// It errs with the queue's end.
func (q *queue) put(f *outFrame) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ready) >= min(1+q.lanes, queueDepth) && q.err == nil {
		q.cond.Wait()
	}
	if q.err != nil {
		return q.err
	}
	q.ready = append(q.ready, f)
	q.open++
	q.cond.Broadcast()
	// To read the next one while a single lane encrypts this one would have another
	// processor do it, and each would fetch what the other has in its cache.
	for q.err == nil && q.lanes == 1 && (f.writing || len(q.ready) > 0) {
		q.cond.Wait()
	}
	return nil
}

// join counts a lane that takes frames, or with -1 one that does not any more.
func (q *queue) join(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes += n
	q.cond.Broadcast()
}

// back returns the frames of a lane that ended.
func (q *queue) back(list []*outFrame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retry = append(q.retry, list...)
	q.cond.Broadcast()
}

// next waits for a frame that the lane may send. It returns nil when the lane shall
// stop or the queue has ended.
func (q *queue) next(l *outLane) *outFrame {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.err != nil || l.stopping {
			return nil
		}
		if l.room() {
			for _, list := range []*[]*outFrame{&q.retry, &q.ready} {
				if len(*list) > 0 {
					f := (*list)[0]
					(*list)[0] = nil
					*list = (*list)[1:]
					l.take(f)
					q.cond.Broadcast()
					return f
				}
			}
		}
		q.cond.Wait()
	}
}

// written ends what next began: the lane does not look at the frame any more.
func (q *queue) written(f *outFrame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f.writing = false
	q.cond.Broadcast()
}

// acked is called with the frames that a lane's peer has acknowledged. The answer can be
// here before the write of the last one has returned.
func (q *queue) acked(l *outLane, n int, now time.Time) []*outFrame {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n > 0 && n <= len(l.out) && l.out[n-1].writing {
		q.cond.Wait()
	}
	list := l.acked(n, now, q.lanes)
	q.open -= len(list)
	q.cond.Broadcast()
	return list
}

// finish says that nothing more will be added, until more does.
func (q *queue) finish(done bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done = done
	q.cond.Broadcast()
}

// drained waits until all is acknowledged. It errs with the queue's end and ctx's.
func (q *queue) drained(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.cond.Broadcast()
	})()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && ctx.Err() == nil && (!q.done || q.open > 0) {
		q.cond.Wait()
	}
	if q.err == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return q.err
}

// stop ends the queue for all who wait.
func (q *queue) stop(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.cond.Broadcast()
}

func (q *queue) stopLane(l *outLane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.stopping = true
	q.cond.Broadcast()
}

// Bounds of what one lane may have out that is not acknowledged.
const (
	minWindow   = chunkSize + 1 // one on the way and one behind it
	firstWindow = 4 * chunkSize
	maxWindow   = 32 << 20
	maxFrames   = 256
	slack       = 250 * time.Millisecond
	// manyLanes share a path of which each has so little that a chunk takes long.
	manyLanes = 8
)

// patience is how long an acknowledgement may take without the lane having too much out.
func patience(quickest time.Duration, lanes int) time.Duration {
	if lanes < manyLanes {
		return 2*quickest + slack
	}
	return quickest + quickest/4
}

// An outLane is one stream as its queue sees it: what is out on it, and how much
// may be. A lane may hold what it carries in about two of its round trips and a
// quarter of a second: more would wait in its buffers and hold up the end of the
// transfer if the lane is slow or dies. Its fields are under the queue's mutex.
type outLane struct {
	out      []*outFrame
	bytes    int
	window   int
	quickest time.Duration
	stopping bool
}

func (l *outLane) room() bool {
	return len(l.out) == 0 || l.bytes < l.window && len(l.out) < maxFrames
}

func (l *outLane) take(f *outFrame) {
	f.writing = true
	f.sentAt = time.Now()
	l.out = append(l.out, f)
	l.bytes += f.weight()
}

// itemWeight is what a small file that is out counts for, in bytes: more than what is
// kept of it, so that millions of them are no more in memory than a large file's frames.
const itemWeight = 1024

// weight is what a frame counts for in its lane's window, in bytes.
func (f *outFrame) weight() int { return f.len + len(f.meta) + itemWeight*len(f.items) }

func (l *outLane) acked(n int, now time.Time, lanes int) []*outFrame {
	n = min(n, len(l.out))
	list := l.out[:n:n]
	l.out = l.out[n:]
	for _, f := range list {
		size := f.weight()
		l.bytes -= size
		took := now.Sub(f.sentAt)
		if l.quickest == 0 || took < l.quickest {
			l.quickest = took
		}
		if took < patience(l.quickest, lanes) {
			l.window = min(l.window+size, maxWindow)
		} else {
			l.window = max(l.window-size/2, minWindow)
		}
	}
	return list
}
