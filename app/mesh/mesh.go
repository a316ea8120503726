package mesh

import (
	"context"
	"errors"
	"io"
	"log/slog"
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
	// Version is that of this device's roster of a room; false: it is in no such room.
	Version func(room [16]byte) (uint64, bool)
	// Roster is this device's roster of a room, for a member of it, after those that the
	// member may have to take first; false: it is none.
	Roster func(room [16]byte, to identity.DeviceID) ([][]byte, bool)
	// TakeRoster judges and takes a roster that another member has.
	TakeRoster func(from identity.DeviceID, room [16]byte, roster []byte)
	// Removed are notices for a device that is no member any more.
	Removed func(peer identity.DeviceID) [][]byte
	// TakeRemoved judges such a notice.
	TakeRemoved func(from identity.DeviceID, notice []byte)
	// Together says whether two devices are members of one room of this device's.
	Together func(a, b identity.DeviceID) bool
	// Reachable is told when a member can be reached, or no longer, by way of others.
	Reachable func(peer identity.DeviceID)
	// Knock is told of a frame of a member for which no topic is open: it looks for this
	// device. It is only what the one who passed the frame on says.
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
	conns    map[net.Conn]identity.DeviceID // that are served, and by whom they were opened
	ends     map[*end]identity.DeviceID     // of streams, and who is at the other
}

// New starts a Service.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		cfg: cfg, self: cfg.Self.ID(), sessions: make(map[identity.DeviceID]*session), conns: make(map[net.Conn]identity.DeviceID),
		ends:   make(map[*end]identity.DeviceID),
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

// serve runs f with a connection of a member, which it closes at the end. It reports
// false if there are too many, or after Close.
func (s *Service) serve(conn net.Conn, peer identity.DeviceID, f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	for _, p := range s.conns {
		if p == peer {
			same++
		}
	}
	if s.closed || len(s.conns) >= maxConns || same >= perPeer {
		return false
	}
	s.conns[conn] = peer
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
		if conn.SetDeadline(time.Time{}) == nil {
			s.run(conn, peer)
		}
	case connRelay:
		s.passOn(conn, peer)
	case connRelayed:
		s.receive(conn, peer)
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
	for c, id := range s.conns {
		if id == peer {
			all = append(all, c)
		}
	}
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
	all := s.all()
	ids := make([]identity.DeviceID, 0, len(all))
	for _, ses := range all {
		ids = append(ids, ses.peer)
	}
	for _, ses := range all {
		for _, notice := range s.cfg.Removed(ses.peer) {
			ses.send(message(msgRemoved, notice))
		}
		ses.tellRooms()
		ses.tellNear(msgNear, ids)
	}
}

func (s *Service) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*session, 0, len(s.sessions))
	for _, ses := range s.sessions {
		out = append(out, ses)
	}
	return out
}

// Near says whether a member has a session with this device, and by which others it
// could be reached, the better first.
func (s *Service) Near(peer identity.DeviceID) (direct bool, by []identity.DeviceID) {
	s.mu.Lock()
	direct = s.sessions[peer] != nil
	for id, ses := range s.sessions {
		if ses.near[peer] && id != peer {
			by = append(by, id)
		}
	}
	s.mu.Unlock()
	by = slices.DeleteFunc(by, func(id identity.DeviceID) bool { return !s.cfg.Together(id, peer) })
	slices.SortFunc(by, func(a, b identity.DeviceID) int { return slices.Compare(a[:], b[:]) })
	return direct, by
}

// gone are errors that end of themselves when a connection ends.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF)
}
