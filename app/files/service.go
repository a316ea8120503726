package files

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Port is the tunnel port, a TCP port number, on which a device takes offers, lanes
// and requests.
const Port = 27493

// Config says how a Service behaves. Only Dir is needed to receive, and only Dial
// to send and get.
type Config struct {
	// Dir is where received files go, if the one who accepts names no other folder.
	// It is made if it is not there. Empty receives nothing.
	Dir string
	// Dial opens streams to other devices.
	Dial DialFunc
	// Lanes says with which streams a transfer with a peer starts; nil is one of the
	// tunnel. Transfer.SetLanes changes them later.
	Lanes func(peer string) []Lane
	// Policy decides about an offer at once; nil lets every offer wait in the inbox.
	// It is asked again when a transfer goes on after a break: Decline stops it, Wait
	// lets it go on if a person accepted it before.
	Policy func(Offer) Decision
	// OnOffer is told of an offer that waits. It must not block.
	OnOffer func(Offer)
	// OnAnswer is told when an offer does not wait any more: Accept or Decline is what was
	// decided, Wait that its sender does not offer it any more. It must not block.
	OnAnswer func(Offer, Action)
	// OnTransfer is told of every transfer that begins, on either side. It must not
	// block.
	OnTransfer func(*Transfer)
	// OnReceived is told how a transfer ended that another device sent here.
	OnReceived func(Received)
	// Shares returns what a peer may get; nil is nothing.
	Shares func(peer string) []Share
	// Sum is the digest of the chunks that others get of Shares; SendOptions has its own.
	Sum Sum
	// Names says which names are kept; the default is NamesPortable.
	Names Names
	// Durable has all brought to the disk before the sender is told that it is done.
	// Otherwise the system does so within about half a minute, as after any copy.
	Durable bool
	// MaxBytes is the most that one transfer may bring, in bytes, if its Decision says
	// nothing else; 0 is no limit but the disk.
	MaxBytes int64
	// MaxFiles is how many files and folders one transfer may bring; 0 is 10 million.
	MaxFiles int64
	// MaxWaiting is how many offers of one peer may wait; 0 is 8. In all 64 wait.
	MaxWaiting int
	// Quiet is after how long without a sign of life a stream counts as dead; 0 is 60 s.
	Quiet time.Duration
	// Log gets what happens; nil is nothing.
	Log *slog.Logger

	redial time.Duration // the first pause between two dials; tests make it short
}

const (
	defaultMaxFiles   = 10_000_000
	defaultMaxWaiting = 8
	maxWaitingAll     = 64
	maxActivePeer     = 16 // connections of one peer with a control stream
	defaultQuiet      = 60 * time.Second
	helloWait         = 15 * time.Second
)

// A Share is a folder whose content others may get. Nothing outside of it can be
// named, and symlinks that lead out of it are left out.
type Share struct {
	Name string // the first name of every path in it
	Dir  string
}

// A Service sends, receives and shares files. Its methods may be called at once.
type Service struct {
	cfg   Config
	inbox *inbox

	mu       sync.Mutex // guards all below
	closed   bool
	cancels  map[int]context.CancelCauseFunc
	next     int
	sessions map[token]*session
	active   map[string]*receiving // by stage key
	controls map[string]int        // how many of each peer
	list     map[*Transfer]bool
	wg       sync.WaitGroup
}

// A session is where lanes of a transfer go.
type session struct {
	peer   string
	attach func(ctx context.Context, conn net.Conn)
}

// A receiving is a transfer that is received now: a new run of it replaces it.
type receiving struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a Service. It errs on a Config that makes no sense.
func New(cfg Config) (*Service, error) {
	if cfg.Quiet == 0 {
		cfg.Quiet = defaultQuiet
	}
	if cfg.Quiet < time.Second {
		return nil, errors.New("files: Config.Quiet is less than a second")
	}
	if cfg.redial == 0 {
		cfg.redial = redialFirst
	}
	if cfg.MaxFiles == 0 {
		cfg.MaxFiles = defaultMaxFiles
	}
	if cfg.MaxWaiting == 0 {
		cfg.MaxWaiting = defaultMaxWaiting
	}
	if cfg.MaxBytes < 0 || cfg.MaxFiles < 0 || cfg.MaxWaiting < 0 {
		return nil, errors.New("files: a limit of Config is negative")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Lanes == nil {
		cfg.Lanes = func(string) []Lane { return Lanes(LaneTunnel, 1) }
	}
	if cfg.Policy == nil {
		cfg.Policy = func(Offer) Decision { return Decision{} }
	}
	if cfg.Dir != "" {
		dir, err := filepath.Abs(cfg.Dir)
		if err != nil {
			return nil, fmt.Errorf("files: %w", err)
		}
		cfg.Dir = dir
		sweep(dir, time.Now())
	}
	return &Service{
		cfg: cfg, inbox: newInbox(), cancels: make(map[int]context.CancelCauseFunc), sessions: make(map[token]*session),
		active: make(map[string]*receiving), controls: make(map[string]int), list: make(map[*Transfer]bool),
	}, nil
}

// Close ends all transfers and waits for them. What has arrived is kept.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, cancel := range s.cancels {
		cancel(net.ErrClosed)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// bind makes a context that also ends with the Service. It errs after Close. The
// caller calls end when its work is over; Close waits for that.
func (s *Service) bind(ctx context.Context) (_ context.Context, cancel context.CancelCauseFunc, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, nil, fmt.Errorf("files: %w", net.ErrClosed)
	}
	ctx, cancel = context.WithCancelCause(ctx)
	n := s.next
	s.next++
	s.cancels[n] = cancel
	s.wg.Add(1)
	return ctx, cancel, func() {
		cancel(context.Canceled)
		s.mu.Lock()
		delete(s.cancels, n)
		s.mu.Unlock()
		s.wg.Done()
	}, nil
}

// Transfers returns what goes on, the oldest first.
func (s *Service) Transfers() []*Transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Transfer, 0, len(s.list))
	for t := range s.list {
		out = append(out, t)
	}
	slices.SortFunc(out, func(x, y *Transfer) int { return cmp.Compare(x.Progress().Number, y.Progress().Number) })
	return out
}

// EndPeer ends all transfers with a peer and declines its offers: it may do nothing
// here any more, and why says in a few words since when.
func (s *Service) EndPeer(peer, why string) {
	for _, t := range s.Transfers() {
		if t.Progress().Peer == peer {
			t.cancel(&hereError{ErrWithdrawn, "files: " + why})
		}
	}
	s.inbox.declineAll(peer)
}

// Idle waits until nothing of a peer is served any more, or ctx ends: whoever ended its
// transfers knows then that it was told.
func (s *Service) Idle(ctx context.Context, peer string) {
	for {
		s.mu.Lock()
		busy := s.controls[peer] > 0
		for t := range s.list {
			busy = busy || t.Progress().Peer == peer
		}
		s.mu.Unlock()
		if !busy {
			return
		}
		t := time.NewTimer(idleEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// idleEvery is how often Idle looks.
const idleEvery = 5 * time.Millisecond

// Recheck ends the transfers of a peer that Config.Policy and Config.Shares do not
// allow any more: what was accepted without asking, and what is sent of a share. The
// caller calls it when a right was withdrawn.
func (s *Service) Recheck(peer string) {
	for _, t := range s.Transfers() {
		if t.Progress().Peer == peer && !t.allowed() {
			t.cancel(withdrawnHere())
		}
	}
}

func (s *Service) track(t *Transfer) (forget func()) {
	s.inbox.mu.Lock()
	t.meter.update(func(p *Progress) {
		if p.Number == 0 {
			p.Number = s.inbox.number()
		}
	})
	s.inbox.mu.Unlock()
	s.mu.Lock()
	s.list[t] = true
	s.mu.Unlock()
	if s.cfg.OnTransfer != nil {
		s.cfg.OnTransfer(t)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.list, t)
	}
}

// Serve accepts connections from ln until ctx ends or ln fails; peer says who is at
// the other end, or errs if nobody who may be here. It closes ln, waits for what it
// started, and returns nil when ctx ended and otherwise the listener's error.
func (s *Service) Serve(ctx context.Context, ln net.Listener, peer func(net.Conn) (string, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("files: accept: %w", err)
		}
		wg.Go(func() {
			name, err := peer(conn)
			if err == nil {
				err = s.Handle(ctx, name, conn)
			} else {
				conn.Close()
			}
			if err != nil && ctx.Err() == nil {
				s.cfg.Log.DebugContext(ctx, "files connection ended", "peer", name, "err", err)
			}
		})
	}
}

// Handle serves one connection of a peer until it ends, and closes it. The caller
// has made sure who the peer is. It errs with why the connection ended.
func (s *Service) Handle(ctx context.Context, peer string, conn net.Conn) error {
	defer conn.Close()
	ctx, _, end, err := s.bind(ctx)
	if err != nil {
		return err
	}
	defer end()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(helloWait)); err != nil {
		return err
	}
	b := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, b); err != nil {
		return fmt.Errorf("files: hello: %w", err)
	}
	kind, tok, err := parseHello(b)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if kind == helloLane {
		s.mu.Lock()
		ses := s.sessions[tok]
		s.mu.Unlock()
		if ses == nil || ses.peer != peer {
			return fmt.Errorf("files: a lane of no transfer: %w", ErrProtocol)
		}
		ses.attach(ctx, conn)
		return nil
	}
	return s.handleControl(ctx, peer, conn)
}

func (s *Service) handleControl(ctx context.Context, peer string, conn net.Conn) error {
	ctl := newControl(conn, s.cfg.Quiet)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { ctl.run(ctx) })
	s.mu.Lock()
	s.controls[peer]++
	busy := s.controls[peer] > maxActivePeer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.controls[peer]--; s.controls[peer] == 0 {
			delete(s.controls, peer)
		}
	}()
	if busy {
		ctl.cancel(ErrBusy)
		return ErrBusy
	}
	kind, msg, err := ctl.receive(ctx)
	if err != nil {
		return err
	}
	switch kind {
	case msgOffer:
		var o offerMsg
		if err := o.get(msg); err != nil {
			return err
		}
		err = s.receiveOffer(ctx, peer, ctl, &o)
	case msgGet:
		err = s.serveGet(ctx, peer, ctl, msg)
	case msgList:
		err = s.serveList(peer, ctl, msg)
	default:
		err = fmt.Errorf("files: %w: message %d first", ErrProtocol, kind)
	}
	var remote *remoteError
	if err != nil && !errors.As(err, &remote) && ctx.Err() == nil {
		ctl.cancel(err)
	}
	return err
}

// open registers a session for lanes of a transfer. What closes it waits for them.
func (s *Service) open(ctx context.Context, peer string, tok token, lane func(ctx context.Context, conn net.Conn)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	var wg sync.WaitGroup
	n, closed := 0, false
	ses := &session{peer: peer, attach: func(_ context.Context, conn net.Conn) {
		mu.Lock()
		if closed || n >= maxLanes {
			mu.Unlock()
			conn.Close()
			return
		}
		n++
		wg.Add(1)
		mu.Unlock()
		defer wg.Done()
		lane(ctx, conn)
		mu.Lock()
		n--
		mu.Unlock()
	}}
	s.mu.Lock()
	s.sessions[tok] = ses
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		delete(s.sessions, tok)
		s.mu.Unlock()
		mu.Lock()
		closed = true
		mu.Unlock()
		cancel()
		wg.Wait()
	}
}

// dialControl opens a control stream and serves it until end is called, also after
// ctx has ended: the other side is told why.
func (s *Service) dialControl(ctx context.Context, peer string) (*control, func(), error) {
	conn, err := s.dialHello(ctx, peer, Lane{Kind: LaneControl}, helloControl, token{})
	if err != nil {
		return nil, nil, err
	}
	ctl := newControl(conn, s.cfg.Quiet)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { ctl.run(ctx) })
	return ctl, func() { cancel(); wg.Wait() }, nil
}

func (s *Service) dialHello(ctx context.Context, peer string, lane Lane, kind byte, tok token) (net.Conn, error) {
	if s.cfg.Dial == nil {
		return nil, &finalError{errors.New("files: no way to dial is given")}
	}
	conn, err := s.cfg.Dial(ctx, peer, lane)
	if err != nil {
		return nil, fmt.Errorf("files: connect to %s: %w", peer, err)
	}
	err = conn.SetWriteDeadline(time.Now().Add(helloWait))
	if err == nil {
		_, err = conn.Write(putHello(kind, tok))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("files: connect to %s: %w", peer, err)
	}
	return conn, nil
}
