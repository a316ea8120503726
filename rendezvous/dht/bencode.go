package dht

import (
	"errors"
	"strconv"
)

const maxDepth = 6 // of values inside values; KRPC needs three

var errBencode = errors.New("dht: not a KRPC message")

// A reader walks over bencoded bytes (BEP 3). It never allocates more than it was
// given, and what it returns are slices of that.
type reader struct {
	b   []byte
	off int
}

func (r *reader) peek() byte {
	if r.off >= len(r.b) {
		return 0
	}
	return r.b[r.off]
}

// digits reads a decimal number of at most 19 digits up to the byte end.
func (r *reader) digits(end byte) (int64, error) {
	start := r.off
	if r.peek() == '-' {
		r.off++
	}
	for r.off < len(r.b) && r.b[r.off] >= '0' && r.b[r.off] <= '9' && r.off-start <= 20 {
		r.off++
	}
	if r.peek() != end {
		return 0, errBencode
	}
	n, err := strconv.ParseInt(string(r.b[start:r.off]), 10, 64)
	if err != nil {
		return 0, errBencode
	}
	r.off++
	return n, nil
}

// number reads an integer.
func (r *reader) number() (int64, error) {
	if r.peek() != 'i' {
		return 0, errBencode
	}
	r.off++
	return r.digits('e')
}

// text reads a byte string.
func (r *reader) text() ([]byte, error) {
	if c := r.peek(); c < '0' || c > '9' {
		return nil, errBencode
	}
	n, err := r.digits(':')
	if err != nil || n > int64(len(r.b)-r.off) {
		return nil, errBencode
	}
	s := r.b[r.off : r.off+int(n)]
	r.off += int(n)
	return s, nil
}

// exact reads a byte string of a known length into dst.
func (r *reader) exact(dst []byte) error {
	s, err := r.text()
	if err != nil || len(s) != len(dst) {
		return errBencode
	}
	copy(dst, s)
	return nil
}

// value reads any value and returns its bytes as they came.
func (r *reader) value(depth int) ([]byte, error) {
	start := r.off
	var err error
	switch c := r.peek(); {
	case depth <= 0:
		return nil, errBencode
	case c == 'i':
		_, err = r.number()
	case c == 'l':
		err = r.list(func() error {
			_, err := r.value(depth - 1)
			return err
		})
	case c == 'd':
		err = r.dict(func(string) error {
			_, err := r.value(depth - 1)
			return err
		})
	default:
		_, err = r.text()
	}
	if err != nil {
		return nil, err
	}
	return r.b[start:r.off], nil
}

// list calls f for each element; f must read it.
func (r *reader) list(f func() error) error {
	if r.peek() != 'l' {
		return errBencode
	}
	r.off++
	for r.peek() != 'e' {
		if err := f(); err != nil {
			return err
		}
	}
	r.off++
	return nil
}

// dict calls f for each key; f must read the value.
func (r *reader) dict(f func(key string) error) error {
	if r.peek() != 'd' {
		return errBencode
	}
	r.off++
	for r.peek() != 'e' {
		key, err := r.text()
		if err != nil {
			return err
		}
		if err := f(string(key)); err != nil {
			return err
		}
	}
	r.off++
	return nil
}

func appendText(dst []byte, s string) []byte {
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	dst = append(dst, ':')
	return append(dst, s...)
}

func appendBytes(dst, s []byte) []byte {
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	dst = append(dst, ':')
	return append(dst, s...)
}

func appendNumber(dst []byte, n int64) []byte {
	dst = append(dst, 'i')
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, 'e')
}
