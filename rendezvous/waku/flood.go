package waku

import (
	"context"
	"errors"
	"time"
)

// take takes a message that a client pushed, and returns the answer. from is the
// client's libp2p ID.
func (s *Service) take(r *pushRequest, from string) *response {
	bad := func(status uint64, desc string) *response {
		s.count(func(st *Stats) { st.Invalid++ })
		return &response{status: status, desc: desc}
	}
	if r.msg == nil {
		return bad(statusBad, "no message")
	}
	m, err := parseMessage(r.msg)
	if err != nil {
		return bad(statusBad, "the message cannot be read")
	}
	pubsub, err := s.cfg.Network.pubsub(m.contentTopic)
	if err != nil {
		return bad(statusBad, err.Error())
	}
	if r.pubsub != "" && r.pubsub != pubsub {
		return bad(statusUnsupported, "not a shard of this network for that content topic")
	}
	if !m.hasTime || m.timestamp == 0 {
		m.timestamp, m.hasTime = time.Now().UnixNano(), true // as other nodes do
	}
	return &response{status: statusOK, peers: uint64(s.spread(pubsub, m, from, true))}
}

// arrived takes a message that another node sent.
func (s *Service) arrived(u *uplink, pubsub string, m *message, stored bool) {
	from := ""
	if l, _ := u.state(); l != nil {
		from = l.peer().String()
	}
	s.spread(pubsub, m, from, !stored)
}

// spread gives a message that is new to those who want it here, to the store and,
// with forward, to the peers but the one that it came from. It returns to how many
// it goes.
func (s *Service) spread(pubsub string, m *message, from string, forward bool) (to int) {
	h := m.hash(pubsub)
	raw := m.append(nil)
	now := time.Now()
	if !m.ephemeral && !s.store.add(now, &entry{hash: h, pubsub: pubsub, topic: m.contentTopic, timestamp: m.timestamp, msg: raw}) {
		s.count(func(st *Stats) { st.Duplicates++ })
		return 0
	}
	s.mu.Lock()
	if now.Sub(s.turned) > duplicatesFor {
		s.seen.turn()
		s.turned = now
	}
	if !s.seen.add(h) {
		s.stats.Duplicates++
		s.mu.Unlock()
		return 0
	}
	s.stats.Received++
	if subs := s.subs[subscription{pubsub, m.contentTopic}]; len(subs) > 0 {
		push := appendText(appendData(nil, 1, raw), 2, pubsub)
		for c := range subs {
			if c.offer(push) {
				to++
			} else { // it is busy; the newest goes
				s.stats.Dropped++
			}
		}
	}
	s.mu.Unlock()
	if forward {
		to += s.forward(pubsub, raw, from)
	}
	return to
}

// forward pushes a message to the peers but one.
func (s *Service) forward(pubsub string, raw []byte, from string) (to int) {
	for _, u := range s.peers {
		l, _ := u.state()
		if l == nil || l.peer().String() == from {
			continue
		}
		select {
		case u.pushing <- struct{}{}:
		default:
			s.count(func(st *Stats) { st.Dropped++ })
			continue
		}
		if !s.start(func() {
			defer func() { <-u.pushing }()
			s.pushTo(u, l, pubsub, raw)
		}) {
			<-u.pushing
			continue
		}
		to++
	}
	return to
}

func (s *Service) pushTo(u *uplink, l *link, pubsub string, raw []byte) {
	ctx, cancel := context.WithTimeout(s.ctx, operationLimit)
	defer cancel()
	err := u.send(ctx, l, pubsub, raw)
	switch {
	case err == nil:
		s.count(func(st *Stats) { st.Forwarded++ })
		return
	case errors.Is(err, ErrProof):
		u.refuse(err)
	case errors.Is(err, errRefused):
		u.log.Debug("message not taken", "err", err)
	case s.ctx.Err() == nil:
		l.close() // it hangs, or is gone
	}
	s.count(func(st *Stats) { st.Dropped++ })
}

// changed notes that a peer is there, or no longer.
func (s *Service) changed(u *uplink, up, _ bool) {
	u.log.Debug("peer", "connected", up)
}

// wants reports whether a client is subscribed to a content topic.
func (s *Service) wants(topic string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted[topic] > 0
}

func (s *Service) topics() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.wanted))
	for t := range s.wanted {
		out = append(out, t)
	}
	return out
}
