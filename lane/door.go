package lane

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	doorIdle     = 2 * time.Minute // longer than noLaneFor: who tries again finds a mapped port
	helloTime    = 2 * time.Second // for a caller to say what it is called by
	callTime     = 5 * time.Second // for its handshake
	maxHellos    = 64              // callers that have not said it yet
	maxHellosOne = 2 * maxRaces    // of these from one address: a device dials for both sides' lanes
	acceptPause  = 100 * time.Millisecond
)

// A door is the TCP listener of lanes. It is open while somebody is invited, and for
// doorIdle after that.
type door struct {
	s *Service

	mu     sync.Mutex // guards what follows
	closed bool
	ln     net.Listener
	port   uint16
	users  int
	idle   *time.Timer
	served chan struct{} // closed when the last listener has been left
	calls  []*caller     // that nobody knows yet, oldest first
	known  map[*caller]struct{}
}

// A caller is a connection from anybody.
type caller struct {
	base *base
	from netip.Addr
}

// enter opens the door, if it is not open, and returns its port. exit must follow.
// It errs if the system gives no listener.
func (d *door) enter(ctx context.Context) (port uint16, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, net.ErrClosed
	}
	if d.ln == nil {
		ln, err := d.s.cfg.ListenTCP(ctx)
		if err != nil {
			return 0, err
		}
		at, err := netip.ParseAddrPort(ln.Addr().String())
		if err == nil {
			before, served := d.served, make(chan struct{})
			err = d.s.start(func() {
				defer close(served)
				if before != nil {
					<-before // so that Listening hears of one after the other
				}
				d.serve(ln, at.Port())
			})
			d.served = served
		}
		if err != nil {
			ln.Close()
			return 0, err
		}
		d.ln, d.port = ln, at.Port()
	}
	if d.idle != nil {
		d.idle.Stop()
		d.idle = nil
	}
	d.users++
	return d.port, nil
}

// exit says that what entered needs the door no longer.
func (d *door) exit() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users--; d.users > 0 || d.closed {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(doorIdle, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.idle == t { // nobody has entered meanwhile
			d.shut()
		}
	})
	d.idle = t
}

// shut closes the listener; connections that came in are left alone.
func (d *door) shut() {
	if d.idle != nil {
		d.idle.Stop()
		d.idle = nil
	}
	if d.ln != nil {
		d.ln.Close()
		d.ln, d.port = nil, 0
	}
}

// close shuts the door for good and drops all callers.
func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.shut()
	for _, c := range d.calls {
		c.base.Close()
	}
	for c := range d.known {
		c.base.Close()
	}
}

func (d *door) serve(ln net.Listener, port uint16) {
	if d.s.cfg.Listening != nil {
		d.s.cfg.Listening(port)
		defer d.s.cfg.Listening(0)
	}
	for {
		conn, err := ln.Accept()
		if err == nil {
			d.admit(conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of descriptors, most likely: the listener stays.
		d.s.cfg.Logger.Warn("accept failed", "err", err)
		d.mu.Lock()
		over := d.ln != ln
		d.mu.Unlock()
		if over {
			return
		}
		<-time.After(acceptPause)
	}
}

// admit lets a connection in, at the cost of an older one if there are too many.
func (d *door) admit(conn net.Conn) {
	c := &caller{base: &base{Conn: conn}}
	if at, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		c.from = at.Addr().Unmap()
	}
	c.base.mute.Store(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		conn.Close()
		return
	}
	same := 0
	for _, o := range d.calls {
		if o.from == c.from {
			same++
		}
	}
	if same >= maxHellosOne || len(d.calls) >= maxHellos {
		// The oldest has had the most time to say something.
		i := slices.IndexFunc(d.calls, func(o *caller) bool { return same < maxHellosOne || o.from == c.from })
		d.calls[i].base.Close()
		d.calls = slices.Delete(d.calls, i, i+1)
	}
	if err := d.s.start(func() { d.receive(c) }); err != nil {
		conn.Close()
		return
	}
	d.calls = append(d.calls, c)
}

// greet takes a caller from those that nobody knows.
func (d *door) greet(c *caller) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = slices.DeleteFunc(d.calls, func(o *caller) bool { return o == c })
	if d.closed {
		c.base.Close()
		return
	}
	if d.known == nil {
		d.known = make(map[*caller]struct{})
	}
	d.known[c] = struct{}{}
}

// gone is for a caller that the door has nothing to do with any more.
func (d *door) gone(c *caller) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = slices.DeleteFunc(d.calls, func(o *caller) bool { return o == c })
	delete(d.known, c)
}

// receive is the listening side's handshake. Until the caller has named an
// invitation, nothing is sent and no key is computed.
func (d *door) receive(c *caller) {
	defer d.gone(c)
	ctx, cancel := context.WithTimeout(d.s.ctx, callTime)
	defer cancel()
	c.base.SetDeadline(time.Now().Add(helloTime))
	var inv *invite
	t := tls.Server(c.base, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if inv = d.s.ledger.call(hello.ServerName, time.Now()); inv == nil {
				return nil, errStranger
			}
			d.greet(c)
			c.base.SetDeadline(time.Now().Add(callTime))
			select {
			case <-inv.pinned: // the answer inside the tunnel may be slower than the caller
			case <-inv.gone:
				return nil, errLate
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			c.base.mute.Store(false)
			return inv.config(), nil
		},
	})
	if err := t.HandshakeContext(ctx); err != nil {
		c.base.Close()
		return
	}
	s, err := newSession(t, c.base)
	if err != nil {
		c.base.Close()
		return
	}
	inv.welcome(s)
}
