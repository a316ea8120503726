package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/kithproject/kith/rendezvous"
)

// A session is one use of a topic at the broker.
type session struct {
	e     *Exchange
	topic string
	mode  rendezvous.Mode
	*rendezvous.Inbox
	wake chan struct{} // holds a token while frames wait

	mu      sync.Mutex // guards the fields below
	waiting [][]byte   // frames to send, oldest first, at most burst
	limit   limiter
}

// A limiter allows a burst and then one in each interval.
type limiter struct {
	burst    int
	interval time.Duration
	used     int
	last     time.Time // when the last token came back
}

// wait returns how long to wait for the next token; it takes it if that is zero.
func (l *limiter) wait(now time.Time) time.Duration {
	if back := int(now.Sub(l.last) / l.interval); back > 0 {
		l.used = max(0, l.used-back)
		l.last = l.last.Add(time.Duration(back) * l.interval)
	}
	if l.used == 0 {
		l.last = now
	}
	if l.used < l.burst {
		l.used++
		return 0
	}
	return l.last.Add(l.interval).Sub(now)
}

// Publish hands a frame to the broker's connection, under the rate limit: when
// more wait than the burst, the oldest is dropped.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	if s.mode == rendezvous.ReceiveOnly {
		return errors.New("mqtt: this session only receives")
	}
	s.mu.Lock()
	s.waiting = append(s.waiting, append([]byte(nil), frame...))
	if len(s.waiting) > s.limit.burst {
		s.waiting = s.waiting[1:]
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	if h := s.e.Health(); !h.Ready {
		// It goes out when the broker is there, if nothing newer has come by then.
		return fmt.Errorf("mqtt: %w: %w", rendezvous.ErrUnreachable, h.Err)
	}
	return nil
}

// send sends what waits while the broker is connected, until the session closes.
func (s *session) send() {
	for {
		select {
		case <-s.Done():
			return
		case <-s.wake:
		}
		for s.awaitBroker() {
			frame, ok := s.next()
			if !ok {
				break
			}
			s.publish(frame)
		}
	}
}

// awaitBroker reports false when the session is closed.
func (s *session) awaitBroker() bool {
	s.e.mu.Lock()
	ready := s.e.ready
	s.e.mu.Unlock()
	select {
	case <-ready:
		return !s.Closed()
	case <-s.Done():
		return false
	}
}

// next returns the next frame when the limit allows it; it reports false when
// there is none, or the session closes.
func (s *session) next() ([]byte, bool) {
	for {
		s.mu.Lock()
		if len(s.waiting) == 0 {
			s.mu.Unlock()
			return nil, false
		}
		wait := s.limit.wait(time.Now())
		if wait <= 0 {
			frame := s.waiting[0]
			s.waiting = s.waiting[1:]
			s.mu.Unlock()
			return frame, true
		}
		// Under the limit only the newest frame is worth its turn.
		s.waiting = s.waiting[len(s.waiting)-1:]
		s.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.Done():
			timer.Stop()
			return nil, false
		}
	}
}

func (s *session) publish(frame []byte) {
	ctx, cancel := context.WithTimeout(s.e.ctx, operationLimit)
	defer cancel()
	_, err := s.e.conn.Publish(ctx, &paho.Publish{Topic: s.topic, QoS: 0, Payload: frame})
	if err != nil {
		s.e.log.Debug("frame not sent", "exchange", s.e.Name(), "err", err)
	}
}

// Close leaves the topic.
func (s *session) Close() error {
	s.Shut(func() { s.e.leave(s) })
	return nil
}
