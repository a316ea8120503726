package room

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

// The topics of a Host.
const (
	TopicLong  = 0 // index of the long code's topic
	TopicShort = 1 // index of the short code's topic
)

const (
	maxOpen     = 16  // handshakes under way at once
	maxSettled  = 128 // answered handshakes that are remembered
	maxWaiting  = 64  // requests that wait for the host's user
	maxDeclined = 64  // devices that are remembered as declined
	maxAnswers  = 64  // how often one handshake's j1 is answered
	maxQueue    = 256 // admissions that wait for the one that is stored
	burst       = 64  // handshakes at once, a bucket that refills
	refill      = 50 * time.Millisecond
	openIdle    = 10 * time.Second // after which a handshake may make room for another
	stale       = time.Minute      // after which a request that nobody repeats may
	declineLife = 10 * time.Minute // for how long a no is given without asking again
)

var (
	// ErrConfig reports a configuration that cannot be used.
	ErrConfig = errors.New("room: bad configuration")
	// ErrBusy reports a change while an admission is being made durable.
	ErrBusy = errors.New("room: an admission is being stored: try again")
	// ErrNoRequest reports a decision about a device that does not wait.
	ErrNoRequest = errors.New("room: no such request")
)

// HostConfig is what NewHost needs.
type HostConfig struct {
	Identity *identity.Identity
	// Roster is the current one, in which Identity is a host.
	Roster *Roster
	// Password is asked of everybody, or empty. A short code needs it. In password mode a
	// host that does not have it asks its user about each.
	Password string
	// Short is the short code, or the zero Room.
	Short code.Room
	// Guard is the memory of wrong passwords, as last told.
	Guard Guard
	// Info is what members learn of this device.
	Info pairing.Info
	// List are the devices that List mode admits.
	List []identity.DeviceID
	// Waiting are requests that waited when the host was stopped.
	Waiting []Request
	// Rand is the source of randomness. Default crypto/rand.
	Rand io.Reader
}

// An ActionKind says what an Action asks of the driver.
type ActionKind uint8

// The kinds of actions.
const (
	ActionSend  ActionKind = 1 // publish Frame on the topic with index Topic, on all media
	ActionAdmit ActionKind = 2 // make Admission durable, then call Admitted
	ActionAsk   ActionKind = 3 // Request waits for the user: keep it, ask, then call Decide
	ActionTold  ActionKind = 4 // Notice is for the user; Guard is to be kept
)

// An Action is something for the driver to do, in the order of Poll.
type Action struct {
	Kind      ActionKind
	Topic     int // index into the topics
	Frame     []byte
	Admission Admission
	Request   Request
	Notice    Notice
	Guard     Guard
}

// An Admission is what must be durable before a member is told that it is in.
type Admission struct {
	Member Member
	Roster *Roster // signed; the known one if nothing in it changes
	New    bool    // Roster is a new version
	Base   *Roster // the one that Roster was made from
	Info   pairing.Info
	// Chain and PairID are what the host and the member share; of a member that
	// was let in while it was away there is none yet (HasChain is false).
	HasChain bool
	Chain    pairing.Chain
	PairID   [16]byte
}

// A Notice tells the host's user of wrong passwords.
type Notice uint8

// The notices.
const (
	WrongGuess Notice = 1 // state: somebody tried a wrong password
	Throttled  Notice = 2 // state: too many: the user decides about everybody for a while
	ShortVoid  Notice = 3 // state: the third for the short code, which is void now
)

// A session is one handshake with one joiner.
type session struct {
	sid      wire.SID
	seq      uint64 // the order in which handshakes began
	topic    int
	flags    byte
	s        *secrets
	exchange interface {
		Finish(peer, ad []byte) ([]byte, error)
	}
	replies  [][]byte // j2 and the proof
	types    []byte
	answers  int
	last     time.Time
	tag      [tagSize]byte // of the j3 that counted
	judged   bool
	dead     bool // the password was wrong
	request  *Request
	day      int64
	j4       []byte
	waiting  bool
	chain    pairing.Chain
	pairID   [16]byte
	hasChain bool
}

// A waiter is a request that waits for the host's user.
type waiter struct {
	req     Request
	session *session // nil after a restart
	last    time.Time
	yes     bool // the user has said it; it is not durable yet
}

// An admitting is an admission that the driver makes durable.
type admitting struct {
	id      identity.DeviceID
	roster  *Roster
	session *session
}

// A Host lets devices into a room. Feed it frames, the user's decisions and the
// time, and carry out what Poll returns after each call. It keeps nothing: what
// must survive is in the actions. It is not safe for concurrent use.
type Host struct {
	cfg      HostConfig
	prs      []byte
	psk      [2][32]byte
	place    [2][]byte
	sealers  []*wire.Sealer
	roster   *Roster
	seen     wire.Nonces
	mine     wire.Nonces
	actions  []Action
	open     map[wire.SID]*session
	settled  map[wire.SID]*session
	waiting  map[identity.DeviceID]*waiter
	declined map[identity.DeviceID]time.Time
	storing  *admitting
	queue    []*waiter
	began    uint64                       // handshakes
	latest   map[identity.DeviceID]uint64 // of members, the handshake that let them in last
	spent    int                          // handshakes that the bucket lacks
	since    time.Time                    // from when the next is regained
}

// NewHost returns the host of a room. It errs with ErrConfig for a short code without a
// password, and an identity that is no host, and with ErrPassword.
func NewHost(cfg HostConfig) (*Host, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Identity == nil || cfg.Roster == nil || !cfg.Roster.IsHost(cfg.Identity.ID()) {
		return nil, fmt.Errorf("%w: an identity and a roster with it as a host are needed", ErrConfig)
	}
	if cfg.Password == "" && !cfg.Short.IsZero() {
		return nil, fmt.Errorf("%w: a short code needs a password", ErrConfig)
	}
	if !cfg.Short.IsZero() && cfg.Short.Method() != code.RoomShort {
		return nil, fmt.Errorf("%w: not a short code", ErrConfig)
	}
	h := &Host{
		cfg: cfg, roster: cfg.Roster,
		open: make(map[wire.SID]*session), settled: make(map[wire.SID]*session),
		waiting: make(map[identity.DeviceID]*waiter), declined: make(map[identity.DeviceID]time.Time),
		latest: make(map[identity.DeviceID]uint64),
	}
	if cfg.Password != "" {
		var err error
		if h.prs, err = normalPassword(cfg.Password); err != nil {
			return nil, err
		}
	}
	long, err := code.NewRoom(cfg.Roster.Room, code.RoomOptions{})
	if err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	codes := []code.Room{long}
	if !cfg.Short.IsZero() {
		codes = append(codes, cfg.Short)
	}
	for i, c := range codes {
		keys, err := c.Keys()
		if err != nil {
			return nil, fmt.Errorf("room: %w", err)
		}
		sealer, err := wire.NewSealer(keys.Frame[:])
		if err != nil {
			return nil, fmt.Errorf("room: %w", err)
		}
		h.sealers, h.psk[i], h.place[i] = append(h.sealers, sealer), keys.PSK, placeOf(c)
	}
	for _, r := range cfg.Waiting[:min(len(cfg.Waiting), maxWaiting)] {
		h.waiting[r.ID] = &waiter{req: r}
	}
	return h, nil
}

// placeOf is what a code names in CPace's channel: the room or the nameplate.
func placeOf(c code.Room) []byte {
	if id, ok := c.ID(); ok {
		return id[:]
	}
	return []byte(c.Nameplate())
}

// Roster returns the current roster.
func (h *Host) Roster() *Roster { return h.roster }

// Waiting returns who waits for the user, by id.
func (h *Host) Waiting() []Request {
	var out []Request
	for _, w := range h.waiting {
		out = append(out, w.req)
	}
	slices.SortFunc(out, func(a, b Request) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return out
}

// SetInfo changes what members learn of this device from now on.
func (h *Host) SetInfo(info pairing.Info) { h.cfg.Info = info }

// SetList changes whom List mode admits.
func (h *Host) SetList(ids []identity.DeviceID) { h.cfg.List = slices.Clone(ids) }

// SetRoster takes over a roster that is signed and durable: a change by this
// host's user, or another host's. It errs with ErrBusy while an admission is
// being made durable, with ErrNotHost if this device signs no more, and with ErrOlder if
// the known one beats it.
func (h *Host) SetRoster(now time.Time, r *Roster) error {
	switch {
	case h.storing != nil:
		return ErrBusy
	case !r.IsHost(h.cfg.Identity.ID()):
		return ErrNotHost
	case r != h.roster && !r.Beats(h.roster):
		return ErrOlder
	}
	h.roster = r
	for id, w := range h.waiting {
		switch {
		case r.Closed:
			h.refuse(now, w.session, id, Closed)
		case r.Banned(id):
			h.refuse(now, w.session, id, Banned)
		}
	}
	for id := range h.latest {
		if _, in := r.Member(id); !in {
			delete(h.latest, id)
		}
	}
	for sid, s := range h.settled { // who was let in and is out again gets no old yes
		if s.request != nil {
			if _, in := r.Member(s.request.ID); !in && !s.waiting {
				delete(h.settled, sid)
			}
		}
	}
	return nil
}

// Poll returns the next action; it reports false when there is none.
func (h *Host) Poll() (Action, bool) {
	if len(h.actions) == 0 {
		return Action{}, false
	}
	a := h.actions[0]
	h.actions = h.actions[1:]
	return a, true
}

// Receive takes a frame that came on the topic with index topic. Frames that are
// not of this room, or copies, are dropped.
func (h *Host) Receive(now time.Time, topic int, frame []byte) pairing.Verdict {
	if topic < 0 || topic >= len(h.sealers) {
		return pairing.Junk
	}
	f, err := h.sealers[topic].Open(frame)
	switch {
	case err != nil:
		return pairing.Junk
	case h.mine.Has(frame):
		return pairing.Echo
	case !h.seen.Add(frame):
		return pairing.Heard
	}
	switch f.Type {
	case frameJ1:
		h.receiveJ1(now, topic, f)
	case frameJ3:
		h.receiveJ3(now, topic, f)
	}
	return pairing.Heard
}

func (h *Host) send(topic int, typ byte, sid wire.SID, body []byte) {
	frame, err := h.sealers[topic].Seal(h.cfg.Rand, wire.Frame{Type: typ, SID: sid, Body: body})
	if err != nil {
		return // no randomness: the joiner asks again
	}
	h.mine.Add(frame)
	h.actions = append(h.actions, Action{Kind: ActionSend, Topic: topic, Frame: frame})
}

func (h *Host) tell(n Notice) {
	h.actions = append(h.actions, Action{Kind: ActionTold, Notice: n, Guard: h.cfg.Guard})
}

// find returns the handshake with a session id.
func (h *Host) find(sid wire.SID) *session {
	if s := h.open[sid]; s != nil {
		return s
	}
	return h.settled[sid]
}

func (h *Host) receiveJ1(now time.Time, topic int, f wire.Frame) {
	if s := h.find(f.SID); s != nil {
		if s.topic == topic && s.answers < maxAnswers {
			s.answers++
			h.reply(s)
		}
		return
	}
	if len(f.Body) < 2 || sidOf(f.Body[1:]) != f.SID {
		return
	}
	method := code.RoomMethod(f.Body[0])
	if (method == code.RoomShort) != (topic == TopicShort) || method < code.RoomWords || method > code.RoomShort || !h.makeRoom(now) {
		return
	}
	h.began++
	s := &session{sid: f.SID, seq: h.began, topic: topic, last: now}
	switch {
	case topic == TopicShort && h.cfg.Guard.Void:
		s.flags = flagVoid
	case len(h.prs) > 0 && topic == TopicLong && h.cfg.Guard.throttled(now):
		s.flags = flagThrottled
	case len(h.prs) > 0:
		s.flags = flagPassword
	}
	j2, sec, ex, err := answerJ1(h.psk[topic][:], method, s.flags, h.prs, h.place[topic], f.Body[1:], h.cfg.Rand)
	if err != nil {
		return
	}
	s.s, s.replies, s.types = sec, [][]byte{j2}, []byte{frameJ2}
	if ex != nil {
		s.exchange = ex
	}
	if s.flags&(flagPassword|flagVoid) == 0 { // without a password the host shows first who it is
		proof, err := sec.writePlain(0, h.cfg.Identity, h.credentials(), h.cfg.Rand)
		if err != nil {
			return
		}
		s.replies, s.types = append(s.replies, proof), append(s.types, frameProof)
	}
	h.open[f.SID] = s
	h.reply(s)
}

func (h *Host) reply(s *session) {
	for i, body := range s.replies {
		h.send(s.topic, s.types[i], s.sid, body)
	}
}

// makeRoom makes room for one more handshake: it drops the oldest, if that is
// old enough. Repeating a j1 keeps none alive. A bucket bounds what those who
// have the code can make this device compute.
func (h *Host) makeRoom(now time.Time) bool {
	back := int(min(max(now.Sub(h.since)/refill, 0), burst))
	h.spent = max(h.spent-back, 0)
	if h.spent == 0 || now.Before(h.since) {
		h.since = now
	} else {
		h.since = h.since.Add(time.Duration(back) * refill)
	}
	if h.spent >= burst || (len(h.open) >= maxOpen && !evict(h.open, now, openIdle)) {
		return false
	}
	h.spent++
	return true
}

// evict drops the session that is the oldest, if it is at least so old.
func evict(sessions map[wire.SID]*session, now time.Time, age time.Duration) bool {
	var oldest *session
	for _, s := range sessions {
		if now.Sub(s.last) >= age && (oldest == nil || s.last.Before(oldest.last)) {
			oldest = s
		}
	}
	if oldest != nil {
		delete(sessions, oldest.sid)
	}
	return oldest != nil
}

// settle moves a handshake to those that are answered.
func (h *Host) settle(now time.Time, s *session) {
	s.last = now
	delete(h.open, s.sid)
	if h.settled[s.sid] == nil && len(h.settled) >= maxSettled {
		evict(h.settled, now, 0)
	}
	h.settled[s.sid] = s
}

// credentials are what binds this host to the room's id.
func (h *Host) credentials() credentials {
	c := credentials{Salt: h.roster.Salt[:]}
	if id := h.cfg.Identity.ID(); id != h.roster.Founder() {
		founder := h.roster.Founder()
		for _, e := range h.roster.Hosts {
			if e.ID == id {
				c.Founder, c.Until, c.Sig = founder[:], e.Until, e.Sig[:]
			}
		}
	}
	return c
}
