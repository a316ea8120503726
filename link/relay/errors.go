package relay

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/pion/stun/v4"
)

// What can go wrong, for errors.Is. Each says what can be done about it.
var (
	// ErrURL: Config.URL can not be read.
	ErrURL = errors.New("relay: not the address of a TURN server")
	// ErrUnreachable: no address of the server answered.
	ErrUnreachable = errors.New("relay: the server does not answer; check its address, or try turns:... or turn:...?transport=tcp")
	// ErrTLS: the server's certificate is not the one that was expected.
	ErrTLS = errors.New("relay: the server's certificate is not trusted; check the name, or the pin, or this device's clock")
	// ErrCredentials: the server refuses the user, the password or the shared secret.
	ErrCredentials = errors.New("relay: the server refuses the credentials; check user and password, or the shared secret and the clocks")
	// ErrQuota: the user has too many allocations (486).
	ErrQuota = errors.New("relay: this user's quota on the server is reached; wait, or close relays on other devices")
	// ErrFull: the server has no capacity left (508).
	ErrFull = errors.New("relay: the server is full; wait, or use another one")
	// ErrForbidden: the server does not relay to that peer (403).
	ErrForbidden = errors.New("relay: the server forbids this peer's address; allow it in the server's configuration, or use another server")
	// ErrFamily: the relayed address and the peer's are not both IPv4 or both IPv6.
	ErrFamily = errors.New("relay: the peer's address is of another IP version than the relayed address")
	// ErrBusy: too many new peers at once, or too many peers. Send again later.
	ErrBusy = errors.New("relay: too many new peers at once; send again later")
	// ErrTooLong: a packet that fits no datagram.
	ErrTooLong = errors.New("relay: the packet is too long")
	// ErrLost: the server has gone, or forgot the allocation. Dial again.
	ErrLost = errors.New("relay: lost; dial again")
	// ErrClosed: after Close. It is also net.ErrClosed.
	ErrClosed = fmt.Errorf("relay: %w", net.ErrClosed)
)

// errSilent: a request was not answered in time.
var errSilent = errors.New("no answer")

// errRefused: nobody listens at the server's port.
var errRefused = errors.New("the port is closed")

// A ServerError is an error response of the server (RFC 8489 section 14.8) that
// none of this package's errors stands for. It wraps the one that does, if any.
type ServerError struct {
	// Request is what was asked for, as "Allocate".
	Request string
	// Code is the error number, 300 to 699.
	Code  int
	cause error
}

// Error says what was refused. The server's own reason phrase is left out: it is
// foreign text and says no more than the code.
func (e *ServerError) Error() string {
	text := "the server answered " + strconv.Itoa(e.Code) + " to " + e.Request
	if e.cause != nil {
		return e.cause.Error() + " (" + text + ")"
	}
	return "relay: " + text
}

// Unwrap returns the error of this package that the code stands for, or nil.
func (e *ServerError) Unwrap() error { return e.cause }

// refusal makes an error of an error response.
func refusal(method stun.Method, code int) *ServerError {
	e := &ServerError{Request: method.String(), Code: code}
	switch {
	case code == 400 && method == stun.MethodAllocate, // what pion's server says of a wrong password
		code == int(stun.CodeUnauthorized), code == int(stun.CodeWrongCredentials):
		e.cause = ErrCredentials
	case code == int(stun.CodeForbidden):
		e.cause = ErrForbidden
	case code == int(stun.CodeAllocMismatch):
		e.cause = ErrLost
	case code == int(stun.CodeAddrFamilyNotSupported), code == int(stun.CodePeerAddrFamilyMismatch):
		e.cause = ErrFamily
	case code == int(stun.CodeAllocQuotaReached):
		e.cause = ErrQuota
	case code == int(stun.CodeInsufficientCapacity):
		e.cause = ErrFull
	}
	return e
}

// codeOf returns the code of an error response in err's chain, or 0.
func codeOf(err error) int {
	if e, ok := errors.AsType[*ServerError](err); ok {
		return e.Code
	}
	return 0
}
