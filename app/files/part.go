package files

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
)

// The journal of a partial file: a head with the entry, and then blocks for 4096
// chunks each. A chunk's digest is written first and its state after it, both after
// the chunk itself, so that a process that is killed leaves only chunks that count
// and are there, or do not count.
//
//	0     "kithpart"  8 bytes
//	8     version 1, Sum, 2 zeros
//	12    length of the entry, 4 bytes, big endian
//	16    CRC-32C of bytes 0-15 and of the entry
//	20    the entry
//	8192  blocks: 4096 states (1 byte each), 4096 digests (32 bytes each)
const (
	journalMagic  = "kithpart"
	journalHead   = 8192
	journalChunks = 4096
	journalBlock  = journalChunks * (1 + 32)
)

// States of a chunk in a journal.
const (
	chunkMissing = 0
	chunkData    = 1
	chunkHole    = 2
)

// A part is a large file that is being received. Chunks of it may be written by
// several lanes at once; the state is under mu.
type part struct {
	entry  entry
	staged string // path in the tree
	key    string // name of the journal
	sum    Sum
	file   *os.File
	jour   *os.File

	writing sync.RWMutex // held by who writes; and alone by who finishes the file

	mu    sync.Mutex
	have  bitmap
	end   *place // the sender's last word, once it is there
	bytes int64  // bytes of chunks and holes that are there
	far   int64  // of a stream: where the last chunk ends, in bytes
	done  bool
}

// A bitmap grows as bits are set.
type bitmap struct {
	words []uint64
	set   int64 // how many
}

func (b *bitmap) get(i int64) bool {
	return i/64 < int64(len(b.words)) && b.words[i/64]>>(i%64)&1 == 1
}

func (b *bitmap) add(i int64) bool {
	if b.get(i) {
		return false
	}
	if need := i/64 + 1; need > int64(len(b.words)) {
		grown := make([]uint64, max(need, int64(len(b.words))*2))
		copy(grown, b.words)
		b.words = grown
	}
	b.words[i/64] |= 1 << (i % 64)
	b.set++
	return true
}

func (b *bitmap) remove(i int64) {
	if b.get(i) {
		b.words[i/64] &^= 1 << (i % 64)
		b.set--
	}
}

// putJournalHead writes the head of a journal.
func putJournalHead(f io.WriterAt, e *entry, sum Sum) error {
	w := writer{b: make([]byte, 20, 512)}
	copy(w.b, journalMagic)
	w.b[8], w.b[9] = 1, byte(sum)
	e.put(&w)
	binary.BigEndian.PutUint32(w.b[12:], uint32(len(w.b)-20))
	c := crc32.Update(crc32.Checksum(w.b[:16], castagnoli()), castagnoli(), w.b[20:])
	binary.BigEndian.PutUint32(w.b[16:], c)
	_, err := f.WriteAt(w.b, 0)
	return err
}

// parseJournalHead reads the head of a journal. It errs if it is not whole.
func parseJournalHead(b []byte) (entry, Sum, error) {
	bad := func() (entry, Sum, error) { return entry{}, 0, fmt.Errorf("files: journal: %w", errMessage) }
	if len(b) < 20 || string(b[:8]) != journalMagic || b[8] != 1 || b[9] > byte(SumCRC32C) {
		return bad()
	}
	n := binary.BigEndian.Uint32(b[12:])
	if n > journalHead-20 || int(n) > len(b)-20 {
		return bad()
	}
	c := crc32.Update(crc32.Checksum(b[:16], castagnoli()), castagnoli(), b[20:20+n])
	if c != binary.BigEndian.Uint32(b[16:]) {
		return bad()
	}
	var e entry
	r := reader{b: b[20 : 20+n]}
	e.get(&r)
	if r.end() != nil || e.kind != kindFile && e.kind != kindStream {
		return bad()
	}
	return e, Sum(b[9]), nil
}

// loadStates reads the states of a journal into a bitmap, for at most chunks
// chunks (of a stream: as many as there are).
func loadStates(j io.ReaderAt, chunks int64) (bitmap, error) {
	var have bitmap
	states := make([]byte, journalChunks)
	for at := int64(0); at < chunks; at += journalChunks {
		n, err := j.ReadAt(states, journalHead+at/journalChunks*journalBlock)
		if err != nil && !errors.Is(err, io.EOF) {
			return bitmap{}, err
		}
		for i, s := range states[:n] {
			if c := at + int64(i); c < chunks && (s == chunkData || s == chunkHole) {
				have.add(c)
			}
		}
		if n < len(states) {
			break
		}
	}
	return have, nil
}

func statePlace(chunk int64) int64 {
	return journalHead + chunk/journalChunks*journalBlock + chunk%journalChunks
}

func digestPlace(chunk int64) int64 {
	return journalHead + chunk/journalChunks*journalBlock + journalChunks + chunk%journalChunks*32
}

// over reports whether the file is being finished or is: what still comes of it is
// what came before, over a lane that died before it was acknowledged. The caller holds
// writing.
func (p *part) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// reach notes how long a stream is by now. It returns by how much that is more.
func (p *part) reach(end int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	more := max(end-p.far, 0)
	p.far += more
	return more
}

// put writes a chunk and its journal. It returns how many bytes were not there before.
func (p *part) put(off int64, data []byte, d *digest) (fresh int64, err error) {
	p.writing.RLock()
	defer p.writing.RUnlock()
	if p.over() {
		return 0, nil
	}
	if _, err := p.file.WriteAt(data, off); err != nil {
		return 0, err
	}
	chunk := off / chunkSize
	if _, err := p.jour.WriteAt(d[:], digestPlace(chunk)); err != nil {
		return 0, err
	}
	if _, err := p.jour.WriteAt([]byte{chunkData}, statePlace(chunk)); err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have.add(chunk) {
		p.bytes += int64(len(data))
		return int64(len(data)), nil
	}
	return 0, nil
}

// putHole notes a run of chunks that are holes in the file already.
func (p *part) putHole(off, length int64) (fresh int64, err error) {
	p.writing.RLock()
	defer p.writing.RUnlock()
	if p.over() {
		return 0, nil
	}
	first, last := off/chunkSize, (off+length+chunkSize-1)/chunkSize
	states := make([]byte, min(last-first, journalChunks))
	for i := range states {
		states[i] = chunkHole
	}
	for c := first; c < last; {
		n := min(last-c, journalChunks-c%journalChunks)
		if _, err := p.jour.WriteAt(states[:n], statePlace(c)); err != nil {
			return 0, err
		}
		c += n
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := first; c < last; c++ {
		if p.have.add(c) {
			fresh += min(chunkSize, off+length-c*chunkSize)
		}
	}
	p.bytes += fresh
	return fresh, nil
}

// whole reports whether all chunks and the end are there, and takes the file for
// the caller if so: it is true once.
func (p *part) whole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done || p.end == nil {
		return false
	}
	if p.end.state != endGone && p.have.set < (p.end.off+chunkSize-1)/chunkSize {
		return false
	}
	p.done = true
	return true
}

// root computes the digest of the whole file from the journal.
func (p *part) root(size int64) (digest, error) {
	root := newRoot()
	block := make([]byte, journalBlock)
	chunks := (size + chunkSize - 1) / chunkSize
	for at := int64(0); at < chunks; at += journalChunks {
		n, err := p.jour.ReadAt(block, journalHead+at/journalChunks*journalBlock)
		if err != nil && !errors.Is(err, io.EOF) {
			return digest{}, err
		}
		clear(block[n:])
		holes := int64(0)
		for i := range min(chunks-at, journalChunks) {
			if block[i] == chunkHole {
				holes++
				continue
			}
			root.addHoles(holes)
			holes = 0
			root.add((*digest)(block[journalChunks+32*i:]))
		}
		root.addHoles(holes)
	}
	return root.sum(size), nil
}

// verify reads every chunk that the journal has and forgets those that are not
// what was received: after the machine went down, when the journal may have come
// to the disk before the file did.
func (p *part) verify() error {
	buf := make([]byte, chunkSize)
	block := make([]byte, journalBlock)
	for c := int64(0); c < int64(len(p.have.words))*64; c++ {
		if c%journalChunks == 0 {
			n, err := p.jour.ReadAt(block, journalHead+c/journalChunks*journalBlock)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			clear(block[n:])
		}
		if !p.have.get(c) {
			continue
		}
		n, err := p.file.ReadAt(buf, c*chunkSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		good := false
		switch i := c % journalChunks; block[i] {
		case chunkData:
			good = n > 0 && chunkSum(p.sum, buf[:n], c*chunkSize) == *(*digest)(block[journalChunks+32*i:])
		case chunkHole:
			good = zero(buf[:n])
		}
		if !good {
			p.have.remove(c)
			if _, err := p.jour.WriteAt([]byte{chunkMissing}, statePlace(c)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ranges returns the runs of chunks that are there, as pairs of first chunk and
// count, at most limit of them; later ones are left out, and sent again.
func (p *part) ranges(limit int) []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []int64
	n := int64(len(p.have.words)) * 64
	for c := int64(0); c < n && len(out) < 2*limit; c++ {
		if !p.have.get(c) {
			continue
		}
		first := c
		for c < n && p.have.get(c) {
			c++
		}
		out = append(out, first, c-first)
	}
	return out
}

func (p *part) close() error { return errors.Join(p.file.Close(), p.jour.Close()) }
