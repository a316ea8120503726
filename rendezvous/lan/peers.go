package lan

import (
	"net/netip"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// learn remembers an address that knows a tag: answers go there, too, one
// datagram for each that is published, so that nobody is made to amplify.
func (e *Exchange) learn(tag rendezvous.Tag, from netip.AddrPort) (isNew bool) {
	if e.cfg.MulticastOnly || !from.IsValid() || e.socks.own(from) {
		return false
	}
	set := e.peers[tag]
	if set == nil {
		set = make(map[netip.AddrPort]time.Time)
		e.peers[tag] = set
	}
	_, known := set[from]
	if !known && len(set) >= maxPeers {
		oldest := from
		for a, t := range set {
			if oldest == from || t.Before(set[oldest]) {
				oldest = a
			}
		}
		delete(set, oldest)
	}
	set[from] = time.Now()
	return !known
}

// found takes an address that mDNS gives for a tag: what was published last goes
// there at once.
func (e *Exchange) found(tag rendezvous.Tag, at netip.AddrPort) {
	e.mu.Lock()
	var last [][]byte
	if len(e.topics[tag]) > 0 && e.learn(tag, at) {
		for s := range e.topics[tag] {
			if f := s.last; f != nil && s.point.Mode != rendezvous.ReceiveOnly {
				last = append(last, f)
			}
		}
	}
	e.mu.Unlock()
	for _, d := range last {
		_ = e.socks.unicast(d, at)
	}
}

// unicastTo returns the addresses that know a tag.
func (e *Exchange) unicastTo(tag rendezvous.Tag) []netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []netip.AddrPort
	for a, t := range e.peers[tag] {
		if time.Since(t) > peerLife {
			delete(e.peers[tag], a)
			continue
		}
		out = append(out, a)
	}
	return out
}

// receiving returns the tags that mDNS may name.
func (e *Exchange) receiving(tag rendezvous.Tag) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.topics[tag] {
		if s.point.Announce {
			return true
		}
	}
	return false
}

func (e *Exchange) announced() []rendezvous.Tag {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []rendezvous.Tag
	for tag, set := range e.topics {
		for s := range set {
			if s.point.Announce {
				out = append(out, tag)
				break
			}
		}
	}
	return out
}

func (e *Exchange) announceAll() {
	for _, tag := range e.announced() {
		e.tellTag(tag, false)
	}
}

// tellTag lets mDNS name a tag, or with goodbye no longer.
func (e *Exchange) tellTag(tag rendezvous.Tag, goodbye bool) {
	if e.mdns != nil && !e.cfg.MulticastOnly { // the records' addresses are for unicast
		e.mdns.announce(tag, goodbye)
	}
}

// A bucket is a token bucket: at most a number of tokens per second, with a
// burst of as many.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) take(now time.Time, perSecond float64) bool {
	b.tokens = min(perSecond, b.tokens+now.Sub(b.last).Seconds()*perSecond)
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
