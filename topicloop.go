package kith

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
)

// A topicLoop is one state machine at work on topics of the media: it gets every frame, the
// time, and what its mailbox brings, on one goroutine.
type topicLoop struct {
	n        *Node
	box      *mailbox
	ctx      context.Context //nolint:containedctx // ends the loop
	cancel   context.CancelFunc
	sessions []rendezvous.Session
	receive  func(now time.Time, topic int, frame []byte) pairing.Verdict
	tick     func(now time.Time)
	next     func() time.Time // zero: never
	drain    func()           // carries out what the machine wants
	ended    chan struct{}    // closed when the goroutine is gone
}

// newTopicLoop joins the topics on a medium. It errs as Join does, and has left them then.
func (n *Node) newTopicLoop(medium rendezvous.Exchange, points ...rendezvous.Point) (*topicLoop, error) {
	m := &topicLoop{n: n, box: newMailbox(), ended: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(n.ctx)
	for _, p := range points {
		s, err := medium.Join(m.ctx, p)
		if err != nil {
			m.cancel()
			m.close()
			return nil, fmt.Errorf("kith: %w", err)
		}
		m.sessions = append(m.sessions, s)
	}
	return m, nil
}

func (m *topicLoop) close() {
	for _, s := range m.sessions {
		if err := s.Close(); err != nil {
			m.n.cfg.Logger.Debug("session not closed", "err", err)
		}
	}
}

// run works until the context ends.
func (m *topicLoop) run() {
	defer close(m.ended)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer m.close()
	defer m.cancel()
	in := make(chan arrival)
	for i, s := range m.sessions {
		wg.Go(func() { m.take(i, s, in) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case a := <-in:
			v := m.receive(time.Now(), a.topic, a.msg.Frame)
			if j, ok := m.sessions[a.topic].(rendezvous.Judge); ok && v != pairing.Echo {
				j.Judge(a.msg, v == pairing.Heard)
			}
		case <-m.box.wake:
			m.box.run()
		case now := <-timer.C:
			m.tick(now)
		}
		m.drain()
		if next := m.next(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

func (m *topicLoop) take(topic int, s rendezvous.Session, in chan<- arrival) {
	for {
		msg, err := s.Receive(m.ctx)
		if err != nil {
			return
		}
		select {
		case in <- arrival{topic, msg}:
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *topicLoop) publish(topic int, frame []byte) {
	if err := m.sessions[topic].Publish(m.ctx, frame); err != nil {
		m.n.cfg.Logger.Debug("frame not sent", "err", err)
	}
}

// call runs f on the loop's goroutine and waits for it; false: it has ended.
func (m *topicLoop) call(f func()) bool {
	ran := make(chan struct{})
	m.box.post(func() { defer close(ran); f() })
	select {
	case <-ran:
		return true
	case <-m.ended:
		return false
	}
}
