package lan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

// A session is one use of a topic on the LAN.
type session struct {
	e     *Exchange
	point rendezvous.Point
	tag   rendezvous.Tag
	*rendezvous.Inbox

	last    []byte    // datagram published last; guarded by e.mu
	queried time.Time // last mDNS question; guarded by e.mu
	gap     time.Duration
}

const (
	firstQuery   = time.Second // between the first two mDNS questions; then doubled
	longestQuery = time.Minute
)

// Publish sends the frame to the groups, to the addresses that are known, and
// asks mDNS for more.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	d := make([]byte, 0, datagramSize)
	d = append(append(d, s.tag[:]...), frame...)
	ask := s.remember(d)
	var errs []error
	sent := 0
	count := func(n int, err error) {
		sent += n
		if err != nil {
			errs = append(errs, err)
		}
	}
	if s.e.groups != nil {
		count(s.e.groups.send(&s.point.Topic, func(netmon.Interface, bool) []byte { return d }))
	}
	asks := s.e.mdns != nil && !s.e.cfg.MulticastOnly
	if !s.e.cfg.MulticastOnly {
		for _, to := range s.point.Endpoints {
			count(s.e.socks.unicastAny(d, to))
		}
		for _, to := range s.e.unicastTo(s.tag) {
			count(1, s.e.socks.unicast(d, to))
		}
	}
	if ask && asks {
		s.e.mdns.ask(s.tag)
	}
	if sent == 0 && !asks {
		return fmt.Errorf("lan: %w: %w", rendezvous.ErrUnreachable, errors.Join(append(errs, errNotSent)...))
	}
	return nil
}

var errNotSent = errors.New("no interface took the frame")

// receives reports whether frames are wanted.
func (s *session) receives() bool { return s.point.Mode != rendezvous.SendOnly }

// remember keeps the datagram for addresses that turn up later, and says whether
// it is time for another mDNS question.
func (s *session) remember(d []byte) bool {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.last = d
	now := time.Now()
	if now.Sub(s.queried) < s.gap {
		return false
	}
	s.queried = now
	s.gap = min(max(2*s.gap, firstQuery), longestQuery)
	return true
}

// Close leaves the topic; it says so to mDNS.
func (s *session) Close() error {
	s.Shut(func() {
		e := s.e
		e.mu.Lock()
		delete(e.topics[s.tag], s)
		if len(e.topics[s.tag]) == 0 {
			delete(e.topics, s.tag)
			delete(e.peers, s.tag)
		}
		e.mu.Unlock()
		if e.groups != nil {
			e.groups.dropTopic(s.point.Topic, s.receives())
		}
		if s.point.Announce && !e.receiving(s.tag) {
			e.tellTag(s.tag, true)
		}
	})
	return nil
}
