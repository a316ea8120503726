package train

import (
	"slices"
	"testing"
)

// TestLength is the table of what leaves together.
func TestLength(t *testing.T) {
	for name, c := range map[string]struct {
		sizes []int
		head  int
		want  int
	}{
		"one":             {[]int{1300}, 4, 1},
		"equal":           {[]int{5, 5, 5}, 0, 3},
		"shorter last":    {[]int{5, 5, 4, 5}, 0, 3},
		"longer":          {[]int{5, 6}, 0, 1},
		"empty first":     {[]int{0, 0}, 0, 1},
		"empty with head": {[]int{0, 0}, 4, 2},
		"empty last":      {[]int{5, 0}, 0, 1},
		"bytes":           {[]int{1300, 1300, 1300}, 40000, 1},
	} {
		var packets [][]byte
		for _, n := range c.sizes {
			packets = append(packets, make([]byte, n))
		}
		if got := Length(packets, c.head); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := Length(make([][]byte, 100), 4); got != MaxPackets {
		t.Errorf("%d packets in a train", got)
	}
	many := make([][]byte, 60)
	for i := range many {
		many[i] = make([]byte, 1400)
	}
	if got := Length(many, 4); got != MaxBytes/1404 {
		t.Errorf("%d long packets in a train", got)
	}
}

// TestLengthOfMessages splits batches of ChannelData messages into what one call may
// carry.
func TestLengthOfMessages(t *testing.T) {
	const head = 4
	of := func(sizes ...int) (bufs [][]byte) {
		for _, n := range sizes {
			bufs = append(bufs, make([]byte, n))
		}
		return bufs
	}
	for _, tc := range []struct {
		name  string
		sizes []int
		want  int
	}{
		{"one", []int{5}, 1},
		{"equal", []int{5, 5, 5}, 3},
		{"shorter last", []int{5, 5, 3, 5}, 3},
		{"longer", []int{5, 6}, 1},
		{"empty last", []int{5, 0, 5}, 2},
		{"too many", slices.Repeat([]int{5}, 100), MaxPackets},
		{"too long", slices.Repeat([]int{1456}, 64), MaxBytes / 1460},
	} {
		if got := Length(of(tc.sizes...), head); got != tc.want {
			t.Errorf("%s: %d, not %d", tc.name, got, tc.want)
		}
	}
}
