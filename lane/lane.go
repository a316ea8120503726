package lane

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// Port is the tunnel port, as a TCP port number, on which a device is asked for lanes.
const Port = 27494

const (
	maxMaking    = 256 // lanes in the making that others asked for, or that this device did
	maxMakingOne = 64  // of these with one device
	maxOpenOne   = 256 // lanes that one device has asked for, those in the making too
	maxRaces     = 8   // of these that this device is opening at once; the others wait

	// noLaneFor is how long a device is left alone to which there was no lane; after the
	// first time less, since the routers may just have been asked for a port.
	noLaneFor      = time.Minute
	firstNoLaneFor = 5 * time.Second
)

// Config is what a Service needs. What has no default must be set.
type Config struct {
	// Listener accepts on Port inside the tunnel. The Service closes it. Nil: this
	// device opens lanes, and answers nobody who asks for one.
	Listener net.Listener
	// Dial connects to another device's Port inside the tunnel.
	Dial func(ctx context.Context, peer identity.DeviceID) (net.Conn, error)
	// Who says which device a remote address of Listener belongs to, and whether it
	// is one that may ask at all.
	Who func(remote net.Addr) (identity.DeviceID, bool)
	// Allow reports whether a device may have a lane of a kind now. It is asked before
	// anything is opened, and again before Accept.
	Allow func(peer identity.DeviceID, kind string) bool
	// Accept serves a lane that another device opened, on a goroutine of its own, and
	// closes it. It must return when the lane is closed: Close waits for that.
	Accept func(c *Conn)
	// Addrs returns the addresses at which others may reach this device. Those that
	// lead nowhere for others, such as loopback ones, are left out by the Service.
	Addrs func() []netip.Addr
	// Mapped returns more endpoints that lead to a TCP port of this device, such as
	// one that the router maps. It must not block: what is not known yet is offered
	// with the next lane. Default: none.
	Mapped func(port uint16) []netip.AddrPort
	// Listening is told the TCP port when the Service begins to listen, and 0 when it
	// ends, so that a mapping can be made. It must not block. Default: nobody is told.
	Listening func(port uint16)
	// ListenTCP opens the listener of lanes. Default: every address, a port that the
	// system chooses.
	ListenTCP func(ctx context.Context) (net.Listener, error)
	// DialTCP connects to an endpoint that the other device offered. Default: net.Dialer.
	DialTCP func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Loopback lets lanes use loopback addresses: for tests.
	Loopback bool
	Logger   *slog.Logger // default: discard
}

// A Service opens lanes to other devices and answers those that ask for one. It is
// safe for concurrent use.
type Service struct {
	cfg    Config
	door   door
	ledger ledger
	wg     sync.WaitGroup
	ctx    context.Context //nolint:containedctx // ended by Close
	stop   context.CancelFunc

	mu     sync.Mutex // guards what follows
	closed bool
	busy   int // who is being told so
	making map[*making]struct{}
	open   map[*Conn]struct{}
	noLane map[identity.DeviceID]cached
	turns  map[identity.DeviceID]chan struct{} // each holds one token per race
}

// A making is one lane that is being opened, by either side.
type making struct {
	peer identity.DeviceID
	kind string
	ours bool // this device asked
	end  context.CancelCauseFunc
}

type cached struct {
	err   *NoLaneError
	until time.Time // it stays after that, so that the next is not the first
}

// New returns a Service and starts to answer on cfg.Listener. Close ends it.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ListenTCP == nil {
		cfg.ListenTCP = listenTCP
	}
	if cfg.DialTCP == nil {
		cfg.DialTCP = dialTCP
	}
	s := &Service{
		cfg:    cfg,
		making: make(map[*making]struct{}),
		open:   make(map[*Conn]struct{}),
		noLane: make(map[identity.DeviceID]cached),
		turns:  make(map[identity.DeviceID]chan struct{}),
	}
	s.door.s = s
	s.ctx, s.stop = context.WithCancel(context.Background())
	if cfg.Listener != nil {
		s.wg.Go(s.answerAll)
	}
	return s
}

// start runs f on a goroutine that Close waits for. It errs if the Service is closed.
func (s *Service) start(f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.wg.Go(f)
	return nil
}

// begin counts a lane in the making, whose context CloseOf and Close end. It errs if
// there are too many, or the Service is closed.
func (s *Service) begin(ctx context.Context, peer identity.DeviceID, kind string, ours bool) (context.Context, *making, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, net.ErrClosed
	}
	all, one := 0, 0
	for m := range s.making {
		if m.ours != ours {
			continue
		}
		all++
		if m.peer == peer {
			one++
		}
	}
	given := one
	for c := range s.open {
		if c.peer == peer && !c.asked {
			given++
		}
	}
	if one >= maxMakingOne || all >= maxMaking || !ours && given >= maxOpenOne {
		return nil, nil, ErrBusy
	}
	ctx, end := context.WithCancelCause(ctx)
	m := &making{peer: peer, kind: kind, ours: ours, end: end}
	s.making[m] = struct{}{}
	return ctx, m, nil
}

// turn waits until few enough lanes to a device are being opened. done must follow
// unless it errs, with the error of ctx.
func (s *Service) turn(ctx context.Context, peer identity.DeviceID) (done func(), err error) {
	s.mu.Lock()
	c := s.turns[peer]
	if c == nil {
		c = make(chan struct{}, maxRaces)
		s.turns[peer] = c
	}
	s.mu.Unlock()
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// over ends what begin began.
func (s *Service) over(m *making) {
	m.end(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, m)
}

// keep makes a lane of a session, unless its making was ended meanwhile.
func (s *Service) keep(m *making, from *session, dialed bool) (*Conn, error) {
	c := &Conn{s: s, t: from.t, base: from.base, peer: m.peer, kind: m.kind, asked: m.ours, dialed: dialed}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.making[m]; !ok || s.closed {
		return nil, ErrWithdrawn
	}
	s.open[c] = struct{}{}
	return c, nil
}

func (s *Service) forget(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// CloseOf ends all lanes with a device, those in the making too, or those of some
// kinds if any are given. It is for when rights are withdrawn: Allow, or Who, must
// say so before. What was written and not sent yet is lost. Programs that use the
// lanes see an error.
func (s *Service) CloseOf(peer identity.DeviceID, kinds ...string) {
	s.closeAll(ErrWithdrawn, func(p identity.DeviceID, kind string) bool {
		if p != peer {
			return false
		}
		for _, k := range kinds {
			if k == kind {
				return true
			}
		}
		return len(kinds) == 0
	})
}

func (s *Service) closeAll(why error, which func(peer identity.DeviceID, kind string) bool) {
	var conns []*Conn
	s.mu.Lock()
	for m := range s.making {
		if which(m.peer, m.kind) {
			m.end(why)
			delete(s.making, m)
		}
	}
	for c := range s.open {
		if which(c.peer, c.kind) {
			conns = append(conns, c)
			delete(s.open, c)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.base.abort()
	}
}

// Forget drops what is remembered of a device to which there was no lane, so that
// the next Open tries again: for when its addresses have changed.
func (s *Service) Forget(peer identity.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.noLane, peer)
}

// ForgetAll is Forget for every device: for when this device's addresses have changed.
func (s *Service) ForgetAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.noLane)
}

// remembered returns why there is no lane to a device, if that is known.
func (s *Service) remembered(peer identity.DeviceID, now time.Time) *NoLaneError {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.noLane[peer]
	if !ok || !now.Before(c.until) {
		return nil
	}
	err := *c.err
	err.Cached = true
	return &err
}

func (s *Service) remember(err *NoLaneError, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := firstNoLaneFor
	if _, again := s.noLane[err.Peer]; again {
		wait = noLaneFor
	}
	s.noLane[err.Peer] = cached{err, now.Add(wait)}
}

// Lanes returns how many lanes are open.
func (s *Service) Lanes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Close ends all lanes and waits until nothing of the Service runs any more. It is
// idempotent.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	if s.cfg.Listener != nil {
		s.cfg.Listener.Close()
	}
	s.door.close()
	s.closeAll(net.ErrClosed, func(identity.DeviceID, string) bool { return true })
	s.wg.Wait()
	return nil
}
