package files

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// A batch is a frame of small things that is being filled.
type batch struct {
	w     writer
	n     int
	buf   *buffer
	used  int
	items []item
}

// countBytes is the space of a batch's count: a varint of always two bytes.
const countBytes = 2

func (s *source) newBatch(ctx context.Context) (*batch, error) {
	buf, err := s.buffer(ctx)
	if err != nil {
		return nil, err
	}
	return &batch{buf: buf, w: writer{b: make([]byte, countBytes, 4096)}}, nil
}

// addBatch reads a small file into the batch, after sending the batch if it is full.
func (s *source) addBatch(ctx context.Context, it item, f *os.File) error {
	if b := s.batch; b != nil && (b.n >= maxBatch || len(b.w.b)+len(it.path)+len(it.link)+64 > maxMeta || b.used+int(it.size) > chunkSize) {
		if err := s.flushBatch(); err != nil {
			return err
		}
	}
	if s.batch == nil {
		b, err := s.newBatch(ctx)
		if err != nil {
			return err
		}
		s.batch = b
	}
	err := s.batch.add(&it, f)
	var pe *problemError
	if errors.As(err, &pe) {
		s.note(pe.note(it.path))
		return nil
	}
	return err
}

// add reads an item into the batch; a file that changes under it is read twice at
// most. It errs with a problemError.
func (b *batch) add(it *item, f *os.File) error {
	if f != nil {
		for try := 0; ; try++ {
			room := b.buf.data()[b.used:]
			n, err := io.ReadFull(io.NewSectionReader(f, 0, it.size), room[:min(it.size, int64(len(room)))])
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return &problemError{ProblemRead, err}
			}
			if int64(n) == it.size && it.unchanged(f) {
				break
			}
			if err := it.fresh(f); err != nil {
				return err
			}
			if try == 2 || it.size > int64(len(room)) {
				return &problemError{ProblemChanged, nil}
			}
		}
		b.used += int(it.size)
	}
	it.put(&b.w)
	b.n++
	b.items = append(b.items, *it)
	return nil
}

// frame makes the frame of a batch.
func (b *batch) frame(sum Sum) *outFrame {
	b.w.b[0], b.w.b[1] = byte(b.n)|0x80, byte(b.n>>7)
	f := &outFrame{
		kind: frameBatch, meta: b.w.b, buf: b.buf, len: b.used, size: int64(b.used), files: int64(b.n), items: b.items,
		sum: chunkSum(sum, b.buf.data()[:b.used], 0),
	}
	return f
}

func (s *source) flushBatch() error {
	b := s.batch
	if b == nil {
		return nil
	}
	s.batch = nil
	return s.q.put(b.frame(s.sum))
}

// reload reads the data of a frame again after its lane died. It returns the frame
// to send in its place.
func (s *source) reload(f *outFrame) *outFrame {
	switch {
	case f.buf != nil || f.len == 0 && f.kind != frameBatch:
		return f
	case f.kind == frameChunk:
		buf := s.spare()
		data := buf.data()[:f.len]
		_, err := f.file.f.ReadAt(data, f.off)
		if err == nil && chunkSum(s.sum, data, f.off) == f.sum {
			f.buf = buf
			return f
		}
		s.giveBack(buf)
		return s.gone(f)
	}
	old := f.items
	b := &batch{buf: s.spare(), w: writer{b: make([]byte, countBytes, len(f.meta))}}
	for _, it := range old {
		var file *os.File
		if it.kind == kindFile {
			d := dirs{tree: it.src.dir, readOnly: true}
			var err error
			file, err = it.open(&d)
			d.close()
			if err != nil {
				s.note((&problemError{ProblemRead, err}).note(it.path))
				continue
			}
		}
		if err := b.add(&it, file); err != nil {
			s.note(Note{Path: it.path, Problem: ProblemChanged})
		}
		if file != nil {
			file.Close()
		}
	}
	return b.frame(s.sum)
}

// gone makes the frame that tells the receiver to drop a file, in place of another.
func (s *source) gone(f *outFrame) *outFrame {
	if !f.file.gone.Swap(true) {
		s.note(Note{Path: f.file.item.path, Problem: ProblemChanged})
	}
	w := s.placed(frameEnd, f.file, place{off: f.file.item.size, state: endGone})
	f.file.release() // the old frame's
	return w
}

// putFrame writes the header and meta of a frame before its data, if they fit, and
// returns what is to be written.
func putFrame(f *outFrame, scratch []byte) [2][]byte {
	h := header{kind: f.kind, meta: len(f.meta), data: f.len, sum: f.sum}
	if f.buf != nil && headerSize+len(f.meta) <= headroom {
		at := headroom - headerSize - len(f.meta)
		h.put(f.buf.b[at:headroom], f.meta)
		copy(f.buf.b[at+headerSize:], f.meta)
		return [2][]byte{f.buf.b[at : headroom+f.len]}
	}
	scratch = append(scratch[:0], make([]byte, headerSize)...)
	h.put(scratch, f.meta)
	scratch = append(scratch, f.meta...)
	if f.buf == nil || f.len == 0 {
		return [2][]byte{scratch}
	}
	return [2][]byte{scratch, f.buf.data()[:f.len]}
}

// ackSize is the size of one acknowledgement in bytes: how many frames of this lane
// are done, as a number; with its highest bit the receiver asks the lane to stop.
const (
	ackSize = 8
	ackStop = 1 << 63
)

func parseAck(b []byte) (n uint64, stop bool) {
	v := binary.BigEndian.Uint64(b)
	return v &^ ackStop, v&ackStop != 0
}
