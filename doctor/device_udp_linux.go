package doctor

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// deviceOptions sets what a datagram needs, and has the system hand on ICMP messages
// (ip(7), IP_RECVERR), which no rights are needed for.
func deviceOptions(c syscall.RawConn, four bool, how deviceAsk) error {
	var err error
	cerr := c.Control(func(f uintptr) {
		fd := int(f)
		set := func(v4level, v4, v6, value int) {
			level, option := v4level, v4
			if !four {
				level, option = unix.IPPROTO_IPV6, v6
			}
			err = errors.Join(err, unix.SetsockoptInt(fd, level, option, value))
		}
		set(unix.IPPROTO_IP, unix.IP_RECVERR, unix.IPV6_RECVERR, 1)
		if how.ttl > 0 {
			set(unix.IPPROTO_IP, unix.IP_TTL, unix.IPV6_UNICAST_HOPS, how.ttl)
		}
		if how.whole {
			set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IPV6_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		}
	})
	return errors.Join(cerr, err)
}

// deviceTold reads the ICMP message that made a socket fail.
func deviceTold(conn net.Conn) (m deviceMessage) {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return m
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return m
	}
	_ = raw.Control(func(fd uintptr) {
		buf, oob := make([]byte, 64), make([]byte, 512)
		_, n, _, _, err := unix.Recvmsg(int(fd), buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err == nil {
			m = parseDeviceMessage(oob[:n])
		}
	})
	return m
}

// parseDeviceMessage reads the control messages of an error queue: a struct
// sock_extended_err and the address of who sent the message.
func parseDeviceMessage(oob []byte) (m deviceMessage) {
	const (
		size             = 16 // of struct sock_extended_err
		fromICMP, fromV6 = 2, 3
		local            = 1
	)
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return m
	}
	for _, c := range all {
		v4 := c.Header.Level == unix.IPPROTO_IP && c.Header.Type == unix.IP_RECVERR
		v6 := c.Header.Level == unix.IPPROTO_IPV6 && c.Header.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(c.Data) < size {
			continue
		}
		origin, kind := c.Data[4], c.Data[5]
		if syscall.Errno(binary.NativeEndian.Uint32(c.Data)) == unix.EMSGSIZE {
			m.mtu = max(1, int(binary.NativeEndian.Uint32(c.Data[8:])&0xffff))
		}
		code := c.Data[6]
		m.expired = origin == fromICMP && kind == 11 || origin == fromV6 && kind == 3
		m.noway = origin == fromICMP && kind == 3 && slices.Contains([]byte{0, 1, 6, 7, 11, 12}, code) || // RFC 1122 section 3.2.2.1
			origin == fromV6 && kind == 1 && (code == 0 || code == 3) // RFC 4443 section 3.1
		rest := c.Data[size:] // a struct sockaddr
		switch {
		case origin == local:
		case v4 && len(rest) >= 8 && binary.NativeEndian.Uint16(rest) == unix.AF_INET:
			m.by = netip.AddrFrom4([4]byte(rest[4:8]))
		case v6 && len(rest) >= 24 && binary.NativeEndian.Uint16(rest) == unix.AF_INET6:
			m.by = netip.AddrFrom16([16]byte(rest[8:24])).Unmap()
		}
		m.remote = m.by.IsValid() && !m.by.IsUnspecified() && !deviceOwn(m.by)
	}
	return m
}

// deviceOwn reports whether an address is this host's: the kernel sends messages in
// its own name where nobody answers on a link.
func deviceOwn(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, x := range addrs {
		if n, ok := x.(*net.IPNet); ok && n.IP.Equal(a.AsSlice()) {
			return true
		}
	}
	return false
}
