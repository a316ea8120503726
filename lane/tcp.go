package lane

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// A lane whose other side has fallen silent ends after silence and a little more,
// whether it carries data or not, so that its user can go on through the tunnel.
const (
	silence          = 20 * time.Second
	keepaliveIdle    = 10 * time.Second
	keepaliveBetween = 5 * time.Second
	keepaliveCount   = 2
)

func keepalive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveBetween, Count: keepaliveCount}
}

// listenTCP and dialTCP leave TCP as the kernel does it, TCP_NODELAY as Go sets it.

func listenTCP(ctx context.Context) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepalive(), Control: userTimeout}
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", ":0")
}

func dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepalive(), Control: userTimeout}
	return d.DialContext(ctx, "tcp", to.String())
}
