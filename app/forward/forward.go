// Package forward carries TCP and UDP ports between two devices. It is given ways
// to dial and listeners to accept from; it knows nothing of the network between.
//
// ServeTCP and ServeUDP accept at a port and carry each connection, or each flow of
// datagrams, to what a DialFunc opens. On the device that asks (kith forward) the
// listener is the system's and the dial goes to the other device; on the device
// that offers (kith allow) the dial is DialLocal or DialLocalUDP. Splice and SpliceUDP
// carry one pair of connections.
//
//	program ── listener ── ServeTCP ── DialFunc ══ tunnel ══ Splice ── DialLocal ── service
//
// Rights: who offers a port registers each connection in a Live, which asks whether
// it is allowed, and closes what no longer is the moment a right is withdrawn. Ask
// and ServeRights let the asking device tell its user why a port is closed.
//
// Set runs the forwards of a configuration, each apart from the others, and those of
// the other direction (kith expose), for which package expose listens.
//
// A flow of UDP is what comes from one address; it ends when nothing has gone
// either way for two minutes. Everything that the other side can fill is bounded:
// connections, flows, and the datagrams that wait.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// A Protocol is "tcp" or "udp".
type Protocol string

// The two protocols whose ports can be forwarded.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// A DialFunc opens one connection to the port that is forwarded to. For UDP each
// Read and each Write of the connection is one datagram. It errs if there is no way
// there.
type DialFunc func(ctx context.Context) (net.Conn, error)

// ErrTooMany reports that as many connections are open as may be.
var ErrTooMany = errors.New("forward: too many connections at once")

// Options are what ServeTCP and ServeUDP do beside carrying. The zero value is
// useful.
type Options struct {
	// Failed is told, from any goroutine, why a connection was not carried; nil
	// tells nobody.
	Failed func(error)
	// Counters count what is carried; nil counts nothing.
	Counters *Counters
	// MaxConns is how many connections, or flows of UDP, may be open at once;
	// default 1024 connections and 512 flows. One more connection is refused; one
	// more flow ends the flow that has been silent for longest.
	MaxConns int
	// Admit decides on who connects before anything is dialed; it may keep c to
	// close it later, and done is called when c has ended. It errs to refuse; a
	// Live is made for this. nil admits everybody.
	Admit func(from net.Addr, c io.Closer) (done func(), err error)
	// Idle is how long a flow of UDP lives without a datagram; default 2 minutes.
	Idle time.Duration
}

// Limits that hold where Options say nothing.
const (
	defaultMaxConns = 1024
	defaultMaxFlows = 512
	defaultIdle     = 2 * time.Minute
)

func (o *Options) admit(from net.Addr, c io.Closer) (done func(), err error) {
	if o.Admit == nil {
		return func() {}, nil
	}
	return o.Admit(from, c)
}

func (o *Options) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	o.Counters.fail()
	if o.Failed != nil {
		o.Failed(err)
	}
}

// dialLocalTimeout bounds a connection to this machine's own port: localhost
// answers at once or not at all.
const dialLocalTimeout = 5 * time.Second

// DialLocal connects to a TCP port of this machine's localhost, over IPv4 and
// then IPv6. It errs if nothing listens there.
func DialLocal(ctx context.Context, port uint16) (net.Conn, error) {
	return dialLocal(ctx, TCP, port)
}

// DialLocalUDP returns a connection to a UDP port of this machine's localhost, over
// IPv4, or over IPv6 where there is no IPv4: without a datagram nobody can tell
// whether somebody listens. It errs if the system has no localhost.
func DialLocalUDP(ctx context.Context, port uint16) (net.Conn, error) {
	return dialLocal(ctx, UDP, port)
}

func dialLocal(ctx context.Context, protocol Protocol, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLocalTimeout)
	defer cancel()
	var d net.Dialer
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, string(protocol), net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("forward: localhost port %d: %w", port, errors.Join(errs...))
}

// Serve is ServeTCP with nothing but failed, which may be nil. It returns nil when
// ctx ended, and otherwise the listener's error.
func Serve(ctx context.Context, ln net.Listener, dial DialFunc, failed func(error)) error {
	return ServeTCP(ctx, ln, dial, Options{Failed: failed})
}

// ServeTCP accepts connections from ln and carries each to what dial opens, until
// ctx ends or ln fails. A connection whose dial fails is reset. ServeTCP closes ln
// and waits for all connections; it returns nil when ctx ended, and otherwise the
// listener's error.
func ServeTCP(ctx context.Context, ln net.Listener, dial DialFunc, o Options) error {
	return o.Accept(ctx, ln, func(ctx context.Context, conn net.Conn) { o.serve(ctx, conn, dial) })
}

// Accept accepts connections from ln and gives each to handle, on a goroutine of its
// own, until ctx ends or ln fails; handle closes it, and returns when its context
// ends. Of the Options, MaxConns and Failed are used. Accept closes ln and waits for
// all connections; it returns nil when ctx ended, and otherwise the listener's error.
func (o *Options) Accept(ctx context.Context, ln net.Listener, handle func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	most := o.MaxConns
	if most <= 0 {
		most = defaultMaxConns
	}
	places := make(chan struct{}, most)
	var pause backoff
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
		case ctx.Err() != nil:
			return nil
		case passing(err):
			pause.wait(ctx)
			continue
		default:
			return fmt.Errorf("forward: accept: %w", err)
		}
		select {
		case places <- struct{}{}:
		default:
			Abort(conn)
			o.fail(ctx, ErrTooMany)
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			handle(ctx, conn)
		})
	}
}

// serve carries one connection.
func (o *Options) serve(ctx context.Context, conn net.Conn, dial DialFunc) {
	done, err := o.admit(conn.RemoteAddr(), conn)
	if err != nil {
		Abort(conn)
		o.fail(ctx, err)
		return
	}
	defer done()
	far, err := dial(ctx)
	if err != nil {
		Abort(conn)
		o.fail(ctx, err)
		return
	}
	o.Counters.Carry(ctx, conn, far)
}

// passing reports whether a listener may work again: the process has too many open
// files, or a caller went before it was accepted.
func passing(err error) bool {
	var temporary interface{ Temporary() bool }
	return errors.As(err, &temporary) && temporary.Temporary() && !errors.Is(err, net.ErrClosed)
}

// backoff is how long the next pause after a passing error is.
type backoff time.Duration

// wait pauses, longer each time up to a second, or until ctx ends.
func (b *backoff) wait(ctx context.Context) {
	*b = min(max(2**b, backoff(5*time.Millisecond)), backoff(time.Second))
	t := time.NewTimer(time.Duration(*b))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
