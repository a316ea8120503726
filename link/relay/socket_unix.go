//go:build linux || darwin

package relay

import "syscall"

// limitUnsent keeps what the system holds and has not sent yet short, so that
// our own requests, which overtake the data, do not wait for seconds in there.
func limitUnsent(c syscall.Conn, size int) {
	setOption(c, syscall.IPPROTO_TCP, notSentLowat, size)
}

// setOption sets an option that makes things better, but is not needed.
func setOption(c syscall.Conn, level, option, value int) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), level, option, value) })
	}
}
