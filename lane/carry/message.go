package carry

import (
	"encoding/binary"
	"errors"
	"io"
)

// Size is how long every message is, in bytes.
const Size = 16

// The messages; see the package comment.
const (
	kindHello  = 1
	kindStatus = 2
	kindSwitch = 3
	kindAck    = 4
	kindEnd    = 5
	kindBack   = 6
	kindLane   = 7
)

// ErrProtocol reports a message that cannot be.
var ErrProtocol = errors.New("carry: the other device broke the protocol")

// Ports name a connection inside the tunnel between two devices.
type Ports struct {
	Dialer uint16 // port number of the side that dialed
	Dialed uint16 // port number that it dialed
}

// A Status is the answer to a hello.
type Status uint8

// The answers.
const (
	Taken   Status = 0
	Unknown Status = 1 // there is no such connection
	Busy    Status = 2 // too many are carried
)

// message is what is said once hello and status have been.
type message struct {
	kind   byte
	epoch  uint32
	offset uint64
}

func (m message) encode() (b [Size]byte) {
	b[0] = m.kind
	binary.BigEndian.PutUint32(b[4:], m.epoch)
	binary.BigEndian.PutUint64(b[8:], m.offset)
	return b
}

// parse reads a message. It errs with ErrProtocol for what is none.
func parse(b [Size]byte) (message, error) {
	m := message{kind: b[0], epoch: binary.BigEndian.Uint32(b[4:]), offset: binary.BigEndian.Uint64(b[8:])}
	if m.kind < kindSwitch || m.kind > kindBack || b[1]|b[2]|b[3] != 0 || m.epoch == 0 {
		return message{}, ErrProtocol
	}
	return m, nil
}

func names(kind byte, p Ports, epoch uint32) (b [Size]byte) {
	b[0] = kind
	binary.BigEndian.PutUint16(b[2:], p.Dialer)
	binary.BigEndian.PutUint16(b[4:], p.Dialed)
	binary.BigEndian.PutUint32(b[8:], epoch)
	return b
}

func parseNames(kind byte, b [Size]byte) (p Ports, epoch uint32, err error) {
	p = Ports{Dialer: binary.BigEndian.Uint16(b[2:]), Dialed: binary.BigEndian.Uint16(b[4:])}
	epoch = binary.BigEndian.Uint32(b[8:])
	if b != names(kind, p, epoch) || (epoch == 0) != (kind == kindHello) {
		return Ports{}, 0, ErrProtocol
	}
	return p, epoch, nil
}

// Hello asks over a new control connection for the connection that it is for. It errs
// with the writer's error.
func Hello(w io.Writer, p Ports) error {
	b := names(kindHello, p, 0)
	_, err := w.Write(b[:])
	return err
}

// ReadHello reads what Hello sends. It errs with ErrProtocol, and the reader's error.
func ReadHello(r io.Reader) (Ports, error) {
	var b [Size]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Ports{}, err
	}
	p, _, err := parseNames(kindHello, b)
	return p, err
}

// Answer answers a hello. It errs with the writer's error.
func Answer(w io.Writer, s Status) error {
	b := [Size]byte{kindStatus, byte(s)}
	_, err := w.Write(b[:])
	return err
}

// ReadAnswer reads what Answer sends. It errs with ErrProtocol, and the reader's error.
func ReadAnswer(r io.Reader) (Status, error) {
	var b [Size]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	if b != [Size]byte{kindStatus, b[1]} || b[1] > byte(Busy) {
		return 0, ErrProtocol
	}
	return Status(b[1]), nil
}

// ReadLane reads how a lane begins that another device opened: for which connection,
// and the number for Take. It errs with ErrProtocol, and the reader's error.
func ReadLane(r io.Reader) (p Ports, epoch uint32, err error) {
	var b [Size]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Ports{}, 0, err
	}
	return parseNames(kindLane, b)
}
