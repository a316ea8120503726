package rendezvous

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// A Limiter allows Burst frames, in number, and then one in each Interval. The
// zero value allows nothing. It is not safe for concurrent use.
type Limiter struct {
	Burst    int // frames
	Interval time.Duration

	used int
	last time.Time // when the last token came back
}

// Wait returns how long to wait for the next token; it takes it if that is zero.
func (l *Limiter) Wait(now time.Time) time.Duration {
	if back := int(now.Sub(l.last) / l.Interval); back > 0 {
		l.used = max(0, l.used-back)
		l.last = l.last.Add(time.Duration(back) * l.Interval)
	}
	if l.used == 0 {
		l.last = now
	}
	if l.used < l.Burst {
		l.used++
		return 0
	}
	return l.last.Add(l.Interval).Sub(now)
}

// An Outbox is the sending half of a driver's Session on a medium that bounds how
// often it is written to: the frames that wait, under a Limiter. It is safe for
// concurrent use.
type Outbox struct {
	wake chan struct{} // holds a token while frames wait

	mu      sync.Mutex // guards the fields below
	waiting [][]byte   // oldest first, at most limit.Burst
	limit   Limiter
}

// NewOutbox returns an empty Outbox that gives burst frames, in number, and then
// one in each interval.
func NewOutbox(burst int, interval time.Duration) *Outbox {
	return &Outbox{wake: make(chan struct{}, 1), limit: Limiter{Burst: burst, Interval: interval}}
}

// Put adds a copy of a frame. If more wait than the burst the oldest is dropped; and
// if the medium is not there, all others are: what is said when it comes is the
// newest, and leaves turns for what follows.
func (o *Outbox) Put(frame []byte, there bool) {
	o.mu.Lock()
	if !there {
		o.waiting = nil
	}
	o.waiting = append(o.waiting, append([]byte(nil), frame...))
	if len(o.waiting) > o.limit.Burst {
		o.waiting = o.waiting[1:]
	}
	o.mu.Unlock()
	o.Nudge()
}

// Publish is a session's Publish: it puts a frame under the checks of the session's
// Inbox. h is how the medium is. It errs as Session.Publish does.
func (o *Outbox) Publish(ctx context.Context, in *Inbox, mode Mode, h Health, frame []byte) error {
	if err := in.MayPublish(ctx, frame); err != nil {
		return err
	}
	if mode == ReceiveOnly {
		return fmt.Errorf("%s: this session only receives", in.exchange)
	}
	o.Put(frame, h.Ready)
	if !h.Ready {
		// It goes out when the medium is there, if nothing newer has come by then.
		return fmt.Errorf("%s: %w: %w", in.exchange, ErrUnreachable, h.Err)
	}
	return nil
}

// Carry gives frames to send, one at a time, until done is closed. ready returns a
// channel that is closed while the medium is there.
func (o *Outbox) Carry(done <-chan struct{}, ready func() <-chan struct{}, send func(frame []byte)) {
	for {
		select {
		case <-done:
			return
		case <-o.wake:
		}
		for {
			select {
			case <-ready():
			case <-done:
			}
			select {
			case <-done: // also if the medium is there
				return
			default:
			}
			frame, ok := o.Next(done)
			if !ok {
				break
			}
			send(frame)
		}
	}
}

// Wake returns the channel on which one value waits while frames may wait.
func (o *Outbox) Wake() <-chan struct{} { return o.wake }

// Nudge makes Wake give a value.
func (o *Outbox) Nudge() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Waiting reports whether a frame waits.
func (o *Outbox) Waiting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting) > 0
}

// Next returns the next frame when the limit allows it; it reports false when there
// is none, or done is closed. Under the limit only the newest is worth its turn: the
// others are dropped.
func (o *Outbox) Next(done <-chan struct{}) ([]byte, bool) {
	for {
		o.mu.Lock()
		if len(o.waiting) == 0 {
			o.mu.Unlock()
			return nil, false
		}
		wait := o.limit.Wait(time.Now())
		if wait <= 0 {
			frame := o.waiting[0]
			o.waiting = o.waiting[1:]
			o.mu.Unlock()
			return frame, true
		}
		o.waiting = o.waiting[len(o.waiting)-1:]
		o.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-done:
			timer.Stop()
			return nil, false
		}
	}
}
