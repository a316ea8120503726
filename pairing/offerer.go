package pairing

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

const (
	maxSessions = 16 // handshakes under way at once
	// maxBegun is how many handshakes one code serves for. Who has the code and stands
	// between the two devices learns the check number of each that it begins, and would
	// begin them until one fits that of the other side.
	maxBegun    = 32
	sessionIdle = 10 * time.Second // after which one may make room for another
)

// offererSide is what only the offerer has: a handshake per joiner that sent a
// valid m1, until one of them has proved itself.
type offererSide struct {
	sessions map[wire.SID]*session
	begun    int  // handshakes
	contact  bool // told to the user
}

func newOffererSide() *offererSide { return &offererSide{sessions: make(map[wire.SID]*session)} }

// A session is one handshake with one joiner.
type session struct {
	topic      int
	m2         []byte
	commitment []byte // c_J
	secrets    *secrets
	m4         []byte // once m3 has come and was accepted
	refused    bool   // m3 came from another device than the first
	last       time.Time
}

func (m *Machine) offererReceive(now time.Time, topic int, f wire.Frame) {
	switch f.Type {
	case frameM1:
		m.offererM1(now, topic, f)
	case frameM3:
		m.offererM3(now, topic, f)
	}
}

func (m *Machine) offererM1(now time.Time, topic int, f wire.Frame) {
	o := m.offerer
	if s := o.sessions[f.SID]; s != nil {
		s.last = now
		m.send(s.topic, frameM2, f.SID, s.m2)
		return
	}
	// After the pair is made, too: a device that comes late is told so (offererM3).
	if len(f.Body) < 2 || sidOf(f.Body[1:]) != f.SID {
		return
	}
	method := code.Method(f.Body[0])
	if !m.allows(method) || !o.room(now, m.sid) {
		return
	}
	if o.begun >= maxBegun && m.cfg.Method != code.MethodIntro { // whose number is compared otherwise
		if m.phase == open {
			m.fail(TooOften)
		}
		return
	}
	m2, commitment, s, err := answerM1(m.cfg.Keys[topic], method, f.Body[1:], m.cfg.Rand)
	if err != nil {
		return
	}
	o.begun++
	o.sessions[f.SID] = &session{topic: topic, m2: m2, commitment: commitment, secrets: s, last: now}
	if !o.contact && m.phase == open {
		o.contact = true
		m.tell(Event{Kind: EventContact})
	}
	m.send(topic, frameM2, f.SID, m2)
}

// allows reports whether a joiner may have entered this offer in that way:
// words and QR are two forms of one secret.
func (m *Machine) allows(method code.Method) bool {
	if m.cfg.Method == code.MethodNumber || m.cfg.Method == code.MethodIntro {
		return method == m.cfg.Method
	}
	return method == code.MethodWords || method == code.MethodQR
}

// room makes room for one more session: it drops the one that has been idle for
// longest, if that is long enough and not the one that counts.
func (o *offererSide) room(now time.Time, keep wire.SID) bool {
	if len(o.sessions) < maxSessions {
		return true
	}
	var oldest wire.SID
	found := false
	for sid, s := range o.sessions {
		if sid != keep && now.Sub(s.last) >= sessionIdle && (!found || s.last.Before(o.sessions[oldest].last)) {
			oldest, found = sid, true
		}
	}
	if found {
		delete(o.sessions, oldest)
	}
	return found
}

func (m *Machine) offererM3(now time.Time, topic int, f wire.Frame) {
	s := m.offerer.sessions[f.SID]
	if s == nil || s.topic != topic {
		return
	}
	s.last = now
	if s.m4 != nil {
		if !m.holdsM4() {
			m.send(topic, frameM4, f.SID, s.m4) // the same m3, or a forgery: the answer is the same
		}
		return
	}
	joiner, raw, err := s.secrets.readM3(f.Body, s.commitment, m.cfg.Identity.ID())
	if isSelf(err) {
		return // the joiner's side tells the user
	}
	if err != nil {
		return
	}
	info, err := decodeInfo(raw)
	if err != nil {
		return
	}
	if !m.cfg.Pin.fits(joiner, info) {
		m.strange()
		return // in silence: it learns nothing of what this device is waiting for
	}
	if !m.peer.IsZero() && (m.peer != joiner || m.phase >= preparing) {
		m.refuseSecond(s, f.SID, joiner)
		return
	}
	m4, err := s.secrets.writeM4(m.cfg.Identity, joiner, m.info)
	if err != nil {
		return
	}
	s.m4 = m4
	m.take(topic, f.SID, s, joiner, info)
	if !m.holdsM4() {
		m.send(topic, frameM4, f.SID, m4)
	}
	m.bound()
}

// take binds the offer to a joiner, or to a new run of the same joiner.
func (m *Machine) take(topic int, sid wire.SID, s *session, joiner identity.DeviceID, info Info) {
	m.topic, m.sid, m.secrets = topic, sid, s.secrets
	m.peer, m.peerInfo = joiner, info
	m.keys = s.secrets.finish(joiner, m.cfg.Identity.ID())
	m.early, m.verified, m.wrong = nil, false, 0
}

// refuseSecond tells a second device that the code is used, and the user that a
// second device tried.
func (m *Machine) refuseSecond(s *session, sid wire.SID, joiner identity.DeviceID) {
	key := wire.Expand(s.secrets.ks, "ctl O")
	m.sendRejectTo(s.topic, sid, key, s.secrets.h, CodeUsed)
	if !s.refused && joiner != m.peer {
		m.tell(Event{Kind: EventSecondDevice})
	}
	s.refused = true
}

// choices are the check number and three others, in random order.
func (m *Machine) choices() []string {
	out := []string{m.keys.check}
	for len(out) < 4 {
		n, err := randomUint64(m.cfg.Rand)
		if err != nil {
			return nil // the user types the digits
		}
		if c := fmt.Sprintf("%06d", n%1_000_000); !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	for i := len(out) - 1; i > 0; i-- { // Fisher-Yates
		n, err := randomUint64(m.cfg.Rand)
		if err != nil {
			return nil
		}
		j := int(n % uint64(i+1))
		out[i], out[j] = out[j], out[i]
	}
	return out
}

func randomUint64(random io.Reader) (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(random, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// SameDigits reports whether a user typed a check number, spaces and dashes aside, in
// constant time.
func SameDigits(typed, want string) bool {
	typed = strings.Join(strings.FieldsFunc(typed, func(r rune) bool { return r == ' ' || r == '-' || r == '\t' }), "")
	return subtle.ConstantTimeCompare([]byte(typed), []byte(want)) == 1
}
