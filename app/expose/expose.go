// Package expose makes a service of one device a port of another one's localhost, as
// ssh -R does. Both roles are one Service, at one port of the tunnel:
//
//	service ── exposer ══ ask, kept open ══▶ host ── listener of 127.0.0.1 and ::1
//	           exposer ◀══ a stream per connection ══ host ── program
//
// The exposer asks for a listener (Expose) with a random token and keeps that stream.
// The host checks that the exposer has the right to listen there, listens, and dials
// the exposer's same tunnel port for every connection of a program, with the token.
// The exposer compares it in constant time and connects to its service: the host gets
// no other right towards the exposer, and only while it is asked for.
//
// A stream begins with a hello, 20 bytes: kind u8 (1 ask, 2 carry), protocol u8 (6 TCP,
// 17 UDP), port u16 of the listener, token 16. It is answered by one byte of status: 0
// yes, 1 no right, 2 port in use, 3 the system forbids it, 4 too many, 5 failed, 6
// unknown token, 7 no service. Behind the answer to "carry" comes the connection's
// data; what the program sends need not wait for it. Behind the answer to "ask", either
// side sends 0x40, which the other answers by 0x41 (several by one, within a second),
// when the devices' connection is another than before; the host sends a status, not 0, when it ends the listener.
//
// UDP goes as datagrams of the tunnel to the same port number, so that one that is lost
// holds up no other and is not sent twice: a flow is one association, and each datagram
// towards the exposer has the token before it (16 bytes). Those that come back have none.
//
// A listener ends at once when the stream does, when the right is withdrawn (Recheck),
// and when the devices have not been connected for ten seconds; its connections end with
// it. Listeners, connections and streams that have not said who they are for are bounded
// per device.
package expose

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/app/forward"
)

const (
	helloWait = 10 * time.Second
	// grace is for how long a listener outlives the connection of the devices, and
	// answerWait how long the other side has for an answer.
	grace      = 10 * time.Second
	answerWait = 10 * time.Second
	// lookEvery is how often the connection and the rights are looked at.
	lookEvery = time.Second
	// maxListeners are of one device here, and maxAllListeners of all.
	maxListeners    = 32
	maxAllListeners = 256
	// maxConns is how many connections a device's listeners, or one exposure, have.
	maxConns = 1024
	// maxFlows is how many flows of UDP a listener has on each address.
	maxFlows = 128
	// maxPending is how many streams of a device have not said what they are for.
	maxPending = 64
)

// Config is what a Service needs. All but Listening, Refused and Logger must be set.
type Config struct {
	// Listener accepts streams of other devices at Port.
	Listener net.Listener
	// Dial opens a stream, or for UDP an association, to Port of a device. It errs if
	// there is no way there.
	Dial func(ctx context.Context, protocol forward.Protocol, peer string) (net.Conn, error)
	// Who says whose address that is: of a device that may use this device at all.
	Who func(remote net.Addr) (peer string, ok bool)
	// May says whether a device may listen on a port here. It is called often.
	May func(peer string, protocol forward.Protocol, port uint16) bool
	// Up says whether a device is connected, and since when: another moment is another
	// connection. It is called every second while there is a listener.
	Up func(peer string) (since time.Time, up bool)
	// Listening is told, from any goroutine, when a device begins or ceases to listen here.
	Listening func(peer string, protocol forward.Protocol, port uint16, began bool)
	// Refused is told of a device that asked for a port to which it has no right.
	Refused func(peer string, protocol forward.Protocol, port uint16)
	Logger  *slog.Logger // nil discards
}

// A Service exposes services of this device at others, and listens for others here.
// All methods are safe for concurrent use.
type Service struct {
	cfg    Config
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	live   *forward.Live[string]
	look   time.Duration // lookEvery
	grace  time.Duration // grace
	answer time.Duration // answerWait

	mu      sync.Mutex
	closed  bool
	pending map[string]int            // streams without a hello, by device
	hosted  map[place]*hosted         // listeners of others here
	exposed map[exposedKey]*attempted // what others listen for
}

// New returns a Service that accepts from cfg.Listener until Close.
func New(cfg Config) *Service {
	s := newService(cfg)
	s.wg.Go(s.accept)
	return s
}

func newService(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		cfg: cfg, live: forward.NewLive[string](maxConns), look: lookEvery, grace: grace, answer: answerWait,
		pending: make(map[string]int), hosted: make(map[place]*hosted), exposed: make(map[exposedKey]*attempted),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends all listeners, what is exposed, and their connections, and waits for them.
// It errs if the listener cannot be closed.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	err := s.cfg.Listener.Close()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// run runs f as one of the service's goroutines, unless it is closed.
func (s *Service) run(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

func (s *Service) accept() {
	for {
		conn, err := s.cfg.Listener.Accept()
		if err != nil {
			if s.ctx.Err() == nil {
				s.cfg.Logger.Error("exposed ports not served", "err", err)
			}
			return
		}
		if !s.run(func() { s.serve(conn) }) {
			conn.Close()
			return
		}
	}
}

// serve reads what a stream is for, and does it.
func (s *Service) serve(conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer stop()
	peer, ok := s.cfg.Who(conn.RemoteAddr())
	if !ok || !s.pend(peer, 1) {
		forward.Abort(conn)
		return
	}
	h, err := readHello(conn)
	s.pend(peer, -1)
	if err != nil {
		s.cfg.Logger.Debug("stream not understood", "peer", peer, "err", err)
		forward.Abort(conn)
		return
	}
	if h.kind == kindAsk {
		s.host(peer, conn, h)
		return
	}
	s.carry(peer, conn, h)
}

// pend counts a device's streams without a hello; it reports false if there are too
// many.
func (s *Service) pend(peer string, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.pending[peer] >= maxPending {
		return false
	}
	if s.pending[peer] += n; s.pending[peer] == 0 {
		delete(s.pending, peer)
	}
	return true
}

func readHello(conn net.Conn) (hello, error) {
	if err := conn.SetReadDeadline(time.Now().Add(helloWait)); err != nil {
		return hello{}, err
	}
	b := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, b); err != nil {
		return hello{}, err
	}
	h, err := parseHello(b)
	if err != nil {
		return hello{}, err
	}
	return h, conn.SetReadDeadline(time.Time{})
}

// say writes b, and gives up on a side that does not read.
func say(conn net.Conn, b ...byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(answerWait)); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return errors.Join(err, conn.SetWriteDeadline(time.Time{}))
}
