package mesh

import (
	"bufio"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// A session is the conversation with one member that is connected.
type session struct {
	s    *Service
	peer identity.DeviceID
	conn net.Conn
	out  chan []byte // messages to send
	done chan struct{}

	near   map[identity.DeviceID]bool // whom the member is connected to; guarded by Service.mu
	frames bucket                     // of run's goroutine, as msgs
	msgs   bucket
	once   sync.Once
}

// A bucket is a token bucket.
type bucket struct {
	have, rate, most float64
	at               time.Time
}

func (b *bucket) take(now time.Time) bool {
	if b.at.IsZero() {
		b.have, b.at = b.most, now
	}
	b.have = min(b.most, b.have+now.Sub(b.at).Seconds()*b.rate)
	b.at = now
	if b.have < 1 {
		return false
	}
	b.have--
	return true
}

// run holds a session until its connection ends.
func (s *Service) run(conn net.Conn, peer identity.DeviceID) {
	if len(s.cfg.Rooms(peer)) == 0 && len(s.cfg.Removed(peer)) == 0 {
		return
	}
	ses := &session{
		s: s, peer: peer, conn: conn, out: make(chan []byte, sendQueue), done: make(chan struct{}), near: make(map[identity.DeviceID]bool),
		frames: bucket{rate: frameRate, most: frameMost}, msgs: bucket{rate: msgRate, most: msgMost},
	}
	s.mu.Lock()
	old := s.sessions[peer]
	s.sessions[peer] = ses
	others := slices.Collect(maps.Keys(s.sessions))
	s.mu.Unlock()
	if old != nil {
		old.conn.Close()
	}
	var wg sync.WaitGroup
	wg.Go(ses.write)
	for _, notice := range s.cfg.Removed(peer) {
		ses.send(message(msgRemoved, notice))
	}
	ses.tellRooms()
	ses.tellNear(msgNear, others)
	if old == nil {
		s.tellOthers(msgNear, peer)
	}
	s.cfg.Reachable(peer)
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
	}
	lost := slices.Collect(maps.Keys(ses.near))
	s.mu.Unlock()
	if !last {
		return
	}
	s.tellOthers(msgFar, ses.peer)
	for _, id := range append(lost, ses.peer) {
		s.cfg.Reachable(id)
	}
}

// send queues a message; it is dropped if the member does not keep up.
func (ses *session) send(msg []byte) bool {
	select {
	case ses.out <- msg:
		return true
	default:
		return false
	}
}

// writeTime is how long a member may take to receive what was sent to it.
const writeTime = 30 * time.Second

func (ses *session) write() {
	for {
		select {
		case msg := <-ses.out:
			if ses.conn.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
				return
			}
			if _, err := ses.conn.Write(msg); err != nil {
				ses.conn.Close()
				return
			}
		case <-ses.done:
			return
		}
	}
}

// tellRooms tells the member how far this device's rosters are.
func (ses *session) tellRooms() {
	if !ses.send(message(msgRooms, encodeStates(ses.s.cfg.Rooms(ses.peer)))) {
		ses.conn.Close() // it would never hear of it: a new session begins with it
	}
}

// tellNear tells the member of those of ids that it is together with in a room.
func (ses *session) tellNear(k kind, ids []identity.DeviceID) {
	var tell []identity.DeviceID
	for _, id := range ids {
		if id != ses.peer && ses.s.cfg.Together(id, ses.peer) {
			tell = append(tell, id)
		}
	}
	if len(tell) > 0 && !ses.send(message(k, encodeIDs(tell))) {
		ses.conn.Close()
	}
}

// tellOthers tells all members but one about that one.
func (s *Service) tellOthers(k kind, about identity.DeviceID) {
	for _, ses := range s.all() {
		if ses.peer != about {
			ses.tellNear(k, []identity.DeviceID{about})
		}
	}
}

func (ses *session) read() error {
	in := bufio.NewReader(ses.conn)
	for {
		k, body, err := readMessage(in)
		if err != nil {
			return err
		}
		limit := &ses.msgs
		if k == msgFrame {
			limit = &ses.frames
		}
		if !limit.take(time.Now()) {
			if k == msgFrame {
				continue // as a network would drop it
			}
			return errProtocol
		}
		if err := ses.handle(k, body); err != nil {
			return err
		}
	}
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
		ses.give([16]byte(body))
	case msgRoster:
		room, roster, err := parseRoster(body)
		if err != nil {
			return err
		}
		if _, in := s.cfg.Version(room); in {
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
		s.route(ses.peer, r)
	default: // of a later version
	}
	return nil
}

// compare asks for rosters that are newer there, and gives those that are older.
func (ses *session) compare(theirs []State) {
	for _, st := range theirs {
		mine, in := ses.s.cfg.Version(st.Room)
		switch {
		case in && mine < st.Version:
			ses.send(message(msgWant, st.Room[:]))
		case in && mine > st.Version:
			ses.give(st.Room)
		}
	}
}

func (ses *session) give(room [16]byte) {
	rosters, ok := ses.s.cfg.Roster(room, ses.peer)
	for _, roster := range rosters {
		if ok && len(roster) <= MaxRoster {
			ses.send(message(msgRoster, room[:], roster))
		}
	}
}

// heard notes whom the member is connected to.
func (ses *session) heard(near bool, ids []identity.DeviceID) {
	s := ses.s
	var news []identity.DeviceID
	s.mu.Lock()
	for _, id := range ids {
		switch {
		case id == s.self || id == ses.peer:
		case near && !ses.near[id] && len(ses.near) < MaxMembers:
			ses.near[id] = true
			news = append(news, id)
		case !near && ses.near[id]:
			delete(ses.near, id)
			news = append(news, id)
		}
	}
	s.mu.Unlock()
	for _, id := range news {
		if s.cfg.Together(s.self, id) {
			s.cfg.Reachable(id)
		}
	}
}
