package lane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/kithproject/kith/identity"
)

var (
	// ErrNoLane reports that no direct TCP connection is possible for now: use the
	// tunnel. Open returns it in a *NoLaneError, which says why.
	ErrNoLane = errors.New("lane: no direct TCP connection")
	// ErrRefused reports that the other device does not allow this kind of lane.
	ErrRefused = errors.New("lane: the other device does not allow this")
	// ErrBusy reports that too many lanes are being opened at once, here or there.
	ErrBusy = errors.New("lane: too many lanes are being opened with this device")
	// ErrKind reports a kind that is not 1 to MaxKind printable ASCII characters.
	ErrKind = errors.New("lane: a kind is 1 to 64 printable ASCII characters without spaces")
	// ErrWithdrawn reports that CloseOf ended what was going on with the device.
	ErrWithdrawn = errors.New("lane: closed with the device's rights")
)

var (
	errCut      = fmt.Errorf("lane: cut off: %w", io.ErrUnexpectedEOF)
	errMessage  = errors.New("lane: not a message of this protocol")
	errVersion  = errors.New("lane: the other device speaks another version")
	errStranger = errors.New("lane: not invited")
	errKey      = errors.New("lane: another key than the invited one")
	errProof    = errors.New("lane: the other side does not know the token")
	errLate     = errors.New("lane: the invitation was used or has expired")
)

// A Try is one endpoint that was dialed in vain.
type Try struct {
	To     netip.AddrPort
	Theirs bool // the other device dialed this one
	Reason Reason
}

// String says what was tried and why it failed.
func (t Try) String() string {
	if t.Theirs {
		return fmt.Sprintf("from there to %s: %s", t.To, t.Reason)
	}
	return fmt.Sprintf("to %s: %s", t.To, t.Reason)
}

// A NoLaneError says why there is no lane to a device. errors.Is finds ErrNoLane in
// it, and what Err wraps.
type NoLaneError struct {
	Peer   identity.DeviceID
	Tries  []Try
	Err    error // why nothing was tried, or nil
	Cached bool  // nothing was done now: an earlier Open found this out
}

func (e *NoLaneError) Error() string {
	var why []string
	if e.Err != nil {
		why = append(why, e.Err.Error())
	}
	for _, t := range e.Tries {
		why = append(why, t.String())
	}
	if len(why) == 0 {
		why = append(why, "neither side has an address to offer")
	}
	return fmt.Sprintf("%v to %s: %s", ErrNoLane, e.Peer.Short(), strings.Join(why, "; "))
}

// Unwrap returns ErrNoLane and Err.
func (e *NoLaneError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrNoLane}
	}
	return []error{ErrNoLane, e.Err}
}

// A Reason is why an endpoint could not be used, as one byte of the report.
type Reason uint8

// The reasons. Other values, of later versions, print as "failed".
const (
	ReasonOther       Reason = 0
	ReasonTimeout     Reason = 1 // no answer: a firewall, or nobody has the address
	ReasonRefused     Reason = 2 // somebody answered that nothing listens there
	ReasonUnreachable Reason = 3 // there is no route
	ReasonStranger    Reason = 4 // something listens that is not the invited device
	ReasonNotUsable   Reason = 5 // the address is of a kind that is never dialed
)

func (r Reason) String() string {
	switch r {
	case ReasonTimeout:
		return "no answer"
	case ReasonRefused:
		return "refused"
	case ReasonUnreachable:
		return "unreachable"
	case ReasonStranger:
		return "something else answers there"
	case ReasonNotUsable:
		return "an address that is not dialed"
	}
	return "failed"
}

// dialReason says why a TCP connection failed.
func dialReason(err error) Reason {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ReasonRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return ReasonUnreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return ReasonTimeout
	}
	return ReasonOther
}

// handshakeReason says why TLS on a connection that stood failed.
func handshakeReason(err error) Reason {
	if r := dialReason(err); r == ReasonTimeout {
		return r
	}
	return ReasonStranger
}
