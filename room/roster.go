package room

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

const (
	// MaxMembers is how many devices a room holds, the host included, a count.
	MaxMembers = 256
	// MaxHosts is how many devices may sign a room's roster, a count.
	MaxHosts = 8
	// MaxBans is how many devices a room can ban, a count.
	MaxBans = 128
	// MaxRoster is the longest encoded roster, in bytes.
	MaxRoster = 64 << 10
	// MaxHostDays is for how long the founder names another host at a time, in
	// days.
	MaxHostDays = 90

	maxGone = 64 // how many former members a roster names
)

// A Mode says whom the host admits.
type Mode uint8

// The modes. A room with a password asks everybody for it first, whatever the
// mode; banned devices are refused in every mode.
const (
	Approve  Mode = 1 // the host's user is asked about each: the default
	Password Mode = 2 // who knows the password
	List     Mode = 3 // the devices on the host's list
	Open     Mode = 4 // whoever has the code
)

// String returns the mode's name in commands.
func (m Mode) String() string {
	switch m {
	case Approve:
		return "approve"
	case Password:
		return "password"
	case List:
		return "list"
	case Open:
		return "open"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// ParseMode reads what String gives. It errs for other text.
func ParseMode(text string) (Mode, error) {
	for m := Approve; m <= Open; m++ {
		if strings.EqualFold(text, m.String()) {
			return m, nil
		}
	}
	return 0, fmt.Errorf("room: %q is no way to admit: approve, password, list and open are", pairing.CleanName(text))
}

var (
	// ErrRoster reports a roster that is not well-formed or not signed by a host.
	ErrRoster = errors.New("room: not a valid roster")
	// ErrOlder reports a roster that the known one beats.
	ErrOlder = errors.New("room: the roster is older than the known one")
	// ErrBack reports a roster in which somebody is who is known to be gone: its
	// signer has not heard of it.
	ErrBack = errors.New("room: the roster has a member that is known to be gone")
	// ErrFull reports a room with as many members, hosts or bans as it can have.
	ErrFull = errors.New("room: the room is full")
	// ErrBanned reports a banned device.
	ErrBanned = errors.New("room: the device is banned")
	// ErrClosed reports a closed room.
	ErrClosed = errors.New("room: the room is closed")
	// ErrNoMember reports a device that is not in the room.
	ErrNoMember = errors.New("room: no such member")
	// ErrNotHost reports a device that may not sign what it signs.
	ErrNotHost = errors.New("room: not a host of this room")
)

// A Member is a device in a room.
type Member struct {
	ID        identity.DeviceID
	WireGuard [32]byte  // its X25519 public key
	WGSig     [64]byte  // of WireGuard, by ID
	Name      string    // unique in the room
	Number    uint32    // an index from 1 on; never given to another device
	Added     time.Time // to the second
}

// A Gone is a former member, which keeps what is said about it apart from its
// coming back under another number.
type Gone struct {
	ID     identity.DeviceID
	Number uint32 // an index
}

// A HostEntry is a device that may sign the roster. The first is the founder,
// whose key the room's id binds; the others have the founder's word until a day.
type HostEntry struct {
	ID    identity.DeviceID
	Until int64    // day since 1970-01-01 UTC; 0 for the founder
	Sig   [64]byte // of the founder over the room, the device and Until
}

// A Roster is who is in a room: one version of it, signed by a host. Methods that
// change return the next version and leave the receiver as it is; a Roster is
// never written once it is shared. It prints "redacted", as it holds the secret.
type Roster struct {
	Room    ID
	Salt    [SaltSize]byte
	Version uint64 // a count that every change raises
	Epoch   uint32 // a count that rises when somebody must be kept out: with it comes a new Secret
	Secret  [32]byte
	Name    string
	Mode    Mode
	Created time.Time // to the second
	Hosts   []HostEntry
	Members []Member // by Number
	Gone    []Gone   // the last ones, by Number
	Next    uint32   // the number of the next member
	Bans    []identity.DeviceID
	Closed  bool
	Signer  identity.DeviceID
	Sig     [64]byte
}

// String returns "redacted".
func (r *Roster) String() string { return "redacted" }

// GoString returns "redacted".
func (r *Roster) GoString() string { return "redacted" }

// LogValue returns "redacted".
func (r *Roster) LogValue() slog.Value { return slog.StringValue("redacted") }

// Format prints "redacted" for every verb.
func (r *Roster) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "redacted") }

// Found returns the first roster of a new room, signed: self is its founder and
// its member number 1. random nil means crypto/rand. It errs if random fails.
func Found(self *identity.Identity, name, own string, mode Mode, now time.Time, random io.Reader) (*Roster, error) {
	salt, err := newSalt(self.ID(), random)
	if err != nil {
		return nil, err
	}
	if mode < Approve || mode > Open {
		return nil, fmt.Errorf("room: %v is no way to admit", mode)
	}
	r := &Roster{
		Room: NewID(self.ID(), salt), Salt: salt, Version: 1, Name: cleanName(name, "room"), Mode: mode,
		Created: now.UTC().Truncate(time.Second), Hosts: []HostEntry{{ID: self.ID()}}, Next: 2,
		Members: []Member{{
			ID: self.ID(), WireGuard: self.WireGuardPublic(), WGSig: SignWireGuard(self),
			Name: cleanName(own, "host"), Number: 1, Added: now.UTC().Truncate(time.Second),
		}},
	}
	if err := r.newEpoch(random); err != nil {
		return nil, err
	}
	return r, r.Sign(self)
}

func (r *Roster) newEpoch(random io.Reader) error {
	if random == nil {
		random = rand.Reader
	}
	if _, err := io.ReadFull(random, r.Secret[:]); err != nil {
		return fmt.Errorf("room: read randomness: %w", err)
	}
	r.Epoch++
	return nil
}

// next returns a copy to change.
func (r *Roster) next() *Roster {
	n := *r
	n.Hosts, n.Members = slices.Clone(r.Hosts), slices.Clone(r.Members)
	n.Gone, n.Bans = slices.Clone(r.Gone), slices.Clone(r.Bans)
	n.Version++
	n.Signer, n.Sig = identity.DeviceID{}, [64]byte{}
	return &n
}

// Founder returns the device that founded the room.
func (r *Roster) Founder() identity.DeviceID { return r.Hosts[0].ID }

// Day is the day the room was founded, on which the chains of its members begin.
func (r *Roster) Day() int64 { return wire.Day(r.Created) }

// IsHost reports whether a device may sign the roster.
func (r *Roster) IsHost(id identity.DeviceID) bool {
	return slices.ContainsFunc(r.Hosts, func(h HostEntry) bool { return h.ID == id })
}

// Member returns the member with an id.
func (r *Roster) Member(id identity.DeviceID) (Member, bool) {
	i := slices.IndexFunc(r.Members, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return r.Members[i], true
}

// Banned reports whether a device is banned.
func (r *Roster) Banned(id identity.DeviceID) bool { return slices.Contains(r.Bans, id) }

// Admit returns the next version with a device in it. Its number is the next
// one, its name made unique. A device that is in the room keeps number and name;
// if its WireGuard key is the same, the roster itself is returned. It errs with
// ErrClosed, ErrBanned and ErrFull, and with ErrRoster for a WireGuard key that
// the device has not signed, or that another member has.
func (r *Roster) Admit(m Member) (*Roster, error) {
	switch {
	case r.Closed:
		return nil, ErrClosed
	case r.Banned(m.ID):
		return nil, ErrBanned
	case !m.ID.Verify(wgProof(m.ID, m.WireGuard), m.WGSig[:]):
		return nil, fmt.Errorf("%w: the WireGuard key is not the device's", ErrRoster)
	}
	if slices.ContainsFunc(r.Members, func(o Member) bool { return o.ID != m.ID && o.WireGuard == m.WireGuard }) {
		return nil, fmt.Errorf("%w: the WireGuard key is another member's", ErrRoster)
	}
	if i := slices.IndexFunc(r.Members, func(o Member) bool { return o.ID == m.ID }); i >= 0 {
		if r.Members[i].WireGuard == m.WireGuard {
			return r, nil
		}
		n := r.next()
		n.Members[i].WireGuard, n.Members[i].WGSig = m.WireGuard, m.WGSig
		return n, nil
	}
	if len(r.Members) >= MaxMembers || r.Next == 0 {
		return nil, ErrFull
	}
	n := r.next()
	m.Name, m.Number, m.Added = n.freeName(m.Name), n.Next, m.Added.UTC().Truncate(time.Second)
	n.Next++
	n.Members = append(n.Members, m)
	return n, nil
}

// freeName returns a name that no other member has.
func (r *Roster) freeName(name string) string {
	name = cleanName(name, "unnamed")
	for i := 1; ; i++ {
		try := name
		if i > 1 {
			tail := fmt.Sprintf("-%d", i)
			for len(try)+len(tail) > pairing.MaxName {
				_, size := utf8.DecodeLastRuneInString(try)
				try = try[:len(try)-size]
			}
			try += tail
		}
		if !slices.ContainsFunc(r.Members, func(m Member) bool { return strings.EqualFold(m.Name, try) }) {
			return try
		}
	}
}

// Remove returns the next version without a member (kicked, or gone by itself),
// with a new secret that it does not get. With ban it is refused from now on;
// a device that is no member can be banned, too. random nil means crypto/rand.
// It errs with ErrNoMember, with ErrNotHost for the founder, who can only close
// the room, with ErrFull if there are MaxBans bans, and if random fails.
func (r *Roster) Remove(id identity.DeviceID, ban bool, random io.Reader) (*Roster, error) {
	i := slices.IndexFunc(r.Members, func(m Member) bool { return m.ID == id })
	switch {
	case id == r.Founder():
		return nil, fmt.Errorf("%w: the founder stays until the room is closed", ErrNotHost)
	case i < 0 && !ban:
		return nil, ErrNoMember
	case ban && !r.Banned(id) && len(r.Bans) >= MaxBans:
		return nil, fmt.Errorf("%w of bans", ErrFull)
	}
	n := r.next()
	if ban && !n.Banned(id) {
		n.Bans = append(n.Bans, id)
	}
	n.Hosts = slices.DeleteFunc(n.Hosts, func(h HostEntry) bool { return h.ID == id })
	if i >= 0 {
		n.drop(i)
	}
	return n, n.newEpoch(random)
}

// drop moves a member to those who are gone.
func (r *Roster) drop(i int) {
	r.Gone = append(r.Gone, Gone{ID: r.Members[i].ID, Number: r.Members[i].Number})
	slices.SortFunc(r.Gone, func(a, b Gone) int { return cmp.Compare(a.Number, b.Number) })
	if len(r.Gone) > maxGone {
		r.Gone = slices.Delete(r.Gone, 0, len(r.Gone)-maxGone)
	}
	r.Members = slices.Delete(r.Members, i, i+1)
}

// Unban returns the next version in which a device may ask again. It errs with
// ErrNoMember if it is not banned.
func (r *Roster) Unban(id identity.DeviceID) (*Roster, error) {
	if !r.Banned(id) {
		return nil, ErrNoMember
	}
	n := r.next()
	n.Bans = slices.DeleteFunc(n.Bans, func(b identity.DeviceID) bool { return b == id })
	return n, nil
}

// Rename returns the next version with another name of the room.
func (r *Roster) Rename(name string) *Roster {
	n := r.next()
	n.Name = cleanName(name, "room")
	return n
}

// SetMode returns the next version with another way to admit. It errs for a
// mode that is none.
func (r *Roster) SetMode(m Mode) (*Roster, error) {
	if m < Approve || m > Open {
		return nil, fmt.Errorf("room: %v is no way to admit", m)
	}
	n := r.next()
	n.Mode = m
	return n, nil
}

// AddHost returns the next version in which a member may sign, until a day: the
// founder's word for it, which goes into every answer of that host. Called again
// it lengthens the time. It errs with ErrNotHost if self is not the founder, with
// ErrNoMember, with ErrFull, and for a day more than MaxHostDays after today.
func (r *Roster) AddHost(self *identity.Identity, id identity.DeviceID, today, until int64) (*Roster, error) {
	if _, ok := r.Member(id); !ok {
		return nil, ErrNoMember
	}
	switch {
	case self.ID() != r.Founder() || id == r.Founder():
		return nil, fmt.Errorf("%w: only the founder names hosts", ErrNotHost)
	case until < today || until > today+MaxHostDays:
		return nil, fmt.Errorf("room: a host is named for at most %d days", MaxHostDays)
	}
	e := HostEntry{ID: id, Until: until, Sig: [64]byte(self.Sign(hostProof(r.Room, id, until)))}
	n := r.next()
	if i := slices.IndexFunc(n.Hosts, func(h HostEntry) bool { return h.ID == id }); i >= 0 {
		n.Hosts[i] = e
		return n, nil
	}
	if len(n.Hosts) >= MaxHosts {
		return nil, fmt.Errorf("%w of hosts", ErrFull)
	}
	n.Hosts = append(n.Hosts, e)
	return n, nil
}

// DropHost returns the next version in which a device signs no more; it stays a
// member. It errs with ErrNotHost for a device that is no host, and for the
// founder.
func (r *Roster) DropHost(id identity.DeviceID) (*Roster, error) {
	if !r.IsHost(id) || id == r.Founder() {
		return nil, ErrNotHost
	}
	n := r.next()
	n.Hosts = slices.DeleteFunc(n.Hosts, func(h HostEntry) bool { return h.ID == id })
	return n, n.newEpoch(nil)
}

// Close returns the last version: nobody is admitted any more. It errs only if
// random fails; nil means crypto/rand.
func (r *Roster) Close(random io.Reader) (*Roster, error) {
	n := r.next()
	n.Closed = true
	return n, n.newEpoch(random)
}

// rank is how much a signer counts among equal versions: the founder first.
func (r *Roster) rank() int {
	return slices.IndexFunc(r.Hosts, func(h HostEntry) bool { return h.ID == r.Signer })
}

// Beats reports whether r is to be taken instead of other: a higher epoch, so
// that no number of changes by a host that has not heard of it undoes a kick;
// then a higher version; then the founder's, then that of the host named first.
func (r *Roster) Beats(other *Roster) bool {
	if other == nil {
		return true
	}
	return cmp.Or(
		cmp.Compare(r.Epoch, other.Epoch), cmp.Compare(r.Version, other.Version),
		cmp.Compare(other.rank(), r.rank()), bytes.Compare(r.Sig[:], other.Sig[:]),
	) > 0
}

// Merge returns what a host signs when it learns of another version than its
// own: the one that wins, with what the other one has done besides, namely whom
// it admitted, kept out or banned, and whether it closed the room. It returns the
// winner itself if there is nothing to add. It errs if random fails.
func Merge(a, b *Roster, random io.Reader) (*Roster, error) {
	win, lose := a, b
	if b.Beats(a) {
		win, lose = b, a
	}
	n, changed, kept := win.next(), false, false
	n.Next = max(win.Next, lose.Next)
	for _, id := range lose.Bans {
		if !n.Banned(id) && len(n.Bans) < MaxBans && id != n.Founder() {
			n.Bans = append(n.Bans, id)
			changed = true
		}
	}
	for i := len(n.Members) - 1; i >= 0; i-- {
		m := n.Members[i]
		gone := slices.Contains(lose.Gone, Gone{ID: m.ID, Number: m.Number}) || n.Banned(m.ID)
		if gone && m.ID != n.Founder() {
			n.Hosts = slices.DeleteFunc(n.Hosts, func(h HostEntry) bool { return h.ID == m.ID })
			n.drop(i)
			changed, kept = true, true
		}
	}
	for _, m := range lose.Members {
		if slices.Contains(n.Gone, Gone{ID: m.ID, Number: m.Number}) || n.Closed {
			continue
		}
		if _, in := n.Member(m.ID); in || n.Banned(m.ID) || len(n.Members) >= MaxMembers {
			continue
		}
		if slices.ContainsFunc(n.Members, func(o Member) bool { return o.WireGuard == m.WireGuard }) {
			continue // the winner let another in with its key
		}
		if m.Number < win.Next {
			if !win.numbered(m.Number) {
				continue // gone for so long that the winner names it no more
			}
			m.Number = n.Next // the winner gave it to another
			n.Next++
		}
		m.Name = n.freeName(m.Name)
		n.Members = append(n.Members, m)
		changed = true
	}
	slices.SortFunc(n.Members, func(a, b Member) int { return cmp.Compare(a.Number, b.Number) })
	if lose.Closed && !n.Closed {
		n.Closed, changed, kept = true, true, true
	}
	if !changed {
		return win, nil
	}
	n.Version = max(win.Version, lose.Version) + 1
	if kept {
		return n, n.newEpoch(random)
	}
	return n, nil
}

// numbered reports whether a member or a former member has a number.
func (r *Roster) numbered(n uint32) bool {
	return slices.ContainsFunc(r.Members, func(m Member) bool { return m.Number == n }) ||
		slices.ContainsFunc(r.Gone, func(g Gone) bool { return g.Number == n })
}
