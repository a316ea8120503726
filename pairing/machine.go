package pairing

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/retry"
	"github.com/kithproject/kith/internal/wire"
)

// Frame types on the code's topic.
const (
	frameM1     = 0x01
	frameM2     = 0x02
	frameM3     = 0x03
	frameM4     = 0x04
	frameCommit = 0x05 // a commit body
	frameReject = 0x06
	frameCall   = 0x0c // an offerer that was introduced is there now; 0x07-0x0b are of rooms
)

const (
	defaultLifetime = 10 * time.Minute
	slowestRetry    = 3 * time.Second
	rejectTimes     = 3 // how often a REJECT is sent
	maxWrongChecks  = 3 // how often the user may mistype
)

// phase is where a Machine is; each is left only forward.
type phase uint8

const (
	open       phase = iota // offerer: OFFERING; joiner: JOINING or PROVING
	asking                  // BOUND: the peer is proved; waiting for the user
	preparing               // PREPARED is being made durable
	committing              // PREPARED is durable; the commit phase runs
	active                  // paired; answers the other side
	failed
)

// A Machine is one side of one pairing. Feed it frames, user decisions and the
// time, and carry out what Poll returns after each call. It is not safe for
// concurrent use.
type Machine struct {
	cfg      Config
	info     []byte // ours, encoded; frozen
	sealers  []*wire.Sealer
	deadline time.Time
	patience time.Time // of the joiner, for a first answer; zero for the offerer
	phase    phase
	seen     wire.Nonces // of frames of others
	mine     wire.Nonces // of frames that were sent
	actions  []Action
	resend   retry.Schedule

	joiner  *joinerSide
	offerer *offererSide

	peer     identity.DeviceID
	peerInfo Info
	keys     *pairKeys
	secrets  *secrets
	topic    int      // of the session that counts
	sid      wire.SID // of the session that counts
	verified bool     // by check number or QR commitment
	wrong    int      // check numbers that did not fit
	early    [][]byte // commit bodies that came before this side was ready
	commit   *Commit
	rejects  int // REJECTs still to send
	settled  bool

	answered    time.Time // when a call was answered
	tries       int       // handshakes that led nowhere
	strangeSaid bool      // that another device knows the secret
}

// New returns a machine that starts at now. It errs with ErrConfig for a
// configuration that the specification does not allow, such as AutoAccept with a
// number, and with ErrInfo for an Info out of bounds.
func New(cfg Config, now time.Time) (*Machine, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Lifetime <= 0 {
		cfg.Lifetime = defaultLifetime
	}
	switch {
	case cfg.Role != Joiner && cfg.Role != Offerer:
		return nil, fmt.Errorf("%w: no role", ErrConfig)
	case cfg.Identity == nil || len(cfg.Keys) == 0 || (cfg.Role == Joiner && len(cfg.Keys) != 1):
		return nil, fmt.Errorf("%w: identity and keys are needed", ErrConfig)
	case (cfg.Method < code.MethodWords || cfg.Method > code.MethodNumber) && cfg.Method != code.MethodIntro:
		return nil, fmt.Errorf("%w: no such method", ErrConfig)
	case (cfg.Method == code.MethodIntro) != (cfg.Pin != nil):
		return nil, fmt.Errorf("%w: an introduction, and nothing else, names its device", ErrConfig)
	case cfg.AutoAccept && cfg.Role == Offerer && cfg.Method == code.MethodNumber:
		return nil, fmt.Errorf("%w: a number needs the check number", ErrConfig)
	}
	m := &Machine{cfg: cfg, deadline: now.Add(cfg.Lifetime)}
	cfg.Info.Name = CleanName(cfg.Info.Name)
	var err error
	if m.info, err = cfg.Info.encode(); err != nil {
		return nil, err
	}
	for _, k := range cfg.Keys {
		s, err := wire.NewSealer(k.Frame[:])
		if err != nil {
			return nil, fmt.Errorf("pairing: %w", err)
		}
		m.sealers = append(m.sealers, s)
	}
	if cfg.Role == Joiner {
		m.patience = m.deadline
		if cfg.Patience > 0 && cfg.Patience < cfg.Lifetime {
			m.patience = now.Add(cfg.Patience)
		}
		return m, m.startJoiner(now)
	}
	m.offerer = newOffererSide()
	if cfg.Method == code.MethodIntro {
		m.call()
		m.resend.Start(now, slowestCall, cfg.Rand)
	}
	return m, nil
}

// Poll returns the next action; it reports false when there is none.
func (m *Machine) Poll() (Action, bool) {
	m.drainCommit()
	if len(m.actions) == 0 {
		return Action{}, false
	}
	a := m.actions[0]
	m.actions = m.actions[1:]
	return a, true
}

// Next returns when Tick wants to be called; zero means never.
func (m *Machine) Next() time.Time {
	var commit time.Time
	if m.commit != nil {
		commit = m.commit.Next()
	}
	deadline, patience := m.deadline, m.patience
	if m.phase >= committing {
		deadline = time.Time{} // a durable record does not expire
	}
	if m.secrets != nil || m.phase != open {
		patience = time.Time{} // somebody has answered
	}
	return retry.Earliest(deadline, patience, m.resend.At, commit)
}

// Tick does what is due at now.
func (m *Machine) Tick(now time.Time) {
	if m.commit != nil {
		m.commit.Tick(now)
	}
	if m.phase < preparing && (!now.Before(m.deadline) || m.deserted(now)) {
		m.expire()
		return
	}
	if !m.resend.Due(now, m.cfg.Rand) {
		return
	}
	switch {
	case m.rejects > 0:
		m.sendReject()
	case m.phase == open && m.joiner != nil:
		m.joinerTick(now)
	case m.phase == open && m.cfg.Method == code.MethodIntro:
		m.call()
	default:
		m.resend.Stop()
	}
}

// deserted reports whether a joiner has looked for long enough.
func (m *Machine) deserted(now time.Time) bool {
	return m.phase == open && m.secrets == nil && !m.patience.IsZero() && !now.Before(m.patience)
}

// expire ends a pairing that is not durable yet.
func (m *Machine) expire() {
	reason := Expired
	if m.joiner != nil && m.secrets == nil {
		reason = NobodyThere
	}
	m.fail(reason)
}

// Receive takes a frame that came on the topic with index topic. Frames that
// are not of this pairing, or copies, are dropped.
func (m *Machine) Receive(now time.Time, topic int, frame []byte) Verdict {
	if topic < 0 || topic >= len(m.sealers) || m.phase == failed {
		return Junk
	}
	if m.phase < preparing && !now.Before(m.deadline) {
		m.expire()
		return Junk
	}
	f, err := m.sealers[topic].Open(frame)
	switch {
	case err != nil:
		return Junk
	case m.mine.Has(frame):
		return Echo
	case !m.seen.Add(frame):
		return Heard
	}
	switch {
	case f.Type == frameCommit:
		m.receiveCommit(now, f)
	case f.Type == frameReject:
		m.receiveReject(now, f)
	case m.joiner != nil:
		m.joinerReceive(now, f)
	default:
		m.offererReceive(now, topic, f)
	}
	return Heard
}

// send publishes one message.
func (m *Machine) send(topic int, typ byte, sid wire.SID, body []byte) {
	frame, err := m.sealers[topic].Seal(m.cfg.Rand, wire.Frame{Type: typ, SID: sid, Body: body})
	if err != nil {
		return // no randomness: retransmission tries again
	}
	m.mine.Add(frame)
	m.actions = append(m.actions, Action{Kind: ActionSend, Topic: topic, Frame: frame})
}

func (m *Machine) tell(e Event) {
	e.Peer, e.PeerInfo = m.peer, m.peerInfo
	m.actions = append(m.actions, Action{Kind: ActionEvent, Event: e})
}

func (m *Machine) fail(reason Reason) {
	if m.phase == failed {
		return
	}
	m.phase = failed
	if m.rejects == 0 {
		m.resend.Stop()
	}
	m.tell(Event{Kind: EventFailed, Reason: reason})
}

// bound goes on after the other side's proof: it asks the user, or accepts.
func (m *Machine) bound() {
	m.phase = asking
	ask := Event{Kind: EventCheck, Check: m.keys.check, NeedsCheck: !m.cfg.AutoAccept}
	if m.cfg.Role == Offerer {
		ask.Choices = m.choices()
	} else if m.verified { // the QR code has pinned the offerer's key
		ask.NeedsCheck = false
	}
	m.tell(ask)
	if !ask.NeedsCheck {
		m.prepare()
	}
}

// Accept is the user's yes. The offering side passes the six digits that the
// other device shows; the joining side passes "". It errs with ErrCheck for
// other digits (the third time ends the pairing) and with ErrNotAsked if there
// is nobody to accept.
func (m *Machine) Accept(now time.Time, check string) error {
	if m.phase != asking {
		return ErrNotAsked
	}
	if m.cfg.Role == Offerer {
		if !SameDigits(check, m.keys.check) {
			if m.wrong++; m.wrong >= maxWrongChecks {
				m.reject(now, WrongCheck)
			}
			return ErrCheck
		}
		m.verified = true
	}
	m.prepare()
	return nil
}

// Reject is the user's no: the other side is told. After the pair has become
// durable here it has no effect; cancel the pair's Commit instead.
func (m *Machine) Reject(now time.Time) {
	if m.phase < preparing {
		m.reject(now, Cancelled)
	}
}

func (m *Machine) reject(now time.Time, reason Reason) {
	if m.secrets != nil {
		m.rejects = rejectTimes
		m.sendReject()
		m.resend.Start(now, slowestRetry, m.cfg.Rand)
	}
	m.fail(reason)
}

// prepare asks for the durable PREPARED.
func (m *Machine) prepare() {
	m.phase = preparing
	m.resend.Stop()
	m.storeRecord(Prepared)
}

func (m *Machine) storeRecord(s State) {
	day := min(m.cfg.Info.Day, m.peerInfo.Day)
	m.actions = append(m.actions, Action{Kind: ActionStore, Record: Record{
		State: s, PairID: m.keys.id, Role: m.cfg.Role, Peer: m.peer, PeerInfo: m.peerInfo,
		Chain: m.keys.chainKey(day), CommitJ: m.keys.commitJ, CommitO: m.keys.commitO,
		Deadline: m.deadline, Method: m.cfg.Method, Check: m.keys.long, CheckVerified: m.verified,
	}})
}

// Stored reports that a Store action is durable (err is nil) or failed.
func (m *Machine) Stored(now time.Time, s State, err error) {
	switch {
	case s == Prepared && m.phase == preparing && err != nil:
		m.reject(now, StoreFailed)
	case s == Prepared && m.phase == preparing:
		m.startCommit(now)
	case m.commit != nil:
		m.commit.Stored(now, s, err)
		m.drainCommit()
	}
}

func (m *Machine) startCommit(now time.Time) {
	c, err := NewCommit(Prepared, m.keys.id, m.cfg.Role, m.keys.commitJ, m.keys.commitO, m.cfg.Rand)
	if err != nil {
		m.fail(StoreFailed)
		return
	}
	m.commit, m.phase = c, committing
	m.releaseM4()
	m.tell(Event{Kind: EventPrepared})
	c.Tick(now)
	for _, body := range m.early {
		c.Receive(now, body)
	}
	m.early = nil
	m.drainCommit()
}

// Promoted says that the pair became active by the other way, on the pair's own
// topics.
func (m *Machine) Promoted(now time.Time) {
	if m.commit != nil {
		m.commit.Promoted(now)
		m.drainCommit()
	}
}

// Confirmed says that the other side was heard to be active by the other way, on
// the pair's own topics.
func (m *Machine) Confirmed() {
	if m.commit != nil {
		m.commit.Confirmed()
		m.drainCommit()
	}
}

// drainCommit turns what the commit phase wants into actions.
func (m *Machine) drainCommit() {
	if m.commit == nil {
		return
	}
	for {
		a, ok := m.commit.Poll()
		if !ok {
			break
		}
		switch a.Kind {
		case CommitSend:
			m.send(m.topic, frameCommit, m.sid, a.Body)
		case CommitStore:
			m.storeRecord(a.State)
		case CommitDone:
		}
	}
	switch s := m.commit.State(); {
	case s == Active && m.phase == committing:
		m.phase = active
		m.tell(Event{Kind: EventPaired})
	case s == Tomb && m.phase != failed:
		m.fail(Refused)
	}
	if m.phase == active && m.commit.Settled() && !m.settled {
		m.settled = true
		m.tell(Event{Kind: EventSettled})
	}
}

// maxEarly is how many commit bodies are kept for a side that is not ready: the
// other side repeats them, so that a few are enough.
const maxEarly = 4

func (m *Machine) receiveCommit(now time.Time, f wire.Frame) {
	if m.keys == nil || f.SID != m.sid {
		return
	}
	if m.commit != nil {
		m.commit.Receive(now, f.Body)
		m.drainCommit()
		return
	}
	if len(m.early) == maxEarly {
		m.early = m.early[1:]
	}
	m.early = append(m.early, f.Body)
}

// ctlKey is the key of control messages that a role sends before a record
// exists.
func (m *Machine) ctlKey(from Role) []byte {
	if from == Joiner {
		return wire.Expand(m.secrets.ks, "ctl J")
	}
	return wire.Expand(m.secrets.ks, "ctl O")
}

func (m *Machine) sendReject() {
	m.rejects--
	m.sendRejectTo(m.topic, m.sid, m.ctlKey(m.cfg.Role), m.secrets.h, Refused)
}

func (m *Machine) sendRejectTo(topic int, sid wire.SID, key, h []byte, reason Reason) {
	body, err := wire.SealMessage(key, h, []byte{byte(reason)}, m.cfg.Rand)
	if err == nil {
		m.send(topic, frameReject, sid, body)
	}
}

// receiveReject takes the other side's no, which only the other side can say.
func (m *Machine) receiveReject(now time.Time, f wire.Frame) {
	if m.secrets == nil || f.SID != m.sid || m.phase >= committing {
		return
	}
	plain, err := wire.OpenMessage(m.ctlKey(m.cfg.Role.other()), m.secrets.h, f.Body)
	if err != nil || len(plain) != 1 {
		return
	}
	if m.refusedBy(now) {
		return
	}
	reason := Refused
	if Reason(plain[0]) == CodeUsed {
		reason = CodeUsed
	}
	m.fail(reason)
}

// isSelf reports whether a proof came from this very device.
func isSelf(err error) bool { return errors.Is(err, errSelf) }
