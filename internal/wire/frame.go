// Package wire holds the few byte layouts and derivations that more than one
// stage of kith shares: the constant-size sealed frame, labelled HKDF, and the
// day number that daily keys are derived for.
//
// Frame layout (docs/protocol.md, "Frame"), always FrameSize bytes:
//
//	nonce 24 || XChaCha20-Poly1305(key, nonce, ad = "kith/1 frame",
//	            len u16 || type u8 || sid 8 || body || zero padding)
//
// Whoever lacks the key sees 1340 random bytes and nothing else.
package wire

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	// FrameSize is the length of every sealed frame, in bytes. It fits one UDP
	// datagram at an MTU of 1420 bytes over IPv4 and IPv6.
	FrameSize = chacha20poly1305.NonceSizeX + plainSize + chacha20poly1305.Overhead
	// MaxBody is the largest body that a frame carries, in bytes.
	MaxBody = plainSize - headerSize
	// SIDSize is the length of a session id, in bytes.
	SIDSize = 8

	plainSize  = 1300
	headerSize = 2 + 1 + SIDSize
)

// ErrFrame reports bytes that are not a frame sealed under the given key. It
// says nothing more, because whoever sent them must learn nothing more.
var ErrFrame = errors.New("wire: not a frame of this key")

var frameAD = []byte(label("frame")) //nolint:gochecknoglobals // a constant

// A SID addresses one of several sessions on a shared topic.
type SID [SIDSize]byte

// A Frame is the plaintext of one sealed frame.
type Frame struct {
	Type byte   // message type, docs/protocol.md "Code points"
	SID  SID    // session id; zero where the message type has none
	Body []byte // at most MaxBody bytes
}

// A Sealer seals and opens frames under one 32-byte key. It is safe for
// concurrent use if the reader given to Seal is.
type Sealer struct{ aead cipher.AEAD }

// NewSealer returns a Sealer for a 32-byte key. It errs only if the key has
// another length.
func NewSealer(key []byte) (*Sealer, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	return &Sealer{aead: aead}, nil
}

// Seal returns f sealed with a nonce read from random: FrameSize bytes that the
// caller owns. It errs if the body is over MaxBody or random fails.
func (s *Sealer) Seal(random io.Reader, f Frame) ([]byte, error) {
	if len(f.Body) > MaxBody {
		return nil, fmt.Errorf("wire: body of %d bytes, at most %d fit a frame", len(f.Body), MaxBody)
	}
	out := make([]byte, chacha20poly1305.NonceSizeX, FrameSize)
	if _, err := io.ReadFull(random, out); err != nil {
		return nil, fmt.Errorf("wire: read nonce: %w", err)
	}
	var plain [plainSize]byte
	binary.BigEndian.PutUint16(plain[:], uint16(1+SIDSize+len(f.Body)))
	plain[2] = f.Type
	copy(plain[3:], f.SID[:])
	copy(plain[headerSize:], f.Body)
	return s.aead.Seal(out, out, plain[:], frameAD), nil
}

// Open checks and decrypts a sealed frame. The frame's Body is fresh memory.
// The only error is ErrFrame.
func (s *Sealer) Open(raw []byte) (Frame, error) {
	if len(raw) != FrameSize {
		return Frame{}, ErrFrame
	}
	const n = chacha20poly1305.NonceSizeX
	plain, err := s.aead.Open(nil, raw[:n], raw[n:], frameAD)
	if err != nil {
		return Frame{}, ErrFrame
	}
	size := int(binary.BigEndian.Uint16(plain))
	if size < 1+SIDSize || size > plainSize-2 {
		return Frame{}, ErrFrame
	}
	f := Frame{Type: plain[2], Body: plain[headerSize : 2+size]}
	copy(f.SID[:], plain[3:])
	return f, nil
}
