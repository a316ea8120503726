package lane

import (
	"syscall"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h, which package syscall lacks.
const tcpUserTimeout = 18

// userTimeout ends connections whose data is not acknowledged for that long; the
// kernel itself would wait for a quarter of an hour (RFC 5482). What a listener is
// set to, its connections are.
func userTimeout(_, _ string, c syscall.RawConn) error {
	// A kernel that lacks the option keeps its own time.
	return c.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(silence.Milliseconds()))
	})
}
