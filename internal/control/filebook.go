package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/durable"
)

// A FileStep is how far a file is that was offered.
type FileStep string

// The steps of a file.
const (
	FileOffered  FileStep = "offered"  // waits for an answer
	FileAccepted FileStep = "accepted" // taken; no byte has come yet
	FileRunning  FileStep = "running"  // bytes move
	FileWaiting  FileStep = "waiting"  // begun, and without a connection
	FileDone     FileStep = "done"     // all of it is where it was to go
	FileDeclined FileStep = "declined" // not wanted
	FileFailed   FileStep = "failed"   // ended before all was there
	FileExpired  FileStep = "expired"  // not offered any more, and never answered
	FileUnknown  FileStep = "unknown"  // nothing is known of it here
)

// A FileTaker is a device that a file of this one was offered to.
type FileTaker struct {
	ID    identity.DeviceID `json:"id"`
	State FileStep          `json:"state"`
	Bytes int64             `json:"bytes"`           // bytes that it has
	Total int64             `json:"total,omitempty"` // bytes in all; 0 is not known
	Note  string            `json:"note,omitempty"`  // why it failed
}

// A FileState is how far a file is that was offered in a conversation. From and Offer name
// it, and Conv if this device offers it: the same file may go to several.
type FileState struct {
	Conv   chat.ConvID       `json:"conv,omitzero"`
	From   identity.DeviceID `json:"from"`             // who offers it
	Offer  string            `json:"offer"`            // as in its line, chat.FileRef
	State  FileStep          `json:"state"`            // with several takers: of all of them
	Number uint64            `json:"number,omitempty"` // its number in the inbox, while it waits there
	Name   string            `json:"name,omitempty"`   // as the offer itself says, which is what counts
	Bytes  int64             `json:"bytes"`            // bytes that have come, or gone to all takers
	Total  int64             `json:"total,omitempty"`  // bytes in all, as the offer says; 0 is not known
	Note   string            `json:"note,omitempty"`   // where it was put, who took it, why it failed
	To     []FileTaker       `json:"to,omitempty"`     // of a file of this device
}

type fileKey struct {
	conv  chat.ConvID // of files of this device
	from  identity.DeviceID
	offer string
}

func (f *FileState) key() fileKey { return fileKey{f.Conv, f.From, f.Offer} }

const (
	maxFileStates  = 500     // that are known at once
	maxStatesOf    = 100     // of files of one other device
	maxFileTakers  = 1 << 10 // of one file
	maxFileText    = 1 << 10 // bytes of a name or a note
	maxOfferID     = 64      // bytes, as app/chat has it
	maxStatesBytes = 8 << 20 // of the file that keeps them
	statesFile     = "offers.json"
	saveAfter      = 2 * time.Second // how long after a change they are written
)

// A fileBook knows what became of files that were offered, here and by this device. What
// is kept of it on the disk has neither names nor places.
type fileBook struct {
	mu      sync.Mutex
	all     map[fileKey]*bookedFile
	number  uint64        // of the last change
	changed chan struct{} // closed by the next one
	dirty   chan struct{} // capacity 1: something is to be written
}

type bookedFile struct {
	FileState
	number uint64 // of the change that it had last
	At     time.Time
}

func newFileBook() *fileBook {
	return &fileBook{all: make(map[fileKey]*bookedFile), changed: make(chan struct{}), dirty: make(chan struct{}, 1)}
}

// change changes what is known of a file; fresh tells that nothing was.
func (b *fileBook) change(key fileKey, change func(f *FileState)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.all[key]
	if f == nil {
		b.makeRoom(key)
		f = &bookedFile{FileState: FileState{Conv: key.conv, From: key.from, Offer: key.offer, State: FileUnknown}}
		b.all[key] = f
	}
	before := f.State
	var takers []FileStep
	for _, t := range f.To {
		takers = append(takers, t.State)
	}
	change(&f.FileState)
	f.sum()
	b.number++
	f.number, f.At = b.number, time.Now()
	close(b.changed)
	b.changed = make(chan struct{})
	if before != f.State || !slices.EqualFunc(f.To, takers, func(t FileTaker, s FileStep) bool { return t.State == s }) {
		select {
		case b.dirty <- struct{}{}:
		default:
		}
	}
}

// makeRoom lets go of the file that changed longest ago, of who has too many first. The
// caller holds mu.
func (b *fileBook) makeRoom(key fileKey) {
	of := 0
	for k := range b.all {
		if k.from == key.from {
			of++
		}
	}
	one := key.conv == (chat.ConvID{}) && of >= maxStatesOf
	if !one && len(b.all) < maxFileStates {
		return
	}
	var oldest *bookedFile
	for k, f := range b.all {
		if (!one || k.from == key.from) && (oldest == nil || f.At.Before(oldest.At)) {
			oldest = f
		}
	}
	delete(b.all, oldest.key())
}

// state returns what is known of a file.
func (b *fileBook) state(key fileKey) FileState {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.all[key]; f != nil {
		return f.clone()
	}
	return FileState{Conv: key.conv, From: key.from, Offer: key.offer, State: FileUnknown}
}

// since returns what has changed after a change, oldest change first, the number of the last
// one, and what is closed by the next one.
func (b *fileBook) since(number uint64) ([]FileState, uint64, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []*bookedFile
	for _, f := range b.all {
		if f.number > number {
			found = append(found, f)
		}
	}
	slices.SortFunc(found, func(x, y *bookedFile) int { return int(x.number) - int(y.number) })
	var out []FileState
	for _, f := range found {
		out = append(out, f.clone())
	}
	return out, b.number, b.changed
}

func (f *FileState) clone() FileState {
	out := *f
	out.To = slices.Clone(f.To)
	return out
}

// sum is what is to be said of a file with several takers in one line.
func (f *FileState) sum() {
	if f.To == nil {
		return
	}
	n := make(map[FileStep]int)
	f.Bytes, f.Total = 0, 0
	for _, t := range f.To {
		n[t.State]++
		if t.State == FileRunning || t.State == FileDone || t.State == FileWaiting {
			f.Bytes += t.Bytes
			f.Total += t.Total
		}
	}
	all := len(f.To)
	switch {
	case n[FileRunning]+n[FileAccepted] > 0:
		f.State = FileRunning
	case n[FileOffered] > 0:
		f.State = FileOffered
	case n[FileWaiting] > 0:
		f.State = FileWaiting
	case n[FileDone] > 0:
		f.State = FileDone
	case n[FileDeclined] == all:
		f.State = FileDeclined
	default:
		f.State = FileFailed
	}
	if f.Note = ""; all == 1 {
		f.Note = f.To[0].Note
		return
	}
	if n[FileDone] > 0 || f.State == FileRunning {
		verb := "have"
		if n[FileDone] == 1 {
			verb = "has"
		}
		f.Note = fmt.Sprintf("%d of %d %s it", n[FileDone], all, verb)
	}
	for _, w := range []struct {
		n    int
		word string
	}{{n[FileDeclined], "declined"}, {n[FileFailed], "did not get it"}} {
		if w.n > 0 && w.n < all {
			if f.Note != "" {
				f.Note += ", "
			}
			f.Note += fmt.Sprintf("%d %s", w.n, w.word)
		}
	}
}

// savedFile is what is kept of a file.
type savedFile struct {
	FileState
	At time.Time `json:"at"`
}

// save writes what is known. It errs if the disk does.
func (b *fileBook) save(dir string) error {
	b.mu.Lock()
	out := make([]savedFile, 0, len(b.all))
	for _, f := range b.all {
		s := savedFile{f.clone(), f.At}
		s.Number, s.Name, s.Note = 0, "", ""
		for i := range s.To {
			s.To[i].Note = ""
		}
		out = append(out, s)
	}
	b.mu.Unlock()
	slices.SortFunc(out, func(x, y savedFile) int { return x.At.Compare(y.At) })
	raw, err := json.Marshal(out)
	if err != nil {
		return err
	}
	return durable.WriteFile(dir, statesFile, raw)
}

// load takes what was written. It errs if the file cannot be used; nothing is known then.
func (b *fileBook) load(dir string) error {
	raw, err := durable.Dir(dir).Read(statesFile, maxStatesBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := parseFileStates(raw)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range all {
		b.all[f.key()] = &f
	}
	return nil
}

var errFileStates = errors.New("control: not a list of offered files")

// parseFileStates reads what save wrote, as it is after a restart: nothing moves any more.
func parseFileStates(raw []byte) ([]bookedFile, error) {
	var saved []savedFile
	if err := json.Unmarshal(raw, &saved); err != nil {
		return nil, fmt.Errorf("%w: %w", errFileStates, err)
	}
	if len(saved) > maxFileStates {
		return nil, errFileStates
	}
	over := func(mine bool, s FileStep) (FileStep, bool) {
		switch s {
		case FileDone, FileDeclined, FileFailed, FileExpired, FileUnknown:
			return s, true
		case FileOffered, FileAccepted, FileRunning, FileWaiting:
			switch {
			case mine:
				return FileFailed, true // who sends it has ended with the program
			case s == FileOffered:
				return FileExpired, true
			}
			return FileWaiting, true
		}
		return "", false
	}
	var out []bookedFile
	for _, s := range saved {
		mine := s.Conv != (chat.ConvID{})
		ok := len(s.Offer) <= maxOfferID && len(s.Name) <= maxFileText && len(s.Note) <= maxFileText &&
			len(s.To) <= maxFileTakers && s.Bytes >= 0 && s.Total >= 0 && mine == (len(s.To) > 0)
		state, known := over(mine, s.State)
		s.State = state
		for i := range s.To {
			t := &s.To[i]
			var fits bool
			t.State, fits = over(true, t.State)
			ok = ok && fits && len(t.Note) <= maxFileText && t.Bytes >= 0 && t.Total >= 0
		}
		if !ok || !known {
			return nil, errFileStates
		}
		s.sum()
		out = append(out, bookedFile{FileState: s.FileState, At: s.At})
	}
	return out, nil
}
