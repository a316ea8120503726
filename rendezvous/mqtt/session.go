package mqtt

import (
	"context"
	"errors"
	"fmt"

	"github.com/eclipse/paho.golang/paho"

	"github.com/kithproject/kith/rendezvous"
)

// A session is one use of a topic at the broker.
type session struct {
	e     *Exchange
	topic string
	mode  rendezvous.Mode
	*rendezvous.Inbox
	out *rendezvous.Outbox
}

// Publish hands a frame to the broker's connection, under the rate limit.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	if s.mode == rendezvous.ReceiveOnly {
		return errors.New("mqtt: this session only receives")
	}
	h := s.e.Health()
	s.out.Put(frame, h.Ready)
	if !h.Ready {
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
		case <-s.out.Wake():
		}
		for s.awaitBroker() {
			frame, ok := s.out.Next(s.Done())
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
