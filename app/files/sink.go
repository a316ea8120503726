package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"lukechampine.com/blake3"
)

// Bounds of what a sender can make a receiver hold.
const (
	maxParts     = 256          // large files that are not whole at one time
	maxMaps      = 32 << 20     // bytes of their bitmaps
	maxBad       = 4 * maxNotes // files that are remembered as wrong
	spaceEvery   = 256 << 20
	spaceReserve = 64 << 20 // bytes that are left free on the disk
)

// A sink is the receiving end of one run of a transfer: it is given frames, in any
// order and by several lanes at once, and makes files of them in a stage.
type sink struct {
	stage    *stage
	dir      string
	sum      Sum
	tops     map[string]bool
	maxFiles int64
	maxBytes int64
	meter    *meter

	mu    sync.Mutex
	parts map[string]*part
	maps  int64             // bytes of bitmaps that the parts may need
	later *laterLog         // also under mu
	bad   map[string]int    // how often a file's root was wrong
	again []string          // paths to be sent again
	folds map[uint64]uint64 // on a file system that folds case: folded path to path

	files, bytes atomic.Int64 // counted against the limits
	asked        atomic.Int64 // entries; against the limit of files, too
	sinceSpace   atomic.Int64
	pool         sync.Pool
}

func newSink(st *stage, dir string, sum Sum, tops []string, m *meter) (*sink, error) {
	s := &sink{
		stage: st, dir: dir, sum: sum, meter: m, tops: make(map[string]bool),
		parts: make(map[string]*part), bad: make(map[string]int), folds: make(map[uint64]uint64),
	}
	for _, t := range tops {
		s.tops[t] = true
	}
	var err error
	s.later, err = st.openLater()
	return s, err
}

// close keeps what is there for another run.
func (s *sink) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.parts {
		errs = append(errs, p.close())
	}
	clear(s.parts)
	if s.later != nil {
		errs = append(errs, s.later.close())
		s.later = nil
	}
	return errors.Join(errs...)
}

// frame takes one frame. An error ends the transfer.
func (s *sink) frame(d *dirs, h *header, meta, data []byte) error {
	if h.kind == frameBatch || h.kind == frameChunk {
		if err := s.space(len(data)); err != nil {
			return err
		}
	}
	switch h.kind {
	case frameBatch:
		if chunkSum(s.sum, data, 0) != h.sum {
			return fmt.Errorf("files: a batch is not what was sent: %w", errMessage)
		}
		return parseBatch(meta, data, func(e *entry, content []byte) error { return s.small(d, e, content) })
	case frameBye:
		return nil
	}
	p, err := parsePlace(h.kind, meta, len(data))
	if err != nil {
		return err
	}
	if !s.tops[top(p.entry.path)] {
		return fmt.Errorf("files: %q was not offered: %w", ShowName(p.entry.path), ErrProtocol)
	}
	if h.kind == frameChunk && chunkSum(s.sum, data, p.off) != h.sum {
		return fmt.Errorf("files: a chunk is not what was sent: %w", errMessage)
	}
	pt, err := s.part(d, &p.entry)
	if err != nil || pt == nil {
		if h.kind == frameEnd && p.state == endGone {
			_ = s.stage.tree.Remove(s.place(p.entry.path))
		}
		return err
	}
	var fresh int64
	switch h.kind {
	case frameChunk:
		if p.entry.kind == kindStream {
			// By where it ends: a short chunk far out is a long file all the same.
			if err := s.count(0, pt.reach(p.off+p.len)); err != nil {
				return err
			}
		}
		fresh, err = pt.put(p.off, data, &h.sum)
	case frameHole:
		fresh, err = pt.putHole(p.off, p.len)
	case frameEnd:
		pt.mu.Lock()
		if !pt.done { // otherwise it came again, and complete looks at the other one
			pt.end = &p
		}
		pt.mu.Unlock()
	}
	if err != nil {
		return s.failed(p.entry.path, err)
	}
	if fresh != 0 {
		s.meter.add(fresh)
	}
	if pt.whole() {
		return s.complete(pt)
	}
	return nil
}

// failed notes that one file could not be written; a full disk ends the transfer.
func (s *sink) failed(path string, err error) error {
	if diskFull(err) {
		return ErrDiskFull
	}
	if errors.Is(err, ErrLimit) || errors.Is(err, ErrProtocol) || errors.Is(err, context.Canceled) {
		return err
	}
	s.meter.note(Note{Path: path, Problem: ProblemWrite, Detail: detail(err)})
	return nil
}

// space looks now and then whether the disk fills up.
func (s *sink) space(n int) error {
	if s.sinceSpace.Add(int64(n)) < spaceEvery {
		return nil
	}
	s.sinceSpace.Store(0)
	if free, ok := freeSpace(s.dir); ok && free < spaceReserve {
		return ErrDiskFull
	}
	return nil
}

func (s *sink) count(files, bytes int64) error {
	if n := s.files.Add(files); s.maxFiles > 0 && n > s.maxFiles {
		return fmt.Errorf("%w: %d files and folders", ErrLimit, s.maxFiles)
	}
	if n := s.bytes.Add(bytes); s.maxBytes > 0 && n > s.maxBytes {
		return fmt.Errorf("%w: %d bytes", ErrLimit, s.maxBytes)
	}
	return nil
}

// place returns the path in the tree for a path of the sender.
func (s *sink) place(p string) string {
	staged := safePath(p, s.stage.names)
	if staged != p {
		// Said once, by the name itself and not by all that is in a folder.
		if dir, _ := split(p); safePath(dir, s.stage.names) == dir {
			s.meter.note(Note{Path: p, Problem: ProblemRenamed})
		}
	}
	if !s.stage.folds {
		return staged
	}
	return s.unfold(p, staged)
}

// unfold keeps two names that differ only in case apart, where the file system does
// not: the second gets a mark. Folders are merged.
func (s *sink) unfold(p, staged string) string {
	key, own := hash64(strings.ToLower(staged)), hash64(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if first, taken := s.folds[key]; taken && first != own {
		dir, name := split(staged)
		s.meter.note(Note{Path: p, Problem: ProblemRenamed})
		if dir == "." {
			return marked(name, p)
		}
		return dir + "/" + marked(name, p)
	}
	s.folds[key] = own
	return staged
}

// have says what of an entry is there since an earlier run.
func (s *sink) have(d *dirs, e *entry) (have, error) {
	if !s.tops[top(e.path)] {
		return have{}, fmt.Errorf("files: %q was not offered: %w", ShowName(e.path), ErrProtocol)
	}
	// A name that is asked for may be remembered, see unfold.
	if n := s.asked.Add(1); s.maxFiles > 0 && n > s.maxFiles {
		return have{}, fmt.Errorf("%w: %d files and folders", ErrLimit, s.maxFiles)
	}
	if e.kind != kindFile {
		return have{}, nil
	}
	staged := s.place(e.path)
	if e.size > chunkSize {
		s.mu.Lock()
		busy := s.parts[e.path] != nil
		s.mu.Unlock()
		if busy {
			return have{}, nil
		}
		p, err := s.stage.openPart(e, staged, s.sum, false)
		if err != nil || p != nil {
			if err == nil && s.stage.suspect(p) {
				err = p.verify()
			}
			if err != nil {
				return have{}, nil
			}
			defer p.close()
			h := have{ranges: p.ranges(maxRanges)}
			s.meter.resumed(p.bytes)
			return h, nil
		}
	}
	dirName, name := split(staged)
	dir, err := d.get(dirName)
	if err != nil || !s.stage.has(dir, name, e) {
		return have{}, nil
	}
	s.meter.resumed(e.size)
	s.meter.file(0)
	return have{all: true}, s.count(1, e.size)
}

// takeAgain returns the files whose digest was wrong, once.
func (s *sink) takeAgain() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.again
	s.again = nil
	return list
}

// abandon gives up on files that are not whole though the sender says that it has
// sent all: an honest one changed its mind about them when it read them again.
func (s *sink) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, p := range s.parts {
		s.meter.note(Note{Path: path, Problem: ProblemChanged})
		s.drop(p)
	}
}

func hash64(v string) uint64 {
	d := blake3.Sum256([]byte(v))
	r := uint64(0)
	for _, b := range d[:8] {
		r = r<<8 | uint64(b)
	}
	return r
}

// small takes a whole entry of a batch.
func (s *sink) small(d *dirs, e *entry, content []byte) error {
	if !s.tops[top(e.path)] {
		return fmt.Errorf("files: %q was not offered: %w", ShowName(e.path), ErrProtocol)
	}
	if err := s.count(1, e.size); err != nil {
		return err
	}
	staged := s.place(e.path)
	var err error
	switch e.kind {
	case kindFile:
		if err = s.stage.writeSmall(d, staged, e, content); err == nil {
			s.meter.file(e.size)
		}
	case kindDir:
		if _, err = d.get(staged); err != nil {
			break
		}
		err = s.addLater(staged, e)
		s.meter.file(0)
	case kindLink:
		if !linkInside(e.path, e.link) {
			s.meter.note(Note{Path: e.path, Problem: ProblemLink})
			return nil
		}
		err = s.addLater(staged, e)
		s.meter.file(0)
	}
	if err != nil {
		return s.failed(e.path, err)
	}
	return nil
}

func (s *sink) addLater(staged string, e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.later == nil {
		return os.ErrClosed
	}
	return s.later.add(staged, e)
}

// flush brings what is acknowledged out of this process, so that it outlives it.
func (s *sink) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.later == nil {
		return os.ErrClosed
	}
	return s.later.w.Flush()
}

// part returns the partial file of an entry, which it opens or makes; nil if it
// cannot be had, which is noted, and if it is whole already: frames of a lane that
// died before it could acknowledge them come again.
func (s *sink) part(d *dirs, e *entry) (*part, error) {
	s.mu.Lock()
	p := s.parts[e.path]
	s.mu.Unlock()
	if p != nil && p.entry == *e {
		return p, nil
	}
	staged := s.place(e.path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.parts[e.path]; p != nil {
		if p.entry == *e {
			return p, nil
		}
		s.drop(p) // another version of it
	}
	if s.later == nil {
		return nil, os.ErrClosed
	}
	if s.bad[e.path] < 0 {
		return nil, nil
	}
	maps := e.mapBytes()
	if len(s.parts) >= maxParts || s.maps+maps > maxMaps {
		return nil, fmt.Errorf("files: too many files at once: %w", ErrProtocol)
	}
	dirName, name := split(staged)
	if dir, err := d.get(dirName); err == nil {
		if _, err := s.stage.parts.Lstat(partKey(e.path)); err != nil && s.stage.has(dir, name, e) {
			return nil, nil
		}
	}
	if err := s.count(1, e.size); err != nil {
		return nil, err
	}
	p, err := s.stage.openPart(e, staged, s.sum, true)
	if err == nil && e.kind == kindStream && s.stage.suspect(p) { // the sender asks for files only
		if err = p.verify(); err != nil {
			p.close()
		}
	}
	if err != nil {
		if len(s.bad) < maxBad { // of others it is tried again with each frame
			s.bad[e.path] = -1
		}
		return nil, s.failed(e.path, err)
	}
	s.maps += maps
	s.parts[e.path] = p
	return p, nil
}

// drop forgets a partial file and what is on disk of it. The caller holds mu.
func (s *sink) drop(p *part) {
	p.mu.Lock()
	p.done = true
	p.mu.Unlock()
	p.close()
	_ = s.stage.parts.Remove(p.key)
	_ = s.stage.tree.Remove(p.staged)
	s.forget(p)
	s.files.Add(-1)
	s.bytes.Add(-p.entry.size)
}

func (s *sink) forget(p *part) {
	s.maps -= p.entry.mapBytes()
	delete(s.parts, p.entry.path)
}

// complete checks and closes a file of which all is there.
func (s *sink) complete(p *part) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	end := p.end
	if end.state == endGone {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.meter.add(-p.bytes)
		s.drop(p)
		return nil
	}
	if end.state == endWhole {
		root, err := p.root(end.off)
		if err != nil {
			return s.failed(p.entry.path, err)
		}
		if root != end.root {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.meter.add(-p.bytes)
			if s.bad[p.entry.path]++; len(s.bad) > maxBad {
				return fmt.Errorf("files: %d files are not what was sent: %w", maxBad, ErrProtocol)
			}
			if s.bad[p.entry.path] == 1 && len(s.again) < maxNotes && p.entry.kind == kindFile {
				s.again = append(s.again, p.entry.path)
			} else {
				s.meter.note(Note{Path: p.entry.path, Problem: ProblemVerify})
			}
			s.drop(p)
			return nil
		}
	}
	if p.entry.kind == kindStream {
		if err := p.file.Truncate(end.off); err != nil {
			return s.failed(p.entry.path, err)
		}
	}
	dirName, name := split(p.staged)
	d := dirs{tree: s.stage.tree}
	defer d.close()
	dir, err := d.get(dirName)
	if err == nil {
		err = s.stage.seal(dir, name, p.file, &p.entry, 0)
	}
	p.jour.Close()
	// Both at once: a frame that comes again finds the part, or a whole file.
	s.mu.Lock()
	if err == nil {
		err = s.stage.parts.Remove(p.key)
	}
	s.forget(p)
	s.mu.Unlock()
	if err != nil {
		return s.failed(p.entry.path, err)
	}
	s.meter.file(0)
	return nil
}
