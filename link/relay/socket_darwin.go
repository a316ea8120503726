package relay

import "syscall"

// notSentLowat is TCP_NOTSENT_LOWAT, which package syscall does not name.
const notSentLowat = 0x201

// forceBuffers does nothing: only Linux has limits for the privileged.
func forceBuffers(syscall.Conn, int) {}
