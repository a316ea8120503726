package room

import (
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/retry"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/pairing/cpace"
)

const (
	defaultLifetime = 10 * time.Minute
	maxClaims       = 3                // devices that answer one j1 as the host and want the password
	maxAnswered     = 64               // answers to one j1 that are looked at
	maxTold         = 10               // requests under the password: so many guesses strangers get
	unanswered      = 12 * time.Second // after which a handshake begins anew
	waitUnanswered  = time.Minute      // the same once the host's user was asked
	fastRetry       = 3 * time.Second  // the slowest while a handshake runs
	slowRetry       = 15 * time.Second // the slowest while the host's user is asked
)

// JoinerConfig is what NewJoiner needs.
type JoinerConfig struct {
	Identity *identity.Identity
	// Code is the room's, in any form.
	Code code.Room
	// Password is the room's, or empty: then EventNeedPassword asks for it if the
	// room has one.
	Password string
	// Info is what the host and the members learn of this device.
	Info pairing.Info
	// Lifetime is how long to look for the host, and again after each password. Default 10
	// minutes. While the host's user, or this one for the password, is asked there is no
	// limit: the caller may Stop.
	Lifetime time.Duration
	// Rand is the source of randomness. Default crypto/rand.
	Rand io.Reader
}

// An EventKind says what a person should see.
type EventKind uint8

// The kinds of events.
const (
	EventContact       EventKind = 1 // somebody who has the code answered
	EventNeedPassword  EventKind = 2 // the room has a password: call Password
	EventWrongPassword EventKind = 3 // it was wrong: call Password, or give up
	EventWaiting       EventKind = 4 // the host's user was asked
	EventAdmitted      EventKind = 5 // in the room: Grant is to be made durable
	EventFailed        EventKind = 6 // over, for Reason
)

// String returns the kind's name in the output of programs.
func (k EventKind) String() string {
	switch k {
	case EventContact:
		return "contact"
	case EventNeedPassword:
		return "need-password"
	case EventWrongPassword:
		return "wrong-password"
	case EventWaiting:
		return "waiting"
	case EventAdmitted:
		return "admitted"
	case EventFailed:
		return "failed"
	}
	return "unknown"
}

// A Grant is what a device that was let in has to remember. It prints
// "redacted".
type Grant struct {
	Room     ID
	Salt     [SaltSize]byte
	Founder  identity.DeviceID
	Host     identity.DeviceID // who let it in
	HostInfo pairing.Info      // its name, WireGuard key and endpoints
	RoomName string
	Name     string // this device's name in the room
	Number   uint32 // an index
	Chain    pairing.Chain
	PairID   [16]byte
}

// String returns "redacted".
func (g Grant) String() string { return "redacted" }

// GoString returns "redacted".
func (g Grant) GoString() string { return "redacted" }

// Format prints "redacted" for every verb.
func (g Grant) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "redacted") }

// An Event is one step of a join.
type Event struct {
	Kind   EventKind
	Reason Reason // with EventFailed
	Grant  Grant  // with EventAdmitted
}

// A Step is something for the driver of a Joiner to do, in the order of Poll:
// publish Frame on the code's topic on all media, or, if Frame is nil, tell the
// user of Event.
type Step struct {
	Frame []byte
	Event Event
}

// A claim is one device that answered j1 as the host.
type claim struct {
	j2     []byte
	s      *secrets
	flags  byte
	nH     []byte
	host   identity.DeviceID // proved, where no password is asked for
	proved bool              // that it is the host
	j3     []byte
	over   bool // it said no, and is not known to be the host
}

// A Joiner asks to be let into a room. Feed it frames, the password and the
// time, and carry out what Poll returns after each call. It is not safe for
// concurrent use.
type Joiner struct {
	cfg      JoinerConfig
	psk      [32]byte
	place    []byte
	room     ID // zero for a short code
	method   code.RoomMethod
	prs      []byte
	sealer   *wire.Sealer
	seen     wire.Nonces
	mine     wire.Nonces
	steps    []Step
	deadline time.Time
	resend   retry.Schedule
	restart  time.Time // when to begin anew if nobody answers
	start    *joinerStart
	claims   []*claim
	day      int64
	answered int // of this handshake
	told     int // requests under a password that the host has not read
	contact  bool
	asking   bool // for the password
	waiting  bool // for the host's user
	done     bool
}

// NewJoiner returns a joiner that starts at now. It errs with ErrConfig for a
// missing identity or code, with ErrPassword, and with pairing.ErrInfo for an
// Info out of bounds.
func NewJoiner(cfg JoinerConfig, now time.Time) (*Joiner, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Lifetime <= 0 {
		cfg.Lifetime = defaultLifetime
	}
	if cfg.Identity == nil || cfg.Code.IsZero() {
		return nil, fmt.Errorf("%w: an identity and a code are needed", ErrConfig)
	}
	if _, err := encodeRequest(cfg.Identity, cfg.Info, wire.Day(now)); err != nil {
		return nil, err
	}
	keys, err := cfg.Code.Keys()
	if err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	j := &Joiner{
		cfg: cfg, psk: keys.PSK, place: placeOf(cfg.Code), method: cfg.Code.Method(),
		deadline: now.Add(cfg.Lifetime),
	}
	if id, ok := cfg.Code.ID(); ok {
		j.room = ID(id)
	}
	if j.sealer, err = wire.NewSealer(keys.Frame[:]); err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	if cfg.Password != "" {
		if j.prs, err = normalPassword(cfg.Password); err != nil {
			return nil, err
		}
	}
	return j, j.begin(now)
}

// begin starts a handshake.
func (j *Joiner) begin(now time.Time) error {
	start, err := newJoinerStart(j.psk[:], j.method, j.cfg.Rand)
	if err != nil {
		return err
	}
	j.start, j.claims, j.answered, j.day = start, nil, 0, wire.Day(now)
	j.restart = time.Time{}
	j.repeat()
	limit := fastRetry
	if j.waiting {
		limit = slowRetry
	}
	j.resend.Start(now, limit, j.cfg.Rand)
	return nil
}

// repeat sends what the joiner waits for an answer to.
func (j *Joiner) repeat() {
	asked := false
	for _, c := range j.claims {
		if c.j3 != nil && !c.over {
			j.send(frameJ3, c.j3)
			asked = true
		}
	}
	if !asked {
		j.send(frameJ1, append([]byte{byte(j.method)}, j.start.j1...))
	}
}

func (j *Joiner) send(typ byte, body []byte) {
	frame, err := j.sealer.Seal(j.cfg.Rand, wire.Frame{Type: typ, SID: j.start.sid, Body: body})
	if err != nil {
		return // no randomness: retransmission tries again
	}
	j.mine.Add(frame)
	j.steps = append(j.steps, Step{Frame: frame})
}

func (j *Joiner) tell(e Event) { j.steps = append(j.steps, Step{Event: e}) }

func (j *Joiner) fail(why Reason) {
	if !j.done {
		j.end()
		j.tell(Event{Kind: EventFailed, Reason: why})
	}
}

func (j *Joiner) end() {
	j.done, j.claims = true, nil
	j.resend.Stop()
}

// Poll returns the next step; it reports false when there is none.
func (j *Joiner) Poll() (Step, bool) {
	if len(j.steps) == 0 {
		return Step{}, false
	}
	s := j.steps[0]
	j.steps = j.steps[1:]
	return s, true
}

// Next returns when Tick wants to be called; zero means never.
func (j *Joiner) Next() time.Time {
	if j.done {
		return time.Time{}
	}
	if j.waiting || j.asking {
		return retry.Earliest(j.resend.At, j.restart)
	}
	return retry.Earliest(j.resend.At, j.restart, j.deadline)
}

// Tick does what is due at now.
func (j *Joiner) Tick(now time.Time) {
	switch {
	case j.done:
	case !j.waiting && !j.asking && !now.Before(j.deadline):
		if j.contact {
			j.fail(Expired)
		} else {
			j.fail(NobodyThere)
		}
	case !j.restart.IsZero() && !now.Before(j.restart):
		if j.begin(now) != nil {
			j.restart = now.Add(unanswered)
		}
	case j.resend.Due(now, j.cfg.Rand):
		j.repeat()
	}
}

// Stop ends the join. The host's user may be asked still; nothing follows.
func (j *Joiner) Stop() { j.end() }

// Password gives the password that was asked for, or another after a wrong one.
// It errs with ErrPassword for one that cannot be used.
func (j *Joiner) Password(now time.Time, password string) error {
	prs, err := normalPassword(password)
	if err != nil || j.done {
		return err
	}
	j.prs, j.asking, j.deadline = prs, false, now.Add(j.cfg.Lifetime)
	return j.begin(now)
}

// Receive takes a frame that came on the code's topic. Frames that are not for
// this join, or copies, are dropped.
func (j *Joiner) Receive(now time.Time, frame []byte) pairing.Verdict {
	if j.done {
		return pairing.Junk
	}
	f, err := j.sealer.Open(frame)
	switch {
	case err != nil:
		return pairing.Junk
	case j.mine.Has(frame):
		return pairing.Echo
	case !j.seen.Add(frame):
		return pairing.Heard
	case f.SID != j.start.sid:
		return pairing.Heard
	}
	switch f.Type {
	case frameJ2:
		j.receiveJ2(now, f.Body)
	case frameProof:
		j.receiveProof(now, f.Body)
	case frameJ4:
		j.receiveJ4(now, f.Body)
	}
	return pairing.Heard
}

func (j *Joiner) receiveJ2(now time.Time, body []byte) {
	for _, c := range j.claims {
		if string(c.j2) == string(body) {
			return
		}
	}
	if j.answered++; j.answered > maxAnswered {
		return
	}
	s, flags, nH, err := j.start.readJ2(body)
	if err != nil || (flags&flagPassword != 0 && j.asked() >= maxClaims) {
		return
	}
	if j.restart.IsZero() { // those who answered may all be somebody else
		j.restart = now.Add(unanswered)
	}
	c := &claim{j2: body, s: s, flags: flags, nH: nH}
	j.claims = append(j.claims, c)
	if !j.contact {
		j.contact = true
		j.tell(Event{Kind: EventContact})
	}
	switch {
	case flags&flagVoid != 0:
		if j.method == code.RoomShort {
			j.fail(CodeVoid)
		}
	case flags&flagPassword == 0:
		// Nothing is said before the host has shown that it is the host; a short
		// code binds none, so that there the password does.
	case j.prs == nil:
		if !j.asking {
			j.asking, j.restart = true, time.Time{}
			j.resend.Stop()
			j.tell(Event{Kind: EventNeedPassword})
		}
	default:
		j.request(now, c)
	}
}

// asked is how many of those who answered want the password.
func (j *Joiner) asked() int {
	n := 0
	for _, c := range j.claims {
		if c.flags&flagPassword != 0 {
			n++
		}
	}
	return n
}

// receiveProof takes the host's proof, where no password is asked for.
func (j *Joiner) receiveProof(now time.Time, body []byte) {
	for _, c := range j.claims {
		if c.flags&(flagPassword|flagVoid) != 0 || c.proved || j.room.IsZero() {
			continue
		}
		reason, host, proved, err := c.s.readPlain(body, j.room, wire.Day(now))
		if err != nil || reason != 0 {
			continue
		}
		switch {
		case !proved: // it opened, so it is what this claim says of itself
			c.over = true
		case host == j.cfg.Identity.ID():
			j.fail(Self)
		default:
			c.host, c.proved = host, true
			j.request(now, c)
		}
		return
	}
}

// request asks to be let in.
func (j *Joiner) request(now time.Time, c *claim) {
	yJ := noPoint[:]
	if c.flags&flagPassword != 0 {
		if j.told++; j.told > maxTold {
			j.fail(TooManyHosts)
			return
		}
		ex, err := cpace.Start(cpace.Responder, j.prs, channel(j.place), pakeSID(j.start.j1, c.nH), adJoiner, j.cfg.Rand)
		if err != nil {
			return
		}
		isk, err := ex.Finish(c.s.yH, adHost)
		if err != nil {
			c.over = true
			return
		}
		yJ = ex.Public()
		c.s.withPassword(isk)
	}
	body, err := encodeRequest(j.cfg.Identity, j.cfg.Info, j.day)
	if err != nil {
		return
	}
	if c.j3, err = c.s.writeJ3(yJ, j.cfg.Identity, body); err != nil {
		return
	}
	j.asking = false
	j.send(frameJ3, c.j3)
	j.resend.Start(now, fastRetry, j.cfg.Rand)
	j.restart = now.Add(unanswered)
}
