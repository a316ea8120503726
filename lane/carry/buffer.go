package carry

import "sync"

// chunkSize is how much is read from a program and written to the lane at once, in bytes.
const chunkSize = 256 << 10

//nolint:gochecknoglobals // a pool holds no state, only memory
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// A chunk is bytes of the stream that the other side has not acknowledged. The memory
// is its own.
type chunk struct {
	buf      *[chunkSize]byte
	from, to int  // what of buf is left
	writing  bool // somebody reads buf: it must not be used again
}

// A backlog holds what is on the lane, or on its way into it. Its caller guards it.
type backlog struct {
	start  uint64 // offset of the first byte
	chunks []*chunk
}

// size is how many bytes it holds.
func (b *backlog) size() (n int) {
	for _, c := range b.chunks {
		n += c.to - c.from
	}
	return n
}

// own takes over a buffer whose first n bytes follow.
func (b *backlog) own(buf *[chunkSize]byte, n int) *chunk {
	c := &chunk{buf: buf, to: n}
	b.chunks = append(b.chunks, c)
	return c
}

// add copies as much of p as fits into one chunk, and returns the chunk and where in it
// that is.
func (b *backlog) add(p []byte) (c *chunk, from, n int) {
	if len(b.chunks) > 0 {
		c = b.chunks[len(b.chunks)-1]
	}
	if c == nil || c.to == chunkSize {
		c = b.own(chunks.Get().(*[chunkSize]byte), 0)
	}
	from = c.to
	n = copy(c.buf[from:], p)
	c.to += n
	return c, from, n
}

// drop forgets all before an offset.
func (b *backlog) drop(before uint64) {
	for len(b.chunks) > 0 && before > b.start {
		c := b.chunks[0]
		n := min(uint64(c.to-c.from), before-b.start)
		b.start += n
		if c.from += int(n); c.from < c.to {
			return
		}
		b.chunks[0] = nil
		b.chunks = b.chunks[1:]
		c.free()
	}
}

// free gives the memory back; whoever writes from it does so later.
func (c *chunk) free() {
	if !c.writing && c.buf != nil {
		chunks.Put(c.buf)
		c.buf = nil
	}
}
