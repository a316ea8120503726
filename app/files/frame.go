package files

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// Limits of one frame, in bytes.
const (
	headerSize = 48
	maxMeta    = 128 << 10 // of a batch: its entries
	maxBatch   = 2048      // entries of a batch
)

type frameKind uint8

const (
	frameBatch frameKind = iota + 1 // small files, folders, symlinks: whole entries with their contents
	frameChunk                      // one chunk of a large file
	frameHole                       // a run of chunks that are only zeros, without them
	frameEnd                        // a large file has no more chunks; its root
	frameBye                        // no more frames on this lane
)

// A header stands before each frame.
//
//	0  kind      1 byte
//	1  reserved  3 bytes, zero
//	4  meta      4 bytes, big endian: length of the meta
//	8  data      4 bytes, big endian: length of the data
//	12 check     4 bytes: CRC-32C of bytes 0-11, 16-47 and the meta
//	16 sum       32 bytes: digest of the data
type header struct {
	kind       frameKind
	meta, data int
	check      uint32
	sum        digest
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func (h *header) put(b []byte, meta []byte) {
	clear(b[:headerSize])
	b[0] = byte(h.kind)
	binary.BigEndian.PutUint32(b[4:], uint32(h.meta))
	binary.BigEndian.PutUint32(b[8:], uint32(h.data))
	copy(b[16:], h.sum[:])
	binary.BigEndian.PutUint32(b[12:], frameCheck(b, meta))
}

func frameCheck(b, meta []byte) uint32 {
	t := castagnoli()
	c := crc32.Update(0, t, b[:12])
	c = crc32.Update(c, t, b[16:headerSize])
	return crc32.Update(c, t, meta)
}

func (h *header) get(b []byte) error {
	h.kind = frameKind(b[0])
	meta, data := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if h.kind < frameBatch || h.kind > frameBye || b[1]|b[2]|b[3] != 0 || meta > maxMeta || data > chunkSize {
		return fmt.Errorf("files: frame: %w", errMessage)
	}
	h.meta, h.data = int(meta), int(data)
	h.check = binary.BigEndian.Uint32(b[12:])
	copy(h.sum[:], b[16:])
	return nil
}

// A place says which part of which file a frame is about: the meta of a chunk, a
// hole or an end.
type place struct {
	entry entry
	off   int64  // bytes
	len   int64  // bytes; of a hole only
	state byte   // of an end: endWhole or endGone
	root  digest // of an end
}

const (
	endWhole   = 1 // the root is that of the file
	endUnknown = 2 // parts were kept from an earlier run and not read again; there is no root
	endGone    = 3 // the file changed or failed while it was read; drop it
)

func (p *place) put(w *writer, kind frameKind) {
	p.entry.put(w)
	switch kind {
	case frameChunk:
		w.uint(uint64(p.off))
	case frameHole:
		w.uint(uint64(p.off))
		w.uint(uint64(p.len))
	case frameEnd:
		w.uint(uint64(p.off))
		w.byte(p.state)
		w.b = append(w.b, p.root[:]...)
	}
}

// parsePlace reads the meta of a chunk, a hole or an end. It errs on offsets that
// are not on the grid of chunks or not within the file.
func parsePlace(kind frameKind, meta []byte, data int) (place, error) {
	var p place
	r := reader{b: meta}
	p.entry.get(&r)
	stream := p.entry.kind == kindStream
	if p.entry.kind != kindFile && !stream {
		r.fail()
	}
	size := p.entry.size
	if stream {
		size = maxSize
	}
	p.off = int64(r.uint(uint64(size)))
	switch kind {
	case frameChunk:
		want := min(size-p.off, chunkSize)
		if p.off%chunkSize != 0 || data < 1 || int64(data) > want || int64(data) != want && !stream {
			r.fail()
		}
		p.len = int64(data)
	case frameHole:
		p.len = int64(r.uint(uint64(size)))
		end := p.off + p.len
		if p.off%chunkSize != 0 || p.len < 1 || end > size || end%chunkSize != 0 && end != size || data != 0 || stream {
			r.fail()
		}
	case frameEnd:
		p.state = r.byte()
		if len(r.b) < len(p.root) || p.state < endWhole || p.state > endGone || data != 0 {
			r.fail()
			break
		}
		copy(p.root[:], r.b)
		r.b = r.b[len(p.root):]
		if !stream && p.off != size {
			r.fail()
		}
	default:
		r.fail()
	}
	if err := r.end(); err != nil {
		return place{}, err
	}
	return p, nil
}

// parseBatch calls f for each entry of a batch, with its content. It errs before
// the first call if the lengths do not fit, and with f's error.
func parseBatch(meta, data []byte, f func(e *entry, content []byte) error) error {
	for _, check := range []bool{true, false} {
		r, rest := reader{b: meta}, data
		n := r.count(maxBatch)
		for range n {
			var e entry
			e.get(&r)
			if r.bad || e.size > int64(len(rest)) || e.kind == kindStream {
				return errMessage
			}
			content := rest[:e.size:e.size]
			rest = rest[e.size:]
			if check {
				continue
			}
			if err := f(&e, content); err != nil {
				return err
			}
		}
		if r.end() != nil || len(rest) > 0 {
			return errMessage
		}
	}
	return nil
}

// readFrame reads one frame's header and meta from a lane; the data is still to
// be read. It errs with io.EOF at the end of the lane between frames.
func readFrame(r io.Reader, scratch []byte) (h header, meta []byte, err error) {
	if _, err := io.ReadFull(r, scratch[:headerSize]); err != nil {
		return h, nil, err
	}
	if err := h.get(scratch); err != nil {
		return h, nil, err
	}
	meta = make([]byte, h.meta)
	if _, err := io.ReadFull(r, meta); err != nil {
		return h, nil, noEOF(err)
	}
	if frameCheck(scratch, meta) != h.check {
		return h, nil, fmt.Errorf("files: frame: check fails: %w", errMessage)
	}
	return h, meta, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
