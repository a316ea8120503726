package pairing

import (
	"bytes"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/flynn/noise"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

const (
	nonceSize     = 16 // n_J and n_O, bytes
	commitSize    = sha256.Size
	signatureSize = 64 // Ed25519, bytes
	noiseSeedSize = 32 // of an ephemeral X25519 key, bytes
)

// errBad is every reason to drop a message in silence.
var errBad = errors.New("pairing: message not valid")

// secrets are what both sides know after m2.
type secrets struct {
	h      []byte // Noise handshake hash
	ks     []byte // key of everything below
	nJ, nO []byte
}

// pair are what both sides know after m4.
type pairKeys struct {
	root     []byte
	id       [16]byte
	commitJ  [32]byte
	commitO  [32]byte
	check    string // six digits
	long     string // twelve digits, to compare at any time later
	joiner   identity.DeviceID
	offerer  identity.DeviceID
	chainKey func(day int64) Chain
}

func cipherSuite() noise.CipherSuite {
	return noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashSHA256)
}

func prologue(m code.Method) []byte { return []byte(wire.Label("NNpsk0 method=" + m.String())) }

func newNoise(joiner bool, m code.Method, psk []byte, random io.Reader) (*noise.HandshakeState, error) {
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: cipherSuite(), Pattern: noise.HandshakeNN, Initiator: joiner, Random: random,
		Prologue: prologue(m), PresharedKey: psk, PresharedKeyPlacement: 0,
	})
	if err != nil {
		return nil, fmt.Errorf("pairing: %w", err)
	}
	return hs, nil
}

// checkCommitment is c_J: it binds the joiner to n_J before it sees n_O, so that
// nobody between can search for a fitting check number.
func checkCommitment(nJ []byte) []byte {
	sum := sha256.Sum256(append([]byte(wire.Label("sas-commit")), nJ...))
	return sum[:]
}

// sidOf names the session that an m1 opens.
func sidOf(m1 []byte) wire.SID {
	sum := sha256.Sum256(m1)
	return wire.SID(sum[:wire.SIDSize])
}

// A joinerHandshake is the joiner's side until m2.
type joinerHandshake struct {
	keys   code.Keys
	method code.Method
	seed   [noiseSeedSize]byte // of the ephemeral key, to begin anew after a bad m2
	nJ     [nonceSize]byte
	dk     *mlkem.DecapsulationKey768
	m1     []byte
	sid    wire.SID
}

func newJoinerHandshake(keys code.Keys, m code.Method, random io.Reader) (*joinerHandshake, error) {
	j := &joinerHandshake{keys: keys, method: m}
	var kem [mlkem.SeedSize]byte
	for _, b := range [][]byte{j.seed[:], j.nJ[:], kem[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("pairing: read randomness: %w", err)
		}
	}
	var err error
	if j.dk, err = mlkem.NewDecapsulationKey768(kem[:]); err != nil {
		return nil, fmt.Errorf("pairing: %w", err)
	}
	_, j.m1, err = j.begin()
	j.sid = sidOf(j.m1)
	return j, err
}

// begin writes m1; from one seed always the same.
func (j *joinerHandshake) begin() (*noise.HandshakeState, []byte, error) {
	hs, err := newNoise(true, j.method, j.keys.PSK[:], bytes.NewReader(j.seed[:]))
	if err != nil {
		return nil, nil, err
	}
	m1, _, _, err := hs.WriteMessage(nil, append(checkCommitment(j.nJ[:]), j.dk.EncapsulationKey().Bytes()...))
	if err != nil {
		return nil, nil, fmt.Errorf("pairing: m1: %w", err)
	}
	return hs, m1, nil
}

// readM2 takes the offerer's answer. It may be called again after an error.
func (j *joinerHandshake) readM2(m2 []byte) (*secrets, error) {
	hs, _, err := j.begin()
	if err != nil {
		return nil, err
	}
	payload, k1, k2, err := hs.ReadMessage(nil, m2)
	if err != nil || len(payload) != nonceSize+mlkem.CiphertextSize768 {
		return nil, errBad
	}
	shared, err := j.dk.Decapsulate(payload[nonceSize:])
	if err != nil {
		return nil, errBad
	}
	return newSecrets(hs, k1, k2, shared, j.nJ[:], payload[:nonceSize]), nil
}

// answerM1 is the offerer's side of m1 and m2. It returns what the joiner's m3
// must open.
func answerM1(keys code.Keys, m code.Method, m1 []byte, random io.Reader) (m2, commitment []byte, s *secrets, err error) {
	hs, err := newNoise(false, m, keys.PSK[:], random)
	if err != nil {
		return nil, nil, nil, err
	}
	payload, _, _, err := hs.ReadMessage(nil, m1)
	if err != nil || len(payload) != commitSize+mlkem.EncapsulationKeySize768 {
		return nil, nil, nil, errBad
	}
	ek, err := mlkem.NewEncapsulationKey768(payload[commitSize:])
	if err != nil {
		return nil, nil, nil, errBad
	}
	nO := make([]byte, nonceSize)
	if _, err := io.ReadFull(random, nO); err != nil {
		return nil, nil, nil, fmt.Errorf("pairing: read randomness: %w", err)
	}
	shared, ct := ek.Encapsulate()
	m2, k1, k2, err := hs.WriteMessage(nil, append(bytes.Clone(nO), ct...))
	if err != nil {
		return nil, nil, nil, errBad
	}
	return m2, bytes.Clone(payload[:commitSize]), newSecrets(hs, k1, k2, shared, nil, nO), nil
}

func newSecrets(hs *noise.HandshakeState, c1, c2 *noise.CipherState, shared, nJ, nO []byte) *secrets {
	h := bytes.Clone(hs.ChannelBinding())
	k1, k2 := c1.UnsafeKey(), c2.UnsafeKey()
	ikm := append(append(append([]byte{}, k1[:]...), k2[:]...), shared...)
	return &secrets{h: h, ks: wire.Extract(h, ikm), nJ: bytes.Clone(nJ), nO: bytes.Clone(nO)}
}

// proof is what a side signs: its role, the transcript, its nonce and identity,
// for whom, and what it says about itself.
func (s *secrets) proof(role Role, n []byte, own, peer, info []byte) []byte {
	return wire.AppendItems([]byte(wire.Label("id-proof "+role.String())), s.h, n, own, peer, info)
}

// once encrypts or decrypts the one message that a key is for: hence nonce 0.
func (s *secrets) once(key string, seal bool, in []byte) ([]byte, error) {
	aead, err := chacha20poly1305.New(wire.Expand(s.ks, key))
	if err != nil {
		return nil, fmt.Errorf("pairing: %w", err)
	}
	var nonce [chacha20poly1305.NonceSize]byte
	if seal {
		return aead.Seal(nil, nonce[:], in, s.h), nil
	}
	out, err := aead.Open(nil, nonce[:], in, s.h)
	if err != nil {
		return nil, errBad
	}
	return out, nil
}

const (
	keyJoinerToOfferer = "k joiner->offerer"
	keyOffererToJoiner = "k offerer->joiner"
)

// writeM3 is the joiner's nonce, identity and proof.
func (s *secrets) writeM3(id *identity.Identity, info []byte) ([]byte, error) {
	own := id.ID()
	sig := id.Sign(s.proof(Joiner, s.nJ, own[:], nil, info))
	return s.once(keyJoinerToOfferer, true, concat(s.nJ, own[:], sig, info))
}

// readM3 checks what the specification names, in its order.
func (s *secrets) readM3(m3, commitment []byte, own identity.DeviceID) (joiner identity.DeviceID, info []byte, err error) {
	p, err := s.once(keyJoinerToOfferer, false, m3)
	if err != nil {
		return joiner, nil, err
	}
	const fixed = nonceSize + identity.IDSize + signatureSize
	if len(p) < fixed || len(p) > fixed+MaxInfo {
		return joiner, nil, errBad
	}
	nJ, sig, info := p[:nonceSize], p[nonceSize+identity.IDSize:fixed], p[fixed:]
	joiner = identity.DeviceID(p[nonceSize : nonceSize+identity.IDSize])
	if subtle.ConstantTimeCompare(checkCommitment(nJ), commitment) != 1 {
		return joiner, nil, errBad
	}
	if joiner == own {
		return joiner, nil, errSelf
	}
	if !joiner.Verify(s.proof(Joiner, nJ, joiner[:], nil, info), sig) {
		return joiner, nil, errBad
	}
	s.nJ = bytes.Clone(nJ)
	return joiner, bytes.Clone(info), nil
}

// errSelf says that a device met itself.
var errSelf = errors.New("pairing: this is the same device")

// writeM4 is the offerer's identity and proof for this joiner.
func (s *secrets) writeM4(id *identity.Identity, joiner identity.DeviceID, info []byte) ([]byte, error) {
	own := id.ID()
	sig := id.Sign(s.proof(Offerer, s.nO, own[:], joiner[:], info))
	return s.once(keyOffererToJoiner, true, concat(own[:], sig, info))
}

func (s *secrets) readM4(m4 []byte, own identity.DeviceID) (offerer identity.DeviceID, info []byte, err error) {
	p, err := s.once(keyOffererToJoiner, false, m4)
	if err != nil {
		return offerer, nil, err
	}
	const fixed = identity.IDSize + signatureSize
	if len(p) < fixed || len(p) > fixed+MaxInfo {
		return offerer, nil, errBad
	}
	offerer = identity.DeviceID(p[:identity.IDSize])
	sig, info := p[identity.IDSize:fixed], p[fixed:]
	if offerer == own {
		return offerer, nil, errSelf
	}
	if !offerer.Verify(s.proof(Offerer, s.nO, offerer[:], own[:], info), sig) {
		return offerer, nil, errBad
	}
	return offerer, bytes.Clone(info), nil
}

// finish derives what lasts.
func (s *secrets) finish(joiner, offerer identity.DeviceID) *pairKeys {
	root := wire.Expand(s.ks, "root", s.h, joiner[:], offerer[:])
	// Both numbers come from what each side has fixed before it knows the other's nonce, and
	// from nothing else: an identity is shown only afterwards, and who could choose it then
	// would search for one whose number fits. Identities are bound to h by the proofs.
	sas := wire.Expand(s.ks, "sas", s.h, s.nJ, s.nO)
	long := wire.Expand(s.ks, "sas long", s.h, s.nJ, s.nO)
	return &pairKeys{
		root: root, joiner: joiner, offerer: offerer,
		id:      [16]byte(wire.Expand(root, "pair-id")[:16]),
		commitJ: [32]byte(wire.Expand(root, "commit J")),
		commitO: [32]byte(wire.Expand(root, "commit O")),
		check:   fmt.Sprintf("%06d", binary.BigEndian.Uint64(sas[:8])%1_000_000),
		long:    fmt.Sprintf("%012d", binary.BigEndian.Uint64(long[:8])%1_000_000_000_000),
		chainKey: func(day int64) Chain {
			return Chain{Key: [32]byte(wire.Expand(root, "chain", wire.DayItem(day))), Day: day}
		},
	}
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
