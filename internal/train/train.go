// Package train lets one system call carry many UDP datagrams: Linux cuts a train of
// them when it is sent (UDP_SEGMENT), and joins them when they are received (UDP_GRO).
// Elsewhere only Length is here, and nothing is joined.
package train

const (
	// MaxPackets is how many datagrams one train has at most, in number: the kernel's
	// UDP_MAX_SEGMENTS as it was at first.
	MaxPackets = 64
	// MaxBytes is how long a train is at most, in bytes. With headers it stays below
	// the 65536 bytes of a network device's segmentation: above, the kernel segments in
	// software, at a tenth of the receiver's batch (measured).
	MaxBytes = 65000
)

// Length returns how many of the packets, of which there is at least one, may leave
// as one train, if each gets head more bytes: those of one size, and a shorter one
// behind them.
func Length(packets [][]byte, head int) int {
	size := len(packets[0]) + head
	total, n := size, 1
	for size > 0 && n < len(packets) && n < MaxPackets {
		next := len(packets[n]) + head
		if next > size || next == 0 || total+next > MaxBytes {
			break
		}
		total += next
		n++
		if next < size {
			break // only the last may be shorter
		}
	}
	return n
}
