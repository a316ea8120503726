package mail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Types of frames. Requests are below 0x80.
const (
	fPut   = 1 // box || blob
	fTake  = 2 // order of the last item that is not wanted again (8 bytes, 0: none) || tokens
	fDone  = 3 // token || ids
	fWatch = 4 // flags (1 byte: 1 for the first of several) || tokens
	fCount = 5 // tokens
	fPing  = 6

	fHello  = 0x80 // version (1 byte) || status (1) || days that letters are kept (2)
	fOk     = 0x81 // nothing; after a take: 1 byte, 1 if something was left out || order of the last item (8)
	fItem   = 0x82 // box || blob
	fFailed = 0x83 // status (1 byte)
	fNews   = 0x84 // of request 0: something is in a box that is watched
	fCounts = 0x85 // for each token: letters (4 bytes) || bytes (8)
)

const (
	version    = 1
	headSize   = 9    // bytes of a frame before its body
	maxTokens  = 1024 // tokens in a request, a count
	maxIDs     = 1024 // ids in a request, a count
	maxBody    = BoxSize + MaxBlob
	maxFrame   = headSize - 4 + maxBody // what the length of a frame may say, in bytes
	countSize  = 12                     // bytes
	watchFirst = 1
	orderSize  = 8 // bytes
)

// A status says how a request went.
type status byte

const (
	stOK status = iota
	stFull
	stShare
	stBox
	stRefused
	stOff
	stLogin
	stBusy
	stDisk
)

// statuses are the errors that cross the wire.
func statuses() map[status]error {
	return map[status]error{
		stFull: ErrFull, stShare: ErrShare, stBox: ErrBox, stRefused: ErrRefused, stOff: ErrOff, stLogin: ErrLogin, stBusy: ErrBusy, stDisk: ErrDisk,
	}
}

// err returns the error of a status; an unknown one is ErrRefused.
func (s status) err() error {
	if s == stOK {
		return nil
	}
	if err := statuses()[s]; err != nil {
		return err
	}
	return ErrRefused
}

// statusOf returns the status of an error.
func statusOf(err error) status {
	if err == nil {
		return stOK
	}
	for _, s := range []status{stShare, stBox, stFull, stOff, stLogin, stRefused, stBusy} {
		if errors.Is(err, s.err()) {
			return s
		}
	}
	return stDisk
}

// A frame is one of the protocol.
type frame struct {
	kind byte
	id   uint32 // the request's
	body []byte
}

// append returns the frame's bytes behind b.
func (f frame) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(headSize-4+len(f.body)))
	b = append(b, f.kind)
	b = binary.BigEndian.AppendUint32(b, f.id)
	return append(b, f.body...)
}

// readHead reads what is before a frame's body, and returns the length of that.
func readHead(r io.Reader) (f frame, n int, err error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, 0, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < headSize-4 || size > maxFrame {
		return frame{}, 0, fmt.Errorf("%w: a frame of %d bytes", ErrProtocol, size)
	}
	return frame{kind: head[4], id: binary.BigEndian.Uint32(head[5:])}, int(size) - (headSize - 4), nil
}

// readBody reads n bytes. It takes memory for what has come, not for what is said to.
func readBody(r io.Reader, n int) ([]byte, error) {
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// readFrame reads a whole frame.
func readFrame(r io.Reader) (frame, error) {
	f, n, err := readHead(r)
	if err != nil {
		return frame{}, err
	}
	f.body, err = readBody(r, n)
	return f, err
}

// splitBlob reads box || blob.
func splitBlob(body []byte) (box Box, blob []byte, ok bool) {
	if len(body) < BoxSize || !goodSize(len(body)-BoxSize) {
		return Box{}, nil, false
	}
	return Box(body), body[BoxSize:], true
}

// splitTokens reads 1 to maxTokens tokens.
func splitTokens(body []byte) ([][32]byte, bool) {
	if len(body)%32 != 0 || len(body) == 0 || len(body) > 32*maxTokens {
		return nil, false
	}
	out := make([][32]byte, 0, len(body)/32)
	for ; len(body) > 0; body = body[32:] {
		out = append(out, [32]byte(body))
	}
	return out, true
}

// splitTake reads order || tokens.
func splitTake(body []byte) (after uint64, tokens [][32]byte, ok bool) {
	if len(body) < orderSize {
		return 0, nil, false
	}
	tokens, ok = splitTokens(body[orderSize:])
	return binary.BigEndian.Uint64(body), tokens, ok
}

func joinTake(after uint64, tokens [][32]byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, after), joinTokens(tokens)...)
}

// splitDone reads token || ids.
func splitDone(body []byte) (token [32]byte, ids [][IDSize]byte, ok bool) {
	if len(body) < 32 {
		return token, nil, false
	}
	token, body = [32]byte(body), body[32:]
	if len(body)%IDSize != 0 || len(body) > IDSize*maxIDs {
		return token, nil, false
	}
	for ; len(body) > 0; body = body[IDSize:] {
		ids = append(ids, [IDSize]byte(body))
	}
	return token, ids, true
}

func joinTokens(tokens [][32]byte) []byte {
	out := make([]byte, 0, 32*len(tokens))
	for _, t := range tokens {
		out = append(out, t[:]...)
	}
	return out
}

func joinDone(token [32]byte, ids [][IDSize]byte) []byte {
	out := append(make([]byte, 0, 32+IDSize*len(ids)), token[:]...)
	for _, id := range ids {
		out = append(out, id[:]...)
	}
	return out
}

func joinCounts(counts []Count) []byte {
	out := make([]byte, 0, countSize*len(counts))
	for _, c := range counts {
		out = binary.BigEndian.AppendUint32(out, uint32(c.Letters))
		out = binary.BigEndian.AppendUint64(out, uint64(c.Bytes))
	}
	return out
}

// splitCounts reads want counts. It believes no number that no store could have.
func splitCounts(body []byte, want int) ([]Count, bool) {
	if len(body) != countSize*want {
		return nil, false
	}
	out := make([]Count, 0, want)
	for ; len(body) > 0; body = body[countSize:] {
		c := Count{Letters: int(binary.BigEndian.Uint32(body)), Bytes: int64(binary.BigEndian.Uint64(body[4:]) & (1<<50 - 1))}
		if c.Letters > 1<<24 {
			return nil, false
		}
		out = append(out, c)
	}
	return out, true
}
