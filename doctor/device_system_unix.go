//go:build unix

package doctor

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// deviceLimits returns how many files are open and how many may be.
func deviceLimits() (open, most uint64, err error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, 0, err
	}
	list, err := os.ReadDir("/dev/fd")
	if err != nil {
		list = nil
	}
	return uint64(len(list)), uint64(r.Cur), nil //nolint:unconvert // int64 on FreeBSD
}

// deviceLocked reports whether another process holds the lock file.
func deviceLocked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() // and with it goes the lock that was got
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func deviceInode(path string) uint64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino) //nolint:unconvert // not on every system
	}
	return 0
}

// deviceFree is what this user may still write, in bytes.
func deviceFree(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(max(0, int64(st.Bavail))) * uint64(st.Bsize), nil //nolint:gosec,unconvert // the system's numbers, of many types
}

// deviceBuffer is the receive buffer of a new UDP socket, in bytes.
func deviceBuffer() (size int, err error) {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var sys error
	err = raw.Control(func(fd uintptr) { size, sys = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
	return size, errors.Join(err, sys)
}

// shareDevicePort lets a socket share its port as those of the LAN medium do.
func shareDevicePort(fd uintptr) error {
	return errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}
