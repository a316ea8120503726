package mqtt

import (
	"context"

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
	return s.out.Publish(ctx, s.Inbox, s.mode, s.e.Health(), frame)
}

// send sends what waits while the broker is connected, until the session closes.
func (s *session) send() { s.out.Carry(s.Done(), s.e.there, s.publish) }

// there returns a channel that is closed while the broker is connected.
func (e *Exchange) there() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ready
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
