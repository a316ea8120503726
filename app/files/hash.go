package files

import (
	"encoding/binary"
	"hash/crc32"

	"lukechampine.com/blake3"
	"lukechampine.com/blake3/guts"
)

// A digest is a chunk's or a file's.
type digest [32]byte

// A Sum is the digest of the chunks of a transfer.
type Sum uint8

const (
	// SumBLAKE3 is the default: BLAKE3 of every chunk.
	SumBLAKE3 Sum = iota
	// SumCRC32C costs a seventh of it. It finds what breaks by accident; the lanes
	// authenticate what they carry, so that nobody between the devices is missed.
	SumCRC32C
)

// group is what guts.CompressBuffer takes at once, in bytes.
const group = guts.MaxSIMD * guts.ChunkSize

// chunkSum returns the digest of a chunk at an offset of its file. With BLAKE3 it
// is the chaining value of the subtree that the chunk is in the BLAKE3 of the file,
// so that the offset is part of it. buf must have chunkSize bytes of capacity, of
// which what is after its length does not matter.
func chunkSum(kind Sum, buf []byte, off int64) digest {
	var d digest
	if kind == SumCRC32C {
		binary.BigEndian.PutUint32(d[:], crc32.Checksum(buf, castagnoli()))
		binary.BigEndian.PutUint64(d[4:], uint64(off))
		d[31] = 1
		return d
	}
	whole := buf[:chunkSize]
	counter := uint64(off) / guts.ChunkSize
	var stack [16][8]uint32
	depth := 0
	for i := 0; ; i++ {
		at := i * group
		n := min(len(buf)-at, group)
		if n <= 0 && i > 0 {
			break
		}
		node := guts.CompressBuffer((*[group]byte)(whole[at:]), n, &guts.IV, counter+uint64(at)/guts.ChunkSize, 0)
		cv := guts.ChainingValue(node)
		// Merge full pairs: one for each trailing one bit of the index.
		for k := i; k&1 == 1; k >>= 1 {
			depth--
			cv = guts.ChainingValue(guts.ParentNode(stack[depth], cv, &guts.IV, 0))
		}
		stack[depth] = cv
		depth++
	}
	cv := stack[depth-1]
	for depth--; depth > 0; depth-- {
		cv = guts.ChainingValue(guts.ParentNode(stack[depth-1], cv, &guts.IV, 0))
	}
	for i, v := range cv {
		binary.LittleEndian.PutUint32(d[4*i:], v)
	}
	return d
}

// rootContext separates a root from every other BLAKE3.
const rootContext = "kith files v1 root"

// A rootSum is the digest of a whole file: BLAKE3, keyed by the context, of the
// digests of its chunks in order (zeros for a hole) and of its size. It does not
// need the bytes again, and a hole of a terabyte costs only its digests.
type rootSum struct {
	h *blake3.Hasher
}

func newRoot() rootSum {
	key := blake3.Sum256([]byte(rootContext))
	return rootSum{h: blake3.New(32, key[:])}
}

func (r rootSum) add(d *digest) { _, _ = r.h.Write(d[:]) }

// addHoles adds n digests of holes.
func (r rootSum) addHoles(n int64) {
	var zeros [128 * 32]byte
	for n > 0 {
		k := min(n, 128)
		_, _ = r.h.Write(zeros[:k*32])
		n -= k
	}
}

func (r rootSum) sum(size int64) (d digest) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(size))
	_, _ = r.h.Write(b[:])
	r.h.Sum(d[:0])
	return d
}

// hashID derives an ID from bytes, for one use.
func hashID(use string, b []byte) (id [16]byte) {
	h := blake3.New(len(id), nil)
	_, _ = h.Write([]byte(use))
	_, _ = h.Write(b)
	h.Sum(id[:0])
	return id
}

// zero reports whether a chunk is only zeros. It looks at the first byte that is
// not, so it costs nothing for what is not.
func zero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
