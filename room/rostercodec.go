package room

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

// rosterWire is the CBOR form, without the signature.
type rosterWire struct {
	Room    []byte       `cbor:"1,keyasint"`
	Salt    []byte       `cbor:"2,keyasint"`
	Version uint64       `cbor:"3,keyasint"`
	Epoch   uint32       `cbor:"4,keyasint"`
	Secret  []byte       `cbor:"5,keyasint"`
	Name    string       `cbor:"6,keyasint"`
	Mode    uint8        `cbor:"7,keyasint"`
	Created int64        `cbor:"8,keyasint"`
	Hosts   []hostWire   `cbor:"9,keyasint"`
	Members []memberWire `cbor:"10,keyasint"`
	Gone    []goneWire   `cbor:"11,keyasint,omitempty"`
	Next    uint32       `cbor:"12,keyasint"`
	Bans    [][]byte     `cbor:"13,keyasint,omitempty"`
	Closed  bool         `cbor:"14,keyasint,omitempty"`
	Signer  []byte       `cbor:"15,keyasint"`
}

type hostWire struct {
	_     struct{} `cbor:",toarray"`
	ID    []byte
	Until int64
	Sig   []byte
}

type memberWire struct {
	_         struct{} `cbor:",toarray"`
	ID        []byte
	WireGuard []byte
	WGSig     []byte
	Name      string
	Number    uint32
	Added     int64
}

type goneWire struct {
	_      struct{} `cbor:",toarray"`
	ID     []byte
	Number uint32
}

// body is what is signed: everything but the signature.
func (r *Roster) body() ([]byte, error) {
	w := rosterWire{
		Room: r.Room[:], Salt: r.Salt[:], Version: r.Version, Epoch: r.Epoch, Secret: r.Secret[:], Name: r.Name,
		Mode: uint8(r.Mode), Created: r.Created.Unix(), Next: r.Next, Closed: r.Closed, Signer: r.Signer[:],
	}
	for _, h := range r.Hosts {
		w.Hosts = append(w.Hosts, hostWire{ID: h.ID[:], Until: h.Until, Sig: h.Sig[:]})
	}
	for _, m := range r.Members {
		w.Members = append(w.Members, memberWire{
			ID: m.ID[:], WireGuard: m.WireGuard[:], WGSig: m.WGSig[:], Name: m.Name, Number: m.Number, Added: m.Added.Unix(),
		})
	}
	for _, g := range r.Gone {
		w.Gone = append(w.Gone, goneWire{ID: g.ID[:], Number: g.Number})
	}
	for _, b := range r.Bans {
		w.Bans = append(w.Bans, b[:])
	}
	return encodeCBOR(w, MaxRoster-signatureSize)
}

func rosterProof(body []byte) []byte {
	return wire.AppendItems([]byte(wire.Label("room-roster")), body)
}

// Sign makes r the word of self. It errs with ErrNotHost if self is no host in
// it, with ErrFull if there were more changes than are counted, and with ErrRoster if it
// does not fit MaxRoster.
func (r *Roster) Sign(self *identity.Identity) error {
	switch {
	case !r.IsHost(self.ID()):
		return ErrNotHost
	case r.Epoch == 0 || r.Epoch > maxEpoch || r.Version == 0 || r.Version > maxChanges:
		return fmt.Errorf("%w of changes", ErrFull)
	}
	r.Signer = self.ID()
	body, err := r.body()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRoster, err)
	}
	r.Sig = [64]byte(self.Sign(rosterProof(body)))
	return nil
}

// Encode returns the signature and the signed CBOR: at most MaxRoster bytes, to
// be shown to members only. It errs with ErrRoster if it does not fit.
func (r *Roster) Encode() ([]byte, error) {
	body, err := r.body()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRoster, err)
	}
	return append(slices.Clone(r.Sig[:]), body...), nil
}

// DecodeRoster reads what Encode gives. The result is within the bounds, names
// are clean, they and the WireGuard keys unique, numbers ascend, and the signature fits Signer; whether
// Signer may sign, Verify says. It errs with ErrRoster.
func DecodeRoster(raw []byte) (*Roster, error) {
	bad := func(why string) (*Roster, error) { return nil, fmt.Errorf("%w: %s", ErrRoster, why) }
	if len(raw) <= signatureSize || len(raw) > MaxRoster {
		return bad("its length")
	}
	body := raw[signatureSize:]
	var w rosterWire
	if err := decodeCBOR(body, MaxRoster, &w); err != nil {
		return bad("damaged")
	}
	if len(w.Room) != IDSize || len(w.Salt) != SaltSize || len(w.Secret) != 32 || len(w.Signer) != identity.IDSize {
		return bad("a key has the wrong length")
	}
	r := &Roster{
		Room: ID(w.Room), Salt: [SaltSize]byte(w.Salt), Version: w.Version, Epoch: w.Epoch, Secret: [32]byte(w.Secret),
		Name: w.Name, Mode: Mode(w.Mode), Created: time.Unix(w.Created, 0).UTC(), Next: w.Next, Closed: w.Closed,
		Signer: identity.DeviceID(w.Signer), Sig: [64]byte(raw[:signatureSize]),
	}
	if w.Version == 0 || w.Version > maxChanges || w.Epoch == 0 || w.Epoch > maxEpoch || r.Mode < Approve || r.Mode > Open || !isClean(w.Name) ||
		w.Created < 0 || w.Created > maxDay*86400 || len(w.Hosts) == 0 || len(w.Hosts) > MaxHosts ||
		len(w.Members) == 0 || len(w.Members) > MaxMembers || len(w.Gone) > maxGone || len(w.Bans) > MaxBans {
		return bad("a field is out of bounds")
	}
	if !r.takeHosts(w.Hosts) || !r.takeMembers(w.Members) || !r.takeGone(w.Gone, w.Bans) {
		return bad("an entry is not as it must be")
	}
	if again, err := r.body(); err != nil || !slices.Equal(again, body) {
		return bad("not in the one form")
	}
	if !r.Signer.Verify(rosterProof(body), r.Sig[:]) {
		return bad("the signature does not fit")
	}
	return r, nil
}

// isClean reports whether a name is as CleanName leaves it, and there.
func isClean(name string) bool { return name != "" && pairing.CleanName(name) == name }

func (r *Roster) takeHosts(in []hostWire) bool {
	for i, h := range in {
		if len(h.ID) != identity.IDSize || len(h.Sig) != signatureSize || h.Until < 0 || h.Until > maxDay || (i == 0 && h.Until != 0) {
			return false
		}
		e := HostEntry{ID: identity.DeviceID(h.ID), Until: h.Until, Sig: [64]byte(h.Sig)}
		if r.IsHost(e.ID) {
			return false
		}
		r.Hosts = append(r.Hosts, e)
		if i > 0 && !r.Hosts[0].ID.Verify(hostProof(r.Room, e.ID, e.Until), e.Sig[:]) {
			return false
		}
	}
	return true
}

func (r *Roster) takeMembers(in []memberWire) bool {
	ids, keys, names := make(map[identity.DeviceID]bool, len(in)), make(map[[32]byte]bool, len(in)), make(map[string]bool, len(in))
	last := uint32(0)
	for _, w := range in {
		if len(w.ID) != identity.IDSize || len(w.WireGuard) != 32 || len(w.WGSig) != signatureSize ||
			w.Number <= last || !isClean(w.Name) || w.Added < 0 || w.Added > maxDay*86400 {
			return false
		}
		m := Member{
			ID: identity.DeviceID(w.ID), WireGuard: [32]byte(w.WireGuard), WGSig: [64]byte(w.WGSig), Name: w.Name,
			Number: w.Number, Added: time.Unix(w.Added, 0).UTC(),
		}
		fold := strings.ToLower(m.Name)
		if ids[m.ID] || keys[m.WireGuard] || names[fold] {
			return false
		}
		ids[m.ID], keys[m.WireGuard], names[fold], last = true, true, true, m.Number
		r.Members = append(r.Members, m)
	}
	return last < r.Next
}

func (r *Roster) takeGone(in []goneWire, bans [][]byte) bool {
	last := uint32(0)
	for _, w := range in {
		if len(w.ID) != identity.IDSize || w.Number <= last || w.Number >= r.Next {
			return false
		}
		last = w.Number
		g := Gone{ID: identity.DeviceID(w.ID), Number: w.Number}
		if slices.ContainsFunc(r.Members, func(m Member) bool { return m.Number == g.Number }) {
			return false
		}
		r.Gone = append(r.Gone, g)
	}
	for _, b := range bans {
		if len(b) != identity.IDSize || r.Banned(identity.DeviceID(b)) {
			return false
		}
		id := identity.DeviceID(b)
		if _, in := r.Member(id); in || r.IsHost(id) {
			return false
		}
		r.Bans = append(r.Bans, id)
	}
	return true
}

// Authentic says whether r is a roster of the room that a host has signed, given
// prev, the roster known so far, or nil if only the room's id is known. Its
// founder must be the one that the id binds, its signer a host in prev and in r
// itself, and every WireGuard key signed by its device; the list of hosts changes
// by the founder's hand only, except that anybody on it may be taken off. Whether
// r is to be taken instead of prev, Verify says. It errs with ErrRoster and
// ErrNotHost.
func (r *Roster) Authentic(prev *Roster, room ID) error {
	if r.Room != room || NewID(r.Founder(), r.Salt) != room {
		return fmt.Errorf("%w: it is another room's", ErrRoster)
	}
	body, err := r.body()
	if err != nil || !r.Signer.Verify(rosterProof(body), r.Sig[:]) {
		return fmt.Errorf("%w: the signature does not fit", ErrRoster)
	}
	if _, ok := r.Member(r.Founder()); !ok {
		return fmt.Errorf("%w: its founder is not in it", ErrRoster)
	}
	for _, m := range r.Members {
		if prev != nil {
			if old, ok := prev.Member(m.ID); ok && old.WireGuard == m.WireGuard && old.WGSig == m.WGSig {
				continue // checked then
			}
		}
		if !m.ID.Verify(wgProof(m.ID, m.WireGuard), m.WGSig[:]) {
			return fmt.Errorf("%w: a WireGuard key is not signed by its device", ErrRoster)
		}
	}
	for i, h := range r.Hosts {
		if i > 0 && !r.Founder().Verify(hostProof(room, h.ID, h.Until), h.Sig[:]) {
			return ErrNotHost
		}
	}
	if !r.IsHost(r.Signer) || (prev != nil && !prev.IsHost(r.Signer)) {
		return ErrNotHost
	}
	if prev != nil && r.Signer != r.Founder() {
		for _, h := range r.Hosts {
			if !slices.Contains(prev.Hosts, h) {
				return fmt.Errorf("%w: only the founder names hosts", ErrNotHost)
			}
		}
	}
	return nil
}

// Verify says whether r is to take the place of prev, the roster known so far,
// or nil if only the room's id is known: it must be authentic, it must beat prev,
// and nobody may be back in it under a number that prev says is gone. The last
// is so for a moment if two hosts act at once; a host then signs what Merge
// returns, and a member waits for that. It errs as Authentic does, and with
// ErrOlder and ErrBack.
func (r *Roster) Verify(prev *Roster, room ID) error {
	if err := r.Authentic(prev, room); err != nil || prev == nil {
		return err
	}
	if !r.Beats(prev) {
		return ErrOlder
	}
	for _, g := range prev.Gone {
		if m, in := r.Member(g.ID); in && m.Number == g.Number {
			return ErrBack
		}
	}
	return nil
}
