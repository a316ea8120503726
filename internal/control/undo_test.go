package control

import (
	"testing"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/identity"
)

// TestNamesPair holds that two devices whose new pairs have the same ID are told apart.
func TestNamesPair(t *testing.T) {
	id := kin.ID{0xab, 0xcd}
	here := kith.NewPair{Notice: kin.Notice{ID: id}}
	laptop := kith.NewPair{Notice: kin.Notice{ID: id}, On: "laptop", OnID: identity.DeviceID{1}}
	stolen := kith.NewPair{Notice: kin.Notice{ID: id}, On: "stolen", OnID: identity.DeviceID{2}}
	for ref, want := range map[string][3]bool{
		"abcd":                         {true, true, true},
		"abc":                          {}, // too short
		"abce":                         {},
		":" + id.String():              {true, false, false},
		"Laptop:abcd":                  {false, true, false},
		stolen.OnID.String() + ":abcd": {false, false, true},
		"stolen:":                      {},
		"desk:abcd":                    {},
	} {
		for i, p := range []kith.NewPair{here, laptop, stolen} {
			if got := namesPair(ref, p); got != want[i] {
				t.Errorf("%q, pair %d: %v", ref, i, got)
			}
		}
	}
}
