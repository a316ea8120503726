package mail

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A found file of the store's directory.
type found struct {
	name string
	size int64 // bytes
}

// disk is what a Store does on a disk, so that tests can make each step fail or be the
// last before a crash.
type disk interface {
	List() ([]found, error)
	Read(name string) ([]byte, error)         // at most MaxBlob+1 bytes
	WriteSync(name string, data []byte) error // makes a file, writes, fsyncs
	Rename(from, to string) error
	Remove(name string) error // nil if there is none
	SyncDir() error
}

// dirDisk is a directory. Its errors do not name files: a file's name is who wrote how
// much to whom, and errors get into logs.
type dirDisk struct{ dir string }

// unnamed is an error of package os without the names of files.
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

func openDir(dir string) (dirDisk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return dirDisk{}, fmt.Errorf("mail: %w", err)
	}
	return dirDisk{dir}, nil
}

func (d dirDisk) List() ([]found, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	out := make([]found, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // gone meanwhile, or not ours
		}
		out = append(out, found{e.Name(), info.Size()})
	}
	return out, nil
}

func (d dirDisk) Read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return nil, unnamed(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxBlob+1))
	return raw, unnamed(err)
}

func (d dirDisk) WriteSync(name string, data []byte) error {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return unnamed(err)
	}
	_, err = f.Write(data)
	return errors.Join(unnamed(err), unnamed(f.Sync()), unnamed(f.Close()))
}

func (d dirDisk) Rename(from, to string) error {
	return unnamed(os.Rename(filepath.Join(d.dir, from), filepath.Join(d.dir, to)))
}

func (d dirDisk) Remove(name string) error {
	err := os.Remove(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return unnamed(err)
}

func (d dirDisk) SyncDir() error {
	if runtime.GOOS == "windows" {
		return nil // where directories cannot be synced
	}
	f, err := os.Open(d.dir)
	if err != nil {
		return unnamed(err)
	}
	return errors.Join(unnamed(f.Sync()), unnamed(f.Close()))
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
