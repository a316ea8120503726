package chat

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Frames are length u32 || type u8 || body; length is that of type and body.
//
//	1 hello    version u8
//	2 vector   conv 16 || flags u8 || of logs: author 32 || log 8 || has u64 || read u64
//	3 entry    an entry
//	4 start    a start
//	5 want     conv 16 || author 32 || log 8 || has u64
//	6 refused  conv 16
//	7 receipt  a receipt
//	8 ping     number u64
//	9 pong     number u64
//
// A vector says up to where its sender has logs, and has shown them. The flag 1 begins a
// whole one: what is not in it is not there; the flag 2 ends it. Others say what is new.
// A want asks for what comes after has. Refused: the sender is in no such conversation
// with the receiver. Frames of other types are for later versions, and are passed over.
const (
	frameHello   byte = 1
	frameVector  byte = 2
	frameEntry   byte = 3
	frameStart   byte = 4
	frameWant    byte = 5
	frameRefused byte = 6
	frameReceipt byte = 7
	framePing    byte = 8
	framePong    byte = 9

	wireVersion = 1
	maxFrame    = 64 << 10 // bytes of type and body

	vectorBegin byte = 1
	vectorEnd   byte = 2
	vectorHead       = 16 + 1
	hasSize          = keySize + 2*8
	maxHas           = (maxFrame - 1 - vectorHead) / hasSize // logs in a vector
)

// errFrame reports bytes that nobody who keeps to the protocol sends.
var errFrame = errors.New("chat: not a frame")

// appendFrame appends a frame.
func appendFrame(dst []byte, kind byte, body ...[]byte) []byte {
	size := 1
	for _, b := range body {
		size += len(b)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	dst = append(dst, kind)
	for _, b := range body {
		dst = append(dst, b...)
	}
	return dst
}

// readFrame reads a frame. The body is fresh memory. It errs with errFrame for one that
// is too long or empty, and if the connection does.
func readFrame(r *bufio.Reader) (kind byte, body []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || size > maxFrame {
		return 0, nil, errFrame
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	return body[0], body[1:], nil
}

// buffered reports whether a whole frame has come.
func buffered(r *bufio.Reader) bool {
	if r.Buffered() < 4 {
		return false
	}
	head, err := r.Peek(4)
	return err == nil && int64(binary.BigEndian.Uint32(head))+4 <= int64(r.Buffered())
}

// A claim is what a vector says of a log.
type claim struct {
	logKey
	has, read uint64
}

func appendClaim(dst []byte, c claim) []byte { return appendKey(dst, c.logKey, c.has, c.read) }

// appendVector appends the frames of a vector. A whole one has all logs.
func appendVector(dst []byte, conv ConvID, whole bool, claims []claim) []byte {
	flags := byte(0)
	if whole {
		flags = vectorBegin
	}
	for {
		n := min(len(claims), maxHas)
		body := make([]byte, 0, n*hasSize)
		for _, c := range claims[:n] {
			body = appendClaim(body, c)
		}
		claims = claims[n:]
		if whole && len(claims) == 0 {
			flags |= vectorEnd
		}
		dst = appendFrame(dst, frameVector, conv[:], []byte{flags}, body)
		if flags = 0; len(claims) == 0 {
			return dst
		}
	}
}

func decodeVector(b []byte) (conv ConvID, flags byte, claims []claim, err error) {
	if len(b) < vectorHead || (len(b)-vectorHead)%hasSize != 0 {
		return conv, 0, nil, errFrame
	}
	b = b[copy(conv[:], b):]
	flags = b[0]
	for b = b[1:]; len(b) > 0; b = b[hasSize:] {
		k, n := decodeKey(b)
		c := claim{k, n(0), n(1)}
		if c.has > maxSeq || c.read > c.has {
			return conv, 0, nil, errFrame
		}
		claims = append(claims, c)
	}
	return conv, flags, claims, nil
}

func appendWant(dst []byte, conv ConvID, k logKey, has uint64) []byte {
	return appendFrame(dst, frameWant, conv[:], appendKey(nil, k, has))
}

func decodeWant(b []byte) (conv ConvID, k logKey, has uint64, err error) {
	if len(b) != 16+keySize+8 {
		return conv, k, 0, errFrame
	}
	b = b[copy(conv[:], b):]
	k, n := decodeKey(b)
	return conv, k, n(0), nil
}

// writeFrames writes all, or errs with what the connection says.
func writeFrames(w io.Writer, b []byte) error {
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("chat: %w", err)
	}
	return nil
}
