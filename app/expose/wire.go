package expose

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kithproject/kith/app/forward"
)

// Port is the tunnel port of this service, as a port number of TCP and of UDP.
const Port = 27495

// A kind is what a stream is for.
type kind byte

const (
	kindAsk   kind = 1 // the sender asks for a listener, and keeps the stream while it wants it
	kindCarry kind = 2 // the sender has accepted a connection at such a listener
)

// A status is an answer to a hello, or the last byte of a stream that was asked on.
type status byte

const (
	statusOK      status = 0
	statusDenied  status = 1 // there is no right to it
	statusTaken   status = 2 // another program, or another device, holds the port
	statusSystem  status = 3 // the system does not let this program have the port
	statusBusy    status = 4 // as many as there may be
	statusFailed  status = 5 // another reason
	statusUnknown status = 6 // of kindCarry: nothing is exposed by this token
	statusService status = 7 // of kindCarry: the service cannot be reached
)

// Beside a status other than OK, the bytes on a stream that was asked on and answered.
const (
	msgPing = 0x40
	msgPong = 0x41
)

// Why the other device does not listen.
var (
	ErrDenied = errors.New("expose: the other device has not allowed this device to listen on that port")
	ErrTaken  = errors.New("expose: that port of the other device is in use")
	ErrSystem = errors.New("expose: the other device's system does not let it listen on that port")
	ErrBusy   = errors.New("expose: this device has as many ports there as it may have")
	ErrFailed = errors.New("expose: the other device could not listen on that port")
	// ErrAway reports that the devices have not been connected for a while.
	ErrAway = errors.New("expose: the other device is not connected")
	// ErrBroken reports that what was agreed on has ended without a reason.
	ErrBroken = errors.New("expose: the other device has ended it")

	errUnknown  = errors.New("expose: the other device no longer exposes this")
	errService  = errors.New("expose: the service cannot be reached from the other device")
	errProtocol = errors.New("expose: the other device says what is not understood")
)

// err is what a status says.
func (s status) err() error {
	switch s {
	case statusOK:
		return nil
	case statusDenied:
		return ErrDenied
	case statusTaken:
		return ErrTaken
	case statusSystem:
		return ErrSystem
	case statusBusy:
		return ErrBusy
	case statusFailed:
		return ErrFailed
	case statusUnknown:
		return errUnknown
	case statusService:
		return errService
	}
	return errProtocol
}

// A token is what shows that a connection belongs to a listener that was asked for.
// Printing one prints "redacted".
type token [16]byte

func newToken() (t token) {
	_, _ = rand.Read(t[:]) // never fails
	return t
}

// is compares in constant time.
func (t token) is(other []byte) bool { return subtle.ConstantTimeCompare(t[:], other) == 1 }

func (t token) String() string   { return "redacted" }
func (t token) GoString() string { return "redacted" }

// A place is a port of the device that listens.
type place struct {
	protocol forward.Protocol
	port     uint16
}

func (p place) String() string {
	if p.protocol == forward.UDP {
		return fmt.Sprintf("%d/udp", p.port)
	}
	return fmt.Sprintf("%d", p.port)
}

// A hello is the beginning of every stream: kind u8, protocol u8 (6 TCP, 17 UDP),
// port u16, token 16.
type hello struct {
	kind kind
	place
	token token
}

const (
	tokenSize = 16
	helloSize = 4 + tokenSize
	ipTCP     = 6
	ipUDP     = 17
)

func (h hello) bytes() []byte {
	b := make([]byte, 0, helloSize)
	protocol := byte(ipTCP)
	if h.protocol == forward.UDP {
		protocol = ipUDP
	}
	b = append(b, byte(h.kind), protocol)
	b = binary.BigEndian.AppendUint16(b, h.port)
	return append(b, h.token[:]...)
}

// parseHello errs if b is none.
func parseHello(b []byte) (hello, error) {
	if len(b) != helloSize {
		return hello{}, errProtocol
	}
	h := hello{kind: kind(b[0]), place: place{port: binary.BigEndian.Uint16(b[2:])}, token: token(b[4:])}
	switch b[1] {
	case ipTCP:
		h.protocol = forward.TCP
	case ipUDP:
		h.protocol = forward.UDP
	default:
		return hello{}, errProtocol
	}
	// Connections of UDP are datagrams, and never streams.
	if h.port == 0 || h.kind != kindAsk && (h.kind != kindCarry || h.protocol != forward.TCP) {
		return hello{}, errProtocol
	}
	return h, nil
}
