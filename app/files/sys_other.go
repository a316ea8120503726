//go:build !linux

package files

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// bootID names this run of the machine; empty is unknown.
func bootID() string { return "" }

// changeTime is when the file system last changed a file in any way; not known here.
func changeTime(fs.FileInfo) time.Time { return time.Time{} }

// syncAll brings the file system that f is on to the disk; not to be had here.
func syncAll(*os.File) error { return errors.ErrUnsupported }

// nextData returns the first run of data at or after an offset; all is data here,
// and chunks of zeros are found by looking at them.
func nextData(_ *os.File, off, size int64) (begin, end int64) { return off, size }
