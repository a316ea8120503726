// Package forward carries TCP ports between two devices: a port of this machine
// to a port of the other's localhost. It is given a way to dial the other
// device and listeners to accept from; it knows nothing of the network between.
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

// A DialFunc opens one connection to the port that is forwarded to.
type DialFunc func(ctx context.Context) (net.Conn, error)

// dialLocalTimeout bounds a connection to this machine's own port: localhost
// answers at once or not at all.
const dialLocalTimeout = 5 * time.Second

// DialLocal connects to a TCP port of this machine's localhost, over IPv4 and
// then IPv6. It errs if nothing listens there.
func DialLocal(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLocalTimeout)
	defer cancel()
	var d net.Dialer
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("forward: localhost port %d: %w", port, errors.Join(errs...))
}

// Serve accepts connections from ln and carries each to what dial opens, until
// ctx ends or ln fails. A dial that fails closes its connection and is given to
// failed, which may be nil. Serve closes ln and waits for all connections; it
// returns nil when ctx ended, and otherwise the listener's error.
func Serve(ctx context.Context, ln net.Listener, dial DialFunc, failed func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("forward: accept: %w", err)
		}
		wg.Go(func() {
			far, err := dial(ctx)
			if err != nil {
				conn.Close()
				if failed != nil && ctx.Err() == nil {
					failed(err)
				}
				return
			}
			Splice(ctx, conn, far)
		})
	}
}

// halfCloser is a connection whose sending side can end alone.
type halfCloser interface{ CloseWrite() error }

// Splice carries bytes both ways until both directions have ended or ctx ends,
// keeps half-closed connections half-closed, and closes both.
func Splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { carry(a, b) })
	wg.Go(func() { carry(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}

// copyBuffer is the size of the buffer of one direction, in bytes: large enough
// for a full batch of the tunnel's 64 KiB segments.
const copyBuffer = 256 << 10

func carry(dst, src net.Conn) {
	buf := make([]byte, copyBuffer)
	// Only Read and Write are offered, so that no ReadFrom takes a smaller buffer.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
	if err != nil {
		dst.Close()
		src.Close()
		return
	}
	if h, ok := dst.(halfCloser); ok {
		_ = h.CloseWrite()
		return
	}
	dst.Close()
}
