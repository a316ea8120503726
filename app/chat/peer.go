package chat

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	defaultRate = 500 // frames a second
	burst       = 40  // seconds of it that may come at once

	dialTimeout = 15 * time.Second
	firstRetry  = 500 * time.Millisecond
	lastRetry   = time.Minute
	// letDial is how long the device with the greater ID lets the other one call first.
	letDial = 300 * time.Millisecond
	// young is how old a connection is at most for which the one of the lesser ID stays
	// when both have called at once.
	young = 5 * time.Second
	// penalty is how long a device that broke the protocol is not listened to.
	penalty  = 10 * time.Second
	maxConns = 256 // calls at once
)

// A peer is what is known of connections with a device. Service.mu guards it.
type peer struct {
	id      identity.DeviceID
	near    bool // it was connected to this device when that was last looked at
	link    *link
	dialing bool
	timer   *time.Timer // nil: no call is planned
	retry   time.Duration
	since   time.Time // of link
	shut    time.Time // until when it is not listened to
	tokens  float64
	filled  time.Time // when tokens were counted
	mailing mailing
}

// stop ends all that the peer does. Service.mu is held.
func (p *peer) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.link != nil {
		p.link.conn.Close()
	}
}

// peer returns what is known of a device. s.mu is held.
func (s *Service) peer(id identity.DeviceID) *peer {
	p := s.peers[id]
	if p == nil {
		p = &peer{id: id, tokens: s.cfg.Rate * burst, filled: time.Now()}
		s.peers[id] = p
	}
	return p
}

// links returns all connections. s.mu is held.
func (s *Service) links() []*link {
	var out []*link
	for _, p := range s.peers {
		if p.link != nil {
			out = append(out, p.link)
		}
	}
	return out
}

// linkTo returns the connection with a device, or nil. s.mu is held.
func (s *Service) linkTo(id identity.DeviceID) *link {
	if p := s.peers[id]; p != nil {
		return p.link
	}
	return nil
}

// partners are the devices with which there is a conversation, and whether they are
// connected to this device. s.mu is held.
func (s *Service) partners() map[identity.DeviceID]bool {
	out := make(map[identity.DeviceID]bool)
	for _, c := range s.convs {
		if c.gone {
			continue
		}
		for _, m := range c.conv.Members {
			if m.ID != s.self {
				out[m.ID] = out[m.ID] || m.Online
			}
		}
	}
	return out
}

// reconnect calls whoever is there, and hangs up on whoever is no partner. s.mu is held.
func (s *Service) reconnect() {
	partners := s.partners()
	for id, p := range s.peers {
		if _, ok := partners[id]; !ok {
			p.stop()
			if p.link == nil && !p.dialing {
				delete(s.peers, id)
			}
		}
	}
	for id, online := range partners {
		p := s.peer(id)
		if p.near && !online && p.link != nil {
			p.link.ping() // it went without a word: what is written now is to be left as mail
		}
		p.near = online
		s.presence(p, online)
		if online && p.link == nil && !p.dialing && p.timer == nil {
			s.plan(p, s.patience(id))
		}
	}
}

// patience is how long to wait for a device's own call.
func (s *Service) patience(id identity.DeviceID) time.Duration {
	if slices.Compare(id[:], s.self[:]) > 0 {
		return 0
	}
	return letDial
}

// Connected says that a device can be called now: a connection that there is is looked
// at, and if there is none it is called.
func (s *Service) Connected(id identity.DeviceID) {
	s.Changed()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.partners()[id]; !ok || s.closed {
		return
	}
	p := s.peer(id)
	p.retry = 0
	switch {
	case p.link != nil:
		p.link.ping()
	case !p.dialing:
		s.plan(p, s.patience(id))
	}
}

// plan has a device called after a while. s.mu is held.
func (s *Service) plan(p *peer, after time.Duration) {
	if p.timer != nil && !p.timer.Stop() {
		return // it is being called
	}
	p.timer = time.AfterFunc(after, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.timer = nil
		if p.link != nil || p.dialing || s.peers[p.id] != p {
			return
		}
		p.dialing = s.start(func() { s.call(p) })
	})
}

// call calls a device.
func (s *Service) call(p *peer) {
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, p.id)
	s.mu.Lock()
	p.dialing = false
	if err != nil {
		s.again(p)
		s.mu.Unlock()
		s.cfg.Logger.Debug("device not called", "peer", p.id.Short(), "err", err)
		return
	}
	l := s.join(p, conn, true)
	s.mu.Unlock()
	if l == nil {
		conn.Close()
		return
	}
	l.run()
}

// again plans the next call of a device that is there. s.mu is held.
func (s *Service) again(p *peer) {
	if online := s.partners()[p.id]; !online || s.closed || p.link != nil || p.dialing {
		return
	}
	p.retry = min(max(2*p.retry, firstRetry), lastRetry)
	s.plan(p, p.retry/2+rand.N(p.retry)) //nolint:gosec // spreads calls, no secret
}

// accept takes calls until Close.
func (s *Service) accept() {
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := s.cfg.Listener.Accept()
		if err != nil {
			return
		}
		id, ok := s.cfg.Who(conn.RemoteAddr())
		if !ok || id == s.self {
			conn.Close()
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close() // more calls than devices: somebody misbehaves
			continue
		}
		if !s.take(id, conn, func() { <-slots }) {
			conn.Close()
			<-slots
		}
	}
}

// take serves a call.
func (s *Service) take(id identity.DeviceID, conn net.Conn, done func()) bool {
	s.Changed() // its pairing may be news
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.partners()[id]; !ok {
		return false
	}
	p := s.peer(id)
	if time.Now().Before(p.shut) {
		return false
	}
	l := s.join(p, conn, false)
	if l == nil {
		return false
	}
	return s.start(func() { defer done(); l.run() })
}

// join makes a connection that of a peer; nil: it is not wanted. s.mu is held.
func (s *Service) join(p *peer, conn net.Conn, dialed bool) *link {
	if s.closed || s.peers[p.id] != p {
		return nil
	}
	lesserCalled := dialed == (slices.Compare(s.self[:], p.id[:]) < 0)
	if old := p.link; old != nil {
		if old.lesserCalled && !lesserCalled && time.Since(p.since) < young {
			return nil // both have called at once
		}
		s.leave(old)
	}
	if p.timer != nil && p.timer.Stop() {
		p.timer = nil
	}
	l := newLink(s, p, conn, lesserCalled)
	p.link, p.since = l, time.Now()
	s.presence(p, true)
	for _, c := range s.convs {
		if c.present() && c.ids[p.id] {
			l.share(c)
		}
	}
	return l
}

// leave ends a connection: what was asked of it is asked of others. s.mu is held.
func (s *Service) leave(l *link) {
	l.conn.Close()
	if l.left {
		return
	}
	l.left = true
	if l.peer.link == l {
		l.peer.link = nil
	}
	for id := range l.shared {
		c := s.convs[id]
		if c == nil || c.book == nil {
			continue
		}
		for k, pl := range c.pulls {
			if pl.link == l {
				delete(c.pulls, k)
			}
		}
		for _, o := range s.links() {
			if sh := o.shared[id]; sh != nil {
				for k := range sh.has {
					s.consider(c, k)
				}
				sh.receipts = true // for an author who was there, and may not have heard
				o.poke()
				o.soon()
			}
		}
	}
	if _, ok := s.partners()[l.id]; !ok {
		delete(s.peers, l.id)
		return
	}
	s.presence(l.peer, s.partners()[l.id])
	s.again(l.peer)
}

// allow takes frames from a peer's bucket and returns how long they have to wait.
func (s *Service) allow(p *peer, frames float64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	p.tokens = min(p.tokens+now.Sub(p.filled).Seconds()*s.cfg.Rate, s.cfg.Rate*burst)
	p.filled = now
	p.tokens -= frames
	if p.tokens >= 0 {
		return 0
	}
	return time.Duration(-p.tokens / s.cfg.Rate * float64(time.Second))
}
