package room

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
)

const (
	maxRecord     = 2*MaxRoster + 64<<10 // bytes
	maxListed     = 256
	maxTaken      = 4 * MaxHosts // marks, also of hosts that are none any more
	recordVersion = 1
)

// ErrRecord reports bytes that are not a room's record.
var ErrRecord = errors.New("room: not a room's record")

// A Record is what a device remembers of a room that it is in: as a host or as a
// member. Printing one prints "redacted": it holds the password and the secret.
type Record struct {
	Room ID
	// Roster is the newest known; nil of a member that has not been given one.
	Roster *Roster
	// Base is the newest known that the founder signed, for members who have not
	// heard yet of the host that signed Roster; nil if it is Roster itself.
	Base *Roster
	// Grant is what the host gave when it let this device in, without the chain,
	// which is in the pair's record; zero for the founder.
	Grant Grant
	// Host says that this device admits others.
	Host bool
	// Password is that of the room, on a host, as CPace needs it.
	Password string
	// Short is the short code on a host, or the zero Room.
	Short code.Room
	// Guard is the memory of wrong passwords on a host.
	Guard Guard
	// List are the devices that List mode admits.
	List []identity.DeviceID
	// Waiting are the requests that wait for the host's user.
	Waiting []Request
	// TCP and UDP are ports of this machine's localhost that every member may reach, sorted.
	TCP, UDP []uint16
	// Taken says, on a host, how far the rosters of each other host are that it has taken.
	Taken []Mark
	// Left is when this device left or was removed; zero while it is in.
	Left time.Time
}

// A Mark is the newest roster by one host that another has taken.
type Mark struct {
	Host    identity.DeviceID
	Epoch   uint32 // a count
	Version uint64 // a count
}

// Took notes that a roster by another host was taken.
func (r *Record) Took(roster *Roster) {
	m := Mark{roster.Signer, roster.Epoch, roster.Version}
	i := slices.IndexFunc(r.Taken, func(t Mark) bool { return t.Host == m.Host })
	switch {
	case i < 0:
		r.Taken = append(r.Taken, m)
		if len(r.Taken) > maxTaken {
			r.Taken = slices.Delete(r.Taken, 0, 1)
		}
	case !r.Taken[i].covers(roster):
		r.Taken[i] = m
	}
}

// HasTaken reports whether this or a newer roster by the same host was taken before: who
// sends it again says nothing new.
func (r *Record) HasTaken(roster *Roster) bool {
	return slices.ContainsFunc(r.Taken, func(m Mark) bool { return m.Host == roster.Signer && m.covers(roster) })
}

func (m Mark) covers(r *Roster) bool {
	return cmp.Or(cmp.Compare(m.Epoch, r.Epoch), cmp.Compare(m.Version, r.Version)) >= 0
}

// String returns "redacted".
func (r Record) String() string { return "redacted" }

// GoString returns "redacted".
func (r Record) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (r Record) LogValue() slog.Value { return slog.StringValue("redacted") }

// Format prints "redacted" for every verb.
func (r Record) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "redacted") }

// recordWire is the CBOR form: a map with small integer keys.
type recordWire struct {
	Version  uint8      `cbor:"1,keyasint"`
	Room     []byte     `cbor:"2,keyasint"`
	Roster   []byte     `cbor:"3,keyasint,omitempty"`
	Base     []byte     `cbor:"4,keyasint,omitempty"`
	Host     bool       `cbor:"5,keyasint,omitempty"`
	Password string     `cbor:"6,keyasint,omitempty"`
	Short    string     `cbor:"7,keyasint,omitempty"`
	Spent    int        `cbor:"8,keyasint,omitempty"`
	Since    int64      `cbor:"9,keyasint,omitempty"`
	Fails    int        `cbor:"10,keyasint,omitempty"`
	Void     bool       `cbor:"11,keyasint,omitempty"`
	List     [][]byte   `cbor:"12,keyasint,omitempty"`
	Waiting  []waitWire `cbor:"13,keyasint,omitempty"`
	Left     int64      `cbor:"14,keyasint,omitempty"`
	Grant    *grantWire `cbor:"15,keyasint,omitempty"`
	TCP      []uint16   `cbor:"16,keyasint,omitempty"`
	UDP      []uint16   `cbor:"17,keyasint,omitempty"`
	Taken    []markWire `cbor:"18,keyasint,omitempty"`
}

type markWire struct {
	_       struct{} `cbor:",toarray"`
	Host    []byte
	Epoch   uint32
	Version uint64
}

type waitWire struct {
	_         struct{} `cbor:",toarray"`
	ID        []byte
	Body      []byte
	Password  bool
	Throttled bool
}

type grantWire struct {
	_         struct{} `cbor:",toarray"`
	Salt      []byte
	Founder   []byte
	Host      []byte
	HostName  string
	HostWG    []byte
	HostDay   int64
	Endpoints [][]byte
	RoomName  string
	Name      string
	Number    uint32
	PairID    []byte
}

func encodeRecord(r Record) ([]byte, error) {
	w := recordWire{
		Version: recordVersion, Room: r.Room[:], Host: r.Host, Password: r.Password, Short: r.Short.Nameplate(),
		Spent: r.Guard.Spent, Fails: r.Guard.Short, Void: r.Guard.Void,
		Since: milli(r.Guard.Since), Left: milli(r.Left), TCP: r.TCP, UDP: r.UDP,
	}
	var err error
	if r.Password != "" {
		if _, err = normalPassword(r.Password); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		from *Roster
		to   *[]byte
	}{{r.Roster, &w.Roster}, {r.Base, &w.Base}} {
		if f.from != nil {
			if *f.to, err = f.from.Encode(); err != nil {
				return nil, err
			}
		}
	}
	for _, id := range r.List[:min(len(r.List), maxListed)] {
		w.List = append(w.List, id[:])
	}
	for _, m := range r.Taken[:min(len(r.Taken), maxTaken)] {
		w.Taken = append(w.Taken, markWire{Host: m.Host[:], Epoch: m.Epoch, Version: m.Version})
	}
	for _, q := range r.Waiting[:min(len(r.Waiting), maxWaiting)] {
		body, err := encodeCBOR(requestWire{
			WireGuard: q.WireGuard[:], WGSig: q.WGSig[:], Name: q.Info.Name, OS: q.Info.OS, Version: q.Info.Version,
			Day: q.Info.Day, Endpoints: encodeEndpoints(q.Info.Endpoints),
		}, maxRequest)
		if err != nil {
			return nil, err
		}
		w.Waiting = append(w.Waiting, waitWire{ID: q.ID[:], Body: body, Password: q.Password, Throttled: q.Throttled})
	}
	if g := r.Grant; g.Number != 0 {
		w.Grant = &grantWire{
			Salt: g.Salt[:], Founder: g.Founder[:], Host: g.Host[:], HostName: g.HostInfo.Name, HostWG: g.HostInfo.WireGuard[:],
			HostDay: g.HostInfo.Day, Endpoints: encodeEndpoints(g.HostInfo.Endpoints), RoomName: g.RoomName, Name: g.Name,
			Number: g.Number, PairID: g.PairID[:],
		}
	}
	return encodeCBOR(w, maxRecord)
}

// decodeRecord reads a record. It errs with ErrRecord, wrapped with the reason.
func decodeRecord(raw []byte) (Record, error) {
	bad := func(why string) (Record, error) { return Record{}, fmt.Errorf("%w: %s", ErrRecord, why) }
	var w recordWire
	if err := decodeCBOR(raw, maxRecord, &w); err != nil {
		return bad("damaged")
	}
	if w.Version != recordVersion {
		return bad("of another version of kith")
	}
	if len(w.Room) != IDSize || len(w.Password) > MaxPassword || w.Spent < 0 || w.Spent > Guesses || w.Fails < 0 ||
		w.Fails > ShortGuesses || len(w.List) > maxListed || len(w.TCP) > maxPorts || len(w.UDP) > maxPorts || len(w.Waiting) > maxWaiting ||
		len(w.Taken) > maxTaken {
		return bad("a field is out of bounds")
	}
	if w.Password != "" {
		if _, err := normalPassword(w.Password); err != nil {
			return bad("its password")
		}
	}
	r := Record{
		Room: ID(w.Room), Host: w.Host, Password: w.Password, Left: fromMilli(w.Left),
		Guard: Guard{Spent: w.Spent, Since: fromMilli(w.Since), Short: w.Fails, Void: w.Void},
		TCP:   sortedPorts(w.TCP), UDP: sortedPorts(w.UDP),
	}
	for _, f := range []struct {
		from []byte
		to   **Roster
	}{{w.Roster, &r.Roster}, {w.Base, &r.Base}} {
		if len(f.from) == 0 {
			continue
		}
		roster, err := DecodeRoster(f.from)
		if err != nil || roster.Room != r.Room {
			return bad("its roster")
		}
		*f.to = roster
	}
	if w.Short != "" {
		short, err := code.ParseRoom(w.Short)
		if err != nil || short.Method() != code.RoomShort {
			return bad("its short code")
		}
		r.Short = short
	}
	for _, id := range w.List {
		if len(id) != identity.IDSize {
			return bad("an id")
		}
		r.List = append(r.List, identity.DeviceID(id))
	}
	for _, m := range w.Taken {
		if len(m.Host) != identity.IDSize {
			return bad("an id")
		}
		r.Taken = append(r.Taken, Mark{identity.DeviceID(m.Host), m.Epoch, m.Version})
	}
	for _, q := range w.Waiting {
		if len(q.ID) != identity.IDSize {
			return bad("a request")
		}
		req, err := decodeRequest(identity.DeviceID(q.ID), q.Body)
		if err != nil {
			return bad("a request")
		}
		req.Password, req.Throttled = q.Password, q.Throttled
		r.Waiting = append(r.Waiting, req)
	}
	if w.Grant == nil {
		return r, nil
	}
	g, ok := w.Grant.grant(r.Room)
	if !ok {
		return bad("its grant")
	}
	r.Grant = g
	return r, nil
}

func (w *grantWire) grant(room ID) (Grant, bool) {
	if len(w.Salt) != SaltSize || len(w.Founder) != identity.IDSize || len(w.Host) != identity.IDSize || len(w.HostWG) != 32 ||
		len(w.PairID) != 16 || w.Number == 0 || w.HostDay < 0 || w.HostDay > maxDay || !isClean(w.HostName) ||
		!isClean(w.RoomName) || !isClean(w.Name) {
		return Grant{}, false
	}
	var endpoints []netip.AddrPort
	if len(w.Endpoints) > 0 {
		endpoints = decodeEndpoints(w.Endpoints)
	}
	return Grant{
		Room: room, Salt: [SaltSize]byte(w.Salt), Founder: identity.DeviceID(w.Founder), Host: identity.DeviceID(w.Host),
		HostInfo: pairing.Info{Name: w.HostName, WireGuard: [32]byte(w.HostWG), Day: w.HostDay, Endpoints: endpoints},
		RoomName: w.RoomName, Name: w.Name, Number: w.Number, PairID: [16]byte(w.PairID),
	}, true
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
