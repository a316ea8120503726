package registry

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/durable"
)

const (
	suffix = ".cbor"
	// minPrefix is how much of an ID must be given, in characters.
	minPrefix = 4
	// tombLife is how long an ended pair is kept to tell the other side.
	tombLife = 90 * 24 * time.Hour
)

// A Store holds all records of a state directory. It is safe for concurrent use
// by one process; who opens it holds the directory's lock.
type Store struct {
	mu       sync.Mutex // guards all fields; held while writing, so that writes are in order
	files    durable.Files
	devices  map[PairID]*entry
	problems []Problem
	watchers map[chan struct{}]struct{}
}

type entry struct {
	dev  Device
	keep unknown
}

// Open loads the records of a state directory. Files that cannot be read are
// moved aside and named in Problems. It errs only if the directory itself cannot
// be used.
func Open(dir string) (*Store, error) {
	d, err := durable.Open(filepath.Join(dir, "pairs"))
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return open(d, string(d))
}

func open(f durable.Files, dir string) (*Store, error) {
	s := &Store{files: f, devices: make(map[PairID]*entry), watchers: make(map[chan struct{}]struct{})}
	all, err := f.List()
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	for _, file := range all {
		switch name := file.Name; {
		case strings.HasSuffix(name, durable.TmpSuffix):
			_ = f.Remove(name) // of a write that a crash ended; the old record stands
		case strings.HasSuffix(name, suffix):
			if err := s.load(name); err != nil {
				s.problems = append(s.problems, s.aside(dir, name, err))
			}
		}
	}
	return s, nil
}

func (s *Store) load(name string) error {
	raw, err := s.files.Read(name, maxRecord+1)
	if err != nil {
		return err
	}
	d, keep, err := decode(raw)
	if err != nil {
		return err
	}
	if fileName(d.PairID) != name {
		return fmt.Errorf("%w: it belongs to another file name", ErrRecord)
	}
	s.devices[d.PairID] = &entry{d, keep}
	return nil
}

// aside keeps a file that cannot be read under another name.
func (s *Store) aside(dir, name string, why error) Problem {
	p := Problem{Path: dir + "/" + name, Err: why}
	if !errors.Is(why, ErrRecord) {
		return p // it may be readable another time
	}
	if as := durable.Aside(s.files, name); as != "" {
		p.KeptAs = dir + "/" + as
	}
	return p
}

// Problems returns the files that could not be read.
func (s *Store) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

func clone(d Device) Device {
	d.Rights, d.Endpoints, d.MailKeys = d.Rights.clone(), slices.Clone(d.Endpoints), slices.Clone(d.MailKeys)
	return d
}

func (s *Store) sorted(want func(Device) bool) []Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Device
	for _, e := range s.devices {
		if want(e.dev) {
			out = append(out, clone(e.dev))
		}
	}
	slices.SortFunc(out, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// List returns the active and prepared pairs, by name.
func (s *Store) List() []Device {
	return s.sorted(func(d Device) bool { return d.State != Tomb && !d.Member() })
}

// Members returns the devices that are known as members of a room alone, by name.
func (s *Store) Members() []Device {
	return s.sorted(func(d Device) bool { return d.State == Active && d.Member() })
}

// Tombs returns the ended pairs that the other side may not know to be ended.
func (s *Store) Tombs() []Device {
	return s.sorted(func(d Device) bool { return d.State == Tomb })
}

// Get returns one pair.
func (s *Store) Get(id PairID) (Device, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.devices[id]
	if !ok {
		return Device{}, false
	}
	return clone(e.dev), true
}

// MemberByID returns the record of a device that is a member of a room with this one,
// and not paired with it.
func (s *Store) MemberByID(id identity.DeviceID) (Device, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.devices {
		if e.dev.ID == id && e.dev.Member() && e.dev.State == Active {
			return clone(e.dev), true
		}
	}
	return Device{}, false
}

// ByID returns the active pair with a device, or else the newest prepared one. Members
// of rooms are none.
func (s *Store) ByID(id identity.DeviceID) (Device, bool) {
	var best Device
	found := false
	for _, d := range s.List() {
		if d.ID != id {
			continue
		}
		if !found || d.State > best.State || (d.State == best.State && d.Created.After(best.Created)) {
			best, found = d, true
		}
	}
	return best, found
}

// Find returns the pair with a name (in any case), a device ID or its first
// characters (four or more), or a pair id in hexadecimal; after those, members of rooms
// alone. It errs with ErrNotFound, with an *EndedError if the pair is over, or with an
// *AmbiguousError if several fit.
func (s *Store) Find(ref string) (Device, error) {
	var d Device
	var err error
	for _, list := range [][]Device{s.List(), s.Members()} {
		if d, err = s.find(list, ref); !errors.Is(err, ErrNotFound) {
			return d, err
		}
	}
	if old, none := s.find(s.Tombs(), ref); none == nil {
		return Device{}, &EndedError{Name: old.Name, Since: old.Changed}
	}
	return d, err
}

func (s *Store) find(list []Device, ref string) (Device, error) {
	ref = strings.TrimSpace(ref)
	for _, d := range list {
		if strings.EqualFold(d.Name, ref) {
			if best, ok := s.ByID(d.ID); ok && strings.EqualFold(best.Name, ref) {
				return best, nil
			}
			return d, nil
		}
	}
	low := strings.ToLower(ref)
	var fit []Device
	for _, d := range list {
		if hex.EncodeToString(d.PairID[:]) == low || (len(low) >= minPrefix && strings.HasPrefix(d.ID.String(), low)) {
			fit = append(fit, d)
		}
	}
	switch len(fit) {
	case 0:
		return Device{}, fmt.Errorf("%w: %q", ErrNotFound, ref)
	case 1:
		return fit[0], nil
	}
	amb := &AmbiguousError{Ref: ref}
	for _, d := range fit {
		amb.Names = append(amb.Names, d.Name)
	}
	return Device{}, amb
}

// Put adds or replaces a pair, durably. A name that is taken gets a number. An
// active pair ends all other pairs with the same device. It returns the record as
// it was stored, and errs if it could not be made durable; then nothing changed.
func (s *Store) Put(d Device) (Device, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d = clone(d)
	var keep unknown
	if old := s.devices[d.PairID]; old != nil {
		keep = old.keep
	}
	d.Name = s.freeName(d.Name, d.ID)
	if err := s.write(d, keep); err != nil {
		return Device{}, err
	}
	return clone(d), s.endOthers(d)
}

// Update changes a pair, durably. A new name that is taken gets a number. It errs with ErrNotFound, and if the change
// could not be made durable; then nothing changed.
func (s *Store) Update(id PairID, change func(*Device)) (Device, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.devices[id]
	if e == nil {
		return Device{}, fmt.Errorf("registry: %w", ErrNotFound)
	}
	d := clone(e.dev)
	change(&d)
	d.PairID = id
	if d.Name != e.dev.Name {
		d.Name = s.freeName(d.Name, d.ID)
	}
	if d.State != e.dev.State {
		d.Changed = time.Now().UTC()
	}
	if err := s.write(d, e.keep); err != nil {
		return Device{}, err
	}
	return clone(d), s.endOthers(d)
}

// endOthers ends older pairs with a device that a new pair has replaced.
func (s *Store) endOthers(d Device) error {
	if d.State != Active || d.Member() {
		return nil
	}
	var errs []error
	for _, e := range s.devices {
		if e.dev.ID != d.ID || e.dev.PairID == d.PairID || e.dev.State == Tomb || e.dev.Member() {
			continue
		}
		old := clone(e.dev)
		old.State, old.Changed = Tomb, time.Now().UTC()
		errs = append(errs, s.write(old, e.keep))
	}
	return errors.Join(errs...)
}

// write makes a record durable and then visible.
func (s *Store) write(d Device, keep unknown) error {
	raw, err := encode(d, keep)
	if err != nil {
		return err
	}
	if err := durable.Replace(s.files, fileName(d.PairID), raw); err != nil {
		return fmt.Errorf("registry: write the record of %s: %w", d.Name, err)
	}
	// The new record is in place; whether it survives a power cut is not known
	// until the directory is synced. Memory follows the file either way.
	s.devices[d.PairID] = &entry{d, keep}
	s.changed()
	if err := s.files.SyncDir(); err != nil {
		return fmt.Errorf("registry: make the record of %s durable: %w", d.Name, err)
	}
	return nil
}

// Rename changes what a device is called. It errs with ErrName for a name that
// is empty, too long, not printable or taken, and with ErrNotFound.
func (s *Store) Rename(id PairID, name string) error {
	clean := strings.TrimSpace(name)
	if clean == "" || len(clean) > maxNameBytes || !utf8.ValidString(clean) ||
		strings.ContainsFunc(clean, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.ContainsAny(clean, ":/") || clean[0] == '-' {
		return fmt.Errorf("registry: %w: 1 to %d bytes of printable text are, without : and / and with no - in front", ErrName, maxNameBytes)
	}
	d, ok := s.Get(id)
	if !ok {
		return fmt.Errorf("registry: %w", ErrNotFound)
	}
	s.mu.Lock()
	taken := s.nameTaken(clean, d.ID)
	s.mu.Unlock()
	if taken {
		return fmt.Errorf("registry: %w: %q is another device's; rename that one first", ErrName, clean)
	}
	_, err := s.Update(id, func(d *Device) { d.Name = clean })
	return err
}

// nameTaken reports whether another device has a name. Two pairs with one device may have
// the same: the newer one ends the older.
func (s *Store) nameTaken(name string, except identity.DeviceID) bool {
	for _, e := range s.devices {
		if e.dev.ID != except && e.dev.State != Tomb && strings.EqualFold(e.dev.Name, name) {
			return true
		}
	}
	return false
}

// UsableName makes a name one that a device can be called here: cut to 64 bytes, and without
// the characters that stand for something in commands, so that none is taken for a flag.
func UsableName(name string) string {
	name = strings.TrimSpace(strings.TrimLeft(strings.NewReplacer(":", "-", "/", "-").Replace(name), "- "))
	if name == "" {
		name = "device"
	}
	return cut(name, maxNameBytes)
}

// cut returns as many whole characters of a text as fit so many bytes.
func cut(text string, size int) string {
	for len(text) > size {
		_, last := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-last]
	}
	return text
}

// freeName returns a usable name that no other device has.
func (s *Store) freeName(name string, id identity.DeviceID) string {
	name = UsableName(name)
	for i := 2; ; i++ {
		try := name
		if i > 2 {
			tail := fmt.Sprintf("-%d", i-1)
			try = cut(name, maxNameBytes-len(tail)) + tail
		}
		if !s.nameTaken(try, id) {
			return try
		}
	}
}

// Delete removes a pair for good. It errs if the file cannot be removed.
func (s *Store) Delete(id PairID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.files.Remove(fileName(id)); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	delete(s.devices, id)
	s.changed()
	if err := s.files.SyncDir(); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// Sweep removes pairs that ended more than 90 days before now. It errs if a file
// cannot be removed; the others are removed all the same.
func (s *Store) Sweep(now time.Time) error {
	var errs []error
	for _, d := range s.Tombs() {
		if now.Sub(d.Changed) > tombLife {
			errs = append(errs, s.Delete(d.PairID))
		}
	}
	return errors.Join(errs...)
}

// Watch returns a channel that holds a token after each change, and what ends it.
func (s *Store) Watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[ch] = struct{}{}
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, ch)
	}
}

func (s *Store) changed() {
	for ch := range s.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
