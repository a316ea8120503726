package relay

import "syscall"

// notSentLowat is TCP_NOTSENT_LOWAT, which package syscall does not name.
const notSentLowat = 0x19

// forceBuffers sets a socket's buffers beyond the system's limit, where we may:
// that needs CAP_NET_ADMIN.
func forceBuffers(c syscall.Conn, size int) {
	setOption(c, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, size)
	setOption(c, syscall.SOL_SOCKET, syscall.SO_SNDBUFFORCE, size)
}
