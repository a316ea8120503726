package paper

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/kithproject/kith/rendezvous"
)

const (
	// maxFrames is how many frames a note holds, in number: what one side says in
	// one go.
	maxFrames = 4
	version   = 1
	sumSize   = 4
	frameSize = rendezvous.TagSize + rendezvous.FrameSize

	// MaxText is more than the longest note as text, with the white space that
	// mail programs add, in bytes.
	MaxText = 32 << 10

	pemType  = "KITH NOTE"
	qrPrefix = "KITH:NOTE/"
)

// ErrNote reports text that is not a whole note.
var ErrNote = errors.New("paper: not a whole note")

// A Frame is one frame of a note, and the name of its topic.
type Frame struct {
	Tag  rendezvous.Tag
	Data [rendezvous.FrameSize]byte
}

// A Note is what one side has to say.
type Note struct{ Frames []Frame }

// encode returns version || frames || the first bytes of the SHA-256 of that.
func encode(frames []Frame) []byte {
	out := []byte{version}
	for _, f := range frames {
		out = append(append(out, f.Tag[:]...), f.Data[:]...)
	}
	sum := sha256.Sum256(out)
	return append(out, sum[:sumSize]...)
}

func decode(raw []byte) (Note, error) {
	body := len(raw) - 1 - sumSize
	if body < frameSize || body%frameSize != 0 || body/frameSize > maxFrames {
		return Note{}, fmt.Errorf("%w: a part is missing", ErrNote)
	}
	if raw[0] != version {
		return Note{}, fmt.Errorf("%w: it is of a newer kith", ErrNote)
	}
	sum := sha256.Sum256(raw[:1+body])
	if !bytes.Equal(sum[:sumSize], raw[1+body:]) {
		return Note{}, fmt.Errorf("%w: it was changed on the way", ErrNote)
	}
	var n Note
	for rest := raw[1 : 1+body]; len(rest) > 0; rest = rest[frameSize:] {
		n.Frames = append(n.Frames, Frame{
			Tag: rendezvous.Tag(rest[:rendezvous.TagSize]), Data: [rendezvous.FrameSize]byte(rest[rendezvous.TagSize:frameSize]),
		})
	}
	return n, nil
}

// Text returns the note as a block of text between two lines of dashes (RFC 7468),
// fit for mail and for copying.
func (n Note) Text() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: encode(n.Frames)}))
}

// QR returns the note as texts of QR codes, a frame in each, in the characters that
// take the least room (ISO/IEC 18004, alphanumeric).
func (n Note) QR() []string {
	var out []string
	for _, f := range n.Frames {
		out = append(out, qrPrefix+base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(encode([]Frame{f})))
	}
	return out
}

// Parse reads what Text and QR return, with other text around it. It errs with
// ErrNote.
func Parse(text string) (Note, error) {
	if len(text) > MaxText {
		return Note{}, fmt.Errorf("%w: longer than %d bytes", ErrNote, MaxText)
	}
	if _, rest, ok := strings.Cut(strings.ToUpper(text), qrPrefix); ok {
		raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.Join(strings.Fields(rest), ""))
		if err != nil {
			return Note{}, fmt.Errorf("%w: %w", ErrNote, err)
		}
		return decode(raw)
	}
	for rest := []byte(strings.ReplaceAll(text, "\r", "")); ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return Note{}, fmt.Errorf("%w: no block %q is in it", ErrNote, pemType)
		}
		if block.Type == pemType {
			return decode(block.Bytes)
		}
	}
}
