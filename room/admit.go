package room

import (
	"errors"
	"slices"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

func (h *Host) receiveJ3(now time.Time, topic int, f wire.Frame) {
	s := h.find(f.SID)
	if s == nil || s.topic != topic || s.flags&flagVoid != 0 {
		return
	}
	yJ, sealed, ok := s.s.splitJ3(f.Body)
	if !ok {
		return // not from the other end of this handshake: it counts for nothing
	}
	tag := [tagSize]byte(f.Body[len(f.Body)-tagSize:])
	if s.judged { // a handshake judges one request
		if s.tag == tag {
			h.repeat(now, s)
		}
		return
	}
	if s.flags&flagPassword != 0 && !h.judge(now, s, yJ, tag) {
		return
	}
	s.judged, s.tag = true, tag
	joiner, body, err := s.s.readRequest(yJ, sealed)
	if errors.Is(err, errSealed) && s.flags&flagPassword != 0 {
		h.wrong(now, s)
		return
	}
	if err != nil {
		s.dead = true
		return
	}
	req, err := decodeRequest(joiner, body)
	if err != nil {
		s.dead = true
		return
	}
	req.Password, req.Throttled = s.flags&flagPassword != 0, s.flags&flagThrottled != 0
	s.request = &req
	s.day = min(req.Info.Day, wire.Day(now))
	s.chain, s.pairID = s.s.pair(joiner, h.cfg.Identity.ID(), s.day)
	s.hasChain = true
	h.settle(now, s)
	h.consider(now, s)
}

// judge computes the key with the password, if passwords are judged now.
func (h *Host) judge(now time.Time, s *session, yJ []byte, tag [tagSize]byte) bool {
	if s.topic == TopicShort && h.cfg.Guard.Void {
		s.judged, s.tag = true, tag
		h.plain(now, s, CodeVoid)
		return false
	}
	if s.topic == TopicLong && h.cfg.Guard.throttled(now) {
		s.judged, s.tag = true, tag
		h.plain(now, s, Again)
		return false
	}
	isk, err := s.exchange.Finish(yJ, adJoiner)
	if err != nil { // not a point: nobody's guess
		s.judged, s.tag, s.dead = true, tag, true
		return false
	}
	s.s.withPassword(isk)
	return true
}

// wrong counts a wrong password and tells both sides' users.
func (h *Host) wrong(now time.Time, s *session) {
	before := h.cfg.Guard.throttled(now)
	voided := h.cfg.Guard.wrong(now, s.topic == TopicShort)
	switch {
	case voided:
		h.tell(ShortVoid)
	case !before && h.cfg.Guard.throttled(now):
		h.tell(Throttled)
	default:
		h.tell(WrongGuess)
	}
	h.plain(now, s, WrongPassword)
}

// plain ends a handshake with a reason that needs no password to be read.
func (h *Host) plain(now time.Time, s *session, why Reason) {
	s.dead = true
	self := h.cfg.Identity
	if s.topic == TopicShort {
		self = nil // who has only the nameplate does not learn who the host is
	}
	sealed, err := s.s.writePlain(why, self, h.credentials(), h.cfg.Rand)
	if err != nil {
		return
	}
	s.j4 = append([]byte{plainAnswer}, sealed...)
	h.settle(now, s)
	h.send(s.topic, frameJ4, s.sid, s.j4)
}

// repeat answers a j3 that came again.
func (h *Host) repeat(now time.Time, s *session) {
	switch {
	case s.j4 != nil:
		s.last = now
		if s.request != nil {
			if w := h.waiting[s.request.ID]; w != nil && w.session == s {
				w.last = now
				if w.yes && !h.inHand(s) {
					h.admit(now, w)
				}
			}
		}
		h.send(s.topic, frameJ4, s.sid, s.j4)
	case s.request != nil && !s.dead && !h.inHand(s):
		h.consider(now, s) // it could not be made durable before
	}
}

// inHand reports whether the driver or the queue has the admission.
func (h *Host) inHand(s *session) bool {
	return h.storing != nil && h.storing.session == s ||
		slices.ContainsFunc(h.queue, func(w *waiter) bool { return w.session == s })
}

// consider decides about a request that is proved to come from its device.
func (h *Host) consider(now time.Time, s *session) {
	id := s.request.ID
	_, member := h.roster.Member(id)
	switch {
	case id == h.cfg.Identity.ID(): // the answer tells it whom it met
		h.refuse(now, s, id, Declined)
	case h.roster.Banned(id):
		h.refuse(now, s, id, Banned)
	case h.roster.Closed:
		h.refuse(now, s, id, Closed)
	case member: // it comes again: same number, same name
		h.admit(now, &waiter{req: *s.request, session: s})
	case len(h.roster.Members) >= MaxMembers:
		h.refuse(now, s, id, Full)
	case now.Before(h.declined[id]):
		h.refuse(now, s, id, Declined)
	case s.request.Throttled, h.roster.Mode == Approve:
		h.ask(now, s)
	case h.roster.Mode == List && !slices.Contains(h.cfg.List, id):
		h.refuse(now, s, id, NotListed)
	case h.roster.Mode == Password && !s.request.Password:
		h.ask(now, s)
	default:
		h.admit(now, &waiter{req: *s.request, session: s})
	}
}

// ask lets a request wait for the user.
func (h *Host) ask(now time.Time, s *session) {
	id := s.request.ID
	w := h.waiting[id]
	if w == nil && len(h.waiting) >= maxWaiting && !h.dropStale(now) {
		h.refuse(now, s, id, Busy)
		return
	}
	fresh := w == nil
	h.waiting[id] = &waiter{req: *s.request, session: s, last: now}
	if !fresh && w.yes {
		h.waiting[id].yes = true
		h.admit(now, h.waiting[id])
		return
	}
	s.waiting = true
	h.answer(now, s, answerWire{Status: uint8(Waiting)})
	if fresh {
		h.actions = append(h.actions, Action{Kind: ActionAsk, Request: *s.request})
	}
}

// dropStale drops the request that nobody has repeated for longest.
func (h *Host) dropStale(now time.Time) bool {
	var oldest *waiter
	for _, w := range h.waiting {
		if now.Sub(w.last) >= stale && (oldest == nil || w.last.Before(oldest.last)) {
			oldest = w
		}
	}
	if oldest != nil {
		delete(h.waiting, oldest.req.ID)
	}
	return oldest != nil
}

// Decide is the user's decision about a device that waits; a yes is remembered
// until it is durable. It errs with
// ErrNoRequest if it does not, and with ErrFull if the room is full meanwhile.
func (h *Host) Decide(now time.Time, id identity.DeviceID, admit bool) error {
	w := h.waiting[id]
	if w == nil {
		return ErrNoRequest
	}
	if !admit {
		for d, until := range h.declined {
			if len(h.declined) >= maxDeclined || !now.Before(until) {
				delete(h.declined, d)
			}
		}
		h.declined[id] = now.Add(declineLife)
		h.refuse(now, w.session, id, Declined)
		return nil
	}
	if len(h.roster.Members) >= MaxMembers {
		return ErrFull
	}
	delete(h.declined, id)
	w.yes = true
	h.admit(now, w)
	return nil
}

// admit asks the driver to make an admission durable, one at a time.
func (h *Host) admit(now time.Time, w *waiter) {
	if w.session != nil && w.session.seq < h.latest[w.req.ID] {
		return // a later handshake of this device has been taken: its keys count
	}
	if h.storing != nil {
		if len(h.queue) < maxQueue && !slices.ContainsFunc(h.queue, func(q *waiter) bool { return q.req.ID == w.req.ID && q.session == w.session }) {
			h.queue = append(h.queue, w)
		}
		return
	}
	id := w.req.ID
	next, err := h.roster.Admit(Member{ID: id, WireGuard: w.req.WireGuard, WGSig: w.req.WGSig, Name: w.req.Info.Name, Added: now})
	if err == nil && next != h.roster {
		err = next.Sign(h.cfg.Identity)
	}
	switch {
	case errors.Is(err, ErrBanned):
		h.refuse(now, w.session, id, Banned)
		return
	case errors.Is(err, ErrClosed):
		h.refuse(now, w.session, id, Closed)
		return
	case err != nil:
		h.refuse(now, w.session, id, Full)
		return
	}
	m, _ := next.Member(id)
	a := Admission{Member: m, Roster: next, New: next != h.roster, Base: h.roster, Info: w.req.Info}
	if w.session != nil {
		a.HasChain, a.Chain, a.PairID = w.session.hasChain, w.session.chain, w.session.pairID
	}
	h.storing = &admitting{id: id, roster: next, session: w.session}
	h.actions = append(h.actions, Action{Kind: ActionAdmit, Admission: a})
}

// Admitted reports that an ActionAdmit is durable (err is nil) or failed. Only
// now the member is told. After a failure it stays as it was: the member asks
// again.
func (h *Host) Admitted(now time.Time, id identity.DeviceID, err error) {
	st := h.storing
	if st == nil || st.id != id {
		return
	}
	h.storing = nil
	if err == nil {
		h.roster = st.roster
		delete(h.waiting, id)
		if m, in := h.roster.Member(id); in && st.session != nil {
			h.latest[id] = max(h.latest[id], st.session.seq)
			h.admitted(now, st.session, m)
		}
	}
	queue := h.queue
	h.queue = nil
	for _, w := range queue {
		h.admit(now, w)
	}
}

func (h *Host) admitted(now time.Time, s *session, m Member) {
	wg := h.cfg.Identity.WireGuardPublic()
	s.waiting = false
	h.answer(now, s, answerWire{
		Status: uint8(Admitted), WireGuard: wg[:], RoomName: h.roster.Name, HostName: pairing.CleanName(h.cfg.Info.Name),
		Name: m.Name, Number: m.Number, Day: s.day, Endpoints: encodeEndpoints(h.cfg.Info.Endpoints),
	})
}

// refuse ends a request; a nil session is one that is away.
func (h *Host) refuse(now time.Time, s *session, id identity.DeviceID, why Reason) {
	delete(h.waiting, id)
	if s == nil || s.request == nil {
		return
	}
	s.waiting = false
	h.answer(now, s, answerWire{Status: uint8(Refused), Reason: uint8(why)})
}

// answer sends a decision, which is repeated whenever the joiner asks.
func (h *Host) answer(now time.Time, s *session, a answerWire) {
	a.Room, a.Cred = h.roster.Room[:], h.credentials()
	body, err := encodeCBOR(a, maxAnswer)
	if err != nil {
		return
	}
	j4, err := s.s.writeJ4(h.cfg.Identity, s.request.ID, body, h.cfg.Rand)
	if err != nil {
		return
	}
	s.j4 = j4
	h.settle(now, s)
	h.send(s.topic, frameJ4, s.sid, j4)
}
