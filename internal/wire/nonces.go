package wire

import "golang.org/x/crypto/chacha20poly1305"

const maxNonces = 4096 // how many frames are known as seen

// A nonce is the part of a frame that tells a copy from a new one.
type nonce [chacha20poly1305.NonceSizeX]byte

// Nonces knows the last 4096 frames that were added. The zero value knows none.
// It takes frames of FrameSize bytes only.
type Nonces struct {
	known map[nonce]struct{}
	ring  []nonce
	next  int
}

// Has reports whether frame is known.
func (s *Nonces) Has(frame []byte) bool {
	_, ok := s.known[nonce(frame)]
	return ok
}

// Add reports whether frame is new.
func (s *Nonces) Add(frame []byte) bool {
	if s.Has(frame) {
		return false
	}
	n := nonce(frame)
	if s.known == nil {
		s.known = make(map[nonce]struct{})
	}
	if len(s.ring) < maxNonces {
		s.ring = append(s.ring, n)
	} else {
		delete(s.known, s.ring[s.next])
		s.ring[s.next] = n
		s.next = (s.next + 1) % maxNonces
	}
	s.known[n] = struct{}{}
	return true
}
