package carry

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// byeTime is how long the last words on a control connection may take.
	byeTime = 5 * time.Second
	// partTime is how long the other side's are waited for then.
	partTime = 2 * time.Second
)

// listen serves the control connection until that ends.
func (c *Conn) listen(control net.Conn) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := make(chan struct{})
	defer close(stop)
	wg.Go(func() { c.speak(control, stop) })
	err := c.hear(control)
	control.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.err != nil {
		return
	}
	if c.m.free() && c.m.send == tunnel && !errors.Is(err, ErrProtocol) {
		// Nothing depends on it.
		c.control = nil
		c.broadcast()
		return
	}
	if errors.Is(err, io.EOF) {
		c.away = syscall.ECONNRESET
		if c.lane != nil {
			abort(c.lane)
		}
		c.broadcast()
		return
	}
	c.fatal(err)
}

// hear takes messages until there is an error.
func (c *Conn) hear(control net.Conn) error {
	var b [Size]byte
	for {
		if _, err := io.ReadFull(control, b[:]); err != nil {
			return err
		}
		g, err := parse(b)
		if err != nil {
			return err
		}
		if err := c.take(g); err != nil {
			return err
		}
	}
}

// take acts on one message.
func (c *Conn) take(g message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil // all that is waited for is the end
	}
	was := c.m.gone
	again, err := c.m.receive(g, time.Now(), c.cfg.Dialer)
	if err != nil {
		return err
	}
	switch g.kind {
	case kindSwitch, kindEnd: // a Read may wait at the wrong place
		past := time.Unix(1, 0)
		if c.inTunnel && !c.poked {
			c.poked = true
			_ = c.t.SetReadDeadline(past)
		}
		if c.m.busy && !c.lanePoke && g.kind == kindEnd {
			c.lanePoke = true
			_ = c.lane.SetReadDeadline(past)
		}
	case kindAck:
		if c.m.switched {
			c.held.drop(c.m.acked)
		}
	case kindBack:
		if c.m.gone && !was {
			c.cfg.Logger.Debug("lane left by the other device", "epoch", g.epoch)
			if c.lane != nil {
				abort(c.lane)
			}
			if c.cfg.Wanted != nil && c.next < 0 {
				c.next = int64(c.m.sent+c.m.got) + c.cfg.After
			}
		}
	}
	c.broadcast()
	if again {
		return c.cfg.Go(c.again)
	}
	return nil
}

// speak sends what the machine has to say, and looks after the lane, until stop.
func (c *Conn) speak(control net.Conn, stop <-chan struct{}) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var b []byte
	for ticks := true; ; {
		c.mu.Lock()
		lane := !c.m.free()
		c.mu.Unlock()
		switch {
		case lane && !ticks:
			tick.Reset(tickEvery)
		case !lane && ticks: // a connection without a lane costs nothing
			tick.Stop()
		}
		ticks = lane
		select {
		case <-stop:
			return
		case <-c.say:
		case <-tick.C:
			c.mu.Lock()
			if c.m.tick(time.Now()) {
				c.leave("silent")
			}
			c.mu.Unlock()
		}
		c.mu.Lock()
		b = b[:0]
		for _, m := range c.m.out {
			e := m.encode()
			b = append(b, e[:]...)
		}
		c.m.out = c.m.out[:0]
		bye := c.bye
		c.mu.Unlock()
		var err error
		if len(b) > 0 {
			_, err = control.Write(b)
		}
		switch {
		case err != nil:
			control.Close() // hear ends, and says why
			return
		case bye:
			farewell(control)
			return
		}
	}
}

// farewell ends a control connection on which all is said. It is closed when the other
// side has closed it, too: closing it with something unread would reset it, which the
// other side must take for an end that lost something.
func farewell(control net.Conn) {
	half, ok := control.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || control.SetReadDeadline(time.Now().Add(partTime)) != nil {
		control.Close()
	}
}
