package room

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// files are the few operations on the disk that a Store makes, so that tests can
// make each of them fail or be the last before a crash.
type files interface {
	ReadDir() ([]string, error)
	Read(name string) ([]byte, error)         // at most maxRecord+1 bytes
	WriteSync(name string, data []byte) error // makes or truncates, writes, fsyncs
	Rename(from, to string) error
	Remove(name string) error
	SyncDir() error
}

// diskFiles is a directory.
type diskFiles struct{ dir string }

func (d diskFiles) ReadDir() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (d diskFiles) Read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRecord+1))
}

func (d diskFiles) WriteSync(name string, data []byte) error {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func (d diskFiles) Rename(from, to string) error {
	return os.Rename(filepath.Join(d.dir, from), filepath.Join(d.dir, to))
}

func (d diskFiles) Remove(name string) error {
	err := os.Remove(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SyncDir makes a rename durable. Windows cannot sync a directory, and NTFS
// journals renames by itself.
func (d diskFiles) SyncDir() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
