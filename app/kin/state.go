package kin

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/strictcbor"
)

// state is what a Book keeps. It holds secrets: the file is for its user alone.
type state struct {
	numbers  uint64 // the number of the last introduction that was received
	given    []given
	received []received
	made     []made
	heard    []Heard
}

// given is an introduction that this device makes.
type given struct {
	Given
	keys   [2][32]byte // the ends' WireGuard keys
	secret [32]byte    // zero once both have it
	told   [2]bool     // that it is over on the other side
}

func newSecret() (s [32]byte) {
	_, _ = rand.Read(s[:]) // never fails (crypto/rand)
	return s
}

func (g *given) between(one, two identity.DeviceID) bool { return g.end(one) >= 0 && g.end(two) >= 0 }

// alive reports whether it may still lead to a pair.
func (g *given) alive() bool {
	lost := func(e End) bool { return e.State.over() && !e.State.good() }
	return !g.Over() && !lost(g.Ends[0]) && !lost(g.Ends[1])
}

// end returns which end a device is, or -1.
func (g *given) end(id identity.DeviceID) int {
	return slices.IndexFunc(g.Ends[:], func(e End) bool { return e.ID == id })
}

// set notes the state of an end.
func (g *given) set(k int, s EndState) {
	g.Ends[k].State = s
	if g.Ends[0].State != EndWaiting && g.Ends[1].State != EndWaiting {
		g.secret = [32]byte{}
	}
}

// received is an introduction that another device makes.
type received struct {
	Received
	wireguard [32]byte
	secret    [32]byte // zero once it is over
	sig       [64]byte
	acked     EndState  // what the introducer knows
	until     time.Time // a copy is known to be one until it is too old itself
}

// end ends it.
func (r *received) end(s EndState) { r.State, r.secret = s, [32]byte{} }

// made is a notice of this device.
type made struct {
	Notice
	pair [16]byte
	told map[identity.DeviceID]bool // own devices that know it; true: also that the pair is over
}

func (s *state) clone() state {
	c := *s
	c.given, c.received, c.heard = slices.Clone(s.given), slices.Clone(s.received), slices.Clone(s.heard)
	c.made = slices.Clone(s.made)
	for i := range c.made {
		c.made[i].told = maps.Clone(c.made[i].told)
	}
	return c
}

// The saved form: CBOR maps with small keys; times in Unix milliseconds.
type stateWire struct {
	Version  uint64         `cbor:"1,keyasint"`
	Numbers  uint64         `cbor:"2,keyasint"`
	Given    []givenWire    `cbor:"3,keyasint,omitempty"`
	Received []receivedWire `cbor:"4,keyasint,omitempty"`
	Made     []noticeWire   `cbor:"5,keyasint,omitempty"`
	Heard    []noticeWire   `cbor:"6,keyasint,omitempty"`
}

type endWire struct {
	ID    []byte `cbor:"1,keyasint"`
	Name  string `cbor:"2,keyasint"`
	State uint8  `cbor:"3,keyasint"`
	Key   []byte `cbor:"4,keyasint"`
	Told  bool   `cbor:"5,keyasint,omitempty"`
}

type givenWire struct {
	ID      []byte    `cbor:"1,keyasint"`
	Ends    []endWire `cbor:"2,keyasint"`
	Secret  []byte    `cbor:"3,keyasint"`
	Made    int64     `cbor:"4,keyasint"`
	Expires int64     `cbor:"5,keyasint"`
}

type receivedWire struct {
	ID        []byte `cbor:"1,keyasint"`
	Number    uint64 `cbor:"2,keyasint"`
	By        []byte `cbor:"3,keyasint"`
	Other     []byte `cbor:"4,keyasint"`
	Name      string `cbor:"5,keyasint"`
	State     uint8  `cbor:"6,keyasint"`
	Auto      bool   `cbor:"7,keyasint,omitempty"`
	Why       uint8  `cbor:"8,keyasint,omitempty"`
	Got       int64  `cbor:"9,keyasint"`
	Expires   int64  `cbor:"10,keyasint"`
	WireGuard []byte `cbor:"11,keyasint"`
	Secret    []byte `cbor:"12,keyasint"`
	Sig       []byte `cbor:"13,keyasint"`
	Acked     uint8  `cbor:"14,keyasint"`
	Until     int64  `cbor:"15,keyasint"`
}

// noticeWire is a notice made here or heard.
type noticeWire struct {
	ID         []byte   `cbor:"1,keyasint"`
	Peer       []byte   `cbor:"2,keyasint"`
	Name       string   `cbor:"3,keyasint"`
	OS         string   `cbor:"4,keyasint,omitempty"`
	Method     string   `cbor:"5,keyasint"`
	Introducer string   `cbor:"6,keyasint,omitempty"`
	Paired     int64    `cbor:"7,keyasint"`
	Ended      bool     `cbor:"8,keyasint,omitempty"`
	Pair       []byte   `cbor:"9,keyasint,omitempty"`  // made
	Told       [][]byte `cbor:"10,keyasint,omitempty"` // made: device ids
	ToldEnd    [][]byte `cbor:"11,keyasint,omitempty"` // made: of these, those that know the end
	From       []byte   `cbor:"12,keyasint,omitempty"` // heard
	Undo       uint8    `cbor:"13,keyasint,omitempty"` // heard
	Asked      int64    `cbor:"14,keyasint,omitempty"` // heard: when undoing was asked for
}

// maxState is the largest book that is read, in bytes.
const maxState = 1 << 20

func toNoticeWire(n Notice) noticeWire {
	return noticeWire{
		ID: n.ID[:], Peer: n.Peer[:], Name: n.Name, OS: n.OS, Method: n.Method, Introducer: n.Introducer,
		Paired: n.Paired.UnixMilli(), Ended: n.Ended,
	}
}

// encode returns the form to save.
func (s *state) encode() ([]byte, error) {
	w := stateWire{Version: 1, Numbers: s.numbers}
	for _, g := range s.given {
		gw := givenWire{ID: g.ID[:], Secret: g.secret[:], Made: g.Made.UnixMilli(), Expires: g.Expires.UnixMilli()}
		for k, e := range g.Ends {
			gw.Ends = append(gw.Ends, endWire{e.ID[:], e.Name, uint8(e.State), g.keys[k][:], g.told[k]})
		}
		w.Given = append(w.Given, gw)
	}
	for _, r := range s.received {
		w.Received = append(w.Received, receivedWire{
			ID: r.ID[:], Number: r.Number, By: r.By[:], Other: r.Other[:], Name: r.Name, State: uint8(r.State), Auto: r.Auto, Why: uint8(r.Why),
			Got: r.Got.UnixMilli(), Expires: r.Expires.UnixMilli(), WireGuard: r.wireguard[:], Secret: r.secret[:], Sig: r.sig[:],
			Acked: uint8(r.acked), Until: r.until.UnixMilli(),
		})
	}
	for _, m := range s.made {
		n := toNoticeWire(m.Notice)
		n.Pair = m.pair[:]
		for id, end := range m.told {
			n.Told = append(n.Told, id[:])
			if end {
				n.ToldEnd = append(n.ToldEnd, id[:])
			}
		}
		w.Made = append(w.Made, n)
	}
	for _, h := range s.heard {
		n := toNoticeWire(h.Notice)
		n.From, n.Undo = h.From[:], uint8(h.Undo)
		if !h.asked.IsZero() {
			n.Asked = h.asked.UnixMilli()
		}
		w.Heard = append(w.Heard, n)
	}
	return strictcbor.Marshal(w)
}

// reader checks lengths and remembers whether one was wrong.
type reader struct{ bad bool }

func (r *reader) b16(b []byte) (out [16]byte) { r.fill(out[:], b); return out }
func (r *reader) b32(b []byte) (out [32]byte) { r.fill(out[:], b); return out }
func (r *reader) b64(b []byte) (out [64]byte) { r.fill(out[:], b); return out }

func (r *reader) fill(to, from []byte) {
	r.bad = r.bad || len(to) != len(from)
	copy(to, from)
}

func (r *reader) end(v uint8) EndState {
	r.bad = r.bad || EndState(v) > lastEnd
	return EndState(v)
}

func (r *reader) name(s string) string {
	r.bad = r.bad || len(s) > maxNameBytes
	return s
}

// decodeState reads what encode wrote. It errs with ErrState.
func decodeState(raw []byte) (state, error) {
	var s state
	limits := strictcbor.Limits{Levels: 8, Array: 1024, Map: 64}
	var w stateWire
	if len(raw) > maxState || limits.Unmarshal(raw, &w) != nil || w.Version != 1 {
		return s, fmt.Errorf("kin: %w", ErrState)
	}
	var r reader
	s.numbers = w.Numbers
	for _, g := range w.Given {
		s.given = append(s.given, r.given(g))
	}
	for _, x := range w.Received {
		s.received = append(s.received, received{
			Received: Received{
				ID: r.b16(x.ID), Number: x.Number, By: r.b32(x.By), Other: r.b32(x.Other), Name: r.name(x.Name), State: r.end(x.State), Auto: x.Auto,
				Why: r.end(x.Why), Got: fromMilli(x.Got), Expires: fromMilli(x.Expires),
			},
			wireguard: r.b32(x.WireGuard), secret: r.b32(x.Secret), sig: r.b64(x.Sig), acked: r.end(x.Acked), until: fromMilli(x.Until),
		})
	}
	for _, n := range w.Made {
		m := made{Notice: r.notice(n), pair: r.b16(n.Pair), told: make(map[identity.DeviceID]bool)}
		for _, id := range n.Told {
			m.told[r.b32(id)] = false
		}
		for _, id := range n.ToldEnd {
			m.told[r.b32(id)] = true
		}
		s.made = append(s.made, m)
	}
	for _, n := range w.Heard {
		h := Heard{From: r.b32(n.From), Notice: r.notice(n), Undo: UndoState(n.Undo)}
		r.bad = r.bad || h.Undo > UndoRefused
		if n.Asked != 0 {
			h.asked = fromMilli(n.Asked)
		}
		s.heard = append(s.heard, h)
	}
	if r.bad {
		return state{}, fmt.Errorf("kin: %w", ErrState)
	}
	return s, nil
}

func (r *reader) given(w givenWire) given {
	g := given{
		Given:  Given{ID: r.b16(w.ID), Made: fromMilli(w.Made), Expires: fromMilli(w.Expires)},
		secret: r.b32(w.Secret),
	}
	if len(w.Ends) != len(g.Ends) {
		r.bad = true
		return g
	}
	for k, e := range w.Ends {
		g.Ends[k] = End{ID: r.b32(e.ID), Name: r.name(e.Name), State: r.end(e.State)}
		g.keys[k], g.told[k] = r.b32(e.Key), e.Told
	}
	return g
}

func (r *reader) notice(w noticeWire) Notice {
	r.bad = r.bad || len(w.OS) > 4*maxWordBytes || len(w.Method) > 4*maxWordBytes
	return Notice{
		ID: r.b16(w.ID), Peer: r.b32(w.Peer), Name: r.name(w.Name), OS: w.OS, Method: w.Method, Introducer: r.name(w.Introducer),
		Paired: fromMilli(w.Paired), Ended: w.Ended,
	}
}

func fromMilli(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
