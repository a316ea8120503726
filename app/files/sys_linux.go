package files

import (
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bootID names this run of the machine; empty is unknown.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// changeTime is when the file system last changed a file in any way.
func changeTime(fi fs.FileInfo) time.Time {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}
	}
	return time.Unix(int64(st.Ctim.Sec), int64(st.Ctim.Nsec))
}

// syncAll brings the file system that f is on to the disk.
func syncAll(f *os.File) error { return unix.Syncfs(int(f.Fd())) }

// nextData returns the first run of data at or after an offset of an open file:
// where it begins and ends. Where the file system does not tell, all is data.
func nextData(f *os.File, off, size int64) (begin, end int64) {
	begin, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return size, size
	}
	if err != nil {
		return off, size
	}
	end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
	if err != nil || end <= begin {
		return begin, size
	}
	return begin, min(end, size)
}
