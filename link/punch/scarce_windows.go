package punch

import (
	"errors"

	"golang.org/x/sys/windows"
)

// scarce reports whether the system has no more sockets to give.
func scarce(err error) bool {
	return errors.Is(err, windows.WSAEMFILE) || errors.Is(err, windows.WSAENOBUFS)
}
