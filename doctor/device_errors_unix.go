//go:build unix

package doctor

import (
	"errors"

	"golang.org/x/sys/unix"
)

func deviceUnreachable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EHOSTDOWN)
}

// deviceNoWay reports whether the system has no route.
func deviceNoWay(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES)
}

// deviceForbidden reports whether the system forbids to send.
func deviceForbidden(err error) bool { return errors.Is(err, unix.EPERM) }

func deviceTaken(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

func deviceFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

var (
	errDeviceRefused  error = unix.ECONNREFUSED //nolint:gochecknoglobals // the system's name
	errDeviceTooLarge error = unix.EMSGSIZE     //nolint:gochecknoglobals // the system's name
)
