package carry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a Conn needs. Tunnel must be set.
type Config struct {
	// Tunnel is the connection inside the tunnel. The Conn closes it.
	Tunnel net.Conn
	// Dialer is set on the side that dialed Tunnel, which opens lanes.
	Dialer bool
	// Wanted is called when the connection has carried After bytes and is not on a
	// lane, and then not until Later. It must not block. Default: nobody is told.
	Wanted func()
	After  int64 // bytes; default 4 MiB
	// Over is called once when the connection has ended.
	Over func()
	// Go starts what ends with the connection, and errs if it cannot; required for
	// Attach.
	Go func(func()) error
	// Sent and Received count the bytes that lanes carry; nil counts nothing.
	Sent, Received *atomic.Uint64
	Logger         *slog.Logger // default: discard
}

const (
	defaultAfter = 4 << 20
	// tickEvery is how often a lane is looked after, and how long an acknowledgement
	// waits at most.
	tickEvery = 200 * time.Millisecond
	// lingerTime is how long what was written before Close may take to get off the lane.
	lingerTime = time.Minute
)

// A Conn is a connection that is inside the tunnel, or on a lane. It is safe for
// concurrent use as every net.Conn is. It has the addresses of the tunnel.
type Conn struct {
	cfg Config
	t   net.Conn

	read  lock // one Read at a time
	write lock // one Write at a time
	piece lock // one use of a carrier for writing; after write

	mu       sync.Mutex // guards what follows
	m        machine
	held     backlog
	lane     net.Conn // of this epoch, if bound
	control  net.Conn
	say      chan struct{} // there is something in m.out
	changed  chan struct{} // closed when something here has
	err      error         // why the connection has ended
	away     error         // the other side has closed: what is in the tunnel can be read
	closed   bool          // Close was called
	over     bool
	next     int64 // bytes at which Wanted is called; less than 0: it was
	inTunnel bool  // a Read of the tunnel is under way
	poked    bool  // its deadline was set to wake it
	lanePoke bool  // the same of the lane
	readBy   time.Time
	writeBy  time.Time
	bye      bool // the control connection ends when all is said
	byLane   bool // a write to the lane is under way
	resends  bool // the tunnel's write deadline is not the program's
	alarm    *time.Timer
}

var (
	_ net.Conn      = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
)

// New returns a connection that is inside the tunnel.
func New(cfg Config) *Conn {
	if cfg.After <= 0 {
		cfg.After = defaultAfter
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Conn{
		cfg: cfg, t: cfg.Tunnel, read: newLock(), write: newLock(), piece: newLock(),
		say: make(chan struct{}, 1), changed: make(chan struct{}), next: cfg.After,
	}
	if cfg.Wanted == nil {
		c.next = -1
	}
	return c
}

// A lock is a mutex that one can wait for until something else happens.
type lock chan struct{}

func newLock() lock  { return make(lock, 1) }
func (l lock) free() { <-l }

// broadcast wakes all that wait for a change; mu is held.
func (c *Conn) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
	if len(c.m.out) > 0 {
		c.poke()
	}
}

// poke has what waits said.
func (c *Conn) poke() {
	select {
	case c.say <- struct{}{}:
	default:
	}
}

// carried is called with mu held after bytes have moved.
func (c *Conn) carried() {
	if c.next >= 0 && int64(c.m.sent+c.m.got) >= c.next && (!c.m.bound || c.m.gone) {
		c.next = -1
		c.cfg.Wanted()
	}
	if len(c.m.out) > 0 {
		c.broadcast()
	}
}

// Later has Config.Wanted called again when another After bytes, times factor, have
// been carried.
func (c *Conn) Later(factor int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.Wanted != nil {
		c.next = int64(c.m.sent+c.m.got) + factor*c.cfg.After
	}
}

// Now has Config.Wanted called at the next byte, if the connection has carried much and is
// on no lane: for when lanes may have become possible.
func (c *Conn) Now() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if total := int64(c.m.sent + c.m.got); c.cfg.Wanted != nil && total >= c.cfg.After {
		c.next = total
	}
}

// Ports returns what the connection is called by in a hello.
func (c *Conn) Ports() Ports {
	port := func(a net.Addr) uint16 {
		if tcp, ok := a.(*net.TCPAddr); ok {
			return uint16(tcp.Port)
		}
		return 0
	}
	near, far := port(c.t.LocalAddr()), port(c.t.RemoteAddr())
	if c.cfg.Dialer {
		return Ports{Dialer: near, Dialed: far}
	}
	return Ports{Dialer: far, Dialed: near}
}

// LocalAddr returns the address inside the tunnel.
func (c *Conn) LocalAddr() net.Addr { return c.t.LocalAddr() }

// RemoteAddr returns the other device's address inside the tunnel.
func (c *Conn) RemoteAddr() net.Addr { return c.t.RemoteAddr() }

func timeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func (c *Conn) opErr(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.t.LocalAddr(), Addr: c.t.RemoteAddr(), Err: err}
}

// passed reports whether a deadline is over.
func passed(by time.Time) bool { return !by.IsZero() && !time.Now().Before(by) }

// wait returns when something has changed, or by has come. It errs with a timeout.
func wait(changed <-chan struct{}, by time.Time) error {
	if by.IsZero() {
		<-changed
		return nil
	}
	if passed(by) {
		return os.ErrDeadlineExceeded
	}
	t := time.NewTimer(time.Until(by))
	defer t.Stop()
	select {
	case <-changed: // perhaps of the deadline
		return nil
	case <-t.C:
		return os.ErrDeadlineExceeded
	}
}

// hold takes a lock, or errs when the deadline has passed or the connection has ended.
func (c *Conn) hold(l lock, op string, by func() time.Time) error {
	for {
		c.mu.Lock()
		deadline, changed, err := by(), c.changed, firstError(c.err, c.away)
		c.mu.Unlock()
		if err != nil && op == "write" {
			return c.opErr(op, err)
		}
		var timer *time.Timer
		var late <-chan time.Time
		if !deadline.IsZero() {
			if passed(deadline) {
				return c.opErr(op, os.ErrDeadlineExceeded)
			}
			timer = time.NewTimer(time.Until(deadline))
			late = timer.C
		}
		taken := false
		select {
		case l <- struct{}{}:
			taken = true
		case <-changed:
		case <-late:
		}
		if timer != nil {
			timer.Stop()
		}
		if taken {
			return nil
		}
	}
}

// Read reads what the other side wrote, as net.Conn says.
func (c *Conn) Read(p []byte) (int, error) {
	select {
	case c.read <- struct{}{}:
	default:
		if err := c.hold(c.read, "read", func() time.Time { return c.readBy }); err != nil {
			return 0, err
		}
	}
	defer c.read.free()
	for {
		c.mu.Lock()
		from, most := c.m.reading()
		err, changed, by, on := c.err, c.changed, c.readBy, c.lane
		switch {
		case c.closed:
			err = net.ErrClosed
		case from == over:
			err = nil
		case err == nil && from != tunnel:
			err = c.away
		}
		if err == nil {
			c.inTunnel, c.m.busy = from == tunnel, from == lane
		}
		c.mu.Unlock()
		if err != nil {
			return 0, c.opErr("read", err)
		}
		var n int
		switch from {
		case over:
			return 0, io.EOF
		case nowhere:
			if err := wait(changed, by); err != nil {
				return 0, c.opErr("read", err)
			}
			continue
		case tunnel:
			n, err = c.t.Read(p[:min(len(p), most)])
			n, err = c.afterTunnel(n, err)
		case lane:
			n, err = on.Read(p[:min(len(p), most)])
			n, err = c.afterLane(n, err)
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// afterTunnel is for what a Read of the tunnel brought.
func (c *Conn) afterTunnel(n int, err error) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inTunnel = false
	if c.poked {
		c.poked = false
		_ = c.t.SetReadDeadline(c.readBy) // what errs here errs in the next Read
	}
	c.m.read(tunnel, n, time.Now())
	c.carried()
	switch {
	case err == nil || n > 0:
		return n, nil
	case errors.Is(err, io.EOF):
		if !c.m.tunnelEnd() {
			return 0, c.opErr("read", io.ErrUnexpectedEOF)
		}
		return 0, io.EOF
	case timeout(err) && passed(c.readBy):
		return 0, c.opErr("read", os.ErrDeadlineExceeded)
	case timeout(err), c.err != nil: // Read says what it is
		return 0, nil
	}
	return 0, err
}

// afterLane is the same for the lane.
func (c *Conn) afterLane(n int, err error) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanePoke {
		c.lanePoke = false
		_ = c.lane.SetReadDeadline(c.readBy)
	}
	c.m.read(lane, n, time.Now())
	if n > 0 && c.cfg.Received != nil {
		c.cfg.Received.Add(uint64(n))
	}
	if n == 0 && err != nil && !timeout(err) {
		c.leave("read: " + err.Error())
	}
	c.broadcast()
	if n == 0 && timeout(err) && passed(c.readBy) {
		return 0, c.opErr("read", os.ErrDeadlineExceeded)
	}
	return n, nil
}

// leave gives the lane up; mu is held.
func (c *Conn) leave(why string) {
	if c.m.epoch == 0 || c.m.gone {
		return
	}
	c.cfg.Logger.Debug("lane left", "epoch", c.m.epoch, "why", why)
	c.m.leave()
	if c.lane != nil {
		abort(c.lane)
	}
	if c.cfg.Wanted != nil {
		c.next = int64(c.m.sent+c.m.got) + c.cfg.After
	}
	c.broadcast()
}

// Leave goes back to the tunnel, without losing anything: for when the network has
// changed.
func (c *Conn) Leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m.bound {
		c.leave("asked for")
	}
}

// OnLane reports whether there is a lane, or there was one and what was written to it is
// still kept.
func (c *Conn) OnLane() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m.bound && !c.m.gone || c.m.send != tunnel
}

// abort ends a connection at once, where it can.
func abort(conn net.Conn) {
	if a, ok := conn.(interface{ Abort() }); ok {
		a.Abort()
		return
	}
	conn.Close()
}

// Attach gives the Conn its control connection, on which hello and status have been
// said. It errs, and closes control, if there is one, or the connection has ended.
func (c *Conn) Attach(control net.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.err
	if c.closed || c.over {
		err = net.ErrClosed
	}
	if err == nil && c.control != nil {
		err = ErrProtocol
	}
	if err == nil {
		err = control.SetDeadline(time.Time{})
	}
	if err == nil {
		err = c.cfg.Go(func() { c.listen(control) })
	}
	if err != nil {
		control.Close()
		return err
	}
	c.control = control
	return nil
}

// Attached reports whether there is a control connection.
func (c *Conn) Attached() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.control != nil
}

// Join brings a new lane, on the side that dialed, until ctx ends. It errs, and closes
// the lane, if that is not wanted by now, here or there.
func (c *Conn) Join(ctx context.Context, to net.Conn) error {
	c.mu.Lock()
	err := c.err
	if c.closed || c.control == nil {
		err = net.ErrClosed
	}
	if err == nil {
		err = c.m.start(c.m.epoch + 1)
	}
	epoch := c.m.epoch
	c.mu.Unlock()
	if err != nil {
		to.Close()
		return err
	}
	stop := context.AfterFunc(ctx, func() { abort(to) })
	defer stop()
	b := names(kindLane, c.Ports(), epoch)
	if _, err = to.Write(b[:]); err == nil {
		var answer [1]byte
		if _, err = io.ReadFull(to, answer[:]); err == nil && answer[0] != kindLane {
			err = ErrProtocol
		}
	}
	if err == nil && !stop() {
		err = ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && !c.bind(to) {
		err = net.ErrClosed
	}
	if err != nil {
		abort(to)
		c.leave("not joined: " + err.Error())
	}
	return err
}

// Take brings a lane that the other device opened, whose beginning ReadLane has read.
// It errs, and closes the lane, if it is not the next.
func (c *Conn) Take(epoch uint32, from net.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.err
	switch {
	case c.closed || c.control == nil:
		err = net.ErrClosed
	case c.cfg.Dialer:
		err = ErrProtocol
	}
	if err == nil {
		err = c.m.start(epoch)
	}
	if err == nil {
		// One byte into an empty buffer does not block.
		if _, err = from.Write([]byte{kindLane}); err == nil && !c.bind(from) {
			err = net.ErrClosed
		}
		if err != nil {
			c.leave("not taken: " + err.Error())
		}
	}
	if err != nil {
		abort(from)
	}
	return err
}

// bind begins to use a lane; mu is held.
func (c *Conn) bind(to net.Conn) bool {
	if c.err != nil || c.closed || !c.m.bind(time.Now()) {
		return false
	}
	c.lane, c.lanePoke = to, false
	_ = to.SetDeadline(time.Time{}) // what errs here errs in the next use
	_ = to.SetReadDeadline(c.readBy)
	c.poke() // to look after it
	c.broadcast()
	return true
}
