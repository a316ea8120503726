package waku

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

const (
	// attempts is how often a frame is sent that a node did not take because its
	// connection ended.
	attempts  = 3
	pushLimit = 5 * time.Second // for a node to take a frame
)

// A session is one use of a content topic.
type session struct {
	e             *Exchange
	topic, pubsub string
	mode          rendezvous.Mode
	*rendezvous.Inbox
	out *rendezvous.Outbox
}

// Publish hands a frame to the nodes' connections, under the rate limit.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	return s.out.Publish(ctx, s.Inbox, s.mode, s.e.Health(), frame)
}

// send sends what waits while a node is connected, until the session closes.
func (s *session) send() {
	s.out.Carry(s.Done(), s.e.there, func(frame []byte) { s.e.publish(s, frame) })
}

// there returns a channel that is closed while a node is connected.
func (e *Exchange) there() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ready
}

// awaitNode reports false when the session is closed.
func (s *session) awaitNode() bool {
	select {
	case <-s.e.there():
		return !s.Closed()
	case <-s.Done():
		return false
	}
}

// Close leaves the topic.
func (s *session) Close() error {
	s.Shut(func() { s.e.leave(s) })
	return nil
}

// publish sends a frame to all nodes that are connected, and returns when one has
// it. If no node took it because the connections ended, it is tried again when one
// is there, unless a newer frame waits by then.
func (e *Exchange) publish(s *session, frame []byte) {
	// The clock to the second says as little of the device as is needed; the rest
	// is random, since nodes drop a message that has the hash of another.
	m := &message{payload: frame, contentTopic: s.topic, hasTime: true}
	m.timestamp = time.Now().Truncate(time.Second).UnixNano() + rand.Int64N(int64(time.Second)) //nolint:gosec // nobody needs to guess it
	e.mu.Lock()
	e.seen.add(m.hash(s.pubsub)) // so that it does not come back
	e.mu.Unlock()
	msg := m.append(nil)
	for range attempts {
		if !s.awaitNode() || e.toNodes(s, msg) || s.out.Waiting() {
			return
		}
	}
}

// toNodes reports whether it is of no use to try again: a node took the message,
// or those that are there do not want it, or a newer frame waits.
func (e *Exchange) toNodes(s *session, msg []byte) bool {
	ctx, cancel := context.WithTimeout(e.ctx, pushLimit)
	results := make(chan error, len(e.nodes))
	var pushes sync.WaitGroup
	asked := 0
	push := func(u *uplink, l *link) {
		asked++
		pushes.Go(func() {
			defer func() { <-u.pushing }()
			results <- e.toNode(ctx, u, l, s.pubsub, msg)
		})
	}
	var busy *uplink // that has not answered for long, or has much to do
	var busyLink *link
	for _, u := range e.nodes {
		l, err := u.state()
		if err != nil {
			continue
		}
		select {
		case u.pushing <- struct{}{}:
			push(u, l)
		default:
			busy, busyLink = u, l
		}
	}
	if asked == 0 && busy != nil {
		select {
		case busy.pushing <- struct{}{}:
			push(busy, busyLink)
		case <-ctx.Done():
		case <-s.Done():
		}
	}
	e.wg.Go(func() { // the others go on
		pushes.Wait()
		cancel()
	})
	done := false
	for asked > 0 {
		select {
		case err := <-results:
			if err == nil {
				return true
			}
			asked--
			done = done || errors.Is(err, errRefused)
		case <-s.out.Wake():
			if s.out.Waiting() { // which does not wait for a node that hangs
				s.out.Nudge()
				return true
			}
		case <-s.Done():
			return true
		}
	}
	return done
}

// toNode sends a message to one node.
func (e *Exchange) toNode(ctx context.Context, u *uplink, l *link, pubsub string, msg []byte) error {
	err := u.send(ctx, l, pubsub, msg)
	switch {
	case errors.Is(err, ErrProof):
		u.refuse(err)
	case errors.Is(err, errRefused):
		u.log.Debug("frame not taken", "err", err)
	case err != nil && e.ctx.Err() == nil:
		l.close() // it hangs, or is gone
	}
	return err
}
