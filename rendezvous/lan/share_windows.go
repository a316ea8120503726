package lan

import (
	"errors"
	"syscall"

	"golang.org/x/sys/windows"
)

// shareAddress lets several processes use one multicast port, such as a system's
// mDNS daemon and kith.
func shareAddress(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}

// alreadyJoined reports whether a group could not be joined because it was.
func alreadyJoined(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEINVAL)
}

// inUse reports whether a port could not be opened because another program holds it:
// with SO_REUSEADDR the system says so with WSAEACCES.
func inUse(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEACCES)
}

// noRoom reports whether a socket may join no more groups.
func noRoom(err error) bool { return errors.Is(err, windows.WSAENOBUFS) }
