package files

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"lukechampine.com/blake3"
)

// A stage is the hidden folder in which one transfer is put together. Nothing of it
// is seen in the target until all is there; then each top-level name is moved into
// the target with one rename.
//
//	.kith-partial/<key>/offer   what was offered and accepted
//	.kith-partial/<key>/tree/   the files
//	.kith-partial/<key>/parts/  a journal for each large file that is not whole
//	.kith-partial/<key>/later   folders and symlinks, which are finished last
//	.kith-partial/<key>/done    the names given, once it has come to that
type stage struct {
	target *os.Root // where the top-level names go
	home   *os.Root // .kith-partial/<key>
	tree   *os.Root
	parts  *os.Root
	path   string // of home in target
	names  Names

	umask  fs.FileMode
	coarse time.Duration // how far a time may be off what was set
	folds  bool          // "a" and "A" are one name here
	since  time.Time     // what is older may have been lost when the machine went down; zero: nothing
	synced time.Time     // but for what is older than this
}

func stageKey(peer string, id [16]byte) string {
	h := blake3.New(16, nil)
	_, _ = h.Write(id[:])
	_, _ = h.Write([]byte(peer))
	return hex.EncodeToString(h.Sum(nil))
}

// openStage opens the stage of a transfer, or makes it.
func openStage(dir string, key string, names Names) (*stage, error) {
	s := &stage{path: partialName + "/" + key, names: names}
	if err := s.open(dir); err != nil {
		s.close()
		return nil, fmt.Errorf("files: %s: %w", dir, plainError(err))
	}
	return s, nil
}

func (s *stage) open(dir string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if s.target, err = os.OpenRoot(dir); err != nil {
		return err
	}
	// Another transfer that ends takes the hidden folder away if it is empty.
	// Another transfer that ends takes the hidden folder away if it is empty.
	err = s.hide()
	for range 100 {
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		err = s.hide()
	}
	if err != nil {
		return err
	}
	for _, d := range []struct {
		path string
		root **os.Root
	}{{s.path, &s.home}, {s.path + "/tree", &s.tree}, {s.path + "/parts", &s.parts}} {
		if err := s.target.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if *d.root, err = s.target.OpenRoot(d.path); err != nil {
			return err
		}
	}
	return s.probe()
}

// hide makes the stage's folder in the hidden one.
func (s *stage) hide() error {
	if err := s.target.Mkdir(partialName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Somebody else's folder, or a symlink to one, would be written to.
	if fi, err := s.target.Lstat(partialName); err != nil {
		return err
	} else if !fi.IsDir() {
		return fmt.Errorf("%s is not a folder; remove it", partialName)
	}
	if err := s.target.Mkdir(s.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// probe learns what the file system does to modes, times and names.
func (s *stage) probe() error {
	const name, other = "probe", "PROBE"
	_ = s.home.Remove(name)
	f, err := s.home.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, permissions)
	if err != nil {
		return err
	}
	defer func() { _ = s.home.Remove(name) }()
	fi, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	s.umask = permissions &^ fi.Mode().Perm()
	odd := time.Unix(1_000_000_001, 123_456_789)
	if err := s.home.Chtimes(name, time.Time{}, odd); err != nil {
		return err
	}
	if fi, err = s.home.Lstat(name); err != nil {
		return err
	}
	if !fi.ModTime().Equal(odd) {
		s.coarse = 2 * time.Second
	}
	_, err = s.home.Lstat(other)
	s.folds = err == nil
	return nil
}

func (s *stage) close() {
	for _, r := range []*os.Root{s.parts, s.tree, s.home, s.target} {
		if r != nil {
			r.Close()
		}
	}
}

// remove deletes the stage, and the hidden folder if it was the last.
func (s *stage) remove() error {
	err := s.target.RemoveAll(s.path)
	_ = s.target.Remove(partialName)
	return err
}

// writeFile writes a small file of the stage's own, whole or not at all if this
// process is killed. After a power cut it may be empty, which its reader notices.
func (s *stage) writeFile(name string, b []byte) error {
	f, err := s.home.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.home.Rename(name+".new", name)
}

// readFile reads one of at most limit bytes.
func (s *stage) readFile(name string, limit int64) ([]byte, error) {
	f, err := s.home.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// sameTime reports whether a file has the time that it was given.
func (s *stage) sameTime(fi fs.FileInfo, e *entry) bool {
	d := fi.ModTime().Sub(e.modTime())
	return d.Abs() <= s.coarse
}

// has reports whether a whole file of an earlier run is there.
func (s *stage) has(dir *os.Root, name string, e *entry) bool {
	fi, err := dir.Lstat(name)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != e.size && e.kind != kindStream || !s.sameTime(fi, e) {
		return false
	}
	c := changeTime(fi)
	return s.since.IsZero() || c.Before(s.synced) || !c.Before(s.since)
}

// A dirs caches the folders last used, each as an os.Root, so that a file costs one
// lookup and not one for each folder of its path. It belongs to one goroutine.
type dirs struct {
	tree     *os.Root
	readOnly bool // nothing is made
	list     []openDir
}

type openDir struct {
	path string
	root *os.Root
}

const maxDirs = 8

// get opens a folder of the tree, which it makes if need be. The root is good until
// maxDirs further calls.
func (d *dirs) get(p string) (*os.Root, error) {
	if p == "." {
		return d.tree, nil
	}
	for i, o := range d.list {
		if o.path == p {
			copy(d.list[1:i+1], d.list[:i])
			d.list[0] = o
			return o.root, nil
		}
	}
	root, err := d.tree.OpenRoot(p)
	if errors.Is(err, fs.ErrNotExist) && !d.readOnly {
		if err = d.tree.MkdirAll(p, 0o700); err == nil {
			root, err = d.tree.OpenRoot(p)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(d.list) == maxDirs {
		d.list[maxDirs-1].root.Close()
		d.list = d.list[:maxDirs-1]
	}
	d.list = append([]openDir{{p, root}}, d.list...)
	return root, nil
}

func (d *dirs) close() {
	for _, o := range d.list {
		o.root.Close()
	}
	d.list = nil
}

// create opens a file of the tree for writing, empty.
func create(dir *os.Root, name string, flag int, perm fs.FileMode) (*os.File, error) {
	f, err := dir.OpenFile(name, flag|os.O_CREATE|os.O_TRUNC, perm)
	if errors.Is(err, fs.ErrPermission) {
		// What an earlier run left may be read-only.
		if dir.Remove(name) == nil {
			f, err = dir.OpenFile(name, flag|os.O_CREATE|os.O_TRUNC, perm)
		}
	}
	return f, err
}

// writeSmall writes one whole file.
func (s *stage) writeSmall(d *dirs, staged string, e *entry, content []byte) error {
	dirName, name := path.Split(staged)
	dir, err := d.get(path.Clean(dirName))
	if err != nil {
		return err
	}
	f, err := create(dir, name, os.O_WRONLY, creationMode(e.mode))
	if err != nil {
		return err
	}
	if len(content) > 0 {
		if _, err := f.Write(content); err != nil {
			f.Close()
			return err
		}
	}
	made := creationMode(e.mode) &^ s.umask
	return s.seal(dir, name, f, e, made)
}

// seal gives a written file, which was made with another mode, its mode and time,
// and closes it. The time comes last: it says that the file is whole.
func (s *stage) seal(dir *os.Root, name string, f *os.File, e *entry, made fs.FileMode) error {
	var err error
	if made != e.mode {
		err = f.Chmod(e.mode)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return dir.Chtimes(name, time.Time{}, e.modTime())
}

// split returns the folder of a staged path and its name in it.
func split(staged string) (dir, name string) {
	d, name := path.Split(staged)
	return path.Clean(d), name
}

// top is the first name of a path.
func top(p string) string {
	t, _, _ := strings.Cut(p, "/")
	return t
}
