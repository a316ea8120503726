package chat

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"math"
	"time"
	"unicode/utf8"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

const (
	entryVersion = 1
	entryHead    = 1 + 16 + identity.IDSize + 8 + 8 + 8 + 8 + 1 + 2 // bytes before the body
	maxEntry     = entryHead + MaxText + ed25519.SignatureSize      // bytes

	maxSeq = 1 << 53 // of sequence and Lamport numbers: JSON has no larger ones
	// An author who lies about what he knew must not take the numbers of all others
	// away. A log begins at most at maxFirst, and an entry is at most maxStep after the
	// one before it, so that everybody keeps up with whoever goes ahead.
	maxFirst = 1 << 40 // Lamport number
	maxStep  = 1 << 20 // Lamport numbers
	// A start stands for lines that nobody has to have written: it goes no further ahead
	// of all that is known than a few lines do.
	maxAhead = 16 * maxStep // Lamport numbers

	year10000 = 253402300800000 // milliseconds since 1970: later times have no JSON form
)

const (
	kindText byte = 1
	kindFile byte = 2 // others are carried and not shown
)

// errEntry reports bytes that nobody who keeps to the protocol sends.
var errEntry = errors.New("chat: not an entry")

// A logKey names a log within a conversation.
type logKey struct {
	author identity.DeviceID
	log    LogID
}

// An entry is what an author has signed.
type entry struct {
	conv ConvID
	logKey
	seq, lamport uint64
	time         uint64 // milliseconds since 1970, by the author's clock
	kind         byte
	body         []byte
	sig          [ed25519.SignatureSize]byte
}

// appendHead appends what is signed.
func (e *entry) appendHead(b []byte) []byte {
	b = append(b, entryVersion)
	b = append(b, e.conv[:]...)
	b = append(b, e.author[:]...)
	b = append(b, e.log[:]...)
	b = binary.BigEndian.AppendUint64(b, e.seq)
	b = binary.BigEndian.AppendUint64(b, e.lamport)
	b = binary.BigEndian.AppendUint64(b, e.time)
	b = append(b, e.kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.body)))
	return append(b, e.body...)
}

// encode returns the entry as it is carried and kept.
func (e *entry) encode() []byte {
	return append(e.appendHead(make([]byte, 0, entryHead+len(e.body)+len(e.sig))), e.sig[:]...)
}

func (e *entry) signed() []byte {
	return e.appendHead([]byte(wire.Label("chat entry")))
}

func (e *entry) sign(s Signer) { copy(e.sig[:], s.Sign(e.signed())) }

// genuine reports whether the author has signed it.
func (e *entry) genuine() bool { return e.author.Verify(e.signed(), e.sig[:]) }

// decodeEntry returns an entry of which all but the signature and its place in the log
// is known to be right. It errs with errEntry. The body is that of raw.
func decodeEntry(raw []byte) (entry, error) {
	if len(raw) < entryHead+ed25519.SignatureSize || len(raw) > maxEntry || raw[0] != entryVersion {
		return entry{}, errEntry
	}
	var e entry
	b := raw[1:]
	b = b[copy(e.conv[:], b):]
	b = b[copy(e.author[:], b):]
	b = b[copy(e.log[:], b):]
	e.seq, e.lamport, e.time = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	e.kind = b[24]
	size := int(binary.BigEndian.Uint16(b[25:]))
	b = b[27:]
	if len(b) != size+ed25519.SignatureSize {
		return entry{}, errEntry
	}
	e.body = b[:size]
	copy(e.sig[:], b[size:])
	if !e.plausible() {
		return entry{}, errEntry
	}
	return e, nil
}

// plausible reports what can be said about an entry by itself.
func (e *entry) plausible() bool {
	if e.seq == 0 || e.seq > maxSeq || e.lamport == 0 || e.lamport > maxSeq || e.time >= year10000 {
		return false
	}
	switch e.kind {
	case 0:
		return false
	case kindText:
		return len(e.body) > 0 && utf8.Valid(e.body)
	case kindFile:
		_, ok := decodeFile(e.body)
		return ok
	}
	return true
}

// follows reports whether an entry may be the next of a log whose last one has this
// number and Lamport number.
func (e *entry) follows(seq, lamport uint64) bool {
	if e.seq != seq+1 {
		return false
	}
	if seq == 0 {
		return e.lamport <= maxFirst
	}
	return e.lamport > lamport && e.lamport <= lamport+maxStep
}

// nextLamport is what follows both the conversation's highest number and a log's last
// one, as far as that is allowed.
func nextLamport(highest, seq, lamport uint64) uint64 {
	if seq == 0 {
		return min(highest+1, maxFirst)
	}
	return min(max(highest, lamport)+1, lamport+maxStep)
}

// encodeFile is the body of a file: size u64, all ones if it is not known || length of the
// name u8 || name || offer.
func encodeFile(f FileRef) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(f.Size))
	b = append(b, byte(len(f.Name)))
	b = append(b, f.Name...)
	return append(b, f.Offer...)
}

func decodeFile(b []byte) (FileRef, bool) {
	if len(b) < 9 {
		return FileRef{}, false
	}
	size, name := binary.BigEndian.Uint64(b), int(b[8])
	b = b[9:]
	if size > 1<<62 && size != math.MaxUint64 || name == 0 || len(b) < name || len(b) > name+maxOffer || !utf8.Valid(b[:name]) || !utf8.Valid(b[name:]) {
		return FileRef{}, false
	}
	return FileRef{Name: string(b[:name]), Size: int64(size), Offer: string(b[name:])}, true
}

const (
	maxName  = 255 // bytes of a file's name
	maxOffer = 64  // bytes of what an offer is known by
)

// show returns the parts of a Message that the entry says.
func (e *entry) show() Message {
	m := Message{
		Conv: e.conv, Author: e.author, Log: e.log, Seq: e.seq, Lamport: e.lamport,
		Time: time.UnixMilli(int64(e.time)).UTC(),
	}
	switch e.kind {
	case kindText:
		m.Kind, m.Text = KindText, CleanText(string(e.body))
	case kindFile:
		f, _ := decodeFile(e.body)
		m.Kind, m.File = KindFile, &FileRef{Name: CleanText(f.Name), Size: f.Size, Offer: CleanText(f.Offer)}
	}
	return m
}

// shown reports whether a person sees anything of it.
func (e *entry) shown() bool {
	switch e.kind {
	case kindText:
		return CleanText(string(e.body)) != ""
	case kindFile:
		return true
	}
	return false
}

// A start says that a log is to be had from a number on only: its author has let go of
// what was before. The author signs it. It is
//
//	conv 16 || author 32 || log 8 || seq u64 || lamport u64 || signature 64
//
// of the last entry that is gone.
type start struct {
	conv ConvID
	logKey
	seq, lamport uint64
	sig          [ed25519.SignatureSize]byte
}

const startSize = 16 + identity.IDSize + 8 + 8 + 8 + ed25519.SignatureSize

func (s *start) appendHead(b []byte) []byte {
	b = append(b, s.conv[:]...)
	b = append(b, s.author[:]...)
	b = append(b, s.log[:]...)
	b = binary.BigEndian.AppendUint64(b, s.seq)
	return binary.BigEndian.AppendUint64(b, s.lamport)
}

func (s *start) encode() []byte {
	return append(s.appendHead(make([]byte, 0, startSize)), s.sig[:]...)
}

func (s *start) signed() []byte { return s.appendHead([]byte(wire.Label("chat start"))) }

func (s *start) sign(by Signer) { copy(s.sig[:], by.Sign(s.signed())) }

func (s *start) genuine() bool { return s.author.Verify(s.signed(), s.sig[:]) }

func decodeStart(b []byte) (start, error) {
	var s start
	if len(b) != startSize {
		return s, errEntry
	}
	b = b[copy(s.conv[:], b):]
	b = b[copy(s.author[:], b):]
	b = b[copy(s.log[:], b):]
	s.seq, s.lamport = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	copy(s.sig[:], b[16:])
	if s.seq == 0 || s.seq > maxSeq || s.lamport == 0 || s.lamport > maxSeq {
		return s, errEntry
	}
	return s, nil
}
