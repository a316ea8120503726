package code

import (
	"encoding/hex"
	"testing"
)

// TestIntroKeys holds the keys of an introduction's secret to what HKDF (RFC 5869) gives,
// computed by another program.
func TestIntroKeys(t *testing.T) {
	var secret [32]byte
	for i := range secret {
		secret[i] = byte(i)
	}
	k := IntroKeys(secret)
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"topic": {k.Topic[:], "c1a0725741ed564a9b8056ddcb069ec6b35d31b2"},
		"frame": {k.Frame[:], "c9acb1da1f85906464b035f4b448b61cceb0ea707e1ebc256d9032347d9510c8"},
		"psk":   {k.PSK[:], "7dac322d906476072a5778b59881b03dd0e0dbc8b57a5481dd1aef00ffc61074"},
	} {
		if hex.EncodeToString(c.got) != c.want {
			t.Errorf("%s: %x, want %s", name, c.got, c.want)
		}
	}
}
