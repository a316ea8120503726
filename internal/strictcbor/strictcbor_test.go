package strictcbor_test

import (
	"bytes"
	"testing"

	"github.com/kithproject/kith/internal/strictcbor"
)

func TestMarshalSortsKeys(t *testing.T) {
	raw, err := strictcbor.Marshal(map[uint64]string{300: "c", 2: "b", 1: "a"})
	if want := []byte("\xa3\x01\x61a\x02\x61b\x19\x01\x2c\x61c"); err != nil || !bytes.Equal(raw, want) {
		t.Errorf("got %x, %v, want %x", raw, err, want)
	}
}

func TestUnmarshalIsStrict(t *testing.T) {
	limits := strictcbor.Limits{Levels: 4, Array: 16, Map: 16}
	array := func(n int) string { return string([]byte{0x98, byte(n)}) + string(make([]byte, n)) }
	pairs := func(n int) string {
		out := []byte{0xb8, byte(n)}
		for i := range n {
			out = append(out, byte(i), 0)
		}
		return string(out)
	}
	for name, c := range map[string]struct {
		raw string
		ok  bool
	}{
		"an array of 16":      {array(16), true},
		"an array of 17":      {array(17), false},
		"16 pairs":            {pairs(16), true},
		"17 pairs":            {pairs(17), false},
		"4 levels":            {"\x81\x81\x81\x81\x00", true},
		"5 levels":            {"\x81\x81\x81\x81\x81\x00", false},
		"a key twice":         {"\xa2\x01\x00\x01\x00", false},
		"an indefinite array": {"\x9f\x00\xff", false},
		"a tag":               {"\xc1\x00", false},
		"something behind":    {"\x00\x00", false},
		"the end is missing":  {"\x82\x00", false},
	} {
		var v any
		if err := limits.Unmarshal([]byte(c.raw), &v); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
