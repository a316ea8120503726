//go:build !windows

package netif

import "syscall"

// ownSession keeps a terminal's Ctrl-C from a process.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
