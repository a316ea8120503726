//go:build !linux && !darwin

package relay

import "syscall"

// forceBuffers does nothing: only Linux has limits for the privileged.
func forceBuffers(syscall.Conn, int) {}

// limitUnsent does nothing: the system's own queue it is.
func limitUnsent(syscall.Conn, int) {}
