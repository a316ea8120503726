// Package durable replaces small files so that a crash or a power cut leaves the old content
// or the new one, whole. A Dir is a directory of them; Files is what it does, step by step,
// so that tests can make each step fail or be the last (package disktest).
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
)

// TmpSuffix ends the names of files that Replace has begun. After a crash they are of no
// use.
const TmpSuffix = ".tmp"

// A File is what List tells of one.
type File struct {
	Name string
	Size int64 // in bytes
}

// Files are the files of one directory. Each method errs if the disk does.
type Files interface {
	// List returns what is there but for directories.
	List() ([]File, error)
	// Read returns at most limit bytes of a file. The error is fs.ErrNotExist if there is none.
	Read(name string, limit int64) ([]byte, error)
	// WriteSync makes or empties a file, writes and fsyncs it.
	WriteSync(name string, data []byte) error
	// Rename gives a file another name, in place of one that has that.
	Rename(from, to string) error
	// Remove removes a file; that there is none is no error.
	Remove(name string) error
	// SyncDir makes names durable.
	SyncDir() error
}

// Replace makes data the content of a file. The name is durable after SyncDir. It errs if
// that cannot be done; then the old content stands.
func Replace(f Files, name string, data []byte) error {
	tmp := name + TmpSuffix
	err := f.WriteSync(tmp, data)
	if err == nil {
		err = f.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, f.Remove(tmp))
	}
	return nil
}

// Aside gives a file that cannot be used a name that none has, and returns that; "" if it
// could not.
func Aside(f Files, name string) string {
	all, err := f.List()
	if err != nil {
		return ""
	}
	for i := 1; ; i++ {
		as := fmt.Sprintf("%s.corrupt-%d", name, i)
		if slices.ContainsFunc(all, func(file File) bool { return file.Name == as }) {
			continue
		}
		if f.Rename(name, as) != nil {
			return ""
		}
		return as
	}
}

// WriteFile makes data the content of a file of a directory, mode 0600, durably. It errs
// if that cannot be done; then the old content stands, unless only the directory could not
// be synced.
func WriteFile(dir, name string, data []byte) error {
	d := Dir(dir)
	if err := Replace(d, name, data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := d.SyncDir(); err != nil {
		return fmt.Errorf("make %s durable: %w", name, err)
	}
	return nil
}

// Dir is a directory's path.
type Dir string

var _ Files = Dir("")

// Open makes a directory, mode 0700, if there is none. It errs if that cannot be done.
func Open(path string) (Dir, error) { return Dir(path), os.MkdirAll(path, 0o700) }

// List returns what is there but for directories. It errs if the directory cannot be read.
func (d Dir) List() ([]File, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	out := make([]File, 0, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil && !e.IsDir() { // else it is gone by now
			out = append(out, File{e.Name(), info.Size()})
		}
	}
	return out, nil
}

// Read returns at most limit bytes of a file. It errs if it cannot be read.
func (d Dir) Read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(string(d), name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// WriteSync makes or empties a file, mode 0600, writes and fsyncs it. It errs if the disk
// does.
func (d Dir) WriteSync(name string, data []byte) error {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Rename gives a file another name. It errs if the disk does.
func (d Dir) Rename(from, to string) error {
	return os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to))
}

// Remove removes a file, if there is one. It errs if the disk does.
func (d Dir) Remove(name string) error {
	err := os.Remove(filepath.Join(string(d), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SyncDir makes names durable. Windows cannot sync a directory, and NTFS journals names by
// itself; nor can some network file systems, which say so. It errs if the disk does.
func (d Dir) SyncDir() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL) {
		err = nil
	}
	return errors.Join(err, f.Close())
}
