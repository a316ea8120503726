package files

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Progress is what is known of a transfer at one moment.
type Progress struct {
	ID      TransferID `json:"id"`
	Number  uint64     `json:"number"` // its number among the offers and transfers of this Service
	Peer    string     `json:"peer"`   // who is at the other end, as the caller names peers
	Name    string     `json:"name"`   // the first top-level name
	Sending bool       `json:"sending"`
	Stream  bool       `json:"stream"` // of a pipe, which cannot be sent again
	State   State      `json:"state"`

	Files      int64     `json:"files"`       // files, folders and symlinks that are there: a count
	Bytes      int64     `json:"bytes"`       // bytes that are there, acknowledged by the receiver
	Resumed    int64     `json:"resumed"`     // of Bytes: bytes that an earlier run brought
	TotalFiles int64     `json:"total_files"` // a count; grows while TotalKnown is false
	TotalBytes int64     `json:"total_bytes"` // bytes; grows while TotalKnown is false
	TotalKnown bool      `json:"total_known"`
	Lanes      int       `json:"lanes"` // how many streams carry data
	Notes      int       `json:"notes"` // how many names did not arrive as they were
	Started    time.Time `json:"started"`
}

// State is where a transfer is.
type State uint8

// States of a transfer.
const (
	StateWaiting  State = iota // for the receiver to accept
	StateRunning               // bytes flow
	StateBroken                // no connection; it goes on when there is one
	StateFinished              // all is there
	StateFailed                // it ended with an error
)

// states are the words for them.
var states = [...]string{"waiting", "running", "broken", "finished", "failed"} //nolint:gochecknoglobals // a table

// String is the state in one word.
func (s State) String() string { return states[min(s, StateFailed)] }

// MarshalText returns String; it never errs.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote. It errs for a word that is no state.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(states[:], string(b))
	if i < 0 {
		return fmt.Errorf("files: %q is not the state of a transfer", b)
	}
	*s = State(i)
	return nil
}

// A meter counts one transfer over all its runs. All methods may be called at once.
type meter struct {
	mu      sync.Mutex
	p       Progress
	sofar   int64 // bytes of this run
	files   int64
	notes   []Note
	noted   map[string]bool
	changed chan struct{}
}

func newMeter(p Progress) *meter {
	return &meter{p: p, noted: make(map[string]bool), changed: make(chan struct{}, 1)}
}

func (m *meter) update(f func(p *Progress)) {
	m.mu.Lock()
	f(&m.p)
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *meter) add(n int64)     { m.update(func(p *Progress) { p.Bytes += n }) }
func (m *meter) file(n int64)    { m.update(func(p *Progress) { p.Bytes += n; p.Files++ }) }
func (m *meter) state(s State)   { m.update(func(p *Progress) { p.State = s }) }
func (m *meter) lanes(n int)     { m.update(func(p *Progress) { p.Lanes += n }) }
func (m *meter) resumed(n int64) { m.update(func(p *Progress) { p.Bytes += n; p.Resumed += n }) }

// restart forgets what was counted: the next run counts what is there again.
func (m *meter) restart() {
	m.update(func(p *Progress) {
		p.Files, p.Bytes, p.Resumed, p.TotalFiles, p.TotalBytes, p.TotalKnown = 0, 0, 0, 0, 0, false
	})
}

// expect takes over what a look at all that is to be sent has found, if it saw all.
func (m *meter) expect(o *offerMsg) {
	if !o.known {
		return
	}
	m.update(func(p *Progress) { p.TotalFiles, p.TotalBytes, p.TotalKnown = o.files, o.bytes, true })
}

func (m *meter) note(n Note) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.noted[n.Path] {
		return
	}
	m.p.Notes++
	if len(m.notes) < maxNotes {
		m.noted[n.Path] = true
		m.notes = append(m.notes, n)
	}
}

func (m *meter) progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.p
}

func (m *meter) allNotes() []Note {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.notes)
}
