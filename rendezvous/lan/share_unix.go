//go:build unix

package lan

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// shareAddress lets several processes use one multicast port, such as a system's
// mDNS daemon and kith, each with its own groups.
func shareAddress(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		onlyOwnGroups(int(fd))
	}); cerr != nil {
		return cerr
	}
	return err
}

// alreadyJoined reports whether a group could not be joined because it was.
func alreadyJoined(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

// inUse reports whether a port could not be opened because another program holds it.
func inUse(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

// noRoom reports whether a socket may join no more groups.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ETOOMANYREFS)
}
