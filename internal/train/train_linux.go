package train

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Join has the kernel hand out trains from a socket, since Linux 5.0; before, the
// datagrams come one by one.
func Join(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) }

// Possible reports whether the kernel cuts trains that a socket sends, as it does
// since Linux 4.18. The network device may still refuse, with EIO.
func Possible(fd uintptr) bool {
	_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	return err == nil
}

// Space is what AppendSize appends, in bytes.
func Space() int { return unix.CmsgSpace(2) }

// AppendSize appends the control message that says how long each of a train's
// datagrams is, in bytes. The capacity for Space more bytes is there.
func AppendSize(oob []byte, size uint16) []byte {
	start := len(oob)
	oob = oob[:start+Space()]
	clear(oob[start:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[start])) //nolint:gosec // the kernel's layout, aligned by CmsgSpace
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[start+unix.CmsgLen(0):], size)
	return oob
}

// Control is what the control messages of a received datagram or train say.
type Control struct {
	Size  int        // bytes of each datagram of a train; 0: it is one datagram
	To    netip.Addr // where it was sent to; the zero Addr if that is not told
	Local netip.Addr // our address that it came in by, which differs from To for a broadcast
}

// ParseControl reads control messages, as far as they are whole.
func ParseControl(oob []byte) (c Control) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return c
		}
		oob = rest
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2:
			c.Size = int(binary.NativeEndian.Uint16(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			c.Local, c.To = netip.AddrFrom4([4]byte(data[4:8])), netip.AddrFrom4([4]byte(data[8:12]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			c.Local = netip.AddrFrom16([16]byte(data[:16]))
			c.To = c.Local
		}
	}
	return c
}
