package signaling

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/kithproject/kith/internal/strictcbor"
)

const (
	maxCauses  = 12 // of a Reply, in number
	maxTried   = 16 // of a Reply, in number
	maxFrom    = 8  // of a Reply, in number
	maxCause   = 48 // bytes
	maxOutcome = 80 // bytes of Reply.DialBack
)

// A Question is what a device asks a paired one to look at. Its zero value asks for what
// every Reply has.
type Question struct {
	// DialBack, if valid, is an address at which the asker listens over TLS, with a
	// certificate of the SHA-256 Pin, for a connection that says Secret.
	DialBack netip.AddrPort
	Secret   [16]byte
	Pin      [32]byte
}

// A Reply is what a device says of itself, and of what it sees of the asker.
type Reply struct {
	Version string
	Clock   time.Time // by its own clock, to the millisecond
	// Causes are codes of what is wrong at its side, of a-z, 0-9 and . - /.
	Causes []string
	// Tried are the asker's addresses as it tried them, and From those that it heard
	// the asker from. It keeps no others.
	Tried []Tried
	From  []netip.AddrPort
	// DialBack says what came of Question.DialBack: "" if it was not asked for, "ok", or
	// why not.
	DialBack string
}

// Tried is one address of a device, and what another one saw of it.
type Tried struct {
	Kind     Kind
	Addr     netip.AddrPort
	Sent     uint32 // probes sent there, a count
	Answered uint32 // of those, a count
	Received uint32 // probes that came from there, a count
	Size     uint16 // the largest datagram that was answered, bytes of UDP payload
}

type questionWire struct {
	DialBack []byte `cbor:"1,keyasint,omitempty"`
	Secret   []byte `cbor:"2,keyasint,omitempty"`
	Pin      []byte `cbor:"3,keyasint,omitempty"`
}

type replyWire struct {
	Version  string      `cbor:"1,keyasint,omitempty"`
	Clock    uint64      `cbor:"2,keyasint"` // milliseconds since 1970
	Causes   []string    `cbor:"3,keyasint,omitempty"`
	Tried    []triedWire `cbor:"4,keyasint,omitempty"`
	From     [][]byte    `cbor:"5,keyasint,omitempty"`
	DialBack string      `cbor:"6,keyasint,omitempty"`
}

type triedWire struct {
	_        struct{} `cbor:",toarray"`
	Kind     uint8
	Addr     []byte
	Sent     uint32
	Answered uint32
	Received uint32
	Size     uint16
}

// maxClock is the latest Clock that is read: as maxDay.
const maxClock = maxDay * 24 * 3600 * 1000 // milliseconds since 1970

// Encode returns the body of the question. It errs if an address cannot be sent.
func (q Question) Encode() ([]byte, error) {
	var w questionWire
	if q.DialBack.IsValid() {
		raw, ok := packAddr(q.DialBack)
		if !ok {
			return nil, fmt.Errorf("%w: address %s", ErrMessage, q.DialBack)
		}
		w = questionWire{DialBack: raw, Secret: q.Secret[:], Pin: q.Pin[:]}
	}
	return encodeBody(w)
}

// ReadQuestion reads the body of a question. It errs with ErrMessage.
func ReadQuestion(raw []byte) (q Question, err error) {
	var w questionWire
	if err := decodeBody(raw, &w); err != nil {
		return q, err
	}
	if len(w.DialBack) == 0 {
		return q, nil
	}
	addr, ok := readAddr(w.DialBack)
	if !ok || len(w.Secret) != len(q.Secret) || len(w.Pin) != len(q.Pin) {
		return q, ErrMessage
	}
	return Question{DialBack: addr, Secret: [16]byte(w.Secret), Pin: [32]byte(w.Pin)}, nil
}

// Encode returns the body of the reply. What does not fit into MaxQuestion is left out,
// addresses before causes, the last of each first. It errs only if CBOR does.
func (r Reply) Encode() ([]byte, error) {
	w := replyWire{Version: cut(plain(r.Version), maxVersion), DialBack: cut(plain(r.DialBack), maxOutcome)}
	w.Clock = uint64(min(max(r.Clock.UnixMilli(), 0), maxClock)) //nolint:gosec // not negative
	for _, c := range r.Causes {
		if len(w.Causes) < maxCauses && isCause(c) {
			w.Causes = append(w.Causes, c)
		}
	}
	for _, t := range r.Tried {
		if raw, ok := packAddr(t.Addr); ok && len(w.Tried) < maxTried {
			w.Tried = append(w.Tried, triedWire{Kind: uint8(t.Kind), Addr: raw, Sent: t.Sent, Answered: t.Answered, Received: t.Received, Size: t.Size})
		}
	}
	for _, a := range r.From {
		if raw, ok := packAddr(a); ok && len(w.From) < maxFrom {
			w.From = append(w.From, raw)
		}
	}
	for {
		raw, err := encodeBody(w)
		switch {
		case err != nil || len(raw) <= MaxQuestion:
			return raw, err
		case len(w.From) > 2:
			w.From = w.From[:len(w.From)-1]
		case len(w.Tried) > 0:
			w.Tried = w.Tried[:len(w.Tried)-1]
		default:
			w.Causes = w.Causes[:len(w.Causes)-1] // without them it is short
		}
	}
}

// ReadReply reads the body of an answer. Its texts are clean. It errs with ErrMessage.
func ReadReply(raw []byte) (r Reply, err error) {
	var w replyWire
	if err := decodeBody(raw, &w); err != nil {
		return r, err
	}
	if len(w.Causes) > maxCauses || len(w.Tried) > maxTried || len(w.From) > maxFrom ||
		len(w.Version) > maxVersion || len(w.DialBack) > maxOutcome || w.Clock > maxClock {
		return r, ErrMessage
	}
	r = Reply{Version: plain(w.Version), DialBack: plain(w.DialBack), Clock: time.UnixMilli(int64(w.Clock))} //nolint:gosec // at most maxClock
	for _, c := range w.Causes {
		if !isCause(c) {
			return Reply{}, ErrMessage
		}
		r.Causes = append(r.Causes, c)
	}
	for _, t := range w.Tried {
		if a, ok := readAddr(t.Addr); ok {
			r.Tried = append(r.Tried, Tried{Kind: Kind(t.Kind), Addr: a, Sent: t.Sent, Answered: t.Answered, Received: t.Received, Size: t.Size})
		}
	}
	for _, raw := range w.From {
		if a, ok := readAddr(raw); ok {
			r.From = append(r.From, a)
		}
	}
	return r, nil
}

func encodeBody(w any) ([]byte, error) {
	raw, err := strictcbor.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("signaling: %w", err)
	}
	return raw, nil
}

func decodeBody(raw []byte, w any) error {
	if len(raw) > MaxQuestion || limits().Unmarshal(raw, w) != nil {
		return ErrMessage
	}
	return nil
}

func isCause(s string) bool {
	return s != "" && len(s) <= maxCause && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-/") == ""
}

// plain returns s with everything but printable ASCII replaced.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
