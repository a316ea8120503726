package mail

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Defaults of ServerConfig, and what every connection is bound by.
const (
	// DefaultMaxConns is how many connections a server has, a count.
	DefaultMaxConns = 4096
	// DefaultConnsPerDepositor is how many of them one depositor has, a count.
	DefaultConnsPerDepositor = 64

	maxWatch    = 4096             // boxes that one connection watches
	takeBytes   = 4 << 20          // bytes that one take returns
	takeItems   = 1024             // blobs that one take returns
	frameTime   = 30 * time.Second // for a frame that has begun, and for writing one
	helloTime   = 10 * time.Second
	serverIdle  = 15 * time.Minute // without a frame; clients ping
	opRate      = 50.0             // puts and takes of a depositor a second; other requests count a tenth
	opBurst     = 300.0            // and at once
	maxAccounts = 8192             // depositors whose pace is remembered
)

// ServerConfig is what NewServer needs. Store must be set.
type ServerConfig struct {
	Store *Store
	// MaxConns and ConnsPerDepositor bound what their defaults say, each a count.
	MaxConns, ConnsPerDepositor int
	// Displace has a new connection of a depositor with as many as it may have end the
	// oldest, instead of being refused: for depositors that are one device each.
	Displace bool
	// Idle ends a connection over which nothing came for so long; default 15 minutes,
	// below zero never.
	Idle time.Duration
	// Logger: default discard. It is not told who a client is, but for Debug.
	Logger *slog.Logger
}

// A Server speaks the protocol for a Store. It is safe for concurrent use. Close ends
// it.
type Server struct {
	cfg ServerConfig
	wg  sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	closed   bool
	conns    map[*session]struct{}
	accounts map[string]*account
}

// account is one depositor's pace and connections.
type account struct {
	tokens float64
	last   time.Time
	open   []*session // oldest first
}

// NewServer returns a server for a store, which it does not close.
func NewServer(cfg ServerConfig) *Server {
	cfg.MaxConns = positive(cfg.MaxConns, DefaultMaxConns)
	cfg.ConnsPerDepositor = positive(cfg.ConnsPerDepositor, DefaultConnsPerDepositor)
	if cfg.Idle == 0 {
		cfg.Idle = serverIdle
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, conns: make(map[*session]struct{}), accounts: make(map[string]*account)}
}

// Close ends all connections and waits for them. It is idempotent, and always returns
// nil.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.end()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// End ends a depositor's connections. What it has left stays.
func (s *Server) End(depositor string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[depositor]; a != nil {
		for _, c := range a.open {
			c.end()
		}
	}
}

// Clients returns how many connections there are.
func (s *Server) Clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// A session is one connection.
type session struct {
	srv       *Server
	conn      net.Conn
	depositor string
	watcher   *watcher
	ended     chan struct{} // closed when the connection is to end
	end       func()        // closes it, and the connection; any number of times

	wmu sync.Mutex // orders frames

	mu      sync.Mutex // guards the fields below
	told    bool       // of news that it has not asked for yet
	sending bool
	again   bool
	left    bool
	wg      sync.WaitGroup
}

// Serve speaks with one client until it goes, and closes the connection. What the
// client leaves counts as the depositor's. It returns nil when the client went or the
// server was closed, ErrBusy if there are too many connections, and otherwise why the
// client was not understood.
func (s *Server) Serve(conn net.Conn, depositor string) error {
	defer conn.Close()
	c := &session{srv: s, conn: conn, depositor: depositor, ended: make(chan struct{})}
	c.end = sync.OnceFunc(func() {
		close(c.ended)
		_ = conn.Close()
	})
	c.watcher = &watcher{boxes: make(map[Box]struct{}), tell: c.news}
	if err := s.enter(c); err != nil {
		if !errors.Is(err, ErrClosed) {
			_ = Refuse(conn, err)
		}
		return err
	}
	defer s.wg.Done()
	defer s.leave(c)
	if err := c.send(hello(stOK, s.cfg.Store.KeptFor())); err != nil {
		return nil // it went
	}
	err := c.serve()
	if err != nil && !errors.Is(err, ErrProtocol) {
		return nil // it went
	}
	return err
}

// hello is the first frame of a keeper.
func hello(st status, keep time.Duration) frame {
	days := min(keep/day, 1<<16-1)
	return frame{kind: fHello, body: binary.BigEndian.AppendUint16([]byte{version, byte(st)}, uint16(days))}
}

// Refuse tells a client why it is not served: ErrOff, ErrLogin or ErrBusy. It errs if
// that cannot be sent; the caller closes the connection.
func Refuse(conn net.Conn, why error) error {
	_ = conn.SetWriteDeadline(time.Now().Add(helloTime))
	_, err := conn.Write(hello(statusOf(why), 0).append(nil))
	return err
}

func (s *Server) enter(c *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	a := s.accounts[c.depositor]
	if a == nil {
		s.forgetLocked()
		a = &account{tokens: opBurst, last: time.Now()}
		s.accounts[c.depositor] = a
	}
	if len(a.open) >= s.cfg.ConnsPerDepositor {
		if !s.cfg.Displace {
			return ErrBusy
		}
		a.open[0].end()
		a.open = a.open[1:]
	}
	if len(s.conns) >= s.cfg.MaxConns {
		return ErrBusy
	}
	a.open = append(a.open, c)
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return nil
}

// forgetLocked drops the paces of depositors without connections when there are many:
// whoever fills the table gains one burst by it.
func (s *Server) forgetLocked() {
	if len(s.accounts) < maxAccounts {
		return
	}
	for name, a := range s.accounts {
		if len(a.open) == 0 {
			delete(s.accounts, name)
		}
	}
}

func (s *Server) leave(c *session) {
	c.mu.Lock()
	c.left = true
	c.mu.Unlock()
	c.end()
	s.cfg.Store.unwatch(c.watcher)
	c.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if a := s.accounts[c.depositor]; a != nil {
		for i, one := range a.open {
			if one == c {
				a.open = append(a.open[:i:i], a.open[i+1:]...)
				break
			}
		}
	}
}

// opCost is what a request counts for a depositor's pace.
func opCost(kind byte) float64 {
	if kind == fPut || kind == fTake {
		return 1
	}
	return 0.1
}

// pace returns for how long a depositor's next request is to wait.
func (s *Server) pace(depositor string, op float64, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[depositor]
	if a == nil {
		return 0
	}
	a.tokens = min(opBurst, a.tokens+opRate*max(now.Sub(a.last), 0).Seconds())
	a.last = now
	a.tokens -= op
	if a.tokens >= 0 {
		return 0
	}
	return time.Duration(-a.tokens / opRate * float64(time.Second))
}

// send writes one frame. After a failure nobody could make sense of more.
func (c *session) send(f frame) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(frameTime))
	if _, err := c.conn.Write(f.append(nil)); err != nil {
		_ = c.conn.Close()
		return err
	}
	return nil
}

func (c *session) serve() error {
	r := bufio.NewReaderSize(c.conn, 4<<10)
	for {
		var until time.Time
		if c.srv.cfg.Idle > 0 {
			until = time.Now().Add(c.srv.cfg.Idle)
		}
		_ = c.conn.SetReadDeadline(until)
		if _, err := r.Peek(1); err != nil {
			return err
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(frameTime))
		f, err := readFrame(r)
		if err != nil {
			return err
		}
		if wait := c.srv.pace(c.depositor, opCost(f.kind), time.Now()); wait > 0 {
			timer := time.NewTimer(min(wait, frameTime))
			select {
			case <-timer.C:
			case <-c.ended:
			}
			timer.Stop()
		}
		if err := c.answer(f); err != nil {
			return err
		}
	}
}

// answer does one request. It errs if the connection is of no more use.
func (c *session) answer(f frame) error {
	ok := frame{kind: fOk, id: f.id}
	reply := func(err error) error {
		if err != nil {
			ok = frame{kind: fFailed, id: f.id, body: []byte{byte(statusOf(err))}}
		}
		return c.send(ok)
	}
	bad := fmt.Errorf("%w: request %d of %d bytes", ErrProtocol, f.kind, len(f.body))
	store := c.srv.cfg.Store
	switch f.kind {
	case fPut:
		box, blob, good := splitBlob(f.body)
		if !good {
			return bad
		}
		return reply(store.Put(c.depositor, box, blob))
	case fTake:
		after, tokens, good := splitTake(f.body)
		if !good {
			return bad
		}
		return c.take(f.id, after, tokens)
	case fDone:
		token, ids, good := splitDone(f.body)
		if !good {
			return bad
		}
		return reply(store.Done(token, ids))
	case fWatch:
		if len(f.body) < 1 {
			return bad
		}
		tokens, good := splitTokens(f.body[1:])
		if !good {
			return bad
		}
		return reply(c.watch(f.body[0]&watchFirst != 0, tokens))
	case fCount:
		tokens, good := splitTokens(f.body)
		if !good {
			return bad
		}
		ok = frame{kind: fCounts, id: f.id, body: joinCounts(store.Count(tokens))}
		return reply(nil)
	case fPing:
		return reply(nil)
	}
	return bad
}

func (c *session) take(id uint32, after uint64, tokens [][32]byte) error {
	c.mu.Lock()
	c.told = false // what comes from now on is news
	c.mu.Unlock()
	var gone error
	more, last, err := c.srv.cfg.Store.each(tokens, after, takeItems, takeBytes, func(it Item) error {
		gone = c.send(frame{kind: fItem, id: id, body: append(it.Box[:], it.Blob...)})
		return gone
	})
	switch {
	case gone != nil:
		return gone
	case err != nil:
		return c.send(frame{kind: fFailed, id: id, body: []byte{byte(statusOf(err))}})
	}
	rest := byte(0)
	if more {
		rest = 1
	}
	return c.send(frame{kind: fOk, id: id, body: binary.BigEndian.AppendUint64([]byte{rest}, last)})
}

func (c *session) watch(first bool, tokens [][32]byte) error {
	if first {
		c.srv.cfg.Store.unwatch(c.watcher)
	}
	boxes := make([]Box, len(tokens))
	for i, t := range tokens {
		boxes[i] = BoxOf(t)
	}
	waiting, err := c.srv.cfg.Store.watch(c.watcher, boxes)
	if waiting {
		c.news()
	}
	return err
}

// news tells the client, once until it takes, that something waits. It does not block.
func (c *session) news() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told || c.left {
		return
	}
	c.told = true
	if c.sending {
		c.again = true
		return
	}
	c.sending = true
	c.wg.Go(func() {
		for {
			_ = c.send(frame{kind: fNews}) // a failure ends the connection
			c.mu.Lock()
			if !c.again {
				c.sending = false
				c.mu.Unlock()
				return
			}
			c.again = false
			c.mu.Unlock()
		}
	})
}
