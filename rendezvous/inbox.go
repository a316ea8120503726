package rendezvous

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// An Inbox is the receiving half of a driver's Session: the queue of frames that
// have come, and whether the session is closed. Drivers embed it. It is safe for
// concurrent use.
type Inbox struct {
	exchange string
	queue    chan Message
	done     chan struct{}
	once     sync.Once
}

// NewInbox returns an open Inbox. exchange is the driver's name, for errors.
func NewInbox(exchange string) *Inbox {
	return &Inbox{exchange: exchange, queue: make(chan Message, QueueSize), done: make(chan struct{})}
}

// Deliver queues a frame. If QueueSize of them wait, it is dropped.
func (b *Inbox) Deliver(m Message) {
	select {
	case b.queue <- m:
	default: // a receiver that is busy: the newest goes
	}
}

// Receive returns the next frame. It errs as Session.Receive does.
func (b *Inbox) Receive(ctx context.Context) (Message, error) {
	if b.Closed() {
		return Message{}, b.closedError("receive")
	}
	select {
	case m := <-b.queue: // what waits comes first, also when ctx has ended
		return m, nil
	default:
	}
	select {
	case m := <-b.queue:
		return m, nil
	case <-ctx.Done():
		return Message{}, ctx.Err()
	case <-b.done:
		return Message{}, b.closedError("receive")
	}
}

// MayPublish says whether a frame may be published: it errs as Session.Publish
// does, but for what the medium says.
func (b *Inbox) MayPublish(ctx context.Context, frame []byte) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case b.Closed():
		return b.closedError("publish")
	case len(frame) != FrameSize:
		return ErrFrameSize
	}
	return nil
}

func (b *Inbox) closedError(verb string) error {
	return fmt.Errorf("%s: %s: %w", b.exchange, verb, net.ErrClosed)
}

// Shut closes the Inbox and then calls leave, the first time; another call waits
// for that and does no more.
func (b *Inbox) Shut(leave func()) {
	b.once.Do(func() {
		close(b.done)
		leave()
	})
}

// Done returns a channel that is closed by Shut.
func (b *Inbox) Done() <-chan struct{} { return b.done }

// Closed reports whether Shut was called.
func (b *Inbox) Closed() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}
