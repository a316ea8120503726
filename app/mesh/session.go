package mesh

import (
	"bufio"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// A session is the conversation with one member that is connected. What it is to hear is
// kept as sets of what has changed, so that nothing that others do makes it lose any of
// it, and what changes back in between costs nothing.
type session struct {
	s       *Service
	peer    identity.DeviceID
	conn    net.Conn
	account *account
	out     chan []byte   // frames to send
	wake    chan struct{} // holds a token when something is due
	done    chan struct{}
	told    map[identity.DeviceID]bool // who is near, as the member knows; of write's goroutine

	// Guarded by Service.mu:
	near map[identity.DeviceID]bool // whom the member is connected to
	due  due
}

// due is what a member is to be told.
type due struct {
	rooms bool                           // how far the rosters are
	moved map[identity.DeviceID]struct{} // who has come or gone
	want  map[[roomSize]byte]struct{}    // rosters that it has
	give  map[[roomSize]byte]struct{}    // rosters that it lacks
}

func newDue() due {
	return due{
		moved: make(map[identity.DeviceID]struct{}),
		want:  make(map[[roomSize]byte]struct{}), give: make(map[[roomSize]byte]struct{}),
	}
}

// An account is what a member may still ask for, through all the sessions that it opens.
type account struct {
	mu                                         sync.Mutex // guards the fields
	frames, msgs, begins, gives, takes, knocks bucket
}

func newAccount() *account {
	return &account{
		frames: bucket{rate: frameRate, most: frameMost}, msgs: bucket{rate: msgRate, most: msgMost},
		begins: bucket{rate: beginRate, most: beginMost}, gives: bucket{rate: giveRate, most: giveMost},
		takes: bucket{rate: takeRate, most: takeMost}, knocks: bucket{rate: knockRate, most: knockMost},
	}
}

// spend takes from one of the account's buckets.
func (a *account) spend(b *bucket, n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return b.take(time.Now(), float64(n))
}

// A bucket is a token bucket.
type bucket struct {
	have, rate, most float64
	at               time.Time
}

func (b *bucket) take(now time.Time, n float64) bool {
	if b.at.IsZero() {
		b.have, b.at = b.most, now
	}
	b.have = min(b.most, b.have+now.Sub(b.at).Seconds()*b.rate)
	b.at = now
	if b.have < n {
		return false
	}
	b.have -= n
	return true
}

func (s *Service) account(peer identity.DeviceID) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[peer]
	if a == nil {
		a = newAccount()
		s.accounts[peer] = a
	}
	return a
}

// run holds a session until its connection ends.
func (s *Service) run(conn net.Conn, peer identity.DeviceID) {
	account := s.account(peer)
	if !account.spend(&account.begins, 1) {
		return
	}
	if len(s.cfg.Rooms(peer)) == 0 && len(s.cfg.Removed(peer)) == 0 {
		return
	}
	ses := &session{
		s: s, peer: peer, conn: conn, account: account, out: make(chan []byte, sendQueue), wake: make(chan struct{}, 1),
		done: make(chan struct{}), told: make(map[identity.DeviceID]bool), near: make(map[identity.DeviceID]bool), due: newDue(),
	}
	s.mu.Lock()
	old := s.sessions[peer]
	s.sessions[peer] = ses
	s.allDue(ses)
	s.movedLocked(peer)
	s.mu.Unlock()
	if old != nil {
		old.conn.Close()
	}
	var wg sync.WaitGroup
	wg.Go(ses.write)
	s.cfg.Reachable()
	err := ses.read()
	if !gone(err) {
		s.cfg.Logger.Debug("session ended", "peer", peer.Short(), "err", err)
	}
	conn.Close()
	close(ses.done)
	wg.Wait()
	s.leave(ses)
}

// leave forgets a session that has ended.
func (s *Service) leave(ses *session) {
	s.mu.Lock()
	last := s.sessions[ses.peer] == ses
	if last {
		delete(s.sessions, ses.peer)
		s.movedLocked(ses.peer)
	}
	s.mu.Unlock()
	if last {
		s.cfg.Reachable()
	}
}

// allDue has a member told of everything. s.mu is held.
func (s *Service) allDue(ses *session) {
	ses.due.rooms = true
	for id := range s.sessions {
		ses.due.moved[id] = struct{}{}
	}
	ses.rouse()
}

// movedLocked has all others told that a member has come or gone. s.mu is held.
func (s *Service) movedLocked(peer identity.DeviceID) {
	for id, ses := range s.sessions {
		if id != peer {
			ses.due.moved[peer] = struct{}{}
			ses.rouse()
		}
	}
}

func (ses *session) rouse() {
	select {
	case ses.wake <- struct{}{}:
	default:
	}
}

// send queues a frame; it is dropped if the member does not keep up.
func (ses *session) send(frame []byte) bool {
	select {
	case ses.out <- frame:
		return true
	default:
		return false
	}
}

// writeTime is how long a member may take to receive what was sent to it.
const writeTime = 30 * time.Second

func (ses *session) write() {
	put := func(msgs ...[]byte) bool {
		for _, msg := range msgs {
			if ses.conn.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
				return false
			}
			if _, err := ses.conn.Write(msg); err != nil {
				ses.conn.Close()
				return false
			}
		}
		return true
	}
	for {
		select {
		case <-ses.wake:
			if !ses.flush(put) {
				return
			}
		case frame := <-ses.out:
			if !put(frame) {
				return
			}
		case <-ses.done:
			return
		}
	}
}

// flush tells the member what is due, as it is now. It reports false if the connection has
// ended.
func (ses *session) flush(put func(...[]byte) bool) bool {
	s := ses.s
	s.mu.Lock()
	d := ses.due
	ses.due = newDue()
	here := make(map[identity.DeviceID]bool, len(d.moved))
	for id := range d.moved {
		here[id] = s.sessions[id] != nil
	}
	s.mu.Unlock()
	if d.rooms {
		for _, notice := range s.cfg.Removed(ses.peer) {
			if !put(message(msgRemoved, notice)) {
				return false
			}
		}
		if !put(message(msgRooms, encodeStates(s.cfg.Rooms(ses.peer)))) {
			return false
		}
	}
	for room := range d.want {
		if !put(message(msgWant, room[:])) {
			return false
		}
	}
	return ses.tellNear(put, here) && ses.giveAll(put, d.give)
}

// tellNear tells the member who has come and gone, of those that it is together with in a
// room.
func (ses *session) tellNear(put func(...[]byte) bool, here map[identity.DeviceID]bool) bool {
	var near, far []identity.DeviceID
	for id, in := range here {
		in = in && id != ses.peer && ses.s.cfg.Together(id, ses.peer)
		switch {
		case in == ses.told[id]:
		case in && len(ses.told) < MaxMembers:
			ses.told[id] = true
			near = append(near, id)
		case !in:
			delete(ses.told, id)
			far = append(far, id)
		}
	}
	return (len(far) == 0 || put(message(msgFar, encodeIDs(far)))) && (len(near) == 0 || put(message(msgNear, encodeIDs(near))))
}

// giveAll gives rosters; what is too much for now is due a little later.
func (ses *session) giveAll(put func(...[]byte) bool, rooms map[[roomSize]byte]struct{}) bool {
	s := ses.s
	for room := range rooms {
		if ses.account.spend(&ses.account.gives, 1) {
			if !ses.give(put, room) {
				return false
			}
			delete(rooms, room)
		}
	}
	if len(rooms) == 0 {
		return true
	}
	s.mu.Lock()
	maps.Copy(ses.due.give, rooms)
	s.mu.Unlock()
	time.AfterFunc(giveLater, ses.rouse)
	return true
}

func (ses *session) give(put func(...[]byte) bool, room [roomSize]byte) bool {
	rosters, ok := ses.s.cfg.Roster(room, ses.peer)
	for _, roster := range rosters {
		if ok && len(roster) <= MaxRoster && !put(message(msgRoster, room[:], roster)) {
			return false
		}
	}
	return true
}

func (ses *session) read() error {
	in := bufio.NewReader(ses.conn)
	for {
		k, body, err := readMessage(in)
		if err != nil {
			return err
		}
		a := ses.account
		switch k {
		case msgFrame:
			if !a.spend(&a.frames, 1) {
				continue // as a network would drop it
			}
		case msgRoster:
			if err := ses.patience(); err != nil {
				return err
			}
		default:
			if !a.spend(&a.msgs, 1+len(body)/payBytes) {
				return errProtocol
			}
		}
		if err := ses.handle(k, body); err != nil {
			return err
		}
	}
}

// patience waits until another roster is taken of the member, which is much work. It errs
// when the Service is closed.
func (ses *session) patience() error {
	for !ses.account.spend(&ses.account.takes, 1) {
		select {
		case <-ses.s.ctx.Done():
			return net.ErrClosed
		case <-time.After(takeLater):
		}
	}
	return nil
}

func (ses *session) handle(k kind, body []byte) error {
	s := ses.s
	switch k {
	case msgRooms:
		states, err := parseStates(body)
		if err != nil {
			return err
		}
		ses.compare(states)
	case msgWant:
		if len(body) != roomSize {
			return errProtocol
		}
		s.mu.Lock()
		ses.due.give[[roomSize]byte(body)] = struct{}{}
		s.mu.Unlock()
		ses.rouse()
	case msgRoster:
		room, roster, err := parseRoster(body)
		if err != nil {
			return err
		}
		if _, in := s.cfg.State(room); in {
			s.cfg.TakeRoster(ses.peer, room, roster)
		}
	case msgRemoved:
		s.cfg.TakeRemoved(ses.peer, body)
	case msgNear, msgFar:
		ids, err := parseIDs(body)
		if err != nil {
			return err
		}
		ses.heard(k == msgNear, ids)
	case msgFrame:
		r, err := parseRelayed(body)
		if err != nil {
			return err
		}
		s.route(ses, r)
	default: // of a later version
	}
	return nil
}

// compare asks for rosters that are newer there, and gives those that are older; two that
// are different and of one version go both ways.
func (ses *session) compare(theirs []State) {
	s := ses.s
	want, give := make(map[[roomSize]byte]struct{}), make(map[[roomSize]byte]struct{})
	for _, st := range theirs {
		mine, in := s.cfg.State(st.Room)
		switch {
		case !in:
		case mine.Version < st.Version:
			want[st.Room] = struct{}{}
		case mine.Version > st.Version, mine.Mark != st.Mark:
			give[st.Room] = struct{}{}
		}
	}
	s.mu.Lock()
	maps.Copy(ses.due.want, want)
	maps.Copy(ses.due.give, give)
	s.mu.Unlock()
	ses.rouse()
}

// heard notes whom the member is connected to.
func (ses *session) heard(near bool, ids []identity.DeviceID) {
	s := ses.s
	news := false
	s.mu.Lock()
	for _, id := range ids {
		switch {
		case id == s.self || id == ses.peer:
		case near && !ses.near[id] && len(ses.near) < MaxMembers:
			ses.near[id] = true
			news = true
		case !near && ses.near[id]:
			delete(ses.near, id)
			news = true
		}
	}
	s.mu.Unlock()
	if news {
		s.cfg.Reachable()
	}
}
