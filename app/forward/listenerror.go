package forward

import (
	"errors"
	"fmt"
	"syscall"
)

// A ListenError is why a port cannot be listened on, and what to do.
type ListenError struct {
	Address string // host:port
	Problem string // in a few words; empty if Err says it best
	Hint    string // what the user can do; empty if nothing is known
	Err     error  // the system's
}

func (e *ListenError) Error() string {
	if e.Problem == "" {
		return "forward: cannot listen: " + e.Err.Error()
	}
	return fmt.Sprintf("forward: cannot listen on %s: %s", e.Address, e.Problem)
}

// Unwrap returns the system's error.
func (e *ListenError) Unwrap() error { return e.Err }

// Windows' own numbers of these errors, which package syscall does not translate.
const (
	windowsAccess   = syscall.Errno(10013)
	windowsNoFamily = syscall.Errno(10047)
	windowsInUse    = syscall.Errno(10048)
	windowsNotAvail = syscall.Errno(10049)
)

func isAny(err error, errs ...syscall.Errno) bool {
	for _, e := range errs {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// InUse reports that somebody has the port that could not be listened on.
func InUse(err error) bool { return isAny(err, syscall.EADDRINUSE, windowsInUse) }

// NotPermitted reports that the system keeps a port from this program.
func NotPermitted(err error) bool { return isAny(err, syscall.EACCES, syscall.EPERM, windowsAccess) }

// NoAddress reports that the machine has no such address, or none of that kind.
func NoAddress(err error) bool {
	return isAny(err, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT, windowsNotAvail, windowsNoFamily)
}

// explainListen finds the words for what a system says.
func explainListen(address string, err error) error {
	e := &ListenError{Address: address, Err: err}
	switch {
	case InUse(err):
		e.Problem = "port in use"
		e.Hint = "another program, or another kith forward, holds this port: end it, or choose another port (0 takes any that is free)"
	case NotPermitted(err):
		e.Problem = "not permitted"
		e.Hint = "systems keep ports below 1024 for administrators: choose a higher one, for example 8080 instead of 80"
	case NoAddress(err):
		e.Problem = "this machine has no such address"
		e.Hint = "use 127.0.0.1 for this machine alone, or 0.0.0.0 to let others in"
	}
	return e
}
