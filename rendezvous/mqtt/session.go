package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	queue chan rendezvous.Message
	done  chan struct{}
	wake  chan struct{} // holds a token while frames wait
	once  sync.Once

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

func (s *session) deliver(m rendezvous.Message) {
	select {
	case s.queue <- m:
	default: // a receiver that is busy: the newest goes
	}
}

func (s *session) closed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Publish hands a frame to the broker's connection, under the rate limit: when
// more wait than the burst, the oldest is dropped.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed() {
		return fmt.Errorf("mqtt: publish: %w", net.ErrClosed)
	}
	if len(frame) != rendezvous.FrameSize {
		return rendezvous.ErrFrameSize
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
		case <-s.done:
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
		return !s.closed()
	case <-s.done:
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
		case <-s.done:
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

// Receive returns the next frame.
func (s *session) Receive(ctx context.Context) (rendezvous.Message, error) {
	if s.closed() {
		return rendezvous.Message{}, fmt.Errorf("mqtt: receive: %w", net.ErrClosed)
	}
	select {
	case m := <-s.queue:
		return m, nil
	case <-ctx.Done():
		return rendezvous.Message{}, ctx.Err()
	case <-s.done:
		return rendezvous.Message{}, fmt.Errorf("mqtt: receive: %w", net.ErrClosed)
	}
}

// Close leaves the topic.
func (s *session) Close() error {
	s.once.Do(func() {
		close(s.done)
		s.e.leave(s)
	})
	return nil
}
