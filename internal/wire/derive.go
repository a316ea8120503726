package wire

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// label puts the protocol's name and version before every label, so that no
// key of kith/1 can equal a key of another protocol or version.
func label(name string) string { return "kith/1 " + name }

// Label returns "kith/1 " + name, for signatures, prologues and associated data.
func Label(name string) string { return label(name) }

// Extract is HKDF-Extract with SHA-256 (RFC 5869 section 2.2). It returns 32 bytes.
func Extract(salt, secret []byte) []byte {
	key, err := hkdf.Extract(sha256.New, secret, salt)
	if err != nil {
		panic(err) // only FIPS mode with a short secret
	}
	return key
}

// Expand is HKDF-Expand with SHA-256 (RFC 5869 section 2.3) for 32 bytes. The
// info is "kith/1 " + name, then each context item behind its length as a
// big-endian uint32, so that no two lists of items give the same info.
func Expand(key []byte, name string, context ...[]byte) []byte {
	out, err := hkdf.Expand(sha256.New, key, string(AppendItems([]byte(label(name)), context...)), 32)
	if err != nil {
		panic(err) // only for outputs over 255 hashes
	}
	return out
}

// AppendItems appends each item to dst behind its length as a big-endian
// uint32, and returns the extended slice.
func AppendItems(dst []byte, items ...[]byte) []byte {
	for _, item := range items {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(item)))
		dst = append(dst, item...)
	}
	return dst
}

// Day returns the number of whole UTC days since 1970-01-01 at t: the epoch of
// every daily key.
func Day(t time.Time) int64 {
	const secondsPerDay = 24 * 60 * 60
	s := t.Unix()
	if s < 0 {
		s -= secondsPerDay - 1
	}
	return s / secondsPerDay
}

// DayItem returns a day as the 8 big-endian bytes that derivations use.
func DayItem(day int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(day)) }
