package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// files are the few operations on the disk that a Store makes, so that tests
// can make each of them fail or be the last before a crash.
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

func (d diskFiles) SyncDir() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return syncDir(f)
}

// WriteFile makes data the content of a file of a state directory, mode 0600, durably:
// a crash leaves the old content or the new. It errs if that cannot be done; then the
// old content stands, unless only the directory could not be synced.
func WriteFile(dir, name string, data []byte) error {
	d := diskFiles{dir}
	err := d.WriteSync(name+tmpSuffix, data)
	if err == nil {
		err = d.Rename(name+tmpSuffix, name)
	}
	if err != nil {
		_ = d.Remove(name + tmpSuffix)
		return fmt.Errorf("registry: write %s: %w", name, err)
	}
	if err := d.SyncDir(); err != nil {
		return fmt.Errorf("registry: make %s durable: %w", name, err)
	}
	return nil
}

func openDisk(dir string) (diskFiles, error) {
	path := filepath.Join(dir, "pairs")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return diskFiles{}, fmt.Errorf("registry: %w", err)
	}
	return diskFiles{path}, nil
}
