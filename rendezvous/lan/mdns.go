package lan

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

const (
	mdnsPort  = 5353
	maxMDNS   = 9000 // bytes of a message, RFC 6762 section 17
	mdnsRate  = 200  // messages per second that are looked at
	answerGap = time.Second
	mdnsHops  = 255 // RFC 6762 section 11
)

func mdnsGroup4() netip.Addr { return netip.AddrFrom4([4]byte{224, 0, 0, 251}) }

func mdnsGroup6() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0xfb})
}

// mdns answers and asks for tags, beside whatever else does mDNS here.
type mdns struct {
	e      *Exchange
	label  string // random name of instance and host
	groups *groups

	mu       sync.Mutex // guards the fields below
	rate     bucket
	answered map[rendezvous.Tag]time.Time
}

// openMDNS joins the mDNS groups. It errs if the port cannot be shared.
func openMDNS(e *Exchange) (*mdns, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	m := &mdns{e: e, label: "kith-" + hex.EncodeToString(random[:]), answered: make(map[rendezvous.Tag]time.Time)}
	m.groups = newGroups(e.cfg.MDNSPort, mdnsHops, maxMDNS, mdnsGroup4(), mdnsGroup6(), &e.wg, m.take)
	m.groups.chosen = e.socks.chosen
	if err := m.groups.open(); err != nil {
		return nil, err
	}
	m.groups.sendFromGroups()
	return m, nil
}

// take looks at one message: it answers questions for announced tags, and learns
// from answers.
func (m *mdns) take(b []byte, in arrival) {
	<-m.e.opened
	m.mu.Lock()
	ok := m.rate.take(time.Now(), mdnsRate)
	m.mu.Unlock()
	if !ok {
		return
	}
	m.e.takeNearby(b, in)
	msg, err := parseMDNS(b)
	if err != nil {
		return
	}
	for _, q := range msg.questions {
		if !slices.Contains(msg.known, m.label) && m.e.receiving(q) && m.mayAnswer(q) {
			m.e.tellTag(q, false)
		}
	}
	zone := in.from.Addr().Zone()
	for _, f := range msg.found {
		if f.label == m.label {
			continue
		}
		for _, a := range f.addrs {
			if a.IsLinkLocalUnicast() && a.Is6() {
				a = a.WithZone(zone)
			}
			if local(a) {
				m.e.found(f.tag, netip.AddrPortFrom(a, f.port))
			}
		}
	}
}

// mayAnswer bounds answers, RFC 6762 section 6: a record goes out at most once a
// second.
func (m *mdns) mayAnswer(tag rendezvous.Tag) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Sub(m.answered[tag]) < answerGap {
		return false
	}
	for t, at := range m.answered {
		if now.Sub(at) > answerGap {
			delete(m.answered, t)
		}
	}
	m.answered[tag] = now
	return true
}

// ask sends a question for a tag on every interface.
func (m *mdns) ask(tag rendezvous.Tag) {
	q, err := question(tag)
	if err != nil {
		m.e.log.Error("question not built", "err", err)
		return
	}
	_, _ = m.groups.send(nil, func(netmon.Interface, bool) []byte { return q })
}

// announce sends the records of a tag on every interface, each with that
// interface's addresses; goodbye takes them back.
func (m *mdns) announce(tag rendezvous.Tag, goodbye bool) {
	port4, port6 := m.e.socks.conns[0].port(), m.e.socks.conns[1].port()
	_, _ = m.groups.send(nil, func(i netmon.Interface, _ bool) []byte {
		a, err := answer(m.label, tag, port4, port6, i.Addrs, goodbye)
		if err != nil {
			m.e.log.Error("answer not built", "err", err)
			return nil
		}
		return a
	})
}
