package pairing

import (
	"crypto/subtle"
	"time"

	"github.com/kithproject/kith/internal/wire"
)

// joinerSide is what only the joiner has.
type joinerSide struct {
	hs      *joinerHandshake
	m3      []byte    // once m2 has come
	proving time.Time // since when m3 has been out
}

func (m *Machine) startJoiner(now time.Time) error {
	hs, err := newJoinerHandshake(m.cfg.Keys[0], m.cfg.Method, m.cfg.Rand)
	if err != nil {
		return err
	}
	m.joiner, m.sid = &joinerSide{hs: hs}, hs.sid
	m.joinerResend()
	m.resend.Start(now, m.slowestHello(), m.cfg.Rand)
	return nil
}

// joinerResend sends what the joiner waits for an answer to.
func (m *Machine) joinerResend() {
	j := m.joiner
	if j.m3 == nil {
		// The method travels with m1, as the offerer needs it for the prologue.
		m.send(0, frameM1, m.sid, append([]byte{byte(m.cfg.Method)}, j.hs.m1...))
		return
	}
	m.send(0, frameM3, m.sid, j.m3)
}

func (m *Machine) joinerReceive(now time.Time, f wire.Frame) {
	if f.Type == frameCall {
		m.called(now)
		return
	}
	if f.SID != m.sid || m.phase != open {
		return
	}
	switch {
	case f.Type == frameM2 && m.joiner.m3 == nil:
		m.joinerM2(now, f.Body)
	case f.Type == frameM4 && m.joiner.m3 != nil:
		m.joinerM4(now, f.Body)
	}
}

func (m *Machine) joinerM2(now time.Time, body []byte) {
	s, err := m.joiner.hs.readM2(body)
	if err != nil {
		return
	}
	m3, err := s.writeM3(m.cfg.Identity, m.info)
	if err != nil {
		return
	}
	m.secrets, m.joiner.m3, m.joiner.proving = s, m3, now
	m.tell(Event{Kind: EventContact})
	m.joinerResend()
	m.resend.Start(now, slowestRetry, m.cfg.Rand)
}

func (m *Machine) joinerM4(now time.Time, body []byte) {
	own := m.cfg.Identity.ID()
	offerer, raw, err := m.secrets.readM4(body, own)
	if isSelf(err) {
		m.fail(Self)
		return
	}
	if err != nil {
		return
	}
	info, err := decodeInfo(raw)
	if err != nil {
		return
	}
	if !m.cfg.Pin.fits(offerer, info) {
		m.strange()
		m.again(now)
		return
	}
	if m.cfg.Commit != nil {
		got := offerer.Commitment()
		if subtle.ConstantTimeCompare(got[:], m.cfg.Commit[:]) != 1 {
			m.reject(now, WrongDevice)
			return
		}
		m.verified = true
	}
	m.peer, m.peerInfo = offerer, info
	m.keys = m.secrets.finish(own, offerer)
	m.resend.Stop()
	m.bound()
}
