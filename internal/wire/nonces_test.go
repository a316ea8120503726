package wire

import (
	"encoding/binary"
	"testing"
)

func TestNoncesForgetTheOldest(t *testing.T) {
	frame := func(i int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 16), uint64(i)) }
	var s Nonces
	if s.Has(frame(0)) {
		t.Fatal("the zero value knows a frame")
	}
	for i := range maxNonces {
		if !s.Add(frame(i)) || s.Add(frame(i)) {
			t.Fatalf("frame %d: not new once", i)
		}
	}
	if !s.Has(frame(0)) || !s.Add(frame(maxNonces)) || s.Has(frame(0)) || !s.Has(frame(1)) {
		t.Error("not the oldest was forgotten")
	}
	if len(s.known) != maxNonces {
		t.Errorf("%d known, want %d", len(s.known), maxNonces)
	}
}
