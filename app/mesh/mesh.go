package mesh

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous"
)

// Config is what a Service needs. Every function but the Logger must be set; they may be
// called at any time, from several goroutines, and must not block for long.
type Config struct {
	Self *identity.Identity
	// Listener brings the calls of other members. The Service closes it.
	Listener net.Listener
	// Dial calls this service's port at a member that is connected.
	Dial func(ctx context.Context, peer identity.DeviceID) (net.Conn, error)
	// Who names the device behind a remote address.
	Who func(remote net.Addr) (identity.DeviceID, bool)

	// Rooms are those that both this device and another are members of, by this
	// device's rosters. A device with none is refused.
	Rooms func(peer identity.DeviceID) []State
	// State is that of this device's roster of a room; false: it is in no such room.
	State func(room [16]byte) (State, bool)
	// Roster is this device's roster of a room, for a member of it, after those that the
	// member may have to take first; false: it is none.
	Roster func(room [16]byte, to identity.DeviceID) ([][]byte, bool)
	// TakeRoster judges and takes a roster that another member has.
	TakeRoster func(from identity.DeviceID, room [16]byte, roster []byte)
	// Removed are notices for a device that is no member any more.
	Removed func(peer identity.DeviceID) [][]byte
	// TakeRemoved judges such a notice.
	TakeRemoved func(from identity.DeviceID, notice []byte)
	// Left takes a member out of a room that this device hosts, since it says so itself. It
	// reports whether that is durable.
	Left func(from identity.DeviceID, room [16]byte) bool
	// Together says whether two devices are members of one room of this device's.
	Together func(a, b identity.DeviceID) bool
	// Host says whether a member hosts a room of this device's: one such is asked first to
	// pass something on.
	Host func(peer identity.DeviceID) bool
	// Reachable is told when it has changed who can be reached by way of others.
	Reachable func()
	// Knock is told of a frame of a member for which no topic is open: it looks for this
	// device. It is only what the one who passed the frame on says; of each, one a second.
	Knock func(peer identity.DeviceID)
	// Accept says whether a port is open to a member whose stream another one has passed
	// on, and what takes it then, which owns the connection.
	Accept func(from identity.DeviceID, port uint16) (take func(net.Conn), ok bool)
	// Logger: default discard.
	Logger *slog.Logger
}

// A Service is this device's part in the rooms' mesh. It is safe for concurrent use.
// Close ends it.
type Service struct {
	cfg    Config
	self   identity.DeviceID
	ctx    context.Context //nolint:containedctx // ends every goroutine; Close cancels it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the fields below; not held while calling out
	closed   bool
	sessions map[identity.DeviceID]*session           // one for each member that is connected
	wanted   map[identity.DeviceID]context.CancelFunc // members that are being called
	topics   map[rendezvous.Topic][]*frames
	accounts map[identity.DeviceID]*account
	conns    map[net.Conn]*served       // that other members have opened
	ends     map[*end]identity.DeviceID // of streams, and who is at the other
}

// New starts a Service.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		cfg: cfg, self: cfg.Self.ID(), sessions: make(map[identity.DeviceID]*session), conns: make(map[net.Conn]*served),
		ends: make(map[*end]identity.DeviceID), accounts: make(map[identity.DeviceID]*account),
		wanted: make(map[identity.DeviceID]context.CancelFunc), topics: make(map[rendezvous.Topic][]*frames),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s
}

// Close ends all sessions and streams that are passed on, and waits for them. It is
// idempotent; the error is the listener's.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	err := s.cfg.Listener.Close()
	s.wg.Wait()
	return err
}

func (s *Service) accept() {
	for {
		conn, err := s.cfg.Listener.Accept()
		if err != nil {
			return
		}
		peer, ok := s.cfg.Who(conn.RemoteAddr())
		if !ok || !s.serve(conn, peer, func() { s.take(conn, peer) }) {
			conn.Close()
		}
	}
}

// A served is a connection of a member.
type served struct {
	peer   identity.DeviceID // who opened it
	use    byte              // useNew, or what it is for; connRelayed: that is not proved yet
	origin identity.DeviceID // of a stream: who it is of, as far as is known
}

// useNew is the use of a connection that has not said what it is for.
const useNew byte = 0

// serve runs f with a connection of a member, which it closes at the end. It reports
// false if there are too many of which it is not known what they are for, or after Close.
func (s *Service) serve(conn net.Conn, peer identity.DeviceID, f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	for _, c := range s.conns {
		if c.peer == peer && c.use == useNew {
			same++
		}
	}
	if s.closed || same >= perPeer {
		return false
	}
	s.conns[conn] = &served{peer: peer}
	s.wg.Go(func() {
		defer func() {
			conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
		}()
		defer context.AfterFunc(s.ctx, func() { conn.Close() })()
		f()
	})
	return true
}

// pend notes whom a stream is of, as the member says that passes it on. It reports false if
// there are too many of those two that nothing is proved of.
func (s *Service) pend(conn net.Conn, via, origin identity.DeviceID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	same, all := 0, 0
	for _, c := range s.conns {
		if c.use == connRelayed && c.peer == via {
			all++
			if c.origin == origin {
				same++
			}
		}
	}
	c := s.conns[conn]
	if c == nil || same >= unproved || all >= maxConns {
		return false
	}
	c.use, c.origin = connRelayed, origin
	return true
}

// claim makes a connection a stream of a member. It reports false if there are too many;
// who has few gets one in any case.
func (s *Service) claim(conn net.Conn, origin identity.DeviceID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	same, all := 0, 0
	for _, c := range s.conns {
		if c.use == connRelay {
			all++
			if c.origin == origin {
				same++
			}
		}
	}
	if same >= perPeer || all >= maxConns && same >= someConns {
		return false
	}
	if c := s.conns[conn]; c != nil {
		c.use, c.origin = connRelay, origin
	}
	return true
}

// helloTime is how long a caller may take to say what it wants.
const helloTime = 10 * time.Second

// take serves a connection that a member opened.
func (s *Service) take(conn net.Conn, peer identity.DeviceID) {
	if conn.SetDeadline(time.Now().Add(helloTime)) != nil {
		return
	}
	var hello [1]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return
	}
	switch hello[0] {
	case connSession:
		s.mu.Lock()
		if c := s.conns[conn]; c != nil {
			c.use = connSession // there is one at a time: the next one ends it
		}
		s.mu.Unlock()
		if conn.SetDeadline(time.Time{}) == nil {
			s.run(conn, peer)
		}
	case connRelay:
		s.passOn(conn, peer)
	case connRelayed:
		s.receive(conn, peer)
	case connLeave:
		s.takeLeave(conn, peer)
	}
}

// Connected tells that a member is connected: this device and that one begin a session.
func (s *Service) Connected(peer identity.DeviceID) {
	if !s.calls(peer) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.wanted[peer] != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.wanted[peer] = cancel
	s.wg.Go(func() {
		defer cancel()
		s.call(ctx, peer)
	})
}

// calls reports whether it is this side that calls a member: one of the two does.
func (s *Service) calls(peer identity.DeviceID) bool { return s.self.String() < peer.String() }

// Gone tells that a member is not connected any more.
func (s *Service) Gone(peer identity.DeviceID) {
	s.mu.Lock()
	cancel, ses := s.wanted[peer], s.sessions[peer]
	delete(s.wanted, peer)
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if ses != nil {
		ses.conn.Close()
	}
}

// Forget ends everything that a device has here: it is no member any more.
func (s *Service) Forget(peer identity.DeviceID) {
	s.Gone(peer)
	s.mu.Lock()
	var all []net.Conn
	for e, id := range s.ends {
		if id == peer {
			all = append(all, e)
		}
	}
	for c, of := range s.conns {
		if of.peer == peer || of.origin == peer {
			all = append(all, c)
		}
	}
	delete(s.accounts, peer)
	s.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

const (
	callFirst = 250 * time.Millisecond // until a session that ended is begun again
	callLast  = 30 * time.Second       // … at most
)

// call keeps a session with a member until ctx ends.
func (s *Service) call(ctx context.Context, peer identity.DeviceID) {
	for wait := callFirst; ; wait = min(2*wait, callLast) {
		began := time.Now()
		conn, err := s.cfg.Dial(ctx, peer)
		if err == nil {
			end := context.AfterFunc(ctx, func() { conn.Close() })
			if _, err = conn.Write([]byte{connSession}); err == nil {
				s.run(conn, peer)
			}
			end()
			conn.Close()
		}
		if time.Since(began) > callLast {
			wait = callFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Changed tells every member that is connected of the rosters as they are now, and of
// the members that it came together with.
func (s *Service) Changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ses := range s.sessions {
		s.allDue(ses)
	}
}

// Near says whether a member has a session with this device, and by which others it
// could be reached, as they say, in no order.
func (s *Service) Near(peer identity.DeviceID) (direct bool, by []identity.DeviceID) {
	s.mu.Lock()
	direct = s.sessions[peer] != nil
	for id, ses := range s.sessions {
		if ses.near[peer] && id != peer {
			by = append(by, id)
		}
	}
	s.mu.Unlock()
	return direct, slices.DeleteFunc(by, func(id identity.DeviceID) bool { return !s.cfg.Together(id, peer) })
}

// Neighbours returns whom a member is connected to, as it says, and whether it has a
// session with this device.
func (s *Service) Neighbours(peer identity.DeviceID) (of map[identity.DeviceID]bool, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses := s.sessions[peer]
	if ses == nil {
		return nil, false
	}
	return maps.Clone(ses.near), true
}

// ways is Near with the ways as they are to be tried: by a host first, then at random,
// since any of them may only say that it is one.
func (s *Service) ways(peer identity.DeviceID) (direct bool, by []identity.DeviceID) {
	direct, by = s.Near(peer)
	rand.Shuffle(len(by), func(i, j int) { by[i], by[j] = by[j], by[i] })
	if i := slices.IndexFunc(by, s.cfg.Host); i > 0 {
		by[0], by[i] = by[i], by[0]
	}
	return direct, by
}

// gone are errors that end of themselves when a connection ends.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF)
}
