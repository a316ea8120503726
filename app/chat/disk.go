package chat

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kithproject/kith/internal/durable"
)

// disk are the few operations that conversations at rest need, so that tests can make
// each of them fail or be the last before a crash. Names have no folders.
type disk interface {
	// List returns the names of all files.
	List() ([]string, error)
	// ReadAt reads at an offset as io.ReaderAt does; a file that is not there errs with
	// fs.ErrNotExist.
	ReadAt(name string, p []byte, off int64) (int, error)
	// WriteAt makes the file if need be, cuts it to off bytes and writes there. What is
	// written is durable when it returns, if sync is set: then all before it is, too. A
	// file that it has made is not there if it errs.
	WriteAt(name string, p []byte, off int64, sync bool) error
	// Rename replaces a file durably.
	Rename(from, to string) error
	// Remove of a file that is not there does nothing.
	Remove(name string) error
}

// A folder is a disk.
type folder string

func openFolder(dir string) (folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("chat: %w", err)
	}
	return folder(dir), nil
}

func (d folder) path(name string) string { return filepath.Join(string(d), name) }

func (d folder) List() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (d folder) ReadAt(name string, p []byte, off int64) (int, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(p, off)
	if n == len(p) || errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (d folder) WriteAt(name string, p []byte, off int64, sync bool) error {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return writeAt(f, err, p, off, sync)
	}
	f, err = os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err = writeAt(f, err, p, off, sync); err == nil {
		err = durable.Dir(d).SyncDir()
	}
	if err != nil { // so that its name is synced the next time
		err = errors.Join(err, d.Remove(name))
	}
	return err
}

// writeAt is WriteAt of a file that was opened, or could not be.
func writeAt(f *os.File, err error, p []byte, off int64, sync bool) error {
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || info.Size() != off {
		if err = errors.Join(err, f.Truncate(off)); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	_, err = f.WriteAt(p, off)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (d folder) Rename(from, to string) error {
	if err := durable.Dir(d).Rename(from, to); err != nil {
		return err
	}
	return durable.Dir(d).SyncDir()
}

func (d folder) Remove(name string) error { return durable.Dir(d).Remove(name) }
