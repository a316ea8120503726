package files

import (
	"encoding/binary"
	"errors"
)

// errMessage reports bytes of the other side, or of a journal, that do not parse.
var errMessage = errors.New("files: message not understood")

// A writer appends numbers and strings: unsigned numbers as varints, strings with
// their length before them.
type writer struct{ b []byte }

func (w *writer) byte(v byte)     { w.b = append(w.b, v) }
func (w *writer) uint(v uint64)   { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) int(v int64)     { w.b = binary.AppendVarint(w.b, v) }
func (w *writer) bytes(v []byte)  { w.uint(uint64(len(v))); w.b = append(w.b, v...) }
func (w *writer) string(v string) { w.uint(uint64(len(v))); w.b = append(w.b, v...) }
func (w *writer) bool(v bool) {
	if v {
		w.byte(1)
		return
	}
	w.byte(0)
}

// A reader takes them apart again. After the first mistake all it gives is zero,
// and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) bool() bool {
	v := r.byte()
	if v > 1 {
		r.fail()
	}
	return v == 1
}

func (r *reader) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// bytes returns a part of the message, not a copy.
func (r *reader) bytes(limit int) []byte {
	n := int(r.uint(uint64(limit)))
	if r.bad || n > len(r.b) {
		r.fail()
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string(limit int) string { return string(r.bytes(limit)) }

// count reads the length of a list whose items take at least one byte each.
func (r *reader) count(limit int) int {
	n := int(r.uint(uint64(limit)))
	if n > len(r.b) {
		r.fail()
		return 0
	}
	return n
}

// end errs if the message had a mistake, or something after it.
func (r *reader) end() error {
	if r.bad || len(r.b) > 0 {
		return errMessage
	}
	return nil
}
