package link

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kithproject/kith/internal/wire"
)

const (
	// DefaultDataSize is the largest datagram that WireGuard sends with an inner
	// MTU of 1400 bytes: 1432 bytes of UDP payload, 1460 bytes of IPv4 packet and
	// 1480 bytes of IPv6 packet.
	DefaultDataSize = 1400 + 32
	// MinDataSize is the smallest size of data probes, in bytes of UDP payload.
	MinDataSize = smallProbe
	// MaxDataSize is the largest size of data probes, in bytes of UDP payload.
	MaxDataSize = 2048

	probeHeader   = 4 + tagSize
	probeOverhead = probeHeader + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
	probeBody     = 50
	smallProbe    = 128
	tagSize       = 8
	txidSize      = 12
)

type probeType uint8

const (
	ping probeType = 1
	pong probeType = 2
)

const flagSelected = 1

// errProbe reports bytes that are not a probe under the given key.
var errProbe = errors.New("link: not a probe of this key")

type (
	probeTag [tagSize]byte
	txid     [txidSize]byte
)

// A probe is the plaintext of a path probe; the package comment has its layout.
type probe struct {
	kind     probeType
	flags    uint8
	session  uint64
	seq      uint64
	tx       txid
	observed netip.AddrPort
	loss     uint16 // encodeLoss
}

// isProbe reports whether b begins like a probe. It looks at nothing secret.
func isProbe(b []byte) bool {
	const magic = 0xeb6b7001
	return len(b) >= smallProbe && binary.BigEndian.Uint32(b) == magic
}

// isWireGuard reports whether b begins like a WireGuard message: types 1 to 4
// and three zero bytes, at least as long as a keepalive.
func isWireGuard(b []byte) bool {
	return len(b) >= 32 && binary.LittleEndian.Uint32(b)-1 < 4
}

// A sealer seals and opens probes under one key, that is one direction and day.
type sealer struct {
	aead cipher.AEAD
	head [probeHeader]byte // magic and tag
	ad   []byte
}

func newSealer(key [32]byte) *sealer {
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic(err) // only for another key length
	}
	s := &sealer{aead: aead, head: [probeHeader]byte{0xeb, 0x6b, 0x70, 0x01}}
	copy(s.head[4:], wire.Expand(key[:], "probe tag"))
	s.ad = append([]byte(wire.Label("probe")), s.head[:]...)
	return s
}

func (s *sealer) tag() probeTag { return probeTag(s.head[4:]) }

// seal returns p as a datagram of size bytes. It errs if random fails.
func (s *sealer) seal(random io.Reader, p probe, size int) ([]byte, error) {
	out := make([]byte, probeHeader+chacha20poly1305.NonceSizeX, size)
	copy(out, s.head[:])
	nonce := out[probeHeader:]
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, err
	}
	plain := make([]byte, size-probeOverhead)
	plain[0], plain[1] = byte(p.kind), p.flags
	binary.BigEndian.PutUint64(plain[2:], p.session)
	binary.BigEndian.PutUint64(plain[10:], p.seq)
	copy(plain[18:], p.tx[:])
	if p.observed.IsValid() {
		addr := p.observed.Addr().As16()
		copy(plain[30:], addr[:])
		binary.BigEndian.PutUint16(plain[46:], p.observed.Port())
	}
	binary.BigEndian.PutUint16(plain[48:], p.loss)
	return s.aead.Seal(out, nonce, plain, s.ad), nil
}

// open checks and decrypts a datagram, in place. The only error is errProbe.
func (s *sealer) open(raw []byte) (probe, error) {
	if len(raw) < smallProbe || len(raw) > MaxDataSize || !bytes.Equal(raw[:probeHeader], s.head[:]) {
		return probe{}, errProbe
	}
	const body = probeHeader + chacha20poly1305.NonceSizeX
	plain, err := s.aead.Open(raw[body:body], raw[probeHeader:body], raw[body:], s.ad)
	if err != nil || len(plain) < probeBody {
		return probe{}, errProbe
	}
	p := probe{
		kind: probeType(plain[0]), flags: plain[1],
		session: binary.BigEndian.Uint64(plain[2:]), seq: binary.BigEndian.Uint64(plain[10:]),
		tx: txid(plain[18:30]),
	}
	if p.kind != ping && p.kind != pong {
		return probe{}, errProbe
	}
	if p.kind == pong {
		addr := netip.AddrFrom16([16]byte(plain[30:46])).Unmap()
		p.observed = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(plain[46:]))
		p.loss = binary.BigEndian.Uint16(plain[48:])
	}
	return p, nil
}

// replays remember which pings of the peer came in. They are safe for concurrent
// use; the zero value is ready.
type replays struct {
	mu       sync.Mutex
	sessions []replayWindow // newest first
}

// accept reports whether a ping of that session and number is new, and remembers it.
func (r *replays) accept(session, seq uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.sessions {
		if r.sessions[i].session == session {
			return r.sessions[i].accept(seq)
		}
	}
	w := replayWindow{session: session}
	if !w.accept(seq) {
		return false
	}
	r.sessions = append([]replayWindow{w}, r.sessions[:min(len(r.sessions), maxSessions-1)]...)
	return true
}

// knows reports whether accept would say no.
func (r *replays) knows(session, seq uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.sessions { // a copy: accept changes it
		if w.session == session {
			return !w.accept(seq)
		}
	}
	return seq == 0
}

// A replayWindow remembers which of the last 1024 pings of a session came in.
type replayWindow struct {
	session uint64
	top     uint64
	bits    [16]uint64
}

// accept reports whether seq is new, and remembers it.
func (w *replayWindow) accept(seq uint64) bool {
	const words = uint64(len(w.bits))
	const size = words * 64
	if seq == 0 || seq+size <= w.top {
		return false
	}
	if seq > w.top {
		for block := w.top/64 + 1; block <= seq/64 && block <= w.top/64+words; block++ {
			w.bits[block%words] = 0
		}
		w.top = seq
	} else if w.top/64-seq/64 >= words {
		return false // its word has been taken over by a newer one
	}
	word, bit := &w.bits[seq/64%words], uint64(1)<<(seq%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
