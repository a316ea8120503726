package room

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/kithproject/kith/internal/durable"
)

const suffix = ".cbor"

// ErrNotFound reports a room that this device does not know.
var ErrNotFound = errors.New("room: no such room")

// A Problem is a file that could not be read.
type Problem struct {
	Path   string // where it was
	KeptAs string // where it is; "" if it could not be moved
	Err    error
}

// String returns one line for a person.
func (p Problem) String() string {
	kept := "kept as " + p.KeptAs
	if p.KeptAs == "" {
		kept = "left where it is"
	}
	return fmt.Sprintf("the room %s cannot be read (%v) and was %s; the other rooms are not affected", p.Path, p.Err, kept)
}

// A Store holds the rooms of a state directory, a file each: rooms/<id>.cbor,
// mode 0600. Every write is durable before it returns, and is there whole or not
// at all. A file that cannot be read is moved aside and named in Problems. It is
// safe for concurrent use by one process, which holds the directory's lock.
type Store struct {
	mu       sync.Mutex // guards all fields; held while writing, so that writes are in order
	files    durable.Files
	rooms    map[ID]Record
	problems []Problem
}

// OpenStore loads the rooms of a state directory. It errs only if the directory
// itself cannot be used.
func OpenStore(dir string) (*Store, error) {
	d, err := durable.Open(filepath.Join(dir, "rooms"))
	if err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	return openStore(d, string(d))
}

func openStore(f durable.Files, dir string) (*Store, error) {
	s := &Store{files: f, rooms: make(map[ID]Record)}
	all, err := f.List()
	if err != nil {
		return nil, fmt.Errorf("room: %w", err)
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

func fileName(id ID) string { return id.String() + suffix }

func (s *Store) load(name string) error {
	raw, err := s.files.Read(name, maxRecord+1)
	if err != nil {
		return err
	}
	r, err := decodeRecord(raw)
	if err != nil {
		return err
	}
	if fileName(r.Room) != name {
		return fmt.Errorf("%w: it belongs to another file name", ErrRecord)
	}
	s.rooms[r.Room] = r
	return nil
}

// aside keeps a file that cannot be read under another name.
func (s *Store) aside(dir, name string, why error) Problem {
	p := Problem{Path: filepath.Join(dir, name), Err: why}
	if !errors.Is(why, ErrRecord) {
		return p // it may be readable another time
	}
	if as := durable.Aside(s.files, name); as != "" {
		p.KeptAs = filepath.Join(dir, as)
	}
	return p
}

// Problems returns the files that could not be read.
func (s *Store) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// clone keeps callers from changing what the store holds; rosters are never
// written.
func (r Record) clone() Record {
	r.List, r.Waiting = slices.Clone(r.List), slices.Clone(r.Waiting)
	r.TCP, r.UDP, r.Taken = slices.Clone(r.TCP), slices.Clone(r.UDP), slices.Clone(r.Taken)
	return r
}

// List returns the rooms, by id.
func (s *Store) List() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Record
	for _, r := range s.rooms {
		out = append(out, r.clone())
	}
	slices.SortFunc(out, func(a, b Record) int { return cmp.Compare(a.Room.String(), b.Room.String()) })
	return out
}

// Get returns a room.
func (s *Store) Get(id ID) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rooms[id]
	return r.clone(), ok
}

// Put remembers a room, durably. It errs if that fails; then the old record
// stands.
func (s *Store) Put(r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(r.clone())
}

// Update changes a room's record, durably. It errs with ErrNotFound, with what
// change returns, and if the change could not be made durable; then nothing
// changed.
func (s *Store) Update(id ID, change func(*Record) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rooms[id]
	if !ok {
		return ErrNotFound
	}
	r = r.clone()
	if err := change(&r); err != nil {
		return err
	}
	r.Room = id
	return s.write(r)
}

func (s *Store) write(r Record) error {
	raw, err := encodeRecord(r)
	if err != nil {
		return err
	}
	if err := durable.Replace(s.files, fileName(r.Room), raw); err != nil {
		return fmt.Errorf("room: write the record of a room: %w", err)
	}
	// The new record is in place; whether it survives a power cut is not known
	// until the directory is synced. Memory follows the file either way.
	s.rooms[r.Room] = r
	if err := s.files.SyncDir(); err != nil {
		return fmt.Errorf("room: make the record of a room durable: %w", err)
	}
	return nil
}

// Delete forgets a room for good. It errs if the file cannot be removed.
func (s *Store) Delete(id ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.files.Remove(fileName(id)); err != nil {
		return fmt.Errorf("room: %w", err)
	}
	delete(s.rooms, id)
	if err := s.files.SyncDir(); err != nil {
		return fmt.Errorf("room: %w", err)
	}
	return nil
}
