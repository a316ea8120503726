package kin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/kithproject/kith/identity"
)

const (
	maxConns       = 64
	maxConnsFrom   = 4
	maxLettersConn = 256 // on one connection
	letterRate     = 2   // letters of one device a second
	letterBurst    = 256 // and at once
	letterTimeout  = 20 * time.Second
	firstRetry     = 2 * time.Second
	slowestRetry   = 5 * time.Minute
	refusedRetry   = time.Hour   // after a letter that was refused: its user may change his mind
	settledRetry   = time.Minute // after one that was answered, if it is still there: the answer was not stored
)

// Config is what a Service needs. All but Logger and Now must be set.
type Config struct {
	// Listener brings the calls of other devices. The Service closes it.
	Listener net.Listener
	// Dial calls the port of a device that is connected.
	Dial func(ctx context.Context, peer identity.DeviceID) (net.Conn, error)
	// Who names the device behind a remote address, and says whether it is paired.
	Who func(remote net.Addr) (identity.DeviceID, bool)
	// Pending returns the letters that wait for a device.
	Pending func(peer identity.DeviceID) []Letter
	// Delivered takes what a device answered to one of them.
	Delivered func(peer identity.DeviceID, l Letter, s Status)
	// Take takes a letter of a device; what it has changed is durable when it returns. It
	// is called by several goroutines.
	Take func(ctx context.Context, from identity.DeviceID, l Letter) Status
	// Logger: default discard.
	Logger *slog.Logger
	// Now: default time.Now.
	Now func() time.Time
}

// A Service carries letters. It is safe for concurrent use. Close ends it.
type Service struct {
	cfg    Config
	ctx    context.Context //nolint:containedctx // ends every goroutine; Close cancels it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	closed  bool
	callers map[identity.DeviceID]*caller
	lines   map[identity.DeviceID]*line
}

// caller is a device that calls, or has not long ago.
type caller struct {
	conns int
	pace  *rate.Limiter // of its letters, on all connections together
}

// line is the way to one device that is connected.
type line struct {
	wake  chan struct{} // holds a token: there may be something to carry
	stop  context.CancelFunc
	ask   atomic.Bool // the device is to tell again what was refused here
	again atomic.Bool // it has asked for that
}

// NewService starts a service that takes letters from cfg.Listener.
func NewService(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Service{cfg: cfg, callers: make(map[identity.DeviceID]*caller), lines: make(map[identity.DeviceID]*line)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s
}

// Close ends the service and waits for its goroutines. It is idempotent; the error is
// the listener's.
func (s *Service) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	s.cancel()
	err := s.cfg.Listener.Close()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Connected says that a device can be reached now: what waits for it goes out.
func (s *Service) Connected(peer identity.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if l := s.lines[peer]; l != nil {
		l.ring()
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	l := &line{wake: make(chan struct{}, 1), stop: cancel}
	l.ring()
	s.lines[peer] = l
	s.wg.Go(func() { s.carry(ctx, peer, l) })
}

// Disconnected says that a device is away.
func (s *Service) Disconnected(peer identity.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.lines[peer]; l != nil {
		l.stop()
		delete(s.lines, peer)
	}
}

// Changed says that there may be letters for any device.
func (s *Service) Changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lines {
		l.ring()
	}
}

// Ask has a connected device tell again what it was refused here: it may tell it now.
func (s *Service) Ask(peer identity.DeviceID) {
	s.mark(peer, func(l *line) { l.ask.Store(true) })
}

func (s *Service) mark(peer identity.DeviceID, set func(*line)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.lines[peer]; l != nil {
		set(l)
		l.ring()
	}
}

func (l *line) ring() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// carry delivers what waits for a device, for as long as it is connected. A letter that
// is refused waits longer than one that did not get through.
func (s *Service) carry(ctx context.Context, peer identity.DeviceID, l *line) {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	wait := firstRetry
	held := make(map[letterKey]time.Time)
	var cleared time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-retry.C:
		}
		now := s.cfg.Now()
		var next time.Time
		if l.again.Load() && len(held) > 0 {
			if next = cleared.Add(firstRetry); !now.Before(next) {
				clear(held)
				l.again.Store(false)
				cleared, next = now, time.Time{}
			}
		}
		maps.DeleteFunc(held, func(_ letterKey, until time.Time) bool { return !now.Before(until) })
		var out []Letter
		if l.ask.Swap(false) {
			out = append(out, Letter{Kind: LetterAsk})
		}
		for _, letter := range s.cfg.Pending(peer) {
			if until, ok := held[keyOf(letter)]; ok && now.Before(until) {
				if next.IsZero() || until.Before(next) {
					next = until
				}
				continue
			}
			out = append(out, letter)
		}
		if len(out) > 0 {
			err := s.deliver(ctx, peer, out, held)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.cfg.Logger.Debug("letters not delivered", "peer", peer.Short(), "err", err)
				retry.Reset(wait)
				wait = min(2*wait, slowestRetry)
				continue
			}
			l.ring() // what the answers have made necessary, or was held back
		}
		wait = firstRetry
		if !next.IsZero() {
			retry.Reset(max(next.Sub(now), firstRetry))
		}
	}
}

// A letterKey tells letters apart.
type letterKey struct {
	kind LetterKind
	id   ID
	end  EndState
	over bool
}

func keyOf(l Letter) letterKey {
	k := letterKey{kind: l.Kind, id: l.ID, end: l.End}
	switch l.Kind {
	case LetterIntroduce:
		k.id = l.Introduction.ID
	case LetterNotice:
		k.id, k.over = l.Notice.ID, l.Notice.Ended
	case LetterAnswer, LetterWithdraw, LetterUndo, LetterAsk:
	}
	return k
}

// deliver sends letters over one connection and takes the answers.
func (s *Service) deliver(ctx context.Context, peer identity.DeviceID, letters []Letter, held map[letterKey]time.Time) error {
	dctx, cancel := context.WithTimeout(ctx, letterTimeout)
	conn, err := s.cfg.Dial(dctx, peer)
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for _, l := range letters[:min(len(letters), maxLettersConn)] {
		if err := conn.SetDeadline(time.Now().Add(letterTimeout)); err != nil {
			return err
		}
		if err := writeLetter(conn, l, s.cfg.Now()); err != nil {
			return err
		}
		var answer [1]byte
		if _, err := io.ReadFull(conn, answer[:]); err != nil {
			return err
		}
		hold := settledRetry
		if st := Status(answer[0]); st == StatusBusy || st == StatusRefused || st < StatusOK || st > StatusDeclined {
			hold = refusedRetry
		}
		held[keyOf(l)] = s.cfg.Now().Add(hold)
		s.cfg.Delivered(peer, l, Status(answer[0]))
	}
	return nil
}

func (s *Service) accept() {
	for {
		conn, err := s.cfg.Listener.Accept()
		if err != nil {
			return
		}
		peer, ok := s.cfg.Who(conn.RemoteAddr())
		if !ok {
			conn.Close()
			continue
		}
		c := s.admit(peer)
		if c == nil {
			conn.Close()
			continue
		}
		s.wg.Go(func() {
			s.take(conn, peer, c.pace)
			s.mu.Lock()
			c.conns--
			s.mu.Unlock()
		})
	}
}

// admit counts a connection of a device; nil is one too many. It forgets devices that
// called so long ago that they may send as many letters as one that never did.
func (s *Service) admit(peer identity.DeviceID) *caller {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := 0
	maps.DeleteFunc(s.callers, func(_ identity.DeviceID, c *caller) bool {
		all += c.conns
		return c.conns == 0 && c.pace.Tokens() >= letterBurst
	})
	c := s.callers[peer]
	if c == nil {
		c = &caller{pace: rate.NewLimiter(letterRate, letterBurst)}
	}
	if s.closed || all >= maxConns || c.conns >= maxConnsFrom {
		return nil
	}
	s.callers[peer] = c
	c.conns++
	return c
}

// take takes letters from one connection, at a pace.
func (s *Service) take(conn net.Conn, peer identity.DeviceID, pace *rate.Limiter) {
	defer conn.Close()
	defer context.AfterFunc(s.ctx, func() { conn.Close() })()
	for range maxLettersConn {
		if conn.SetDeadline(time.Now().Add(letterTimeout)) != nil {
			return
		}
		l, err := readLetter(conn, s.cfg.Now)
		if err != nil {
			if errors.Is(err, errLetter) {
				s.cfg.Logger.Debug("letter not understood", "peer", peer.Short())
			}
			return
		}
		if pace.Wait(s.ctx) != nil {
			return
		}
		status := StatusOK
		if l.Kind == LetterAsk {
			s.mark(peer, func(l *line) { l.again.Store(true) })
		} else {
			status = s.cfg.Take(s.ctx, peer, l)
		}
		if _, err := conn.Write([]byte{byte(status)}); err != nil {
			return
		}
	}
}
