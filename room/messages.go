package room

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/strictcbor"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

const (
	maxRequest   = 900     // encoded, bytes
	maxAnswer    = 900     // encoded, bytes
	maxEndpoints = 8       // in a request and an answer
	maxOS        = 16      // bytes
	maxVersion   = 32      // bytes
	maxDay       = 1 << 20 // days since 1970: the year 4840
	maxCBORLevel = 6       // nesting
)

// A Status is the host's decision about a request.
type Status uint8

// The statuses.
const (
	Admitted Status = 1 // in the room
	Waiting  Status = 2 // the host's user has been asked
	Refused  Status = 3 // not in the room, for a Reason
)

// A Reason says why a join failed.
type Reason uint8

// The reasons. Those from 64 on are found by the joiner itself.
const (
	Banned        Reason = 1  // the host has banned this device
	Closed        Reason = 2  // the room is closed
	Full          Reason = 3  // the room has MaxMembers
	Declined      Reason = 4  // the host's user said no
	NotListed     Reason = 5  // the room admits listed devices only
	Busy          Reason = 6  // too many wait for the host's user
	WrongPassword Reason = 7  // the password is wrong
	CodeVoid      Reason = 8  // the short code is void after wrong passwords
	Again         Reason = 9  // no password is judged now: begin anew, to be approved
	NobodyThere   Reason = 64 // nobody answered
	Expired       Reason = 65 // the time that was given is over
	WrongHost     Reason = 66 // who answered is not the host that the code binds
	Self          Reason = 67 // the room is this device's own
	TooManyHosts  Reason = 68 // others than the host answer to the code: the password is told to no more of them
)

// String returns a few words for a person.
func (r Reason) String() string {
	switch r {
	case Banned:
		return "the host has banned this device"
	case Closed:
		return "the room is closed"
	case Full:
		return "the room is full"
	case Declined:
		return "the host declined"
	case NotListed:
		return "the room admits listed devices only"
	case Busy:
		return "too many devices wait for the host: try again later"
	case WrongPassword:
		return "the password is wrong"
	case CodeVoid:
		return "the short code is void after wrong passwords: ask for the 12 words"
	case Again:
		return "many wrong passwords were tried: the host decides by hand"
	case NobodyThere:
		return "nobody with this code was found"
	case Expired:
		return "the time is over"
	case WrongHost:
		return "the device that answered is not the room's host"
	case Self:
		return "this device hosts the room"
	case TooManyHosts:
		return "several devices claim to be the host: ask for the 12 words again"
	}
	return "unknown reason"
}

// requestWire is the CBOR form of what a joiner says, and what the store keeps of
// those who wait: a map with small integer keys, unknown ones ignored.
type requestWire struct {
	WireGuard []byte   `cbor:"1,keyasint"`
	WGSig     []byte   `cbor:"2,keyasint"`
	Name      string   `cbor:"3,keyasint"`
	OS        string   `cbor:"4,keyasint"`
	Version   string   `cbor:"5,keyasint"`
	Day       int64    `cbor:"6,keyasint"`
	Endpoints [][]byte `cbor:"7,keyasint,omitempty"`
}

// A Request is what a device that wants to join says about itself, signed by it.
type Request struct {
	ID        identity.DeviceID
	WireGuard [32]byte // its X25519 public key
	WGSig     [64]byte // of WireGuard, by ID
	Info      pairing.Info
	Password  bool // it knew the password
	Throttled bool // it was not asked for the password, as too many were wrong
}

func encodeCBOR(v any, most int) ([]byte, error) {
	raw, err := strictcbor.Marshal(v)
	if err != nil || len(raw) > most {
		return nil, fmt.Errorf("%w: too large", errBad)
	}
	return raw, nil
}

func decodeCBOR(raw []byte, most int, v any) error {
	limits := strictcbor.Limits{Levels: maxCBORLevel, Array: 512, Map: 64}
	if len(raw) > most || limits.Unmarshal(raw, v) != nil {
		return errBad
	}
	return nil
}

// wgProof is what a device signs to say which WireGuard key is its own.
func wgProof(id identity.DeviceID, wg [32]byte) []byte {
	return wire.AppendItems([]byte(wire.Label("wg key")), id[:], wg[:])
}

// SignWireGuard returns a device's signature of its own WireGuard key.
func SignWireGuard(self *identity.Identity) [64]byte {
	return [64]byte(self.Sign(wgProof(self.ID(), self.WireGuardPublic())))
}

func encodeEndpoints(eps []netip.AddrPort) [][]byte {
	var out [][]byte
	for _, ep := range eps[:min(len(eps), maxEndpoints)] {
		raw, err := netip.AddrPortFrom(ep.Addr().Unmap().WithZone(""), ep.Port()).MarshalBinary()
		if err == nil {
			out = append(out, raw)
		}
	}
	return out
}

func decodeEndpoints(raw [][]byte) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range raw[:min(len(raw), maxEndpoints)] {
		var ep netip.AddrPort
		if (len(e) != 6 && len(e) != 18) || ep.UnmarshalBinary(e) != nil || !ep.IsValid() {
			continue
		}
		out = append(out, netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port()))
	}
	return out
}

// cleanName is a device's or a room's name, or what stands for none.
func cleanName(name, none string) string {
	if name = pairing.CleanName(name); name == "" {
		return none
	}
	return name
}

func encodeRequest(self *identity.Identity, info pairing.Info, day int64) ([]byte, error) {
	wg, sig := self.WireGuardPublic(), SignWireGuard(self)
	if len(info.OS) > maxOS || len(info.Version) > maxVersion || day < 0 || day > maxDay {
		return nil, fmt.Errorf("room: %w: a field is out of bounds", pairing.ErrInfo)
	}
	return encodeCBOR(requestWire{
		WireGuard: wg[:], WGSig: sig[:], Name: pairing.CleanName(info.Name), OS: info.OS, Version: info.Version,
		Day: day, Endpoints: encodeEndpoints(info.Endpoints),
	}, maxRequest)
}

// decodeRequest reads what a joiner said. The result is clean: a hostile name
// cannot paint on a terminal.
func decodeRequest(id identity.DeviceID, raw []byte) (Request, error) {
	var w requestWire
	if err := decodeCBOR(raw, maxRequest, &w); err != nil {
		return Request{}, err
	}
	if len(w.WireGuard) != 32 || len(w.WGSig) != 64 || len(w.OS) > maxOS || len(w.Version) > maxVersion || w.Day < 0 || w.Day > maxDay {
		return Request{}, errBad
	}
	r := Request{ID: id, WireGuard: [32]byte(w.WireGuard), WGSig: [64]byte(w.WGSig)}
	if !id.Verify(wgProof(id, r.WireGuard), r.WGSig[:]) {
		return Request{}, errBad
	}
	r.Info = pairing.Info{
		Name: cleanName(w.Name, "unnamed"), OS: pairing.CleanName(w.OS), WireGuard: r.WireGuard,
		Version: pairing.CleanName(w.Version), Day: w.Day, Endpoints: decodeEndpoints(w.Endpoints),
	}
	return r, nil
}

// credentials bind a host to the room's id: the salt, and if the host is not the
// founder, the founder's word for it.
type credentials struct {
	Salt    []byte `cbor:"1,keyasint"`
	Founder []byte `cbor:"2,keyasint,omitempty"`
	Until   int64  `cbor:"3,keyasint,omitempty"`
	Sig     []byte `cbor:"4,keyasint,omitempty"`
}

// check reports whether host may speak for the room, and who founded it. A zero
// room id is that of a short code, which binds nothing: then the id of the
// answer counts.
func (c credentials) check(room ID, host identity.DeviceID, day int64) (founder identity.DeviceID, ok bool) {
	if len(c.Salt) != SaltSize {
		return founder, false
	}
	founder = host
	if len(c.Founder) > 0 {
		if len(c.Founder) != identity.IDSize || c.Until < day {
			return founder, false
		}
		founder = identity.DeviceID(c.Founder)
		if !founder.Verify(hostProof(room, host, c.Until), c.Sig) {
			return founder, false
		}
	}
	return founder, NewID(founder, [SaltSize]byte(c.Salt)) == room
}

// hostProof is what the founder signs to name another host.
func hostProof(room ID, host identity.DeviceID, until int64) []byte {
	return wire.AppendItems([]byte(wire.Label("room-host-cert")), room[:], host[:], wire.DayItem(until))
}

// answerWire is the CBOR form of the host's decision.
type answerWire struct {
	Status    uint8       `cbor:"1,keyasint"`
	Reason    uint8       `cbor:"2,keyasint,omitempty"`
	Room      []byte      `cbor:"3,keyasint"`
	Cred      credentials `cbor:"4,keyasint"`
	WireGuard []byte      `cbor:"5,keyasint,omitempty"`
	RoomName  string      `cbor:"6,keyasint,omitempty"`
	HostName  string      `cbor:"7,keyasint,omitempty"`
	Name      string      `cbor:"8,keyasint,omitempty"` // the member's, in the room
	Number    uint32      `cbor:"9,keyasint,omitempty"`
	Day       int64       `cbor:"10,keyasint,omitempty"`
	Endpoints [][]byte    `cbor:"11,keyasint,omitempty"`
}

func decodeAnswer(raw []byte) (answerWire, error) {
	var w answerWire
	if err := decodeCBOR(raw, maxAnswer, &w); err != nil {
		return w, err
	}
	st := Status(w.Status)
	if len(w.Room) != IDSize || st < Admitted || st > Refused || (st == Refused && (w.Reason == 0 || w.Reason >= uint8(NobodyThere))) {
		return w, errBad
	}
	if st == Admitted && (len(w.WireGuard) != 32 || w.Number == 0 || w.Day < 0 || w.Day > maxDay) {
		return w, errBad
	}
	return w, nil
}

// plainWire is what the host says before it knows that the joiner has the
// password: a reason not to go on, the host's proof, or both.
type plainWire struct {
	Reason uint8       `cbor:"1,keyasint,omitempty"`
	Host   []byte      `cbor:"2,keyasint,omitempty"`
	Sig    []byte      `cbor:"3,keyasint,omitempty"`
	Cred   credentials `cbor:"4,keyasint"`
}

// speakProof is what the host signs to show that it is the room's.
func (s *secrets) speakProof(host identity.DeviceID, reason Reason) []byte {
	return wire.AppendItems([]byte(wire.Label("room-host")), s.h, host[:], []byte{byte(reason)})
}

// writePlain seals a reason and, with self, the host's proof.
func (s *secrets) writePlain(reason Reason, self *identity.Identity, cred credentials, random io.Reader) ([]byte, error) {
	w := plainWire{Reason: uint8(reason)}
	if self != nil {
		id := self.ID()
		w.Host, w.Sig, w.Cred = id[:], self.Sign(s.speakProof(id, reason)), cred
	}
	raw, err := encodeCBOR(w, maxAnswer)
	if err != nil {
		return nil, err
	}
	return s.sealPlain(raw, random)
}

// readPlain returns the reason and, if a proof is there and holds for the room,
// who the host is.
func (s *secrets) readPlain(sealed []byte, room ID, day int64) (reason Reason, host identity.DeviceID, proved bool, err error) {
	raw, err := s.openPlain(sealed)
	if err != nil {
		return 0, host, false, err
	}
	var w plainWire
	if err := decodeCBOR(raw, maxAnswer, &w); err != nil {
		return 0, host, false, err
	}
	if w.Reason >= uint8(NobodyThere) {
		return 0, host, false, errBad
	}
	reason = Reason(w.Reason)
	if len(w.Host) != identity.IDSize {
		return reason, host, false, nil
	}
	host = identity.DeviceID(w.Host)
	if !host.Verify(s.speakProof(host, reason), w.Sig) {
		return 0, host, false, errBad
	}
	_, ok := w.Cred.check(room, host, day)
	return reason, host, ok, nil
}
