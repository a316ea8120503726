package dialback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// An Outcome says what came of a dial-back.
type Outcome uint8

// The outcomes.
const (
	OK          Outcome = iota // it was the device, and it heard the code
	Refused                    // nothing listens at the port, or a firewall says so
	Silent                     // no answer in time
	Unreachable                // the network knows no way there
	Other                      // something answers that is not the device
	Forbidden                  // the one that was asked does not dial such an address
	Busy                       // it was asked too often
	Seen                       // nothing was to be dialed
	outcomes
)

var outcomeNames = [outcomes]string{ //nolint:gochecknoglobals // never changed
	"ok", "the connection was refused", "no answer", "there is no way to the address",
	"something else answers at the address", "the address is not one that is dialed", "asked too often", "not dialed",
}

// String returns "ok", or in words why not.
func (o Outcome) String() string {
	if o >= outcomes {
		return fmt.Sprintf("outcome %d", uint8(o))
	}
	return outcomeNames[o]
}

// ParseOutcome reads what String gives, from another device. It reports false for other text.
func ParseOutcome(text string) (Outcome, bool) {
	for o, name := range outcomeNames {
		if text == name {
			return Outcome(o), true
		}
	}
	return 0, false
}

// wsaConnRefused is what Windows says when nobody listens. Elsewhere no error has
// this number.
const wsaConnRefused = syscall.Errno(10061)

// outcomeOf reads the error of a connection that was not made.
func outcomeOf(err error) Outcome {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, wsaConnRefused):
		return Refused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return Silent
	}
	return Unreachable
}

// ErrProtocol reports an answer that is none, such as that of a hub of an older version.
var ErrProtocol = errors.New("dialback: the other side does not dial back, or not in this version")

// A Request is what a client asks a hub for.
type Request struct {
	Port uint16 // port number to dial at the client's own address; 0: nothing is dialed
	Code Code
	Pin  Pin
}

// requestSize is how long a request is, in bytes.
const requestSize = 2 + len(Code{}) + len(Pin{})

// An Answer is what the hub says.
type Answer struct {
	Outcome Outcome
	Client  netip.AddrPort // where the question came from, as the hub sees it
	Took    time.Duration  // the dialing, in whole milliseconds
}

const answerSize = len(Magic) + 1 + placeSize + 4

// Ask sends login and request over a connection to a hub, which it does not close, and
// returns the answer. It errs with ErrProtocol, and with what the network says.
func Ask(ctx context.Context, conn net.Conn, login []byte, r Request) (Answer, error) {
	if until, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(until)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	msg := binary.BigEndian.AppendUint16(append([]byte(nil), login...), r.Port)
	msg = append(append(msg, r.Code[:]...), r.Pin[:]...)
	if _, err := conn.Write(msg); err != nil {
		return Answer{}, fmt.Errorf("dialback: %w", err)
	}
	var raw [answerSize]byte
	if _, err := io.ReadFull(conn, raw[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = ErrProtocol // an older hub hangs up
		}
		return Answer{}, fmt.Errorf("dialback: %w", err)
	}
	return parseAnswer(raw)
}

func parseAnswer(raw [answerSize]byte) (Answer, error) {
	rest := raw[len(Magic):]
	if string(raw[:len(Magic)]) != Magic || Outcome(rest[0]) >= outcomes {
		return Answer{}, ErrProtocol
	}
	return Answer{
		Outcome: Outcome(rest[0]), Client: placeOf(rest[1:]),
		Took: time.Duration(binary.BigEndian.Uint32(rest[1+placeSize:])) * time.Millisecond,
	}, nil
}

// ReadRequest reads what a client asks for, after its login. It errs as the reader does.
func ReadRequest(r io.Reader) (Request, error) {
	var raw [requestSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return Request{}, fmt.Errorf("dialback: %w", err)
	}
	q := Request{Port: binary.BigEndian.Uint16(raw[:])}
	copy(q.Pin[:], raw[2+copy(q.Code[:], raw[2:]):])
	return q, nil
}

// WriteAnswer writes an answer. It errs as the writer does.
func WriteAnswer(w io.Writer, a Answer) error {
	b := appendPlace(append([]byte(Magic), byte(a.Outcome)), a.Client)
	ms := min(max(a.Took.Milliseconds(), 0), math.MaxUint32)
	b = binary.BigEndian.AppendUint32(b, uint32(ms))
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("dialback: %w", err)
	}
	return nil
}
