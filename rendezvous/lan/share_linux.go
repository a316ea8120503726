package lan

import "golang.org/x/sys/unix"

// onlyOwnGroups keeps the groups that other sockets of this machine joined away
// from this one: Linux gives them to every socket of the port otherwise, so that
// each datagram would come once per socket.
func onlyOwnGroups(fd int) {
	// One of both fails, as the socket is of one family; kernels before 4.20 do not
	// have the second, and give duplicates.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0)
}
