package wire

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// ErrMessage reports bytes that are not a message sealed under the given key.
var ErrMessage = errors.New("wire: not a message of this key")

// SealMessage is for a key of 32 bytes that carries more than one message:
// XChaCha20-Poly1305 with a random nonce in front. It errs if the key has another
// length or random fails.
func SealMessage(key, ad, plain []byte, random io.Reader) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("wire: read randomness: %w", err)
	}
	return aead.Seal(nonce, nonce, plain, ad), nil
}

// OpenMessage opens what SealMessage returned. It errs with ErrMessage.
func OpenMessage(key, ad, sealed []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil || len(sealed) < chacha20poly1305.NonceSizeX {
		return nil, ErrMessage
	}
	plain, err := aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], ad)
	if err != nil {
		return nil, ErrMessage
	}
	return plain, nil
}
