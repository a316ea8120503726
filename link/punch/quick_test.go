package punch

import "testing"

func TestPortsCoverEverythingOnce(t *testing.T) {
	for _, b := range []Behaviour{{}, {Delta: 3, LastPort: 65000}, {BlockLow: 2048, BlockHigh: 4095}, {Delta: -2, LastPort: 2050, BlockLow: 2048, BlockHigh: 2559}} {
		p := NewPorts(b, 1)
		seen := map[uint16]bool{}
		for port, ok := p.Next(); ok; port, ok = p.Next() {
			if seen[port] {
				t.Fatalf("%v: %d twice", b, port)
			}
			seen[port] = true
		}
		if len(seen) != anyPorts {
			t.Fatalf("%v: %d ports", b, len(seen))
		}
	}
}
