package files

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// freeSpace returns how many bytes may be written to the volume of a folder.
func freeSpace(dir string) (int64, bool) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, false
	}
	var free uint64
	if windows.GetDiskFreeSpaceEx(p, &free, nil, nil) != nil {
		return 0, false
	}
	return int64(free), true
}

func diskFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}

// creationMode is the mode that a file is made with: a file that is made read-only
// could not be given its time.
func creationMode(fs.FileMode) fs.FileMode { return 0o600 }

// syncDir does nothing: Windows keeps names in its own journal.
func syncDir(*os.Root, string) error { return nil }

const openNonblock = 0
