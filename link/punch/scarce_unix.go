//go:build unix

package punch

import (
	"errors"

	"golang.org/x/sys/unix"
)

// scarce reports whether the system has no more sockets to give.
func scarce(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}
