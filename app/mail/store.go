package mail

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/durable"
)

// Defaults of StoreConfig.
const (
	// DefaultMaxBytes is what a store keeps in all, in bytes.
	DefaultMaxBytes = 1 << 30
	// DefaultPerDepositor is what it keeps of one depositor, in bytes.
	DefaultPerDepositor = 64 << 20
	// DefaultMaxBlobs is how many blobs it keeps, a count.
	DefaultMaxBlobs = 100_000
	// DefaultPerBox is how many blobs one box holds, a count.
	DefaultPerBox = 2048

	day = 24 * time.Hour
	// sweepEvery is how often old blobs are looked for; one of an earlier run is removed
	// when it was too old in dueSweeps of them in a row, so that a clock that is wrong for
	// less than an hour removes nothing.
	sweepEvery = 20 * time.Minute
	dueSweeps  = 4
	clockSet   = 3600_000 // milliseconds by which the clock is set at least that are noticed
	sameTime   = 1000     // milliseconds in which letters are told apart by their order

	blockSize  = 4 << 10 // bytes of disk that a blob takes at least
	maxWriters = 8       // puts at once
	maxWatches = 500_000 // boxes that are watched, all connections together

)

// StoreConfig is what OpenStore needs. Dir must be set.
type StoreConfig struct {
	// Dir is a directory for the store alone; it is made with mode 0700.
	Dir string
	// MaxBytes and PerDepositor bound what their defaults say, in bytes. A blob counts as
	// the disk blocks (4 KiB) that it takes.
	MaxBytes, PerDepositor int64
	// MaxBlobs and PerBox bound what their defaults say, each a count.
	MaxBlobs, PerBox int
	// Keep is for how long a blob is kept; default Days days. It is removed between
	// that time and an hour and a half later.
	Keep time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Logger: default discard. It is told neither boxes nor depositors.
	Logger *slog.Logger

	ran func() time.Duration // since the store was opened, for tests
}

// Stats are a store's counts. Those behind MaxBytes, but for Depositors, are since it was
// opened.
type Stats struct {
	Letters    int    `json:"letters"`    // a count
	Boxes      int    `json:"boxes"`      // a count
	Depositors int    `json:"depositors"` // a count
	Bytes      int64  `json:"bytes"`      // bytes on disk
	MaxBytes   int64  `json:"max_bytes"`  // bytes that there may be
	Put        uint64 `json:"put"`        // count of letters that came
	Done       uint64 `json:"done"`       // count of letters that were removed by their receiver
	Expired    uint64 `json:"expired"`    // count of letters that were removed for their age
	Refused    uint64 `json:"refused"`    // count of letters for which there was no room
	Damaged    uint64 `json:"damaged"`    // count of letters that the disk had damaged
}

// A Store keeps blobs in a directory, one file each, the file's name being all that is
// known of it. It is safe for concurrent use. Close ends it.
type Store struct {
	cfg     StoreConfig
	disk    durable.Files
	ran     func() time.Duration // since it was opened; the clock does not matter
	writers chan struct{}
	stop    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex // guards the fields below; not held while writing
	closed  bool
	order   uint64
	last    int64 // the time of the last letter, Unix milliseconds
	boxes   map[Box]map[[IDSize]byte]*entry
	pending map[[BoxSize + IDSize]byte]chan struct{} // blobs that are being written
	owners  map[[ownerSize]byte]int64                // bytes
	blobs   int
	bytes   int64
	watches map[Box]map[*watcher]struct{}
	watched int
	stats   Stats
}

// A watcher is told once when something comes into one of its boxes.
type watcher struct {
	boxes map[Box]struct{}
	tell  func() // must not block
}

// OpenStore opens a directory of blobs, and removes what a crash left half written. It
// errs if the directory cannot be used.
func OpenStore(cfg StoreConfig) (*Store, error) {
	d, err := durable.Open(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("mail: %w", err)
	}
	s, err := openStore(cfg, d)
	if err != nil {
		return nil, err
	}
	s.wg.Go(s.run)
	return s, nil
}

func openStore(cfg StoreConfig, d durable.Files) (*Store, error) {
	cfg.MaxBytes = positive(cfg.MaxBytes, DefaultMaxBytes)
	cfg.PerDepositor = min(positive(cfg.PerDepositor, DefaultPerDepositor), cfg.MaxBytes)
	cfg.MaxBlobs = positive(cfg.MaxBlobs, DefaultMaxBlobs)
	cfg.PerBox = positive(cfg.PerBox, DefaultPerBox)
	cfg.Keep = positive(cfg.Keep, Days*day)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if opened := time.Now(); cfg.ran == nil {
		cfg.ran = func() time.Duration { return time.Since(opened) }
	}
	s := &Store{
		cfg: cfg, disk: d, ran: cfg.ran, writers: make(chan struct{}, maxWriters), stop: make(chan struct{}),
		boxes: make(map[Box]map[[IDSize]byte]*entry), owners: make(map[[ownerSize]byte]int64),
		pending: make(map[[BoxSize + IDSize]byte]chan struct{}), watches: make(map[Box]map[*watcher]struct{}),
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("mail: %w", err)
	}
	return s, nil
}

func positive[T int | int64 | time.Duration](n, def T) T {
	if n <= 0 {
		return def
	}
	return n
}

// load takes in what is in the directory. Files that are not the store's are left alone.
func (s *Store) load() error {
	files, err := s.disk.List()
	if err != nil {
		return err
	}
	var all []*entry
	for _, f := range files {
		e, ok := parseName(f.Name)
		switch {
		case ok && goodSize(int(min(f.Size, MaxBlob+1))):
			e.size = f.Size
			all = append(all, e)
		case ok, strings.HasSuffix(f.Name, durable.TmpSuffix):
			if ok {
				s.stats.Damaged++
			}
			if err := s.disk.Remove(f.Name); err != nil {
				return err
			}
		}
	}
	slices.SortFunc(all, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.at, b.at), strings.Compare(string(a.id[:]), string(b.id[:])))
	})
	for _, e := range all {
		if s.boxes[e.box][e.id] != nil { // a crash between renames
			if err := s.disk.Remove(e.fileName()); err != nil {
				return err
			}
			continue
		}
		s.insert(e)
	}
	s.cfg.Logger.Info("mail store opened", "letters", s.blobs, "bytes", s.bytes)
	return nil
}

func (s *Store) run() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		s.sweep()
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
	}
}

// Close ends the store and waits. Blobs stay. It is idempotent, and always returns nil.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// cost is what a blob takes of the disk, in bytes.
func cost(size int64) int64 { return (size + blockSize - 1) / blockSize * blockSize }

func ownerOf(depositor string) [ownerSize]byte {
	sum := sha256.Sum256([]byte(depositor))
	return [ownerSize]byte(sum[:])
}

func pendingKey(box Box, id [IDSize]byte) (k [BoxSize + IDSize]byte) {
	copy(k[copy(k[:], box[:]):], id[:])
	return k
}

// insert and drop keep the index. The caller holds mu.
func (s *Store) insert(e *entry) {
	if s.boxes[e.box] == nil {
		s.boxes[e.box] = make(map[[IDSize]byte]*entry)
	}
	s.order++
	e.order = s.order
	s.boxes[e.box][e.id] = e
	s.charge(e.owner, cost(e.size), 1)
}

func (s *Store) drop(e *entry) {
	delete(s.boxes[e.box], e.id)
	if len(s.boxes[e.box]) == 0 {
		delete(s.boxes, e.box)
	}
	s.charge(e.owner, -cost(e.size), -1)
}

func (s *Store) charge(owner [ownerSize]byte, bytes int64, blobs int) {
	s.bytes += bytes
	s.blobs += blobs
	if s.owners[owner] += bytes; s.owners[owner] <= 0 {
		delete(s.owners, owner)
	}
}

// room says why a blob cannot be kept. The caller holds mu.
func (s *Store) room(e *entry) error {
	c := cost(e.size)
	switch {
	case s.bytes+c > s.cfg.MaxBytes || s.blobs >= s.cfg.MaxBlobs:
		return ErrFull
	case s.owners[e.owner]+c > s.cfg.PerDepositor:
		return ErrShare
	case len(s.boxes[e.box]) >= s.cfg.PerBox:
		return ErrBox
	}
	return nil
}

// Put keeps a blob of one of Sizes that a depositor brings. It is on the disk when Put
// returns; the same one twice is kept once. It errs with ErrFull, ErrShare or ErrBox,
// with ErrRefused for another size, with ErrDisk if it cannot be written, and after
// Close.
func (s *Store) Put(depositor string, box Box, blob []byte) error {
	if !goodSize(len(blob)) {
		return ErrRefused
	}
	e := &entry{box: box, id: IDOf(blob), at: max(s.cfg.Now().UnixMilli(), 0), owner: ownerOf(depositor), size: int64(len(blob)), came: max(s.ran(), 1)}
	key := pendingKey(box, e.id)
	written := make(chan struct{})
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return ErrClosed
		}
		if s.boxes[box][e.id] != nil {
			s.mu.Unlock()
			return nil
		}
		other := s.pending[key]
		if other == nil {
			break
		}
		s.mu.Unlock()
		<-other
	}
	if err := s.room(e); err != nil {
		s.stats.Refused++
		s.mu.Unlock()
		return err
	}
	if behind := s.last - e.at; behind >= 0 && behind < sameTime {
		e.at = s.last + 1
	}
	s.last = e.at
	s.pending[key] = written
	s.charge(e.owner, cost(e.size), 1) // the place is taken while it is written
	s.mu.Unlock()

	s.writers <- struct{}{}
	err := s.write(e, blob)
	<-s.writers

	s.mu.Lock()
	delete(s.pending, key)
	close(written)
	s.charge(e.owner, -cost(e.size), -1)
	if err != nil {
		s.mu.Unlock()
		s.cfg.Logger.Error("letter not written", "err", err)
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	s.insert(e)
	s.stats.Put++
	var tell []*watcher
	for w := range s.watches[box] {
		tell = append(tell, w)
	}
	s.mu.Unlock()
	for _, w := range tell {
		w.tell()
	}
	return nil
}

// write makes the file, durably.
func (s *Store) write(e *entry, blob []byte) error {
	err := durable.Replace(s.disk, e.fileName(), blob)
	if err == nil {
		if err = s.disk.SyncDir(); err != nil {
			err = errors.Join(err, s.disk.Remove(e.fileName()))
		}
	}
	return unnamed(err)
}

// remove reports whether the blob was there.
func (s *Store) remove(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boxes[e.box][e.id] != e {
		return false
	}
	s.drop(e)
	if err := s.disk.Remove(e.fileName()); err != nil {
		s.cfg.Logger.Error("letter not removed", "err", unnamed(err)) // it comes back with the next start
	}
	return true
}

// Done removes blobs from the box of a token; those that are not there are no error.
// After a power cut they may be there again. It errs after Close.
func (s *Store) Done(token [32]byte, ids [][IDSize]byte) error {
	box := BoxOf(token)
	for _, id := range ids {
		s.mu.Lock()
		e, closed := s.boxes[box][id], s.closed
		s.mu.Unlock()
		if closed {
			return ErrClosed
		}
		if e != nil && s.remove(e) {
			s.mu.Lock()
			s.stats.Done++
			s.mu.Unlock()
		}
	}
	return nil
}

// Count returns what is in the boxes of the tokens.
func (s *Store) Count(tokens [][32]byte) []Count {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Count, len(tokens))
	for i, t := range tokens {
		for _, e := range s.boxes[BoxOf(t)] {
			out[i].Letters++
			out[i].Bytes += e.size
		}
	}
	return out
}

// Stats returns the counts of this moment.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Letters, st.Boxes, st.Bytes, st.MaxBytes, st.Depositors = s.blobs, len(s.boxes), s.bytes, s.cfg.MaxBytes, len(s.owners)
	return st
}

// KeptFor returns for how long blobs are kept.
func (s *Store) KeptFor() time.Duration { return s.cfg.Keep }
