package relay

import "net"

const (
	// maxSegments is how many datagrams one call sends at the most, in number: the
	// kernel's UDP_MAX_SEGMENTS as it was at first.
	maxSegments = 64
	// maxBundle is the size of them all together, in bytes; below what a datagram can
	// be, less IPv6's header.
	maxBundle = 65000
)

// fitting returns how many packets of a batch go out in one call, each as a
// ChannelData message: those of equal size, and a shorter one behind them.
func fitting(bufs [][]byte) int {
	size, total := len(bufs[0]), 0
	for n, b := range bufs {
		if total += dataHeader + len(b); n == maxSegments || len(b) > size || n > 0 && total > maxBundle {
			return n
		}
		if len(b) < size {
			return n + 1
		}
	}
	return len(bufs)
}

// apart sends datagrams of a size, the last of which may be shorter, one by one.
func apart(c net.Conn, all []byte, size int) error {
	var first error
	for len(all) > 0 {
		n := min(size, len(all))
		if _, err := c.Write(all[:n]); err != nil && first == nil {
			first = err
		}
		all = all[n:]
	}
	return first
}
