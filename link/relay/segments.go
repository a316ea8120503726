package relay

import "net"

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
