package code

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/kithproject/kith/internal/wire"
)

// A RoomMethod is the form in which a room's code was given. It is part of the
// transcript of a join; its numbers are on the wire.
type RoomMethod uint8

// The methods.
const (
	RoomWords RoomMethod = 1 // 12 words
	RoomURI   RoomMethod = 2 // QR code or URI
	RoomShort RoomMethod = 3 // 7 digits, with a password only
)

// String returns "words", "uri" or "short", as the transcript names the method,
// and "method(n)" for a number that is none of them.
func (m RoomMethod) String() string {
	switch m {
	case RoomWords:
		return "words"
	case RoomURI:
		return "uri"
	case RoomShort:
		return "short"
	}
	return fmt.Sprintf("method(%d)", uint8(m))
}

const (
	// RoomIDSize is the length of a room's id, in bytes.
	RoomIDSize = secretSize

	shortDigits = 6               // the random digits of a short code
	roomDigits  = shortDigits + 1 // and the Damm digit
)

const acceptedRoom = "a room's code is 12 words, 7 digits, or a text that begins with kith:R1"

// A Room is the code of a room: either its id, as words or as a URI, or a short
// code of 7 digits that leads to a room with a password and says nothing of it.
// It is immutable and safe for concurrent use. Printing one prints "redacted":
// who has it may ask to be let in. The zero Room is none.
type Room struct {
	get func() *roomPayload
}

type roomPayload struct {
	payload // the secret is the room's id
	form    RoomMethod
	short   [roomDigits]byte // ASCII
}

func wrapRoom(p roomPayload) Room { return Room{get: func() *roomPayload { return &p }} }

// RoomOptions says what a room's URI carries besides the id.
type RoomOptions struct {
	// Endpoints are as those of Options: addresses of the host in its local
	// network.
	Endpoints []netip.AddrPort
	// Hints are as those of Options: where else to meet.
	Hints []string
}

// NewRoom returns the code of the room with an id (package room makes it from
// the host's key). It errs if a hint is out of its bounds or all of it does not
// fit a QR code of one screen.
func NewRoom(id [RoomIDSize]byte, opts RoomOptions) (Room, error) {
	p := payload{secret: id}
	if err := p.setExtras(Options{Endpoints: opts.Endpoints, Hints: opts.Hints}); err != nil {
		return Room{}, err
	}
	return wrapRoom(roomPayload{payload: p, form: RoomWords}), nil
}

// NewRoomShort makes a short code: 6 random digits and a check digit. It holds
// no secret, so that it serves only together with a password. It errs if
// random fails; nil means crypto/rand.
func NewRoomShort(random io.Reader) (Room, error) {
	if random == nil {
		random = rand.Reader
	}
	p := roomPayload{form: RoomShort}
	var buf [1]byte
	for n, tries := 0, 0; n < shortDigits; tries++ {
		if tries == 1000 {
			return Room{}, errors.New("code: new: the source of randomness is broken")
		}
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			return Room{}, fmt.Errorf("code: new: read randomness: %w", err)
		}
		if buf[0] < 250 { // or low digits would be likelier
			p.short[n] = '0' + buf[0]%10
			n++
		}
	}
	p.short[shortDigits] = '0' + dammDigit(p.short[:shortDigits])
	return wrapRoom(p), nil
}

// roomSum is the checksum of a room's words, in the upper 4 bits: another than
// that of a pairing's, so that the two are told apart.
func roomSum(id [secretSize]byte) byte {
	sum := sha256.Sum256(append([]byte(wire.Label("room words")), id[:]...))
	return sum[0]
}

// RoomWordsUnclear reports whether the words of a room with this id would also
// be those of a pairing. One id of 16 is so; whoever makes a room chooses
// another then.
func RoomWordsUnclear(id [RoomIDSize]byte) bool { return pairingSum(id)>>4 == roomSum(id)>>4 }

// IsZero reports whether r is the zero Room.
func (r Room) IsZero() bool { return r.get == nil }

// Method returns the form the code was parsed from, RoomWords or RoomShort for
// one that was made here, and 0 for the zero Room.
func (r Room) Method() RoomMethod {
	if r.get == nil {
		return 0
	}
	return r.get().form
}

// ID returns the room's id; false for a short code, which does not say, and for
// the zero Room.
func (r Room) ID() (id [RoomIDSize]byte, ok bool) {
	if m := r.Method(); m != RoomWords && m != RoomURI {
		return id, false
	}
	return r.get().secret, true
}

// Words returns the 12 words, separated by spaces, or "" for a short code.
func (r Room) Words() string {
	id, ok := r.ID()
	if !ok {
		return ""
	}
	return wordsOf(id, roomSum)
}

// URI returns the code as "KITH:R1/" and base32, which a QR code holds in its
// alphanumeric mode, or "" for a short code.
func (r Room) URI() string {
	if _, ok := r.ID(); !ok {
		return ""
	}
	return strings.ToUpper(uriScheme) + uriRoomVersion + "/" + base32Text.EncodeToString(r.get().encode())
}

// QR returns the QR code of URI. It errs with ErrNone for a short code.
func (r Room) QR() (*Matrix, error) {
	uri := r.URI()
	if uri == "" {
		return nil, fmt.Errorf("%w that a QR code can hold", ErrNone)
	}
	return EncodeQR(uri)
}

// Short returns the 7 digits as "123 4567", or "" if the code is none of that
// form.
func (r Room) Short() string {
	if r.Method() != RoomShort {
		return ""
	}
	s := string(r.get().short[:])
	return s[:3] + " " + s[3:]
}

// Nameplate returns the 7 digits without a space, for the transcript, or "".
func (r Room) Nameplate() string { return strings.ReplaceAll(r.Short(), " ", "") }

// Endpoints returns the host's local addresses, as far as the code carries
// them. They are hints, nothing to trust. The caller owns the slice.
func (r Room) Endpoints() []netip.AddrPort {
	if r.get == nil {
		return nil
	}
	return slices.Clone(r.get().endpoints)
}

// Hints returns where else to meet, as far as the code says. They are not to be
// trusted. The caller owns the slice.
func (r Room) Hints() []string {
	if r.get == nil {
		return nil
	}
	return slices.Clone(r.get().hints)
}

// Equal reports in constant time whether both codes lead to the same room: the
// same id, or the same short code.
func (r Room) Equal(other Room) bool {
	if r.get == nil || other.get == nil || (r.Method() == RoomShort) != (other.Method() == RoomShort) {
		return false
	}
	a, b := r.get(), other.get()
	return subtle.ConstantTimeCompare(a.secret[:], b.secret[:])&subtle.ConstantTimeCompare(a.short[:], b.short[:]) == 1
}

// Keys returns where to meet and what seals the frames there. For a short code
// they follow from the digits alone: public, in effect. It errs with ErrNone
// for the zero Room.
func (r Room) Keys() (Keys, error) {
	switch r.Method() {
	case RoomWords, RoomURI:
		p := r.get()
		return expandKeys(wire.Extract([]byte(wire.Label("room")), p.secret[:])), nil
	case RoomShort:
		p := r.get()
		return expandKeys(wire.Extract([]byte(wire.Label("room short")), p.short[:])), nil
	}
	return Keys{}, ErrNone
}

// String returns "redacted". Words, URI and Short return the code.
func (r Room) String() string { return redacted }

// GoString returns "redacted".
func (r Room) GoString() string { return redacted }

// LogValue returns "redacted".
func (r Room) LogValue() slog.Value { return slog.StringValue(redacted) }

// Format prints "redacted" for every verb.
func (r Room) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// ParseRoom reads a room's code in any form, as forgiving as Parse. The error
// is a *ParseError; its Kind is KindPairing if the text is a pairing's code.
func ParseRoom(text string) (Room, error) {
	text, isURI, err := tidy(text, acceptedRoom)
	switch {
	case err != nil:
		return Room{}, err
	case isURI:
		return parseRoomURI(text)
	}
	words, err := arrange(split(text), acceptedRoom)
	switch {
	case err != nil:
		return Room{}, err
	case len(words) == 1 && isDigits(words[0]):
		return parseRoomShort(words[0])
	}
	id, _, fits, err := readWords(words)
	if err != nil {
		return Room{}, err
	}
	if !fits {
		return Room{}, failf(KindPairing, "kith join takes a pairing's code; if it is a room's, compare each word and the order",
			"these words are a pairing's")
	}
	return wrapRoom(roomPayload{payload: payload{secret: id}, form: RoomWords}), nil
}

func parseRoomURI(text string) (Room, error) {
	version, raw, err := readURI(text)
	if version == uriVersion {
		return Room{}, failf(KindPairing, "kith join takes a pairing's code", "this is the code of a pairing")
	}
	if err != nil {
		return Room{}, err
	}
	p, err := decode(raw)
	if err != nil {
		return Room{}, err
	}
	if p.hasCommit || !p.expiry.IsZero() {
		return Room{}, errURI("the code is damaged: a room's has no such items")
	}
	return wrapRoom(roomPayload{payload: *p, form: RoomURI}), nil
}

func parseRoomShort(digits string) (Room, error) {
	switch {
	case len(digits) == numberDigits:
		return Room{}, failf(KindPairing, "kith join takes a pairing's code", "20 digits are a pairing's code")
	case len(digits) != roomDigits:
		return Room{}, failf(KindDigitCount, "type all 7 digits of the short code, or the 12 words", "%d digits, %d expected", len(digits), roomDigits)
	case dammDigit([]byte(digits)) != 0:
		return Room{}, failf(KindDigitSum, "compare the digits with those of the room", "a digit is wrong or two are swapped")
	}
	return wrapRoom(roomPayload{form: RoomShort, short: [roomDigits]byte([]byte(digits))}), nil
}
