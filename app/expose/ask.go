package expose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/kithproject/kith/app/forward"
)

// An Exposure is a service of this device that is to be a port of another one.
type Exposure struct {
	Peer     string           // the other device
	Protocol forward.Protocol // forward.TCP or forward.UDP
	Port     uint16           // port number of its localhost
	// Address is host:port of the service, as this device reaches it; the host
	// "localhost" is 127.0.0.1 and then ::1.
	Address  string
	Counters *forward.Counters // what is carried; nil counts nothing
	// Failed is told, from any goroutine, why a connection was not carried; nil
	// tells nobody.
	Failed func(error)
}

type exposedKey struct {
	peer string
	place
}

// An attempted is an exposure that has been asked for, until its stream ends.
type attempted struct {
	Exposure
	token  token
	ctx    context.Context //nolint:containedctx // ends with the attempt
	places chan struct{}   // a place for each connection
	wg     sync.WaitGroup  // of connections; guarded by Service.mu until over
	over   bool
}

const (
	firstPause = time.Second
	lastPause  = 15 * time.Second
)

// Expose keeps e until ctx ends: it asks, and asks again when that ended and when the
// device comes back. report is told, from this goroutine, when the device begins to
// listen (nil) and why it does not. Expose errs only if e is exposed already; it waits
// for e's connections.
func (s *Service) Expose(ctx context.Context, e Exposure, report func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := s.attempt(ctx, e, func(err error) {
			if err == nil {
				pause = firstPause / 2
			}
			report(err)
		})
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errTwice) {
			return err
		}
		report(err)
		s.rest(ctx, e.Peer, pause)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// rest waits until it makes sense to ask again: while the device is away, nothing is
// sent.
func (s *Service) rest(ctx context.Context, peer string, pause time.Duration) {
	tick := time.NewTicker(s.look)
	defer tick.Stop()
	before, _ := s.cfg.Up(peer)
	for end := time.Now().Add(pause); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			since, up := s.cfg.Up(peer)
			if up && (!since.Equal(before) || !now.Before(end)) {
				return
			}
		}
	}
}

var errTwice = errors.New("expose: that port of the device is exposed to already")

// attempt asks, and keeps what was agreed on. It errs with why it ended.
func (s *Service) attempt(ctx context.Context, e Exposure, report func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := s.dialAsk(ctx, e.Peer)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	a := &attempted{Exposure: e, token: newToken(), ctx: ctx, places: make(chan struct{}, maxConns)}
	key := exposedKey{e.Peer, place{e.Protocol, e.Port}}
	if err := s.register(key, a); err != nil {
		return err
	}
	defer func() { cancel(); s.unregister(key, a) }()
	if err := say(conn, hello{kind: kindAsk, place: key.place, token: a.token}.bytes()...); err != nil {
		return errors.Join(ErrBroken, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(s.answer)); err != nil {
		return errors.Join(ErrBroken, err)
	}
	var st [1]byte
	if _, err := io.ReadFull(conn, st[:]); err != nil {
		return errors.Join(ErrBroken, err)
	}
	if err := status(st[0]).err(); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return errors.Join(ErrBroken, err)
	}
	report(nil)
	stop() // from here on watch closes it
	return s.watch(ctx, e.Peer, conn, func() error { return nil }, func(away bool) {
		if away {
			report(ErrAway)
			return
		}
		report(nil)
	})
}

func (s *Service) dialAsk(ctx context.Context, peer string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	return s.cfg.Dial(ctx, forward.TCP, peer)
}

func (s *Service) register(key exposedKey, a *attempted) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exposed[key] != nil {
		return errTwice
	}
	s.exposed[key] = a
	return nil
}

// unregister ends what the attempt carries, and waits for it.
func (s *Service) unregister(key exposedKey, a *attempted) {
	s.mu.Lock()
	delete(s.exposed, key)
	a.over = true
	s.mu.Unlock()
	a.wg.Wait()
}

// find returns what a device's token stands for, and counts a connection of it, whose
// end is told by done.
func (s *Service) find(peer string, of func(exposedKey) bool, token []byte) (a *attempted, done func(), st status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, one := range s.exposed {
		if key.peer == peer && of(key) && one.token.is(token) {
			a = one
		}
	}
	if a == nil || a.over {
		return nil, nil, statusUnknown
	}
	select {
	case a.places <- struct{}{}:
	default:
		return nil, nil, statusBusy
	}
	a.wg.Add(1)
	return a, func() { <-a.places; a.wg.Done() }, statusOK
}

// carry connects a stream that a host has dialed to the service.
func (s *Service) carry(peer string, conn net.Conn, h hello) {
	a, done, st := s.find(peer, func(key exposedKey) bool { return key.place == h.place }, h.token[:])
	if st != statusOK {
		_ = say(conn, byte(st)) // it is refused either way
		return
	}
	defer done()
	local, err := a.dial(a.ctx)
	if err != nil {
		a.fail(err)
		_ = say(conn, byte(statusService))
		return
	}
	if err := say(conn, byte(statusOK)); err != nil {
		local.Close()
		return
	}
	a.Counters.Carry(a.ctx, conn, local)
}

func (a *attempted) fail(err error) {
	if a.ctx.Err() == nil && a.Failed != nil {
		a.Failed(err)
	}
}

// dial connects to the service. It errs if it cannot be reached.
func (a *attempted) dial(ctx context.Context) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(a.Address)
	if err != nil {
		return nil, fmt.Errorf("expose: %w", err)
	}
	if host == "localhost" {
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("expose: %w", err)
		}
		if a.Protocol == forward.UDP {
			return forward.DialLocalUDP(ctx, uint16(port))
		}
		return forward.DialLocal(ctx, uint16(port))
	}
	ctx, cancel := context.WithTimeout(ctx, serviceWait)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, string(a.Protocol), a.Address)
	if err != nil {
		return nil, fmt.Errorf("expose: the service: %w", err)
	}
	return conn, nil
}

// serviceWait is how long a service has to take a connection.
const serviceWait = 5 * time.Second
