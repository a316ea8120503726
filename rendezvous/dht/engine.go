package dht

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	queryTimeout = 2 * time.Second        // for an answer
	readPause    = 20 * time.Millisecond  // after an error of the socket
	voters       = 16                     // nodes whose word on our address counts
	suspects     = 16                     // nodes that asked us and wait to be asked
	upFor        = 3 * time.Minute        // how long an answer proves that the DHT can be reached
	retryMost    = time.Minute            // between attempts to find a node
	refreshEvery = 15 * time.Minute       // of the routing table of a node that serves or carries sessions
	maxWalks     = 4                      // lookups for sessions at once
	tidSize      = 4                      // bytes
	maintainTick = 10 * time.Second       // how often a node looks after its table
	pingsPerTick = 4                      // nodes that are asked then whether they are still there
	firstRefresh = 2 * time.Second        // while few nodes are known, doubled each time
	firstRetry   = 500 * time.Millisecond // while no node was found
)

var errTimeout = errors.New("dht: no answer")

// An engine is one DHT node on one socket: it asks, and if it serves it answers.
type engine struct {
	conn    net.PacketConn
	six     bool // IPv6; each family is a DHT of its own (BEP 32)
	private bool
	log     *slog.Logger
	limit   *limiter                            // of questions
	other   func(b []byte, from netip.AddrPort) // datagrams that are not KRPC
	onUp    func()                              // the DHT answers, again
	busy    func() bool                         // sessions are open
	seeds   func() []contact                    // saved and bootstrap nodes; ids may be zero
	serving atomic.Bool
	traffic traffic
	walks   chan struct{} // holds a token for each lookup that is on its way for a session
	asked   chan contact  // nodes that asked us
	kick    chan struct{}

	mu      sync.Mutex // guards the fields below
	table   *table
	store   *store
	pending map[[tidSize]byte]*call
	votes   []vote
	seenAs  netip.AddrPort // what most voters see us as
	replied time.Time      // the last answer from anybody
	silent  int            // questions without an answer since
}

// traffic counts what went through a socket.
type traffic struct {
	sent, received   atomic.Int64 // datagrams
	sentB, receivedB atomic.Int64 // bytes with IP and UDP headers
	queries          atomic.Int64
	bad              atomic.Int64 // datagrams that were no KRPC
}

type call struct {
	to    netip.AddrPort
	reply chan message
}

type vote struct {
	by  netip.Addr
	saw netip.AddrPort
}

func newEngine(conn net.PacketConn, private bool, log *slog.Logger, limit *limiter) *engine {
	e := &engine{
		conn: conn, private: private, log: log, limit: limit, asked: make(chan contact, suspects), walks: make(chan struct{}, maxWalks), kick: make(chan struct{}, 1),
		table: newTable(randomID()), store: newStore(), pending: make(map[[tidSize]byte]*call),
		other: func([]byte, netip.AddrPort) {}, busy: func() bool { return false }, onUp: func() {}, seeds: func() []contact { return nil },
	}
	a := addrPort(conn.LocalAddr()).Addr()
	e.six = a.Is6() && !a.Is4In6()
	return e
}

func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := u.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}

// suits reports whether packets to p go over this socket, and may go there: who
// answers from the internet must not send us to our own network.
func (e *engine) suits(p, namedBy netip.AddrPort) bool {
	if !usable(p) || p.Addr().Is4() == e.six {
		return false
	}
	return e.private || public(p.Addr()) || !public(namedBy.Addr())
}

// overhead is what IP and UDP add to a datagram, in bytes.
func (e *engine) overhead() int64 {
	if e.six {
		return 48
	}
	return 28
}

func (e *engine) send(b []byte, to netip.AddrPort) error {
	_, err := e.conn.WriteTo(b, net.UDPAddrFromAddrPort(to))
	if err == nil {
		e.traffic.sent.Add(1)
		e.traffic.sentB.Add(int64(len(b)) + e.overhead())
	}
	return err
}

// read hands on what comes in, until the socket is closed.
func (e *engine) read(ctx context.Context) {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := e.conn.ReadFrom(buf)
		if err != nil {
			// Some systems report here that an earlier packet found nobody.
			if errors.Is(err, net.ErrClosed) || pause(ctx, readPause) != nil {
				return
			}
			continue
		}
		p := addrPort(from)
		if n == 0 || !usable(p) {
			continue
		}
		e.traffic.received.Add(1)
		e.traffic.receivedB.Add(int64(n) + e.overhead())
		if buf[0] != 'd' {
			e.other(buf[:n], p)
			continue
		}
		e.handle(buf[:n], p)
	}
}

func (e *engine) handle(b []byte, from netip.AddrPort) {
	m, err := parse(b)
	if err != nil {
		e.traffic.bad.Add(1)
		return
	}
	now := time.Now()
	if m.kind == 'q' {
		if reply := e.answer(now, &m, from); reply != nil {
			_ = e.send(reply, from)
		}
		return
	}
	if len(m.tid) != tidSize {
		return
	}
	tid := [tidSize]byte(m.tid)
	e.mu.Lock()
	c := e.pending[tid]
	if c == nil || c.to != from {
		e.mu.Unlock()
		return
	}
	delete(e.pending, tid)
	back := e.replied.IsZero() || e.silent >= 3
	e.replied, e.silent = now, 0
	if m.kind == 'r' && m.id != e.table.self {
		e.table.heard(now, contact{m.id, from})
		e.vote(from.Addr(), m.seenAs)
	}
	e.mu.Unlock()
	if back {
		e.onUp()
	}
	m, err = parse(bytes.Clone(b)) // its parts outlive the buffer
	if err == nil {
		c.reply <- m
	}
}

func (e *engine) answer(now time.Time, m *message, from netip.AddrPort) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := contact{m.id, from}
	if e.table.asks(now, c) && !m.readOnly && m.id != e.table.self {
		select {
		case e.asked <- c:
		default:
		}
	}
	if !e.serving.Load() {
		return nil
	}
	return e.store.answer(now, m, from, e.table)
}

// vote notes what address a node sees us at; e.mu is held. On the internet our id
// has to fit it (BEP 42).
func (e *engine) vote(by netip.Addr, saw netip.AddrPort) {
	if !saw.IsValid() || saw.Addr().Is4() == e.six {
		return
	}
	i := 0
	for i < len(e.votes) && e.votes[i].by != by {
		i++
	}
	if i < len(e.votes) {
		e.votes = append(e.votes[:i], e.votes[i+1:]...)
	}
	if e.votes = append(e.votes, vote{by, saw}); len(e.votes) > voters {
		e.votes = e.votes[1:]
	}
	count := make(map[netip.AddrPort]int, len(e.votes))
	for _, v := range e.votes {
		count[v.saw]++
	}
	for p, n := range count {
		if 2*n > len(e.votes) {
			e.seenAs = p
		}
	}
	if a := e.seenAs.Addr(); a.IsValid() && !e.private && len(e.votes) >= 3 && !fits(e.table.self, a) {
		e.table.move(idFor(a))
	}
}

// ask sends a question and waits for the answer, at most queryTimeout. It errs
// with errTimeout, *refusal, or when ctx ends.
func (e *engine) ask(ctx context.Context, to netip.AddrPort, q *query) (message, error) {
	if err := e.limit.wait(ctx); err != nil {
		return message{}, err
	}
	return e.askNow(ctx, to, q)
}

// askNow is ask for who has waited for the limiter.
func (e *engine) askNow(ctx context.Context, to netip.AddrPort, q *query) (message, error) {
	c := &call{to: to, reply: make(chan message, 1)}
	var tid [tidSize]byte
	e.mu.Lock()
	for tid == [tidSize]byte{} || e.pending[tid] != nil {
		if _, err := rand.Read(tid[:]); err != nil {
			panic(err) // crypto/rand never fails
		}
	}
	e.pending[tid] = c
	self := e.table.self
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.pending, tid)
		e.mu.Unlock()
	}()
	e.traffic.queries.Add(1)
	if err := e.send(q.encode(self, tid[:], !e.serving.Load()), to); err != nil {
		e.lost(to)
		return message{}, err
	}
	timer := time.NewTimer(queryTimeout)
	defer timer.Stop()
	select {
	case m := <-c.reply:
		if m.kind == 'e' {
			return m, &refusal{m.code, m.reason}
		}
		return m, nil
	case <-timer.C:
		e.lost(to)
		return message{}, errTimeout
	case <-ctx.Done():
		return message{}, ctx.Err()
	}
}

func (e *engine) lost(to netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.table.failed(to)
	e.silent++
}

// up reports whether the DHT answered lately, and how many nodes are good.
func (e *engine) up(now time.Time) (bool, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	good, _ := e.table.count(now)
	return !e.replied.IsZero() && (now.Sub(e.replied) < upFor || e.silent < 3), good
}

func (e *engine) self() id {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.table.self
}

func (e *engine) external() netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seenAs
}

// itself returns this node as one to ask, if it serves: in the smallest network
// there is no other.
func (e *engine) itself() (contact, bool) {
	a := addrPort(e.conn.LocalAddr())
	if a.Addr().IsUnspecified() && e.six {
		a = netip.AddrPortFrom(netip.IPv6Loopback(), a.Port())
	} else if a.Addr().IsUnspecified() {
		a = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	}
	return contact{e.self(), a}, e.serving.Load() && usable(a)
}

// known returns up to n nodes that answered once, good ones first.
func (e *engine) known(target id, n int) []contact {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.table.closest(time.Now(), target, n, false)
}

// maintain keeps the routing table filled: walks towards this node's own id find
// its neighbours, often while it knows few nodes.
func (e *engine) maintain(ctx context.Context) {
	retry, again := firstRetry, firstRefresh
	var refreshed time.Time
	for {
		wait := maintainTick
		up, good := e.up(time.Now())
		since := time.Since(refreshed)
		switch {
		case !up || good == 0:
			e.lookup(ctx, e.self(), "find_node", nil)
			refreshed, again = time.Now(), firstRefresh
			if _, good = e.up(time.Now()); good == 0 {
				wait, retry = retry, min(2*retry, retryMost)
			} else {
				wait, retry = firstRefresh, firstRetry
			}
		case !e.serving.Load() && !e.busy():
		case since >= refreshEvery || good < 2*bucketSize && since >= again:
			e.lookup(ctx, e.self(), "find_node", nil)
			if e.serving.Load() {
				e.lookup(ctx, randomID(), "find_node", nil)
			}
			refreshed, again = time.Now(), min(2*again, refreshEvery)
			wait = min(wait, again)
		default:
			e.tend(ctx)
			if good < 2*bucketSize {
				wait = min(wait, max(again-since, firstRetry))
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-e.kick:
			retry, again = firstRetry, firstRefresh
		case c := <-e.asked:
			_, _ = e.ask(ctx, c.addr, &query{method: "ping"})
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tend asks a few nodes that have been silent for long.
func (e *engine) tend(ctx context.Context) {
	if !e.serving.Load() && !e.busy() {
		return
	}
	for range pingsPerTick {
		e.mu.Lock()
		c, ok := e.table.questionable(time.Now())
		e.mu.Unlock()
		if !ok {
			return
		}
		if _, err := e.ask(ctx, c.addr, &query{method: "ping"}); err != nil && ctx.Err() != nil {
			return
		}
	}
}
