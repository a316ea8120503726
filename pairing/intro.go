package pairing

import (
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/retry"
)

// An introduction (MethodIntro) is a pairing whose two sides may come days apart, and
// whose secret a third device knows: the one that introduces them. So
//
//   - both sides name the other's keys beforehand (Config.Pin) and ignore whoever else
//     proves to know the secret: the third device can start handshakes and no more;
//   - a side that waits speaks rarely, and an offerer that comes says so (frameCall), at
//     which the joiner says m1 at once;
//   - a joiner whose handshake does not go on begins a new one: the offerer may have
//     restarted, or it was the third device that answered.
const (
	// slowestCall is the longest wait between two calls, or two m1, of an introduction.
	slowestCall = 5 * time.Minute
	// provingFor is how long an m3 of an introduction waits for its m4.
	provingFor = time.Minute
	// calledAgain is the least time between two calls that are answered, and how long an
	// m3 has been out before a call means that it was for an offerer that is gone.
	calledAgain = 5 * time.Second
)

// slowestHello is the longest wait between two m1.
func (m *Machine) slowestHello() time.Duration {
	if m.cfg.Method == code.MethodIntro {
		return slowestCall
	}
	return slowestRetry
}

// holdsM4 reports whether the offerer's proof waits until its record is durable. Nobody is
// asked any more in an introduction, so that the joiner's record follows the proof at
// once; so there is none without one of the offerer's, and a joiner that has none may
// begin anew at any time.
func (m *Machine) holdsM4() bool { return m.cfg.Method == code.MethodIntro && m.phase < committing }

// releaseM4 sends the proof that was held.
func (m *Machine) releaseM4() {
	if m.cfg.Method != code.MethodIntro || m.offerer == nil {
		return
	}
	if s := m.offerer.sessions[m.sid]; s != nil && s.m4 != nil {
		m.send(s.topic, frameM4, m.sid, s.m4)
	}
}

// call says that the offerer is there.
func (m *Machine) call() { m.send(0, frameCall, [8]byte{}, nil) }

// called takes the offerer's call. Anybody who recorded one may repeat it: it makes this
// side say again what it says anyway, at most once in calledAgain.
func (m *Machine) called(now time.Time) {
	if m.cfg.Method != code.MethodIntro || m.phase != open || now.Sub(m.answered).Abs() < calledAgain {
		return
	}
	if m.joiner.m3 != nil {
		if now.Sub(m.joiner.proving) < calledAgain {
			return
		}
		m.again(now)
	}
	m.answered = now
	m.joinerResend()
	m.resend.Start(now, m.slowestHello(), m.cfg.Rand)
}

// joinerTick repeats what the joiner waits for an answer to.
func (m *Machine) joinerTick(now time.Time) {
	if m.cfg.Method == code.MethodIntro && m.joiner.m3 != nil && now.Sub(m.joiner.proving) >= provingFor {
		m.again(now)
	}
	m.joinerResend()
}

// again begins a new handshake, whose m1 goes out at the next tick: later each time, so
// that whoever ends handshakes does not make this side speak fast.
func (m *Machine) again(now time.Time) {
	hs, err := newJoinerHandshake(m.cfg.Keys[0], m.cfg.Method, m.cfg.Rand)
	if err != nil {
		return // no randomness: the next tick tries again
	}
	m.joiner, m.sid, m.secrets = &joinerSide{hs: hs}, hs.sid, nil
	m.resend.StartAfter(now, min(retry.First<<m.tries, slowestCall), m.slowestHello(), m.cfg.Rand)
	m.tries = min(m.tries+1, maxTries)
}

// maxTries is how many handshakes it takes to come to slowestCall.
const maxTries = 11

// refusedBy takes a REJECT of somebody who has not proved to be the pinned device: to a
// joiner it says that this handshake leads nowhere, and no more. It reports whether that
// is what it was.
func (m *Machine) refusedBy(now time.Time) bool {
	if m.cfg.Method != code.MethodIntro || m.joiner == nil || m.phase != open {
		return false
	}
	m.again(now)
	return true
}

// strange says once that another device than the introduced one knows the secret.
func (m *Machine) strange() {
	if !m.strangeSaid {
		m.strangeSaid = true
		m.tell(Event{Kind: EventSecondDevice})
	}
}
