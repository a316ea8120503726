package room

import (
	"bytes"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/flynn/noise"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/text/unicode/norm"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/pairing/cpace"
)

// Frame types on a room's topics.
const (
	frameJ1    = 0x07 // joiner's hello
	frameJ2    = 0x08 // host's answer
	frameJ3    = 0x09 // joiner's request
	frameJ4    = 0x0a // host's decision
	frameProof = 0x0b // host's proof, where no password is asked for
)

// Flags of j2.
const (
	flagPassword  = 1 << 0 // the password is asked for; Y_H is there
	flagThrottled = 1 << 1 // too many wrong ones: no password is judged, the host's user decides
	flagVoid      = 1 << 2 // this short code is void
)

const (
	nonceSize     = 16 // n_H, bytes
	tagSize       = 16 // of j3, bytes
	signatureSize = 64 // Ed25519, bytes
	seedSize      = 32 // of an ephemeral X25519 key, bytes
	j2PayloadSize = 1 + nonceSize + cpace.PublicSize + mlkem.CiphertextSize768

	// MaxPassword is the longest password, in bytes of UTF-8, as typed and normalised.
	MaxPassword = 256
)

var (
	// errBad is every reason to drop a message in silence.
	errBad = errors.New("room: message not valid")
	// ErrPassword reports a password that cannot be used.
	ErrPassword = fmt.Errorf("room: a password is 1 to %d bytes of text", MaxPassword)
)

// normalPassword is PRS: one form for what different keyboards type (Unicode
// NFKC). It errs with ErrPassword.
func normalPassword(password string) ([]byte, error) {
	prs := norm.NFKC.Bytes([]byte(password[:min(len(password), MaxPassword+1)]))
	if len(prs) == 0 || len(password) > MaxPassword || len(prs) > MaxPassword || !bytes.Equal(bytes.ToValidUTF8(prs, nil), prs) {
		return nil, ErrPassword
	}
	return prs, nil
}

// channel is CI: what both sides of CPace know of the place and the roles.
func channel(place []byte) []byte {
	return cpace.AppendLV(nil, place, []byte(wire.Label("room host")), []byte(wire.Label("room joiner")))
}

var (
	adHost   = []byte("host")   //nolint:gochecknoglobals // a constant
	adJoiner = []byte("joiner") //nolint:gochecknoglobals // a constant
)

func newNoise(joiner bool, m code.RoomMethod, psk []byte, random io.Reader) (*noise.HandshakeState, error) {
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashSHA256),
		Pattern:     noise.HandshakeNN, Initiator: joiner, Random: random,
		Prologue:     []byte(wire.Label("room NNpsk0 method=" + m.String())),
		PresharedKey: psk, PresharedKeyPlacement: 0,
	})
	if err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	return hs, nil
}

// sidOf names the session that a j1 opens, in frames.
func sidOf(j1 []byte) wire.SID {
	sum := sha256.Sum256(j1)
	return wire.SID(sum[:wire.SIDSize])
}

// pakeSID is CPace's session identifier: fresh by both sides.
func pakeSID(j1, nH []byte) []byte {
	h := sha256.New()
	h.Write(j1)
	h.Write(nH)
	return h.Sum(nil)
}

// secrets are what both sides know after j2; key only once the password is in.
type secrets struct {
	h    []byte // Noise handshake hash
	ikm  []byte // k1 || k2 || ML-KEM's secret
	open []byte // the key that needs no password
	key  []byte // the key with the password, or the same as open without one
	yH   []byte // 32 zeros without a password
}

func newSecrets(hs *noise.HandshakeState, c1, c2 *noise.CipherState, shared, yH []byte) *secrets {
	k1, k2 := c1.UnsafeKey(), c2.UnsafeKey()
	s := &secrets{h: bytes.Clone(hs.ChannelBinding()), yH: bytes.Clone(yH)}
	s.ikm = bytes.Join([][]byte{k1[:], k2[:], shared}, nil)
	s.open = wire.Extract(s.h, s.ikm)
	s.key = s.open
	return s
}

// withPassword mixes CPace's key in.
func (s *secrets) withPassword(isk []byte) {
	s.key = wire.Extract(s.h, append(bytes.Clone(s.ikm), isk...))
}

// A joinerStart is the joiner's side until j2.
type joinerStart struct {
	psk    []byte
	method code.RoomMethod
	seed   [seedSize]byte // of the ephemeral key, to begin anew for each j2
	dk     *mlkem.DecapsulationKey768
	j1     []byte
	sid    wire.SID
}

func newJoinerStart(psk []byte, m code.RoomMethod, random io.Reader) (*joinerStart, error) {
	j := &joinerStart{psk: psk, method: m}
	var kem [mlkem.SeedSize]byte
	for _, b := range [][]byte{j.seed[:], kem[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("room: read randomness: %w", err)
		}
	}
	var err error
	if j.dk, err = mlkem.NewDecapsulationKey768(kem[:]); err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	_, j.j1, err = j.begin()
	j.sid = sidOf(j.j1)
	return j, err
}

// begin writes j1; from one seed always the same.
func (j *joinerStart) begin() (*noise.HandshakeState, []byte, error) {
	hs, err := newNoise(true, j.method, j.psk, bytes.NewReader(j.seed[:]))
	if err != nil {
		return nil, nil, err
	}
	j1, _, _, err := hs.WriteMessage(nil, j.dk.EncapsulationKey().Bytes())
	if err != nil {
		return nil, nil, fmt.Errorf("room: j1: %w", err)
	}
	return hs, j1, nil
}

// readJ2 takes an answer. It may be called for several.
func (j *joinerStart) readJ2(j2 []byte) (s *secrets, flags byte, nH []byte, err error) {
	hs, _, err := j.begin()
	if err != nil {
		return nil, 0, nil, err
	}
	p, k1, k2, err := hs.ReadMessage(nil, j2)
	if err != nil || len(p) != j2PayloadSize {
		return nil, 0, nil, errBad
	}
	flags, nH = p[0], p[1:1+nonceSize]
	yH := p[1+nonceSize : 1+nonceSize+cpace.PublicSize]
	shared, err := j.dk.Decapsulate(p[1+nonceSize+cpace.PublicSize:])
	if err != nil || flags&^(flagPassword|flagThrottled|flagVoid) != 0 {
		return nil, 0, nil, errBad
	}
	if flags&flagPassword == 0 && subtle.ConstantTimeCompare(yH, noPoint[:]) != 1 {
		return nil, 0, nil, errBad
	}
	return newSecrets(hs, k1, k2, shared, yH), flags, bytes.Clone(nH), nil
}

// noPoint stands for Y_H and Y_J without a password.
var noPoint [cpace.PublicSize]byte //nolint:gochecknoglobals // a constant

// answerJ1 is the host's side of j1 and j2. The exchange is nil unless flags ask
// for the password.
func answerJ1(psk []byte, m code.RoomMethod, flags byte, prs, place, j1 []byte, random io.Reader) (j2 []byte, s *secrets, ex *cpace.Exchange, err error) {
	hs, err := newNoise(false, m, psk, random)
	if err != nil {
		return nil, nil, nil, err
	}
	payload, _, _, err := hs.ReadMessage(nil, j1)
	if err != nil || len(payload) != mlkem.EncapsulationKeySize768 {
		return nil, nil, nil, errBad
	}
	ek, err := mlkem.NewEncapsulationKey768(payload)
	if err != nil {
		return nil, nil, nil, errBad
	}
	nH := make([]byte, nonceSize)
	if _, err := io.ReadFull(random, nH); err != nil {
		return nil, nil, nil, fmt.Errorf("room: read randomness: %w", err)
	}
	yH := noPoint[:]
	if flags&flagPassword != 0 {
		if ex, err = cpace.Start(cpace.Initiator, prs, channel(place), pakeSID(j1, nH), adHost, random); err != nil {
			return nil, nil, nil, fmt.Errorf("room: %w", err)
		}
		yH = ex.Public()
	}
	shared, ct := ek.Encapsulate()
	j2, k1, k2, err := hs.WriteMessage(nil, bytes.Join([][]byte{{flags}, nH, yH, ct}, nil))
	if err != nil {
		return nil, nil, nil, errBad
	}
	return j2, newSecrets(hs, k1, k2, shared, yH), ex, nil
}

// once encrypts or decrypts the one message that a key is for: hence nonce 0.
func once(key, ad, in []byte, seal bool) ([]byte, error) {
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	var nonce [chacha20poly1305.NonceSize]byte
	if seal {
		return aead.Seal(nil, nonce[:], in, ad), nil
	}
	out, err := aead.Open(nil, nonce[:], in, ad)
	if err != nil {
		return nil, errBad
	}
	return out, nil
}

// requestAD binds j3 to the handshake and both public values.
func (s *secrets) requestAD(yJ []byte) []byte { return wire.AppendItems(nil, s.h, s.yH, yJ) }

// tag is what only the two ends of this handshake can put behind a j3: nobody
// else can make the host judge a password in their name.
func (s *secrets) tag(body []byte) []byte { return wire.Expand(s.open, "room j3", s.h, body)[:tagSize] }

// requestProof is what the joiner signs.
func (s *secrets) requestProof(yJ []byte, joiner identity.DeviceID, body []byte) []byte {
	return wire.AppendItems([]byte(wire.Label("room-join")), s.h, s.yH, yJ, joiner[:], body)
}

// writeJ3 is Y_J || AEAD(id || signature || body) || tag.
func (s *secrets) writeJ3(yJ []byte, self *identity.Identity, body []byte) ([]byte, error) {
	id := self.ID()
	plain := bytes.Join([][]byte{id[:], self.Sign(s.requestProof(yJ, id, body)), body}, nil)
	sealed, err := once(wire.Expand(s.key, "room k joiner->host"), s.requestAD(yJ), plain, true)
	if err != nil {
		return nil, err
	}
	j3 := append(bytes.Clone(yJ), sealed...)
	return append(j3, s.tag(j3)...), nil
}

// splitJ3 checks the tag and returns Y_J and what is sealed.
func (s *secrets) splitJ3(j3 []byte) (yJ, sealed []byte, ok bool) {
	if len(j3) < cpace.PublicSize+tagSize {
		return nil, nil, false
	}
	body, tag := j3[:len(j3)-tagSize], j3[len(j3)-tagSize:]
	if subtle.ConstantTimeCompare(s.tag(body), tag) != 1 {
		return nil, nil, false
	}
	return body[:cpace.PublicSize], body[cpace.PublicSize:], true
}

// readRequest opens what is sealed in j3 and checks the proof. It errs with
// errSealed if it does not open, which with a password says that it was wrong.
func (s *secrets) readRequest(yJ, sealed []byte) (joiner identity.DeviceID, body []byte, err error) {
	plain, err := once(wire.Expand(s.key, "room k joiner->host"), s.requestAD(yJ), sealed, false)
	if err != nil {
		return joiner, nil, errSealed
	}
	const fixed = identity.IDSize + signatureSize
	if len(plain) < fixed || len(plain) > fixed+maxRequest {
		return joiner, nil, errBad
	}
	joiner = identity.DeviceID(plain[:identity.IDSize])
	body = bytes.Clone(plain[fixed:])
	if !joiner.Verify(s.requestProof(yJ, joiner, body), plain[identity.IDSize:fixed]) {
		return joiner, nil, errBad
	}
	return joiner, body, nil
}

var errSealed = errors.New("room: the request does not open")

// Kinds of j4 and of the proof frame, the first byte.
const (
	plainAnswer = 0 // under the key that needs no password: a status, and a proof
	fullAnswer  = 1 // under the key with the password
)

// answerProof is what the host signs: its decision for one joiner in one
// handshake.
func (s *secrets) answerProof(joiner identity.DeviceID, body []byte) []byte {
	return wire.AppendItems([]byte(wire.Label("room-answer")), s.h, joiner[:], body)
}

// writeJ4 is the host's decision: AEAD(id || signature || body).
func (s *secrets) writeJ4(self *identity.Identity, joiner identity.DeviceID, body []byte, random io.Reader) ([]byte, error) {
	id := self.ID()
	plain := bytes.Join([][]byte{id[:], self.Sign(s.answerProof(joiner, body)), body}, nil)
	sealed, err := wire.SealMessage(wire.Expand(s.key, "room k host->joiner"), s.h, plain, random)
	if err != nil {
		return nil, err
	}
	return append([]byte{fullAnswer}, sealed...), nil
}

func (s *secrets) readJ4(j4 []byte, joiner identity.DeviceID) (host identity.DeviceID, body []byte, err error) {
	plain, err := wire.OpenMessage(wire.Expand(s.key, "room k host->joiner"), s.h, j4)
	if err != nil {
		return host, nil, err
	}
	const fixed = identity.IDSize + signatureSize
	if len(plain) < fixed || len(plain) > fixed+maxAnswer {
		return host, nil, errBad
	}
	host = identity.DeviceID(plain[:identity.IDSize])
	body = bytes.Clone(plain[fixed:])
	if !host.Verify(s.answerProof(joiner, body), plain[identity.IDSize:fixed]) {
		return host, nil, errBad
	}
	return host, body, nil
}

// sealPlain and openPlain are for what the host says before it knows that the
// joiner has the password: only the joiner of this handshake reads it.
func (s *secrets) sealPlain(plain []byte, random io.Reader) ([]byte, error) {
	return wire.SealMessage(wire.Expand(s.open, "room plain host->joiner"), s.h, plain, random)
}

func (s *secrets) openPlain(sealed []byte) ([]byte, error) {
	return wire.OpenMessage(wire.Expand(s.open, "room plain host->joiner"), s.h, sealed)
}

// pair is what lasts of a join for the two ends: host is the offerer, the
// member the joiner of the chain.
func (s *secrets) pair(joiner, host identity.DeviceID, day int64) (pairing.Chain, [16]byte) {
	root := wire.Expand(s.key, "room root", s.h, joiner[:], host[:])
	return chainOf(root, day), [16]byte(wire.Expand(root, "pair-id")[:16])
}

func chainOf(root []byte, day int64) pairing.Chain {
	return pairing.Chain{Key: [32]byte(wire.Expand(root, "chain", wire.DayItem(day))), Day: day}
}
