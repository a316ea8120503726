package nettest

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// ServeNTP has a host tell the time at an address of its own and UDP port 123 (RFC 5905
// section 7.3) until the end of the test.
func (h *Host) ServeNTP(at netip.Addr) {
	h.lab.t.Helper()
	const port, size, stratum, server, version = 123, 48, 2, 4, 4 << 3
	h.serve(netip.AddrPortFrom(at, port), func(b []byte, _ netip.AddrPort) []byte {
		if len(b) < size || b[0]&7 != 3 {
			return nil
		}
		const from1900 = 2208988800 // seconds, to 1970
		now := time.Now()
		stamp := uint64(now.Unix()+from1900)<<32 | uint64(now.Nanosecond())<<32/uint64(time.Second)
		out := make([]byte, size)
		out[0], out[1] = version|server, stratum
		copy(out[24:32], b[40:48]) // what the asker sent
		binary.BigEndian.PutUint64(out[32:], stamp)
		binary.BigEndian.PutUint64(out[40:], stamp)
		return out
	})
}
