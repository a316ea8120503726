package relay

import "testing"

// TestHint holds that a hub's word that it knows nothing of us is looked into, and
// that nothing else poses as it.
func TestHint(t *testing.T) {
	hint := make([]byte, 36)
	copy(hint, []byte{0x01, 0x14, 0, 16, 0x21, 0x12, 0xa4, 0x42})
	answer := append([]byte(nil), hint...)
	answer[19] = 1
	other := append([]byte(nil), hint...)
	other[1] = 0x04
	for name, c := range map[string]struct {
		frame []byte
		want  int
	}{
		"the hint": {hint, 1}, "an answer to a request": {answer, 0}, "another type": {other, 0}, "no more than a head": {hint[:20], 1},
	} {
		r := &Relay{doubts: make(chan struct{}, 1)}
		r.handle(c.frame)
		if got := len(r.doubts); got != c.want {
			t.Errorf("%s: %d doubts, want %d", name, got, c.want)
		}
	}
}
