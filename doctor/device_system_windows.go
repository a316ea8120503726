package doctor

import (
	"errors"

	"golang.org/x/sys/windows"
)

func deviceLimits() (open, most uint64, err error) {
	return 0, 0, errors.New("there is no such limit on Windows")
}

// deviceLocked reports whether another process holds the lock file.
func deviceLocked(path string) bool {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return false
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		return errors.Is(err, windows.ERROR_SHARING_VIOLATION)
	}
	defer windows.CloseHandle(h) //nolint:errcheck // only looked at
	err = windows.LockFileEx(h, windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	return errors.Is(err, windows.ERROR_LOCK_VIOLATION)
}

func deviceInode(string) uint64 { return 0 }

// deviceFree is what this user may still write, in bytes.
func deviceFree(dir string) (free uint64, err error) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	return free, windows.GetDiskFreeSpaceEx(name, &free, nil, nil)
}

func deviceBuffer() (int, error) { return 0, errors.New("not known on Windows") }

// shareDevicePort lets a socket share its port as those of the LAN medium do.
func shareDevicePort(fd uintptr) error {
	return windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
}
