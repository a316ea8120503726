// Package strictcbor writes and reads the CBOR of kith: one form for each value, and
// nothing unbounded.
package strictcbor

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Raw is a value that is kept as it is.
type Raw = cbor.RawMessage

// Limits bound what Unmarshal reads, besides the length, which the caller bounds.
type Limits struct {
	Levels int // count, of nesting
	Array  int // count of elements of an array
	Map    int // count of pairs of a map
}

// Marshal returns the deterministic form of v (RFC 8949, section 4.2.1). It errs if
// v has a type that CBOR cannot hold.
func Marshal(v any) ([]byte, error) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, fmt.Errorf("cbor: %w", err)
	}
	return enc.Marshal(v)
}

// Unmarshal reads raw into v. It errs if raw is not one value within the limits that fits v, or
// has a key twice, an indefinite length or a tag; keys that v does not know are skipped.
func (l Limits) Unmarshal(raw []byte, v any) error {
	dec, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: l.Levels, MaxArrayElements: l.Array, MaxMapPairs: l.Map,
	}.DecMode()
	if err != nil {
		return fmt.Errorf("cbor: %w", err)
	}
	return dec.Unmarshal(raw, v)
}
