package doctor

import (
	"errors"

	"golang.org/x/sys/windows"
)

func deviceUnreachable(err error) bool { return errors.Is(err, windows.WSAEHOSTUNREACH) }

// deviceNoWay reports whether the system has no route.
func deviceNoWay(err error) bool {
	return errors.Is(err, windows.WSAENETUNREACH) || errors.Is(err, windows.WSAEHOSTUNREACH) || errors.Is(err, windows.WSAEADDRNOTAVAIL)
}

// deviceForbidden reports whether the system forbids to send.
func deviceForbidden(err error) bool { return errors.Is(err, windows.WSAEACCES) }

func deviceTaken(err error) bool { return errors.Is(err, windows.WSAEADDRINUSE) }

func deviceFull(err error) bool { return errors.Is(err, windows.ERROR_DISK_FULL) }

var (
	errDeviceRefused  error = windows.WSAECONNREFUSED //nolint:gochecknoglobals // the system's name
	errDeviceTooLarge error = windows.WSAEMSGSIZE     //nolint:gochecknoglobals // the system's name
)
