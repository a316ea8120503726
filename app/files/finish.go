package files

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// A laterLog is the list of folders and symlinks. They are finished last: a folder's
// time changes with each file in it, its mode may forbid files in it, and while there
// is no symlink in the tree none can be followed.
type laterLog struct {
	f *os.File
	w *bufio.Writer
}

func (s *stage) openLater() (*laterLog, error) {
	f, err := s.home.OpenFile("later", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &laterLog{f: f, w: bufio.NewWriterSize(f, 32<<10)}, nil
}

func (l *laterLog) add(staged string, e *entry) error {
	moved := *e
	moved.path = staged
	w := writer{b: make([]byte, 4, 256)}
	moved.put(&w)
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4))
	_, err := l.w.Write(w.b)
	return err
}

func (l *laterLog) close() error { return errors.Join(l.w.Flush(), l.f.Close()) }

// eachLater calls f for each entry of the log. It stops without an error at one
// that is not whole: the end of a run that was killed.
func (s *stage) eachLater(f func(e *entry) error) error {
	file, err := s.home.Open("later")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	return readLater(bufio.NewReaderSize(file, 64<<10), f)
}

func readLater(r io.Reader, f func(e *entry) error) error {
	var head [4]byte
	buf := make([]byte, 0, 512)
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > 3*maxPath {
			return nil
		}
		if uint32(cap(buf)) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(r, buf); err != nil {
			return nil
		}
		var e entry
		p := reader{b: buf}
		e.get(&p)
		if p.end() != nil {
			return nil
		}
		if err := f(&e); err != nil {
			return err
		}
	}
}

// finish makes the symlinks, gives the folders their modes and times, and moves the
// top-level names into the target. Given what was moved by a run that was killed, it
// goes on with the rest. It returns the final names, in the order of tops.
func (s *stage) finish(tops []string, overwrite, durable bool, note func(Note)) ([]string, error) {
	final, err := s.finalNames()
	if err != nil {
		return nil, err
	}
	if len(final) == 0 {
		if err := s.settle(note); err != nil {
			return nil, err
		}
	}
	if durable {
		if err := syncTree(s.tree, "."); err != nil {
			return nil, err
		}
	}
	var out []string
	for _, t := range tops {
		staged := safePath(t, s.names)
		if name, ok := final[staged]; ok {
			if _, err := s.tree.Lstat(staged); err != nil {
				out = append(out, name)
				continue
			}
		}
		if _, err := s.tree.Lstat(staged); err != nil {
			continue // all of it was refused, or vanished at the sender
		}
		name, err := s.move(staged, overwrite)
		if err != nil {
			return out, err
		}
		out = append(out, name)
		final[staged] = name
		if err := s.saveFinal(final, false); err != nil {
			return out, err
		}
	}
	if durable {
		if err := syncDir(s.target, "."); err != nil {
			return out, err
		}
	}
	return out, s.saveFinal(final, true)
}

// settle finishes folders and symlinks.
func (s *stage) settle(note func(Note)) error {
	depth := 0
	err := s.eachLater(func(e *entry) error {
		depth = max(depth, strings.Count(e.path, "/"))
		if e.kind != kindLink {
			return nil
		}
		if !linkInside(e.path, e.link) {
			note(Note{Path: e.path, Problem: ProblemLink})
			return nil
		}
		dir, _ := split(e.path)
		if err := s.tree.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if fi, err := s.tree.Lstat(e.path); err == nil {
			if fi.Mode()&fs.ModeSymlink == 0 {
				note(Note{Path: e.path, Problem: ProblemTwice})
				return nil
			}
			if err := s.tree.Remove(e.path); err != nil {
				return err
			}
		}
		if err := s.tree.Symlink(e.link, e.path); err != nil {
			note(Note{Path: e.path, Problem: ProblemLink})
		}
		return nil
	})
	if err != nil {
		return err
	}
	// The deepest first: a folder that may not be entered keeps nothing from its own.
	for ; depth >= 0; depth-- {
		err := s.eachLater(func(e *entry) error {
			if e.kind != kindDir || strings.Count(e.path, "/") != depth {
				return nil
			}
			if fi, err := s.tree.Lstat(e.path); err != nil || !fi.IsDir() {
				return nil
			}
			if err := s.tree.Chtimes(e.path, time.Time{}, e.modTime()); err != nil {
				return err
			}
			if depth == 0 {
				return nil // a folder that cannot be written to cannot be moved
			}
			return s.tree.Chmod(e.path, e.mode)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// move puts one top-level name into the target, under a name that is free.
func (s *stage) move(staged string, overwrite bool) (string, error) {
	fi, err := s.tree.Lstat(staged)
	if err != nil {
		return "", err
	}
	from := s.path + "/tree/" + staged
	if overwrite {
		err := s.merge(from, staged, fi, 0)
		if err == nil {
			err = s.topMode(staged, staged)
		}
		return staged, err
	}
	for i := range 10_000 {
		name := numbered(staged, i, fi.IsDir())
		err := s.moveNew(from, name, fi)
		if err == nil {
			return name, s.topMode(staged, name)
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("files: 10,000 files are called %s already", staged)
}

// numbered is "report (1).pdf" for the first copy of "report.pdf".
func numbered(name string, i int, dir bool) string {
	if i == 0 {
		return name
	}
	stem, ext := splitExt(name)
	if dir {
		stem, ext = name, ""
	}
	mark := " (" + strconv.Itoa(i) + ")"
	for len(stem)+len(mark)+len(ext) > maxName {
		stem = stem[:len(stem)-1]
	}
	return strings.ToValidUTF8(stem, "") + mark + ext
}

// moveNew moves to a name that must be free, without a moment in which something
// that has just appeared there is overwritten: a link and a new folder fail then.
func (s *stage) moveNew(from, name string, fi fs.FileInfo) error {
	if fi.IsDir() {
		if err := s.target.Mkdir(name, 0o700); err != nil {
			return err
		}
		if err := s.target.Rename(from, name); err == nil {
			return nil
		}
		// Windows renames over no folder, not even an empty one.
		if err := s.target.Remove(name); err != nil {
			return err
		}
		return s.target.Rename(from, name)
	}
	err := s.target.Link(from, name)
	if err == nil {
		return s.target.Remove(from)
	}
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	// No hard links here (FAT, Android): look, and then rename.
	if _, err := s.target.Lstat(name); err == nil {
		return fs.ErrExist
	}
	return s.target.Rename(from, name)
}

// merge moves over what is there: files replace files, folders are merged.
func (s *stage) merge(from, to string, fi fs.FileInfo, depth int) error {
	old, err := s.target.Lstat(to)
	if errors.Is(err, fs.ErrNotExist) {
		return s.target.Rename(from, to)
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		if old.IsDir() {
			return fmt.Errorf("files: %s is a folder; it is not overwritten by a file", to)
		}
		return s.target.Rename(from, to)
	}
	if !old.IsDir() || depth > maxDepth {
		return fmt.Errorf("files: %s is not a folder; it is not overwritten by one", to)
	}
	f, err := s.target.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		list, err := f.ReadDir(256)
		for _, d := range list {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			if err := s.merge(from+"/"+d.Name(), to+"/"+d.Name(), fi, depth+1); err != nil {
				return err
			}
		}
		if len(list) > 0 { // names moved away may hide others from one pass
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		return s.target.Remove(from)
	}
}

// topMode gives a moved top-level folder the mode that was kept back.
func (s *stage) topMode(staged, name string) error {
	return s.eachLater(func(e *entry) error {
		if e.kind != kindDir || e.path != staged {
			return nil
		}
		if err := s.target.Chtimes(name, time.Time{}, e.modTime()); err != nil {
			return err
		}
		return s.target.Chmod(name, e.mode)
	})
}

// finalNames reads what was moved already.
func (s *stage) finalNames() (map[string]string, error) {
	final := make(map[string]string)
	b, err := s.readFile("done", 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return final, nil
	}
	if err != nil {
		return nil, err
	}
	r := reader{b: b}
	r.bool()
	for range r.count(maxTops) {
		from, to := r.string(maxPath), r.string(maxPath)
		final[from] = to
	}
	if r.end() != nil {
		return make(map[string]string), nil
	}
	return final, nil
}

// saveFinal writes what was moved, and whether that is all.
func (s *stage) saveFinal(final map[string]string, all bool) error {
	var w writer
	w.bool(all)
	w.uint(uint64(len(final)))
	for from, to := range final {
		w.string(from)
		w.string(to)
	}
	return s.writeFile("done", w.b)
}

// syncTree brings a folder and all in it to the disk.
func syncTree(root *os.Root, p string) error {
	return fs.WalkDir(root.FS(), p, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&^fs.ModeDir != 0 {
			return err
		}
		if d.IsDir() {
			return syncDir(root, p)
		}
		f, err := root.Open(p)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
