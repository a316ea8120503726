package mail

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// overhead is what a blob has besides the letter and its padding, in bytes: nonce,
// tag, and the letter's length.
const overhead = chacha20poly1305.NonceSizeX + 16 + lengthSize

const lengthSize = 4

// Sizes are the lengths that a blob may have, in bytes, so that its length says little.
func Sizes() [4]int { return [4]int{1 << 10, 4 << 10, 16 << 10, MaxBlob} }

// sizeFor returns the least size that holds a letter, or 0.
func sizeFor(body int) int {
	for _, size := range Sizes() {
		if body <= size-overhead {
			return size
		}
	}
	return 0
}

// goodSize reports whether a blob may be that long.
func goodSize(n int) bool {
	for _, size := range Sizes() {
		if n == size {
			return true
		}
	}
	return false
}

// sealAD binds a blob to its box.
func sealAD(box Box) []byte { return append([]byte("kith/1 mail letter"), box[:]...) }

// aead never fails: the key's type has the right length.
func aead(key [32]byte) (cipher.AEAD, error) {
	a, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, fmt.Errorf("mail: %w", err)
	}
	return a, nil
}

// Seal returns a blob: nonce (24 bytes) || XChaCha20-Poly1305(length of the letter (4,
// big endian) || letter || zeros), with the box as associated data. It errs with
// ErrTooLong, and if random does.
func Seal(random io.Reader, key [32]byte, box Box, body []byte) ([]byte, error) {
	size := sizeFor(len(body))
	if size == 0 {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, len(body), MaxBody)
	}
	a, err := aead(key)
	if err != nil {
		return nil, err
	}
	blob := make([]byte, size)
	nonce := blob[:a.NonceSize()]
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("mail: %w", err)
	}
	plain := blob[len(nonce) : size-a.Overhead()]
	binary.BigEndian.PutUint32(plain, uint32(len(body)))
	copy(plain[lengthSize:], body)
	a.Seal(plain[:0], nonce, plain, sealAD(box))
	return blob, nil
}

// Open returns the letter in a blob that was sealed with the key for the box. It errs
// with ErrOpen for everything else.
func Open(key [32]byte, box Box, blob []byte) ([]byte, error) {
	if !goodSize(len(blob)) {
		return nil, ErrOpen
	}
	a, err := aead(key)
	if err != nil {
		return nil, err
	}
	plain, err := a.Open(nil, blob[:a.NonceSize()], blob[a.NonceSize():], sealAD(box))
	if err != nil {
		return nil, ErrOpen
	}
	n := binary.BigEndian.Uint32(plain)
	if int64(n) > int64(len(plain)-lengthSize) {
		return nil, ErrOpen
	}
	return plain[lengthSize : lengthSize+int(n)], nil
}
