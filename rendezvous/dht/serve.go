package dht

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // BEP 44 prescribes it
	"crypto/sha256"
	"crypto/subtle"
	"net/netip"
	"time"
)

const (
	maxItems     = 4096             // items that are kept, about 5 MB
	itemsPerHost = 128              // of one address
	itemFor      = 2 * time.Hour    // after the last put (BEP 44)
	maxSwarms    = 1024             // infohashes that are kept
	peersPer     = 16               // peers of one infohash
	peerFor      = 30 * time.Minute // after the last announcement
	tokenFor     = 5 * time.Minute  // then another one is given out; the last one still counts
	replyRate    = 200              // replies a second to all
	replyBurst   = 400
	hostRate     = 50 // replies a second to one address
	hostBurst    = 100
)

// A kept item is one that somebody put here.
type kept struct {
	item
	at   time.Time
	from netip.Addr
}

// A store is what this node keeps for others: bounded, in memory only.
type store struct {
	items   map[id]*kept
	perHost map[netip.Addr]int
	swarms  map[id]map[netip.AddrPort]time.Time
	secret  [2][16]byte // of tokens: the present one and the last
	turned  time.Time
	all     *limiter
	hosts   *sources
}

func newStore() *store {
	return &store{
		items: make(map[id]*kept), perHost: make(map[netip.Addr]int), swarms: make(map[id]map[netip.AddrPort]time.Time),
		all: newLimiter(replyRate, replyBurst), hosts: newSources(hostRate, hostBurst),
	}
}

func (s *store) token(now time.Time, a netip.Addr, age int) []byte {
	for now.Sub(s.turned) >= tokenFor {
		s.secret[1] = s.secret[0]
		if _, err := rand.Read(s.secret[0][:]); err != nil {
			panic(err) // crypto/rand never fails
		}
		if now.Sub(s.turned) >= 2*tokenFor {
			s.secret[1], s.turned = s.secret[0], now
			break
		}
		s.turned = s.turned.Add(tokenFor)
	}
	h := hmac.New(sha256.New, s.secret[age][:])
	h.Write(a.AsSlice())
	return h.Sum(nil)[:8]
}

func (s *store) mayWrite(now time.Time, a netip.Addr, token []byte) bool {
	return subtle.ConstantTimeCompare(token, s.token(now, a, 0))|subtle.ConstantTimeCompare(token, s.token(now, a, 1)) == 1
}

// put keeps an item, or returns the error code that says why not.
func (s *store) put(now time.Time, from netip.Addr, m *message) (int64, string) {
	it := m.item
	var target id
	switch {
	case m.code == errTooBig:
		return errTooBig, "value too big"
	case it.value == nil:
		return errProtocol, "no value"
	case it.mutable && (len(it.salt) > maxSalt):
		return errSalt, "salt too big"
	case it.mutable && !m.hasSeq:
		return errProtocol, "no seq"
	case it.mutable:
		if target = mutableTarget(it.key, it.salt); !it.verify() {
			return errSig, "invalid signature"
		}
	default:
		target = sha1.Sum(it.value) //nolint:gosec // BEP 44
	}
	from = network(from)
	old := s.items[target]
	if old != nil && now.Sub(old.at) < itemFor && it.mutable {
		switch {
		case m.hasCas && m.cas != old.seq:
			return errCas, "cas mismatch"
		case it.seq < old.seq, it.seq == old.seq && !bytes.Equal(it.value, old.value):
			return errSeq, "sequence number less than current"
		}
	}
	if old != nil {
		s.forget(target)
	} else {
		if s.perHost[from] >= itemsPerHost {
			s.evict(now, from)
		}
		if len(s.items) >= maxItems {
			s.evict(now, netip.Addr{})
		}
	}
	it.value, it.salt = bytes.Clone(it.value), bytes.Clone(it.salt)
	s.items[target] = &kept{item: it, at: now, from: from}
	s.perHost[from]++
	return 0, ""
}

func (s *store) forget(target id) {
	if k := s.items[target]; k != nil {
		delete(s.items, target)
		if s.perHost[k.from]--; s.perHost[k.from] <= 0 {
			delete(s.perHost, k.from)
		}
	}
}

// evict makes room: the oldest item goes, of one address if from is valid.
func (s *store) evict(now time.Time, from netip.Addr) {
	var oldest id
	at := now.Add(time.Hour)
	for target, k := range s.items {
		if (!from.IsValid() || k.from == from) && k.at.Before(at) {
			oldest, at = target, k.at
		}
	}
	s.forget(oldest)
}

func (s *store) get(now time.Time, target id) *kept {
	k := s.items[target]
	if k != nil && now.Sub(k.at) >= itemFor {
		s.forget(target)
		return nil
	}
	return k
}

func (s *store) announce(now time.Time, infohash id, peer netip.AddrPort) {
	swarm := s.swarms[infohash]
	if swarm == nil {
		if len(s.swarms) >= maxSwarms {
			s.dropSwarm(now)
		}
		swarm = make(map[netip.AddrPort]time.Time)
		s.swarms[infohash] = swarm
	}
	if _, known := swarm[peer]; !known && len(swarm) >= peersPer {
		var oldest netip.AddrPort
		at := now.Add(time.Hour)
		for p, t := range swarm {
			if t.Before(at) {
				oldest, at = p, t
			}
		}
		delete(swarm, oldest)
	}
	swarm[peer] = now
}

// dropSwarm forgets one infohash: one without live peers if a short look finds it.
func (s *store) dropSwarm(now time.Time) {
	var victim id
	looked := 0
	for infohash, swarm := range s.swarms {
		victim = infohash
		live := false
		for _, t := range swarm {
			live = live || now.Sub(t) < peerFor
		}
		if looked++; !live || looked == 64 {
			break
		}
	}
	delete(s.swarms, victim)
}

func (s *store) peers(now time.Time, infohash id) (out []netip.AddrPort) {
	for p, t := range s.swarms[infohash] {
		if now.Sub(t) >= peerFor {
			delete(s.swarms[infohash], p)
			continue
		}
		out = append(out, p)
	}
	if len(s.swarms[infohash]) == 0 {
		delete(s.swarms, infohash)
	}
	return out
}

// answer returns the reply to a question, nil for silence.
func (s *store) answer(now time.Time, m *message, from netip.AddrPort, t *table) []byte {
	if !s.hosts.allow(now, from.Addr()) || !s.all.allow(now) {
		return nil
	}
	out := &message{id: t.self, tid: m.tid}
	nodes := func() {
		out.nodes = t.closest(now, m.target, bucketSize, true)
		out.token = s.token(now, from.Addr(), 0)
	}
	switch m.method {
	case "ping":
	case "find_node", "get_peers", "get":
		if !m.hasTo {
			return encodeError(m.tid, errProtocol, "no target")
		}
		nodes()
		switch m.method {
		case "find_node":
			out.token = nil
		case "get_peers":
			out.peers = s.peers(now, m.target)
		case "get":
			if k := s.get(now, m.target); k != nil {
				out.hasSeq, out.item.seq = k.mutable, k.seq
				if !k.mutable || !m.hasSeq || k.seq > m.item.seq {
					out.item = k.item
				}
			}
		}
	case "announce_peer":
		port := m.port
		if m.implied {
			port = from.Port()
		}
		if !m.hasTo || port == 0 || !s.mayWrite(now, from.Addr(), m.token) {
			return encodeError(m.tid, errProtocol, "bad token")
		}
		s.announce(now, m.target, netip.AddrPortFrom(from.Addr(), port))
	case "put":
		if !s.mayWrite(now, from.Addr(), m.token) {
			return encodeError(m.tid, errProtocol, "bad token")
		}
		if code, text := s.put(now, from.Addr(), m); code != 0 {
			return encodeError(m.tid, code, text)
		}
	default:
		return encodeError(m.tid, errMethod, "method unknown")
	}
	return out.encodeReply(from)
}
