package carry

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Write writes p, as net.Conn says.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.enter(); err != nil {
		return 0, err
	}
	defer c.write.free()
	total := 0
	for {
		n, err := c.put(p[total:], nil)
		if total += n; err != nil || total == len(p) {
			return total, err
		}
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// enter waits for the turn to write.
func (c *Conn) enter() error {
	select {
	case c.write <- struct{}{}:
		return nil
	default:
		return c.hold(c.write, "write", c.deadline)
	}
}

func (c *Conn) deadline() time.Time { return c.writeBy }

// put writes some of p where it belongs. If buf is set, p is its beginning, and put takes
// it over where it says so by setting it to nil.
func (c *Conn) put(p []byte, buf **[chunkSize]byte) (int, error) {
	for {
		if err := c.hold(c.piece, "write", c.deadline); err != nil {
			return 0, err
		}
		c.mu.Lock()
		to, most := c.m.writing(time.Now())
		err, changed, by, on := firstError(c.err, c.away), c.changed, c.writeBy, c.lane
		switch {
		case c.closed:
			err = net.ErrClosed
		case c.m.fin && err == nil:
			err = syscall.EPIPE
		}
		if err != nil {
			c.mu.Unlock()
			c.piece.free()
			return 0, c.opErr("write", err)
		}
		switch {
		case to == tunnel:
			p = p[:min(len(p), chunkSize)]
			c.m.write(len(p))
			c.mu.Unlock()
			n, err := c.t.Write(p)
			c.mu.Lock()
			c.m.wrote(n, time.Now())
			c.carried()
			if err != nil && c.err != nil {
				err = c.opErr("write", c.err)
			}
			c.mu.Unlock()
			c.piece.free()
			return n, err
		case to == lane && most > 0:
			n := c.toLane(on, p[:min(len(p), chunkSize)], buf)
			c.piece.free()
			return n, nil
		}
		// There is no room, or no carrier.
		c.mu.Unlock()
		c.piece.free()
		if err := wait(changed, by); err != nil {
			return 0, c.opErr("write", err)
		}
	}
}

// toLane writes to the lane and keeps what it wrote. It is called with mu held, which it
// releases. What does not get there goes through the tunnel later.
func (c *Conn) toLane(on net.Conn, p []byte, buf **[chunkSize]byte) int {
	if len(p) == 0 {
		c.mu.Unlock()
		return 0
	}
	if len(c.held.chunks) == 0 {
		c.held.start = c.m.sent
	}
	var ch *chunk
	from, n := 0, len(p)
	if buf != nil && n >= chunkSize/2 {
		ch = c.held.own(*buf, n)
		*buf = nil
	} else {
		ch, from, n = c.held.add(p)
	}
	ch.writing, c.byLane = true, true
	c.m.wrote(n, time.Now())
	memory := ch.buf
	if len(c.m.out) > 0 {
		c.broadcast()
	}
	c.setAlarm()
	c.mu.Unlock()

	_, err := on.Write(memory[from : from+n])

	c.mu.Lock()
	defer c.mu.Unlock()
	ch.writing, c.byLane = false, false
	if ch.from == ch.to { // acknowledged meanwhile
		c.held.forget(ch)
	}
	if err != nil {
		c.leave("write: " + err.Error())
	}
	if c.cfg.Sent != nil {
		c.cfg.Sent.Add(uint64(n))
	}
	return n
}

// setAlarm has a write to the lane end with the program's deadline: TLS cannot go on
// after one of its own. mu is held.
func (c *Conn) setAlarm() {
	if c.alarm != nil {
		c.alarm.Stop()
		c.alarm = nil
	}
	if !c.byLane || c.writeBy.IsZero() {
		return
	}
	c.alarm = time.AfterFunc(time.Until(c.writeBy), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.byLane && passed(c.writeBy) {
			c.leave("a program's deadline")
		}
	})
}

// smallRead is how much is read while little comes, in bytes: connections that wait hold
// no more.
const smallRead = 8 << 10

// ReadFrom writes what it reads from r until io.EOF, as io.ReaderFrom says. Large reads
// go into memory that is kept for the lane as it is. An error of writing is a
// *net.OpError whose Op is "write".
func (c *Conn) ReadFrom(r io.Reader) (total int64, err error) {
	var large *[chunkSize]byte
	var small []byte
	defer func() {
		if large != nil {
			chunks.Put(large)
		}
	}()
	for much := true; ; {
		var n int
		var readErr error
		if much {
			if large == nil {
				large = chunks.Get().(*[chunkSize]byte)
			}
			n, readErr = r.Read(large[:])
		} else {
			if large != nil {
				chunks.Put(large)
				large = nil
			}
			if small == nil {
				small = make([]byte, smallRead)
			}
			n, readErr = r.Read(small)
		}
		var m int
		if much {
			m, err = c.putAll(large[:n], &large)
		} else {
			m, err = c.putAll(small[:n], nil)
		}
		if total += int64(m); err != nil {
			return total, c.asWrite(err)
		}
		if readErr == io.EOF {
			return total, nil
		}
		if readErr != nil {
			return total, readErr
		}
		much = n >= smallRead
	}
}

// putAll writes all of p, as put does.
func (c *Conn) putAll(p []byte, buf **[chunkSize]byte) (done int, err error) {
	if err := c.enter(); err != nil {
		return 0, err
	}
	defer c.write.free()
	for done < len(p) && err == nil {
		var n int
		n, err = c.put(p[done:], buf)
		done, buf = done+n, nil // what is taken over is taken whole, at first
	}
	return done, err
}

func (c *Conn) asWrite(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "write" {
		return err
	}
	return c.opErr("write", err)
}

// CloseWrite ends our stream; the other direction stays. It errs if the connection has
// ended.
func (c *Conn) CloseWrite() error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.write.free()
	return c.finish()
}

// finish says that nothing more is written. It does not wait for what again writes, which
// may be for as long as the other device likes.
func (c *Conn) finish() error {
	c.mu.Lock()
	if err := firstError(c.err, c.away); err != nil {
		c.mu.Unlock()
		return c.opErr("write", err)
	}
	now := c.m.end()
	c.broadcast()
	c.mu.Unlock()
	if now {
		return c.endTunnel()
	}
	return nil
}

func (c *Conn) endTunnel() error {
	if h, ok := c.t.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// again writes to the tunnel what the lane has not brought.
func (c *Conn) again() {
	c.piece <- struct{}{}
	defer c.piece.free()
	c.mu.Lock()
	c.held.drop(c.m.resend)
	all := c.held.chunks
	c.held.chunks = nil
	c.resends = true
	err := c.t.SetWriteDeadline(time.Time{})
	c.mu.Unlock()
	for _, ch := range all {
		if err == nil {
			_, err = c.t.Write(ch.buf[ch.from:ch.to])
		}
		ch.free()
	}
	c.mu.Lock()
	c.resends = false
	_ = c.t.SetWriteDeadline(c.writeBy)
	end := c.m.resent()
	if err != nil {
		c.fatal(err)
	}
	c.broadcast()
	c.mu.Unlock()
	if end {
		_ = c.endTunnel() // what errs here is seen by the next use
	}
}

// SetDeadline bounds reads and writes. It errs if the connection is closed.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds reads. It errs if the connection is closed.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = t
	c.broadcast()
	if c.lane != nil && !c.lanePoke {
		_ = c.lane.SetReadDeadline(t) // it may be gone
	}
	if c.poked {
		return nil
	}
	return c.t.SetReadDeadline(t)
}

// SetWriteDeadline bounds writes. It errs if the connection is closed.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy = t
	c.broadcast()
	c.setAlarm()
	if c.resends {
		return nil
	}
	return c.t.SetWriteDeadline(t)
}

// Close ends the connection. What was written before is still delivered.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed || c.over {
		c.closed = true
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.broadcast()
	reset := false
	if c.m.send != tunnel && firstError(c.err, c.away) == nil {
		if c.cfg.Go(c.linger) == nil {
			c.mu.Unlock()
			c.wake()
			return nil
		}
		reset = !c.m.delivered() // what has come is not the whole
	}
	c.mu.Unlock()
	return c.done(reset)
}

// wake ends what the program waits for after Close.
func (c *Conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inTunnel && !c.poked {
		c.poked = true
		_ = c.t.SetReadDeadline(time.Unix(1, 0))
	}
	if c.m.busy && !c.lanePoke {
		c.lanePoke = true
		_ = c.lane.SetReadDeadline(time.Unix(1, 0))
	}
}

// linger closes when what was written has got off the lane.
func (c *Conn) linger() {
	_ = c.finish() // errs if it has ended
	by := time.Now().Add(lingerTime)
	for {
		c.mu.Lock()
		delivered, changed := c.m.delivered() || firstError(c.err, c.away) != nil, c.changed
		c.mu.Unlock()
		if delivered {
			_ = c.done(false)
			return
		}
		if wait(changed, by) != nil {
			_ = c.done(true)
			return
		}
	}
}

// Abort ends the connection at once with a reset; what was written and has not arrived
// is lost.
func (c *Conn) Abort() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	_ = c.done(true)
}

// done gives everything back.
func (c *Conn) done(reset bool) error {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return nil
	}
	c.over = true
	if c.err == nil {
		c.err = net.ErrClosed
	}
	if c.m.bound && !c.m.gone && c.lane != nil {
		abort(c.lane)
	}
	if c.control != nil && reset {
		abort(c.control) // an end could come too late, when the tunnel ends as well
	} else if c.control != nil {
		c.bye = true
		_ = c.control.SetWriteDeadline(time.Now().Add(byeTime))
		c.poke()
	}
	c.broadcast()
	c.mu.Unlock()
	var err error
	if reset {
		abort(c.t)
	} else {
		err = c.t.Close()
	}
	if c.cfg.Over != nil {
		c.cfg.Over()
	}
	return err
}

// fatal ends the connection because of an error; mu is held.
func (c *Conn) fatal(err error) {
	if c.err != nil {
		return
	}
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
		err = syscall.ECONNRESET
	}
	c.err = err
	c.cfg.Logger.Debug("connection on a lane ended", "err", err)
	if c.lane != nil {
		abort(c.lane)
	}
	if c.control != nil {
		abort(c.control)
	}
	abort(c.t)
	c.broadcast()
}

// forget takes a chunk out that is done with.
func (b *backlog) forget(ch *chunk) {
	if len(b.chunks) > 0 && b.chunks[0] == ch {
		b.chunks = b.chunks[1:]
	}
	ch.free()
}
