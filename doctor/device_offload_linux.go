package doctor

import (
	"net"

	"golang.org/x/sys/unix"
)

// deviceOffload reports whether the kernel cuts and joins trains of datagrams.
func deviceOffload() (gso, gro bool, err error) {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return false, false, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, false, err
	}
	err = raw.Control(func(fd uintptr) {
		_, no := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		gso = no == nil
		gro = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	})
	return gso, gro, err
}
