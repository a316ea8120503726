// Package cpace is the password-authenticated key exchange CPace of
// draft-irtf-cfrg-cpace, with the suite CPACE-RISTR255-SHA512 and the
// initiator/responder setting: two sides that know the same password get the
// same key, and a side that does not know it gets one guess per run, on line.
//
//	a, err := cpace.Start(cpace.Initiator, password, ci, sid, adA, nil)
//	// send a.Public(), receive peer
//	key, err := a.Finish(peer, adB)
//
// The names are those of the draft: PRS is the password, CI the channel
// identifier that both sides know, sid the session's fresh identifier, AD what
// each side wants bound into the key besides. The vectors in testdata/vectors
// are the draft's.
//
// Whoever uses the key confirms it: until a message under a key that follows
// from it has opened, nothing says that the other side knows the password. The
// session identifier must be fresh for every run.
package cpace

import (
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/gtank/ristretto255"
)

const (
	// PublicSize is the length of what a side sends, in bytes.
	PublicSize = 32
	// KeySize is the length of the key that Finish returns, in bytes.
	KeySize = sha512.Size

	dsi       = "CPaceRistretto255"
	dsiISK    = "CPaceRistretto255_ISK"
	hashBlock = 128 // input block of SHA-512, bytes
)

var (
	// ErrPeer reports a public value that is no valid point, or the neutral one.
	ErrPeer = errors.New("cpace: the other side's value is not valid")
	// ErrDone reports a second Finish: a secret scalar serves one run.
	ErrDone = errors.New("cpace: this run is over")
)

// A Side is a side of an exchange.
type Side uint8

// The sides.
const (
	Initiator Side = 1 // sends first: A in the draft
	Responder Side = 2 // B in the draft
)

// An Exchange is one side of one run. It is not safe for concurrent use and
// prints "redacted".
type Exchange struct {
	side   Side
	sid    []byte
	ad     []byte
	y      *ristretto255.Scalar
	public []byte
}

// Start begins a run with a fresh secret scalar, read from random (nil means
// crypto/rand). It errs if random fails, for an empty password and for a side
// that is none.
func Start(side Side, prs, ci, sid, ad []byte, random io.Reader) (*Exchange, error) {
	if random == nil {
		random = rand.Reader
	}
	var wide [64]byte // reduced modulo the order: no bias that anybody could see
	if _, err := io.ReadFull(random, wide[:]); err != nil {
		return nil, fmt.Errorf("cpace: read randomness: %w", err)
	}
	return start(side, prs, ci, sid, ad, ristretto255.NewScalar().FromUniformBytes(wide[:]))
}

func start(side Side, prs, ci, sid, ad []byte, y *ristretto255.Scalar) (*Exchange, error) {
	if len(prs) == 0 || (side != Initiator && side != Responder) {
		return nil, errors.New("cpace: a password and a side are needed")
	}
	public := ristretto255.NewElement().ScalarMult(y, generator(prs, ci, sid))
	return &Exchange{side: side, sid: sid, ad: ad, y: y, public: public.Encode(nil)}, nil
}

// Public returns what the other side needs, PublicSize bytes that the caller
// owns.
func (e *Exchange) Public() []byte { return append([]byte(nil), e.public...) }

// Finish returns the key, given what the other side sent and its associated
// data, and forgets the secret. It errs with ErrPeer for a value that is not
// the one encoding of a point or is the neutral point, after which the run is
// not over, and with ErrDone for a second call.
func (e *Exchange) Finish(peer, peerAD []byte) ([]byte, error) {
	if e.y == nil {
		return nil, ErrDone
	}
	k, err := multiply(e.y, peer)
	if err != nil {
		return nil, err
	}
	e.y = nil
	in := appendLV(nil, []byte(dsiISK), e.sid, k)
	if e.side == Initiator {
		in = appendLV(in, e.public, e.ad, peer, peerAD)
	} else {
		in = appendLV(in, peer, peerAD, e.public, e.ad)
	}
	sum := sha512.Sum512(in)
	return sum[:], nil
}

// String returns "redacted".
func (e *Exchange) String() string { return "redacted" }

// GoString returns "redacted".
func (e *Exchange) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (e *Exchange) LogValue() slog.Value { return slog.StringValue("redacted") }

// Format prints "redacted" for every verb.
func (e *Exchange) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "redacted") }

// multiply is the draft's scalar_mult_vfy: it refuses what is not the canonical
// encoding of a point, and the neutral result.
func multiply(y *ristretto255.Scalar, peer []byte) ([]byte, error) {
	if len(peer) != PublicSize {
		return nil, ErrPeer
	}
	p := ristretto255.NewElement()
	if err := p.Decode(peer); err != nil {
		return nil, ErrPeer
	}
	k := ristretto255.NewElement().ScalarMult(y, p)
	if k.Equal(ristretto255.NewElement().Zero()) == 1 {
		return nil, ErrPeer
	}
	return k.Encode(nil), nil
}

// generator maps the password, the channel and the session to a point, whose
// discrete logarithm nobody knows.
func generator(prs, ci, sid []byte) *ristretto255.Element {
	// The padding fills the first block of the hash, so that the password is
	// hashed alone.
	pad := max(0, hashBlock-1-len(appendLV(nil, prs))-len(appendLV(nil, []byte(dsi))))
	sum := sha512.Sum512(appendLV(nil, []byte(dsi), prs, make([]byte, pad), ci, sid))
	return ristretto255.NewElement().FromUniformBytes(sum[:])
}

// AppendLV appends each item behind its length in LEB128, as the draft's lv_cat.
func AppendLV(dst []byte, items ...[]byte) []byte { return appendLV(dst, items...) }

func appendLV(dst []byte, items ...[]byte) []byte {
	for _, item := range items {
		n := len(item)
		for ; n >= 0x80; n >>= 7 {
			dst = append(dst, byte(n)|0x80)
		}
		dst = append(append(dst, byte(n)), item...)
	}
	return dst
}
