package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// wsaConnReset is what Windows says when nobody listens at a UDP port, and
// wsaConnRefused at a TCP port. Elsewhere no error has these numbers.
const (
	wsaConnReset   = syscall.Errno(10054)
	wsaConnRefused = syscall.Errno(10061)
)

// isRefused reports whether the system says that nobody listens at the server's
// port: it is not running, or just being started again.
func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, wsaConnReset) || errors.Is(err, wsaConnRefused)
}

// refused tells all requests under way that nobody listens.
func (t *transactions) refused() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.m {
		select {
		case c <- nil:
		default:
		}
	}
}

// reach connects to an address. One that refuses is tried again for a while: a
// server that is started again is soon there. next is called at the first refusal.
func reach(ctx context.Context, network string, to netip.AddrPort, p pace, next func()) (net.Conn, error) {
	var d net.Dialer // TCP_NODELAY is package net's default
	start := time.Now()
	for first := true; ; first = false {
		c, err := d.DialContext(ctx, network, to.String())
		if err == nil || !isRefused(err) || time.Since(start) >= p.patience {
			return c, err
		}
		if first {
			next()
		}
		timer := time.NewTimer(p.again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
	}
}
