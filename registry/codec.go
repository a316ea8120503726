package registry

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/strictcbor"
)

const (
	// maxRecord is the largest record that is read, in bytes.
	maxRecord    = 64 << 10
	maxPorts     = 1024
	maxEndpoints = 32
	maxNameBytes = 64
	maxDay       = 1 << 20 // days since 1970
	maxMailKeys  = 32
	mailKeySize  = 8 + 32 + 32 // bytes: day, token, seal
	nextKeysSize = 8 + 16 + 32 // bytes: day, pair id, chain
	checkDigits  = 12
)

// record is the CBOR form. Times are Unix milliseconds, 0 for none.
type record struct {
	PairID    []byte   `cbor:"1,keyasint"`
	State     uint8    `cbor:"2,keyasint"`
	ID        []byte   `cbor:"3,keyasint"`
	WireGuard []byte   `cbor:"4,keyasint"`
	Name      string   `cbor:"5,keyasint"`
	PeerName  string   `cbor:"6,keyasint"`
	OS        string   `cbor:"7,keyasint"`
	Joiner    bool     `cbor:"8,keyasint"`
	Method    string   `cbor:"9,keyasint"`
	Verified  bool     `cbor:"10,keyasint"`
	VouchedBy []byte   `cbor:"11,keyasint,omitempty"`
	Chain     []byte   `cbor:"12,keyasint"`
	ChainDay  int64    `cbor:"13,keyasint"`
	CommitJ   []byte   `cbor:"14,keyasint"`
	CommitO   []byte   `cbor:"15,keyasint"`
	Deadline  int64    `cbor:"16,keyasint"`
	Created   int64    `cbor:"17,keyasint"`
	Changed   int64    `cbor:"18,keyasint"`
	LastSeen  int64    `cbor:"19,keyasint"`
	Skew      int64    `cbor:"20,keyasint"`
	Ports     []uint16 `cbor:"21,keyasint,omitempty"`
	Endpoints [][]byte `cbor:"22,keyasint,omitempty"`
	UDP       []uint16 `cbor:"23,keyasint,omitempty"`
	Files     bool     `cbor:"24,keyasint,omitempty"`
	Shares    []string `cbor:"25,keyasint,omitempty"` // name, path, name, path…
	Blocked   bool     `cbor:"26,keyasint,omitempty"`
	ListenTCP []uint16 `cbor:"27,keyasint,omitempty"`
	ListenUDP []uint16 `cbor:"28,keyasint,omitempty"`
	Own       bool     `cbor:"29,keyasint,omitempty"`
	Check     string   `cbor:"30,keyasint,omitempty"`
	Room      []byte   `cbor:"31,keyasint,omitempty"`
	MailKeys  [][]byte `cbor:"32,keyasint,omitempty"` // day (8, big endian), token, seal
	Next      []byte   `cbor:"33,keyasint,omitempty"` // day (8, big endian), pair id, chain
}

// firstUnknown is the first map key that this version does not know.
const firstUnknown = 34

// unknown are the map entries of a later version, kept as they are.
type unknown map[uint64]strictcbor.Raw

// limits bound a record's CBOR.
func limits() strictcbor.Limits { return strictcbor.Limits{Levels: 8, Array: 4096, Map: 256} }

// bounded reports whether every field is one that decode takes.
func (r *record) bounded() bool {
	return State(r.State) >= Prepared && State(r.State) <= Tomb && r.ChainDay >= 0 && r.ChainDay <= maxDay &&
		r.Name != "" && len(r.Name) <= maxNameBytes && len(r.PeerName) <= maxNameBytes &&
		len(r.Ports) <= maxPorts && len(r.UDP) <= maxPorts && len(r.ListenTCP) <= maxPorts && len(r.ListenUDP) <= maxPorts &&
		len(r.Shares) <= 2*maxShares && len(r.Shares)%2 == 0 && len(r.Endpoints) <= maxEndpoints
}

// decode reads a record. It errs with ErrRecord, wrapped with the reason.
func decode(raw []byte) (Device, unknown, error) {
	bad := func(why string) (Device, unknown, error) {
		return Device{}, nil, fmt.Errorf("%w: %s", ErrRecord, why)
	}
	if len(raw) > maxRecord {
		return bad("too large")
	}
	var r record
	if err := limits().Unmarshal(raw, &r); err != nil {
		return bad("damaged")
	}
	var all unknown
	if err := limits().Unmarshal(raw, &all); err != nil {
		return bad("damaged")
	}
	for key := range all {
		if key < firstUnknown {
			delete(all, key)
		}
	}
	for _, f := range []struct {
		b    []byte
		size int
	}{{r.PairID, 16}, {r.ID, 32}, {r.WireGuard, 32}, {r.Chain, 32}, {r.CommitJ, 32}, {r.CommitO, 32}} {
		if len(f.b) != f.size {
			return bad("a key has the wrong length")
		}
	}
	if !r.bounded() {
		return bad("a field is out of bounds")
	}
	d := Device{
		PairID: PairID(r.PairID), State: State(r.State), ID: identity.DeviceID(r.ID), WireGuard: [32]byte(r.WireGuard),
		Name: r.Name, PeerName: r.PeerName, OS: r.OS, Joiner: r.Joiner, Method: r.Method, Verified: r.Verified, Own: r.Own,
		Chain: [32]byte(r.Chain), ChainDay: r.ChainDay, CommitJ: [32]byte(r.CommitJ), CommitO: [32]byte(r.CommitO),
		Deadline: fromMilli(r.Deadline), Created: fromMilli(r.Created), Changed: fromMilli(r.Changed),
		LastSeen: fromMilli(r.LastSeen), Skew: r.Skew, Rights: Rights{TCP: sorted(r.Ports), UDP: sorted(r.UDP), Files: r.Files, Blocked: r.Blocked,
			ListenTCP: sorted(r.ListenTCP), ListenUDP: sorted(r.ListenUDP)},
	}
	for pair := range slices.Chunk(r.Shares, 2) {
		_ = d.Rights.AddShare(Share{pair[0], pair[1]}) // one that cannot be used is not given; the pair stays
	}
	switch len(r.Room) {
	case 0:
	case len(d.Room):
		d.Room = [16]byte(r.Room)
	default:
		return bad("a room's id has the wrong length")
	}
	if len(r.Check) == checkDigits && strings.Trim(r.Check, "0123456789") == "" {
		d.Check = r.Check
	}
	if len(r.VouchedBy) == identity.IDSize {
		d.VouchedBy = identity.DeviceID(r.VouchedBy)
	}
	for _, raw := range r.MailKeys[:min(len(r.MailKeys), maxMailKeys)] {
		if len(raw) == mailKeySize { // another one opens nothing; the pair stays
			d.MailKeys = append(d.MailKeys, MailKey{int64(binary.BigEndian.Uint64(raw) & (maxDay - 1)), [32]byte(raw[8:]), [32]byte(raw[40:])})
		}
	}
	if raw := r.Next; len(raw) == nextKeysSize {
		d.Next = NextKeys{PairID(raw[8:24]), [32]byte(raw[24:]), int64(binary.BigEndian.Uint64(raw) & (maxDay - 1))}
	}
	for _, raw := range r.Endpoints {
		var ep netip.AddrPort
		if (len(raw) == 6 || len(raw) == 18) && ep.UnmarshalBinary(raw) == nil {
			d.Endpoints = append(d.Endpoints, ep)
		}
	}
	return d, all, nil
}

// encode writes a record with the entries of a later version. It errs with ErrRecord for one
// that decode would not take.
func encode(d Device, keep unknown) ([]byte, error) {
	r := record{
		PairID: d.PairID[:], State: uint8(d.State), ID: d.ID[:], WireGuard: d.WireGuard[:],
		Name: d.Name, PeerName: d.PeerName, OS: d.OS, Joiner: d.Joiner, Method: d.Method, Verified: d.Verified, Own: d.Own, Check: d.Check,
		Chain: d.Chain[:], ChainDay: d.ChainDay, CommitJ: d.CommitJ[:], CommitO: d.CommitO[:],
		Deadline: milli(d.Deadline), Created: milli(d.Created), Changed: milli(d.Changed), LastSeen: milli(d.LastSeen),
		Skew: d.Skew, Ports: d.Rights.TCP, UDP: d.Rights.UDP, Files: d.Rights.Files, Blocked: d.Rights.Blocked,
		ListenTCP: d.Rights.ListenTCP, ListenUDP: d.Rights.ListenUDP,
	}
	for _, s := range d.Rights.Shares {
		r.Shares = append(r.Shares, s.Name, s.Path)
	}
	if d.Member() {
		r.Room = d.Room[:]
	}
	if !d.VouchedBy.IsZero() {
		r.VouchedBy = d.VouchedBy[:]
	}
	for _, k := range d.MailKeys[:min(len(d.MailKeys), maxMailKeys)] {
		raw := binary.BigEndian.AppendUint64(make([]byte, 0, mailKeySize), uint64(k.Day))
		r.MailKeys = append(r.MailKeys, append(append(raw, k.Token[:]...), k.Seal[:]...))
	}
	if n := d.Next; n.PairID != (PairID{}) {
		r.Next = append(append(binary.BigEndian.AppendUint64(nil, uint64(n.Day)), n.PairID[:]...), n.Chain[:]...)
	}
	for _, ep := range d.Endpoints[:min(len(d.Endpoints), maxEndpoints)] {
		raw, err := netip.AddrPortFrom(ep.Addr().WithZone(""), ep.Port()).MarshalBinary()
		if err == nil {
			r.Endpoints = append(r.Endpoints, raw)
		}
	}
	if !r.bounded() { // it could not be read again
		return nil, fmt.Errorf("%w: a field is out of bounds", ErrRecord)
	}
	raw, err := strictcbor.Marshal(r)
	if err != nil || len(keep) == 0 {
		return raw, err
	}
	var all map[uint64]strictcbor.Raw
	if err := limits().Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	for key, value := range keep {
		all[key] = value
	}
	return strictcbor.Marshal(all)
}

func sorted(ports []uint16) []uint16 {
	slices.Sort(ports)
	return slices.Compact(ports)
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
