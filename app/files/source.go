package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A have is what the receiver has of one entry.
type have struct {
	all    bool
	ranges []int64 // pairs: first chunk, count; in order
}

func (h *have) chunk(c int64) bool {
	for len(h.ranges) >= 2 {
		if c < h.ranges[0] {
			return false
		}
		if c < h.ranges[0]+h.ranges[1] {
			return true
		}
		h.ranges = h.ranges[2:]
	}
	return false
}

// A source is the sending end of one run of a transfer: it reads files and makes
// frames of them, which lanes carry in any order.
type source struct {
	roots []*srcRoot
	sum   Sum
	trust bool // believe size and time of a file that was sent in part before
	meter *meter
	q     *queue
	ask   func(ctx context.Context, list []item) ([]have, error) // nil: the receiver has nothing
	tell  func(n Note)

	slots  chan struct{} // what is read ahead takes one each, so that it is bounded
	bigs   chan struct{} // and so does a large file of which something is out
	freeMu sync.Mutex
	free   []*buffer
	pool   sync.Pool // what is read again
	dirs   map[*srcRoot]*dirs
	batch  *batch
	count  time.Duration // countAfter; tests make it short

	asked      []item
	askedBytes int
	sent       atomic.Int64 // bytes of data given to lanes
}

// buffers is how many chunks are read ahead, or of a pipe: are not acknowledged.
const buffers = 24

// maxBigs is how many large files are on their way at one time. They are open here, and
// not whole at the receiver, which takes maxParts of them.
const maxBigs = maxParts - 16

func newSource(roots []*srcRoot, sum Sum, m *meter) *source {
	return &source{
		roots: roots, sum: sum, meter: m, q: newQueue(), slots: make(chan struct{}, buffers), bigs: make(chan struct{}, maxBigs), count: countAfter,
		dirs: make(map[*srcRoot]*dirs), tell: m.note,
	}
}

func (s *source) note(n Note) { s.meter.note(n); s.tell(n) }

// buffer waits for one of the bounded buffers: the one that was used last, as it is
// still in a processor's cache. It errs when ctx ends.
func (s *source) buffer(ctx context.Context) (*buffer, error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.freeMu.Lock()
	defer s.freeMu.Unlock()
	if n := len(s.free); n > 0 {
		b := s.free[n-1]
		s.free = s.free[:n-1]
		return b, nil
	}
	return &buffer{bounded: true}, nil
}

func (s *source) spare() *buffer {
	if b, ok := s.pool.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

func (s *source) giveBack(b *buffer) {
	if b == nil {
		return
	}
	if b.bounded {
		s.freeMu.Lock()
		s.free = append(s.free, b)
		s.freeMu.Unlock()
		<-s.slots
		return
	}
	s.pool.Put(b)
}

// produce walks the roots and queues all that the receiver does not have.
func (s *source) produce(ctx context.Context) error {
	defer s.closeDirs()
	defer s.countSoon(ctx)()
	var files, bytes int64
	err := walk(ctx, s.roots, func(it item) error {
		files++
		bytes += it.size
		s.meter.update(func(p *Progress) {
			p.TotalFiles, p.TotalBytes = max(p.TotalFiles, files), max(p.TotalBytes, bytes)
		})
		return s.offerItem(ctx, it)
	}, s.note)
	if err == nil {
		err = s.flushAsked(ctx)
	}
	if err == nil {
		err = s.flushBatch()
	}
	if err != nil {
		return err
	}
	s.meter.update(func(p *Progress) { p.TotalFiles, p.TotalBytes, p.TotalKnown = files, bytes, true })
	s.q.finish(true)
	return nil
}

// again sends files again whose digest was wrong at the receiver.
func (s *source) again(ctx context.Context, paths []string) error {
	defer s.closeDirs()
	s.q.finish(false)
	for _, p := range paths {
		for _, r := range s.roots {
			rest, ok := cutTop(p, r.top)
			if !ok || unfinished(rest) {
				continue
			}
			rel := r.rel + rest
			dirName, name := split(rel)
			dir, err := s.dirsOf(r).get(dirName)
			if err != nil {
				continue
			}
			it, err := makeItem(r, dir, name, rel, p)
			if err != nil || it.kind != kindFile {
				s.note(Note{Path: p, Problem: ProblemChanged})
				continue
			}
			s.meter.update(func(p *Progress) { p.Bytes -= it.size; p.Files-- })
			if err := s.take(ctx, it, have{}); err != nil {
				return err
			}
		}
	}
	if err := s.flushBatch(); err != nil {
		return err
	}
	s.q.finish(true)
	return nil
}

func cutTop(p, t string) (rest string, ok bool) {
	if top(p) != t {
		return "", false
	}
	return p[len(t):], true
}

func (s *source) dirsOf(r *srcRoot) *dirs {
	d := s.dirs[r]
	if d == nil {
		d = &dirs{tree: r.dir, readOnly: true}
		s.dirs[r] = d
	}
	return d
}

func (s *source) closeDirs() {
	for _, d := range s.dirs {
		d.close()
	}
	clear(s.dirs)
}

// Bounds of one question.
const (
	maxAsk      = 1024
	maxAskBytes = 128 << 10
)

func (s *source) offerItem(ctx context.Context, it item) error {
	if s.ask == nil {
		return s.take(ctx, it, have{})
	}
	s.asked = append(s.asked, it)
	s.askedBytes += len(it.path) + len(it.link) + 40
	if len(s.asked) < maxAsk && s.askedBytes < maxAskBytes {
		return nil
	}
	return s.flushAsked(ctx)
}

func (s *source) flushAsked(ctx context.Context) error {
	if len(s.asked) == 0 {
		return nil
	}
	answers, err := s.ask(ctx, s.asked)
	if err != nil {
		return err
	}
	for i, it := range s.asked {
		if err := s.take(ctx, it, answers[i]); err != nil {
			return err
		}
	}
	s.asked, s.askedBytes = s.asked[:0], 0
	return nil
}

// take sends what the receiver lacks of one item.
func (s *source) take(ctx context.Context, it item, h have) error {
	switch {
	case h.all:
		s.meter.resumed(it.size)
		s.meter.file(0)
		return nil
	case it.kind != kindFile:
		return s.addBatch(ctx, it, nil)
	}
	f, err := it.open(s.dirsOf(it.src))
	if err != nil {
		s.note((&problemError{ProblemRead, err}).note(it.path))
		return nil
	}
	if it.size > chunkSize {
		return s.large(ctx, it, f, h)
	}
	defer f.Close()
	return s.addBatch(ctx, it, f)
}

// placed makes a frame about a part of a large file.
func (s *source) placed(kind frameKind, big *bigFile, p place) *outFrame {
	p.entry = big.item.entry
	w := writer{b: make([]byte, 0, len(p.entry.path)+96)}
	p.put(&w, kind)
	big.hold()
	return &outFrame{kind: kind, meta: w.b, size: p.len, file: big, off: p.off}
}

// maxHole is the longest run of one hole frame, in bytes.
const maxHole = 1 << 40

func (s *source) large(ctx context.Context, it item, f *os.File, h have) error {
	was := it.entry
	if err := it.fresh(f); err != nil {
		f.Close()
		var pe *problemError
		errors.As(err, &pe)
		s.note(pe.note(it.path))
		return nil
	}
	if it.entry != was {
		h = have{} // not the file that the receiver was asked about
		if it.size <= chunkSize {
			defer f.Close()
			return s.addBatch(ctx, it, f)
		}
	}
	select {
	case s.bigs <- struct{}{}:
	case <-ctx.Done():
		f.Close()
		return ctx.Err()
	}
	big := &bigFile{item: it, f: f, left: func() { <-s.bigs }}
	big.hold()
	defer big.release()
	root, state, err := s.chunks(ctx, big, h)
	if err != nil {
		return err
	}
	if state == endGone || !it.unchanged(f) {
		state = endGone
		s.note(Note{Path: it.path, Problem: ProblemChanged})
	}
	end := s.placed(frameEnd, big, place{off: it.size, state: state, root: root})
	if state != endGone {
		end.files = 1
	}
	return s.q.put(end)
}

// chunks sends the chunks and holes of a file that are not there, in order.
func (s *source) chunks(ctx context.Context, big *bigFile, h have) (digest, byte, error) {
	root, state := newRoot(), byte(endWhole)
	size := big.item.size
	begin, end := nextData(big.f, 0, size)
	var hole place
	flush := func() error {
		if hole.len == 0 {
			return nil
		}
		f := s.placed(frameHole, big, hole)
		hole = place{}
		return s.q.put(f)
	}
	addHole := func(off, n int64) error {
		root.addHoles((n + chunkSize - 1) / chunkSize)
		if hole.len > 0 && (hole.off+hole.len != off || hole.len+n > maxHole) {
			if err := flush(); err != nil {
				return err
			}
		}
		if hole.len == 0 {
			hole.off = off
		}
		hole.len += n
		return nil
	}
	for off := int64(0); off < size; {
		if off >= end {
			begin, end = nextData(big.f, off, size)
		}
		n := min(size-off, chunkSize)
		if off+n <= begin {
			// A run of chunks without data, as far as the receiver has none of them.
			run := n
			for off+run+chunkSize <= begin || off+run < size && begin >= size {
				run += min(size-off-run, chunkSize)
				if run >= maxHole {
					break
				}
			}
			if err := s.holes(off, run, &h, addHole, root); err != nil {
				return digest{}, 0, err
			}
			off += run
			continue
		}
		kept := h.chunk(off / chunkSize)
		if kept && s.trust {
			s.meter.resumed(n)
			state = endUnknown
			off += n
			continue
		}
		buf, err := s.buffer(ctx)
		if err != nil {
			return digest{}, 0, err
		}
		data := buf.data()[:n]
		if _, err := big.f.ReadAt(data, off); err != nil {
			s.giveBack(buf)
			return digest{}, endGone, nil
		}
		switch {
		case zero(data):
			s.giveBack(buf)
			if kept {
				root.addHoles(1)
				s.meter.resumed(n)
			} else if err := addHole(off, n); err != nil {
				return digest{}, 0, err
			}
		default:
			sum := chunkSum(s.sum, data, off)
			root.add(&sum)
			if kept {
				s.giveBack(buf)
				s.meter.resumed(n)
				break
			}
			if err := flush(); err != nil {
				return digest{}, 0, err
			}
			f := s.placed(frameChunk, big, place{off: off})
			f.buf, f.len, f.size, f.sum = buf, int(n), n, sum
			if err := s.q.put(f); err != nil {
				return digest{}, 0, err
			}
		}
		off += n
	}
	return root.sum(size), state, flush()
}

// holes sends a run of holes, without those that the receiver has.
func (s *source) holes(off, run int64, h *have, addHole func(off, n int64) error, root rootSum) error {
	if len(h.ranges) == 0 {
		return addHole(off, run)
	}
	for end := off + run; off < end; {
		n := min(chunkSize, end-off)
		if h.chunk(off / chunkSize) {
			root.addHoles(1)
			s.meter.resumed(n)
		} else if err := addHole(off, n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// streamEntry is the entry of what comes from a pipe.
func streamEntry(name string, now time.Time) entry {
	return entry{kind: kindStream, path: name, mode: 0o644, mtime: now.UnixNano()}
}

// produceStream queues what comes from a reader, until its end. It goes on over all
// runs of the transfer, as what was read cannot be read again.
func (s *source) produceStream(ctx context.Context, r io.Reader, e entry) error {
	big := &bigFile{item: item{entry: e}}
	big.hold()
	s.meter.update(func(p *Progress) { p.TotalFiles = 1 })
	root, off := newRoot(), int64(0)
	for eof := false; !eof; {
		buf, err := s.buffer(ctx)
		if err != nil {
			return err
		}
		// Not io.ReadFull, whose ErrUnexpectedEOF may be r's own: that is no end.
		n := 0
		for n < chunkSize && err == nil {
			var more int
			more, err = r.Read(buf.data()[n:chunkSize])
			n += more
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return &finalError{fmt.Errorf("files: read what is to be sent: %w", err)}
		}
		eof = err != nil
		if n == 0 {
			s.giveBack(buf)
			break
		}
		sum := chunkSum(s.sum, buf.data()[:n], off)
		root.add(&sum)
		f := s.placed(frameChunk, big, place{off: off})
		f.buf, f.len, f.size, f.sum, f.pinned = buf, n, int64(n), sum, true
		off += int64(n)
		s.meter.update(func(p *Progress) { p.TotalBytes += int64(n) })
		if err := s.q.put(f); err != nil {
			return err
		}
	}
	end := s.placed(frameEnd, big, place{off: off, state: endWhole, root: root.sum(off)})
	end.files = 1
	if err := s.q.put(end); err != nil {
		return err
	}
	s.meter.update(func(p *Progress) { p.TotalKnown = true })
	s.q.finish(true)
	return nil
}

// finalError is one that trying again does not help.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }
