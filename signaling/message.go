package signaling

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/kithproject/kith/internal/strictcbor"
	"github.com/kithproject/kith/internal/wire"
)

// Frame types.
const (
	framePresence = 0x10
	frameGoodbye  = 0x11
	frameCommit   = 0x12
	frameNote     = 0x13
	frameQuestion = 0x14
	frameAnswer   = 0x15
)

const (
	// MaxCandidates is how many candidates a presence carries, in number; those
	// with the least priority are left out.
	MaxCandidates = 24
	// MaxCommit is the largest commit body, in bytes.
	MaxCommit = 128

	maxName    = 64      // bytes
	maxVersion = 32      // bytes
	maxNAT     = 32      // bytes
	maxNodes   = 6       // addresses
	maxDay     = 1 << 20 // days since 1970
)

// ErrMessage reports bytes that are not a message of this protocol.
var ErrMessage = errors.New("signaling: message not valid")

// A BootID names one run of a program.
type BootID = [8]byte

// A Presence is what a device says of itself to a paired one.
type Presence struct {
	BootID       BootID // set by the Channel when sending
	Day          int64  // the sender's UTC day, in days since 1970; set by the Channel when sending
	Name         string // what it calls itself; not clean
	Version      string
	Capabilities uint64 // bits: Answers; others are of later versions
	Candidates   []Candidate
	NAT          []byte // how its NAT behaves, as package link/punch encodes it; at most 32 bytes
	// Nodes are some of the distributed hash table that it knows to work, itself
	// first if it is one; at most 6.
	Nodes []netip.AddrPort
}

// message is the decoded form of every type.
type message struct {
	typ     byte
	boot    BootID
	counter uint64
	echo    BootID // the receiver's run as the sender knows it; zero for not known
	seen    uint64 // the receiver's counter that the sender saw last
	want    bool   // the sender wants an answer
	pres    Presence
	body    []byte
	note    uint64 // number of the note or question that is the body, or is answered by it; 0: none is
	ack     uint64 // number of the receiver's newest note that was taken

	stored bool // not on the wire: the medium kept it from before
}

// messageWire is the CBOR form.
type messageWire struct {
	Boot         []byte          `cbor:"1,keyasint"`
	Counter      uint64          `cbor:"2,keyasint"`
	Day          int64           `cbor:"3,keyasint,omitempty"`
	Echo         []byte          `cbor:"4,keyasint,omitempty"`
	Seen         uint64          `cbor:"5,keyasint,omitempty"`
	Want         bool            `cbor:"6,keyasint,omitempty"`
	Name         string          `cbor:"7,keyasint,omitempty"`
	Version      string          `cbor:"8,keyasint,omitempty"`
	Capabilities uint64          `cbor:"9,keyasint,omitempty"`
	Candidates   []candidateWire `cbor:"10,keyasint,omitempty"`
	Body         []byte          `cbor:"11,keyasint,omitempty"`
	NAT          []byte          `cbor:"12,keyasint,omitempty"`
	Nodes        [][]byte        `cbor:"13,keyasint,omitempty"` // each as in candidateWire
	Note         uint64          `cbor:"14,keyasint,omitempty"`
	Ack          uint64          `cbor:"15,keyasint,omitempty"`
}

type candidateWire struct {
	_        struct{} `cbor:",toarray"`
	Kind     uint8
	Addr     []byte // 4 or 16 bytes of address, then the port in 2 bytes of little endian
	Priority uint32
}

// encode returns the frame of a message. It errs only for a body over the limit.
func (m message) encode() (wire.Frame, error) {
	w := messageWire{
		Boot: m.boot[:], Counter: m.counter, Day: m.pres.Day, Seen: m.seen, Want: m.want,
		Name: cut(m.pres.Name, maxName), Version: cut(m.pres.Version, maxVersion), Capabilities: m.pres.Capabilities,
		Body: m.body, NAT: m.pres.NAT, Note: m.note, Ack: m.ack,
	}
	if m.echo != (BootID{}) {
		w.Echo = m.echo[:]
	}
	for _, c := range best(m.pres.Candidates) {
		if raw, ok := packAddr(c.Addr); ok {
			w.Candidates = append(w.Candidates, candidateWire{Kind: uint8(c.Kind), Addr: raw, Priority: c.Priority})
		}
	}
	for _, n := range m.pres.Nodes[:min(len(m.pres.Nodes), maxNodes)] {
		if raw, ok := packAddr(n); ok {
			w.Nodes = append(w.Nodes, raw)
		}
	}
	body, err := strictcbor.Marshal(w)
	if err != nil || len(body) > wire.MaxBody {
		return wire.Frame{}, fmt.Errorf("%w: %d bytes", ErrMessage, len(body))
	}
	return wire.Frame{Type: m.typ, Body: body}, nil
}

// packAddr returns an address as it is sent.
func packAddr(a netip.AddrPort) ([]byte, bool) {
	a = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	raw, err := a.MarshalBinary()
	return raw, err == nil && a.IsValid()
}

// readAddr returns an address that was sent, if one host can have it.
func readAddr(raw []byte) (a netip.AddrPort, ok bool) {
	if (len(raw) != 6 && len(raw) != 18) || a.UnmarshalBinary(raw) != nil {
		return a, false
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	return a, usable(a)
}

// best returns at most MaxCandidates, those with the highest priority first.
func best(all []Candidate) []Candidate {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Candidate) int { return cmp.Compare(b.Priority, a.Priority) })
	return all[:min(len(all), MaxCandidates)]
}

func cut(s string, size int) string {
	if len(s) > size {
		return s[:size]
	}
	return s
}

// limits bound what is read of a frame's body, and of a question's and an answer's.
func limits() strictcbor.Limits { return strictcbor.Limits{Levels: 4, Array: 64, Map: 32} }

// decode reads a frame's body. It errs with ErrMessage.
func decode(f wire.Frame) (message, error) {
	if f.Type < framePresence || f.Type > frameAnswer {
		return message{}, ErrMessage
	}
	var w messageWire
	if limits().Unmarshal(f.Body, &w) != nil || len(w.Boot) != len(BootID{}) ||
		(len(w.Echo) != 0 && len(w.Echo) != len(BootID{})) || len(w.Name) > maxName || len(w.Version) > maxVersion ||
		len(w.Candidates) > MaxCandidates || len(w.Nodes) > maxNodes || !w.bodyFits(f.Type) || len(w.NAT) > maxNAT || w.Day < 0 || w.Day > maxDay {
		return message{}, ErrMessage
	}
	m := message{
		typ: f.Type, boot: BootID(w.Boot), counter: w.Counter, seen: w.Seen, want: w.Want, body: w.Body, note: w.Note, ack: w.Ack,
		pres: Presence{BootID: BootID(w.Boot), Day: w.Day, Name: w.Name, Version: w.Version, Capabilities: w.Capabilities, NAT: w.NAT},
	}
	if len(w.Echo) > 0 {
		m.echo = BootID(w.Echo)
	}
	for _, c := range w.Candidates {
		kind := Kind(c.Kind)
		if addr, ok := readAddr(c.Addr); ok && kind >= Host && kind <= Relayed {
			m.pres.Candidates = append(m.pres.Candidates, Candidate{Kind: kind, Addr: addr, Priority: c.Priority})
		}
	}
	for _, raw := range w.Nodes {
		if addr, ok := readAddr(raw); ok {
			m.pres.Nodes = append(m.pres.Nodes, addr)
		}
	}
	return m, nil
}

// bodyFits reports whether the body is one that a type may have.
func (w *messageWire) bodyFits(typ byte) bool {
	switch typ {
	case frameQuestion:
		return len(w.Body) > 0 && len(w.Body) <= MaxQuestion && w.Note > 0
	case frameNote, frameAnswer: // MaxNote is MaxQuestion
		return len(w.Body) <= MaxNote && (w.Note == 0) == (len(w.Body) == 0)
	}
	return len(w.Body) <= MaxCommit
}

// usable reports whether an address may be probed: a device must not make
// another send to multicast, broadcast or nowhere.
func usable(ap netip.AddrPort) bool {
	a := ap.Addr()
	return ap.Port() != 0 && a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
