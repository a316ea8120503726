package kin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/strictcbor"
	"github.com/kithproject/kith/pairing"
)

// A LetterKind says what a letter is. The numbers are on the wire.
type LetterKind uint8

// The kinds of letters.
const (
	LetterIntroduce LetterKind = 1 // an Introduction, to one of its two devices
	LetterAnswer    LetterKind = 2 // what became of it there, to the introducer
	LetterWithdraw  LetterKind = 3 // it is over, from the introducer
	LetterNotice    LetterKind = 4 // a new pair, or its end, to an own device
	LetterUndo      LetterKind = 5 // end the pair that was noticed, to the own device that has it
	LetterAsk       LetterKind = 6 // tell me again what I have refused: its user has changed his mind
)

// A Letter is one message. On the wire it is length u16 || kind u8 || CBOR map, at most
// MaxLetter bytes, and the answer is one byte, a Status.
type Letter struct {
	Kind         LetterKind
	Introduction Introduction // of LetterIntroduce
	ID           ID           // of the others: of the introduction or notice
	End          EndState     // of LetterAnswer and LetterWithdraw: what has become of it, or why
	Notice       Notice       // of LetterNotice
}

// MaxLetter is the longest letter, in bytes, without its length.
const MaxLetter = 1024

// A Status answers a letter. The numbers are on the wire.
type Status uint8

// The states that answers tell.
const (
	StatusOK       Status = 1 // taken, durably
	StatusRefused  Status = 2 // the sender may not say this
	StatusOver     Status = 3 // what it is about is over or not known
	StatusBusy     Status = 4 // not now: full, or it could not be stored
	StatusAlready  Status = 5 // introduce: the two are paired
	StatusRemoved  Status = 6 // introduce: its user has removed that device; told to own devices alone
	StatusDeclined Status = 7 // introduce: no
)

var errLetter = errors.New("kin: not a letter")

type wireIntroduce struct {
	ID        []byte `cbor:"1,keyasint"`
	By        []byte `cbor:"2,keyasint"`
	To        []byte `cbor:"3,keyasint"`
	Other     []byte `cbor:"4,keyasint"`
	WireGuard []byte `cbor:"5,keyasint"`
	Name      string `cbor:"6,keyasint"`
	Secret    []byte `cbor:"7,keyasint"`
	Expires   int64  `cbor:"8,keyasint"` // Unix seconds
	Sig       []byte `cbor:"9,keyasint"`
}

type wireID struct {
	ID  []byte `cbor:"1,keyasint"`
	End uint8  `cbor:"2,keyasint,omitempty"`
}

type wireNotice struct {
	ID         []byte `cbor:"1,keyasint"`
	Peer       []byte `cbor:"2,keyasint"`
	Name       string `cbor:"3,keyasint"`
	OS         string `cbor:"4,keyasint,omitempty"`
	Method     string `cbor:"5,keyasint"`
	Introducer string `cbor:"6,keyasint,omitempty"`
	Age        uint32 `cbor:"7,keyasint"` // seconds: clocks differ
	Ended      bool   `cbor:"8,keyasint,omitempty"`
}

// letterLimits bound a letter's CBOR.
func letterLimits() strictcbor.Limits { return strictcbor.Limits{Levels: 4, Array: 16, Map: 32} }

// encode returns the letter's bytes without the length.
func (l Letter) encode(now time.Time) ([]byte, error) {
	var v any
	switch l.Kind {
	case LetterIntroduce:
		i := l.Introduction
		v = wireIntroduce{i.ID[:], i.By[:], i.To[:], i.Other[:], i.WireGuard[:], i.Name, i.Secret[:], i.Expires.Unix(), i.Sig[:]}
	case LetterAnswer, LetterWithdraw, LetterUndo, LetterAsk:
		v = wireID{l.ID[:], uint8(l.End)}
	case LetterNotice:
		n := l.Notice
		age := min(max(now.Sub(n.Paired), 0), NoticeLife)
		v = wireNotice{n.ID[:], n.Peer[:], n.Name, n.OS, n.Method, n.Introducer, uint32(age / time.Second), n.Ended}
	default:
		return nil, errLetter
	}
	raw, err := strictcbor.Marshal(v)
	if err != nil || len(raw) >= MaxLetter {
		return nil, fmt.Errorf("kin: letter not written: %w", errors.Join(err, errLetter))
	}
	return append([]byte{byte(l.Kind)}, raw...), nil
}

// decodeLetter reads a letter's bytes. Names in it are clean. It errs with errLetter.
func decodeLetter(raw []byte, now time.Time) (Letter, error) {
	if len(raw) < 2 || len(raw) > MaxLetter {
		return Letter{}, errLetter
	}
	l := Letter{Kind: LetterKind(raw[0])}
	var err error
	switch raw = raw[1:]; l.Kind {
	case LetterIntroduce:
		l.Introduction, err = decodeIntroduction(raw)
	case LetterAnswer, LetterWithdraw, LetterUndo, LetterAsk:
		var w wireID
		if letterLimits().Unmarshal(raw, &w) != nil || len(w.ID) != len(ID{}) || EndState(w.End) > lastEnd {
			return Letter{}, errLetter
		}
		l.ID, l.End = ID(w.ID), EndState(w.End)
	case LetterNotice:
		l.Notice, err = decodeNotice(raw, now)
	default:
		return Letter{}, errLetter
	}
	return l, err
}

func decodeIntroduction(raw []byte) (Introduction, error) {
	var w wireIntroduce
	if letterLimits().Unmarshal(raw, &w) != nil || w.Expires < 0 || w.Expires > maxTime || len(w.Name) > maxNameBytes {
		return Introduction{}, errLetter
	}
	for _, f := range []struct {
		b    []byte
		size int
	}{{w.ID, 16}, {w.By, 32}, {w.To, 32}, {w.Other, 32}, {w.WireGuard, 32}, {w.Secret, 32}, {w.Sig, 64}} {
		if len(f.b) != f.size {
			return Introduction{}, errLetter
		}
	}
	return Introduction{
		ID: ID(w.ID), By: identity.DeviceID(w.By), To: identity.DeviceID(w.To), Other: identity.DeviceID(w.Other),
		WireGuard: [32]byte(w.WireGuard), Name: w.Name, Secret: [32]byte(w.Secret), Expires: time.Unix(w.Expires, 0).UTC(), Sig: [64]byte(w.Sig),
	}, nil
}

// maxTime bounds times, in seconds since 1970: the year 9999.
const maxTime = 253402300799

func decodeNotice(raw []byte, now time.Time) (Notice, error) {
	var w wireNotice
	if letterLimits().Unmarshal(raw, &w) != nil || len(w.ID) != len(ID{}) || len(w.Peer) != identity.IDSize || len(w.Name) > maxNameBytes ||
		len(w.Introducer) > maxNameBytes || len(w.OS) > maxWordBytes || len(w.Method) > maxWordBytes || w.Age > uint32(NoticeLife/time.Second) {
		return Notice{}, errLetter
	}
	return Notice{
		ID: ID(w.ID), Peer: identity.DeviceID(w.Peer), Name: clean(w.Name), OS: pairing.CleanName(w.OS), Method: pairing.CleanName(w.Method),
		Introducer: pairing.CleanName(w.Introducer), Paired: now.Add(-time.Duration(w.Age) * time.Second).UTC().Truncate(time.Second), Ended: w.Ended,
	}, nil
}

// clean makes a name fit for a terminal, and never empty.
func clean(name string) string {
	name = strings.NewReplacer(":", "-", "/", "-").Replace(pairing.CleanName(name))
	if name == "" {
		return "unnamed"
	}
	return name
}

// writeLetter writes a letter with its length.
func writeLetter(w io.Writer, l Letter, now time.Time) error {
	raw, err := l.encode(now)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...))
	return err
}

// readLetter reads one. It errs with errLetter for one that is too long or not valid.
func readLetter(r io.Reader, now func() time.Time) (Letter, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Letter{}, err
	}
	size := binary.BigEndian.Uint16(head[:])
	if size > MaxLetter {
		return Letter{}, errLetter
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(r, raw); err != nil {
		return Letter{}, err
	}
	return decodeLetter(raw, now())
}
