package expose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/kithproject/kith/app/forward"
)

// dialWait is how long a connection waits for its device.
const dialWait = 15 * time.Second

// A hosted is a port of this machine's localhost at which another device listens.
type hosted struct {
	s     *Service
	peer  string
	place place
	token token

	ctx      context.Context //nolint:containedctx // ends with the listener; its cause is a status' error
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed when nothing of it is left
	counters forward.Counters
}

// Hosted is a port of this machine's localhost that another device has.
type Hosted struct {
	Peer     string
	Protocol forward.Protocol
	Port     uint16 // port number
	forward.Traffic
}

// Hosted returns which ports of this machine other devices have, sorted.
func (s *Service) Hosted() []Hosted {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Hosted, 0, len(s.hosted))
	for _, l := range s.hosted {
		out = append(out, Hosted{Peer: l.peer, Protocol: l.place.protocol, Port: l.place.port, Traffic: l.counters.Traffic()})
	}
	slices.SortFunc(out, func(a, b Hosted) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

// Recheck ends the listeners whose devices have no right to them by now, with their
// connections, and waits until they have ended.
func (s *Service) Recheck() {
	s.mu.Lock()
	all := make([]*hosted, 0, len(s.hosted))
	for _, l := range s.hosted {
		all = append(all, l)
	}
	s.mu.Unlock()
	for _, l := range all {
		if l.check() != nil {
			l.cancel(ErrDenied)
			<-l.done
		}
	}
}

func (l *hosted) check() error {
	if !l.s.cfg.May(l.peer, l.place.protocol, l.place.port) {
		return ErrDenied
	}
	return nil
}

// host listens for a device until it, or its right, goes.
func (s *Service) host(peer string, conn net.Conn, h hello) {
	l := &hosted{s: s, peer: peer, place: h.place, token: h.token, done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(s.ctx)
	defer l.cancel(nil)
	st := s.claim(l)
	if st == statusOK {
		st = l.begin()
	}
	if st != statusOK {
		if st == statusDenied && s.cfg.Refused != nil {
			s.cfg.Refused(peer, h.protocol, h.port)
		}
		_ = say(conn, byte(st)) // who does not listen to it need not know
		return
	}
	err := say(conn, byte(statusOK))
	if err == nil {
		err = s.watch(l.ctx, peer, conn, l.check, func(bool) {})
	}
	l.cancel(err)
	<-l.done
	s.cfg.Logger.Info("listener ended", "peer", peer, "port", l.place.String(), "err", err)
}

// claim makes the port l's, unless it is another device's. The same device's earlier
// listener ends first: the device has restarted.
func (s *Service) claim(l *hosted) status {
	for {
		if l.check() != nil {
			return statusDenied
		}
		s.mu.Lock()
		other := s.hosted[l.place]
		n := 0
		for _, o := range s.hosted {
			if o.peer == l.peer {
				n++
			}
		}
		switch {
		case other == nil && (n >= maxListeners || len(s.hosted) >= maxAllListeners):
			s.mu.Unlock()
			return statusBusy
		case other == nil:
			s.hosted[l.place] = l
			s.mu.Unlock()
			return statusOK
		case other.peer != l.peer:
			s.mu.Unlock()
			return statusTaken
		}
		s.mu.Unlock()
		other.cancel(ErrBroken)
		select {
		case <-other.done:
		case <-l.ctx.Done():
			return statusFailed
		}
	}
}

// begin listens until l.ctx ends. l has its place, and gives it back.
func (l *hosted) begin() status {
	s := l.s
	if l.check() != nil { // withdrawn after it was looked at, and before the place was taken
		l.release()
		return statusDenied
	}
	socks, err := bind(l.ctx, l.place)
	if err != nil {
		l.release()
		s.cfg.Logger.Info("port not listened on", "peer", l.peer, "port", l.place.String(), "err", err)
		return bindStatus(err)
	}
	l.told(true)
	var wg sync.WaitGroup
	for _, sock := range socks {
		wg.Go(func() {
			if err := l.serve(sock); err != nil {
				s.cfg.Logger.Warn("port no longer listened on", "port", l.place.String(), "err", err)
				l.cancel(ErrFailed)
			}
		})
	}
	go func() { // ends with l.ctx; host waits for done
		wg.Wait()
		l.told(false) // before another may begin
		l.release()
	}()
	return statusOK
}

func (l *hosted) release() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	delete(l.s.hosted, l.place)
	close(l.done)
}

func (l *hosted) told(began bool) {
	if l.s.cfg.Listening != nil {
		l.s.cfg.Listening(l.peer, l.place.protocol, l.place.port, began)
	}
}

// serve carries what comes to a socket, which it closes.
func (l *hosted) serve(sock io.Closer) error {
	key := forward.Key[string]{Device: l.peer, Protocol: l.place.protocol, Port: l.place.port}
	o := forward.Options{
		Counters: &l.counters, MaxConns: maxConns,
		Failed: func(err error) {
			l.s.cfg.Logger.Debug("connection not carried", "peer", l.peer, "port", l.place.String(), "err", err)
		},
		Admit: func(_ net.Addr, c io.Closer) (func(), error) {
			return l.s.live.Add(key, c, func() bool { return l.ctx.Err() == nil })
		},
	}
	if pc, ok := sock.(net.PacketConn); ok {
		o.MaxConns = maxFlows
		return forward.ServeUDP(l.ctx, pc, l.associate, o)
	}
	return forward.ServeTCP(l.ctx, sock.(net.Listener), l.dial, o)
}

// dial opens a stream to the device for a connection of a program.
func (l *hosted) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	conn, err := l.s.cfg.Dial(ctx, forward.TCP, l.peer)
	if err != nil {
		return nil, err
	}
	if err := say(conn, hello{kind: kindCarry, place: l.place, token: l.token}.bytes()...); err != nil {
		conn.Close()
		return nil, fmt.Errorf("expose: %w", err)
	}
	return &carried{Conn: conn, l: l}, nil
}

// A carried is a stream whose first byte is a status.
type carried struct {
	net.Conn
	l        *hosted
	answered bool
}

// Read reads behind the status; it errs if that is not OK.
func (c *carried) Read(b []byte) (int, error) {
	if !c.answered {
		var st [1]byte
		if _, err := io.ReadFull(c.Conn, st[:]); err != nil {
			return 0, err
		}
		err := status(st[0]).err()
		if errors.Is(err, errUnknown) {
			c.l.cancel(err) // it does not know of this listener
		}
		if err != nil {
			return 0, err
		}
		c.answered = true
	}
	return c.Conn.Read(b)
}

// CloseWrite ends the sending side alone. It errs if the stream has ended.
func (c *carried) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// Abort ends the stream at once.
func (c *carried) Abort() { forward.Abort(c.Conn) }

// localhosts are where a device listens here; a system may have one of them alone.
var localhosts = []string{"127.0.0.1", "::1"} //nolint:gochecknoglobals // a table

// bind listens on a port of localhost, of IPv4 and IPv6. It errs if one of them is
// taken, or there is none.
func bind(ctx context.Context, p place) (socks []io.Closer, err error) {
	if p.protocol == forward.TCP && runtime.GOOS != "linux" {
		// Other systems let 127.0.0.1 be taken where a program listens on all addresses.
		if conn, err := forward.DialLocal(ctx, p.port); err == nil {
			conn.Close()
			return nil, errInUse
		}
	}
	var missing []error
	for _, host := range localhosts {
		sock, err := bindOne(ctx, p.protocol, net.JoinHostPort(host, strconv.Itoa(int(p.port))))
		if absent(err) {
			missing = append(missing, err)
			continue
		}
		if err != nil {
			for _, s := range socks {
				s.Close()
			}
			return nil, err
		}
		socks = append(socks, sock)
	}
	if len(socks) == 0 {
		return nil, errors.Join(missing...)
	}
	return socks, nil
}

func bindOne(ctx context.Context, protocol forward.Protocol, address string) (io.Closer, error) {
	var lc net.ListenConfig
	if protocol == forward.UDP {
		return lc.ListenPacket(ctx, "udp", address)
	}
	return lc.Listen(ctx, "tcp", address)
}

// absent reports that the system has no such address.
func absent(err error) bool {
	return err != nil && forward.NoAddress(err)
}

// errInUse reports a port at which somebody answers.
var errInUse = errors.New("expose: somebody answers there")

// bindStatus is what the device is told.
func bindStatus(err error) status {
	switch {
	case errors.Is(err, errInUse), forward.InUse(err):
		return statusTaken
	case forward.NotPermitted(err):
		return statusSystem
	}
	return statusFailed
}
