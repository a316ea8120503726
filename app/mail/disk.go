package mail

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// unnamed is an error of package os without the names of files: a file's name is who wrote
// how much to whom, and errors get into logs.
func unnamed(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return fmt.Errorf("%s: %w", path.Op, path.Err)
	case errors.As(err, &link):
		return fmt.Errorf("%s: %w", link.Op, link.Err)
	}
	return err
}

// ownerSize is how much of the hash of a depositor's name is kept, in bytes.
const ownerSize = 8

// An entry is a blob that is kept. All that is known of it is in its file's name.
type entry struct {
	box   Box
	id    [IDSize]byte
	at    int64 // when it came, Unix milliseconds
	owner [ownerSize]byte
	size  int64         // bytes of the blob
	came  time.Duration // when it came as Store.ran tells it; 0: in another run
	// In how many sweeps in a row it was too old, and in how many it was from the future.
	due, future int

	order uint64
}

// fileName returns box-id-time-owner, all but the time in hexadecimal digits.
func (e *entry) fileName() string {
	return hex.EncodeToString(e.box[:]) + "-" + hex.EncodeToString(e.id[:]) + "-" + strconv.FormatInt(e.at, 10) + "-" + hex.EncodeToString(e.owner[:])
}

// parseName reads a file's name in its one form.
func parseName(name string) (*entry, bool) {
	if len(name) > 2*(BoxSize+IDSize+ownerSize)+3+20 {
		return nil, false
	}
	parts := strings.Split(name, "-")
	if len(parts) != 4 {
		return nil, false
	}
	e := new(entry)
	for i, to := range map[int][]byte{0: e.box[:], 1: e.id[:], 3: e.owner[:]} {
		raw, err := hex.DecodeString(parts[i])
		if err != nil || len(raw) != len(to) {
			return nil, false
		}
		copy(to, raw)
	}
	at, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil || at < 0 {
		return nil, false
	}
	e.at = at
	return e, e.fileName() == name
}
