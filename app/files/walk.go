package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// maxTops is how many top-level names one transfer has at most.
const maxTops = 1000

// A srcRoot is one top-level name that is sent.
type srcRoot struct {
	top string   // its name in the transfer
	dir *os.Root // a folder itself, or what holds a file; of a Get the share's folder
	rel string   // its path there

	shared string // of a Get: the share's folder
}

// openSources opens what the paths name. A path that is a symlink is followed: it
// was asked for by name. It errs if one does not exist.
func openSources(paths []string) ([]*srcRoot, error) {
	if len(paths) == 0 || len(paths) > maxTops {
		return nil, fmt.Errorf("files: 1 to %d paths can be sent at once", maxTops)
	}
	var out []*srcRoot
	taken := make(map[string]bool)
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			closeSources(out)
			return nil, fmt.Errorf("files: %w", err)
		}
		real, err := filepath.EvalSymlinks(abs)
		if err != nil {
			closeSources(out)
			return nil, fmt.Errorf("files: %w", err)
		}
		name, in, rel := filepath.Base(abs), filepath.Dir(real), filepath.Base(real)
		// Of a folder the folder itself: nothing beside it can be reached, be it by a
		// symlink in it or by a path that the receiver asks for again.
		if fi, err := os.Stat(real); err == nil && fi.IsDir() {
			in, rel = real, "."
		}
		if filepath.Dir(abs) == abs { // "/" or "C:\"
			name = "root"
		}
		dir, err := os.OpenRoot(in)
		if err != nil {
			closeSources(out)
			return nil, fmt.Errorf("files: %w", err)
		}
		out = append(out, &srcRoot{top: freeTop(name, taken), dir: dir, rel: rel})
	}
	return out, nil
}

func freeTop(name string, taken map[string]bool) string {
	for i := 0; ; i++ {
		if n := numbered(name, i, false); !taken[n] {
			taken[n] = true
			return n
		}
	}
}

func closeSources(list []*srcRoot) {
	for _, r := range list {
		r.dir.Close()
	}
}

// An item is one entry of a walk, and where its content is.
type item struct {
	entry
	src *srcRoot
	rel string // with slashes, in src.dir
}

// makeItem describes what lies at rel. It errs with a Note's problem as problemError
// when that is not to be sent.
func makeItem(src *srcRoot, dir *os.Root, name, rel, p string) (item, error) {
	fi, err := dir.Lstat(name)
	if err != nil {
		return item{}, &problemError{ProblemRead, err}
	}
	it := item{src: src, rel: rel}
	it.path, it.mode, it.mtime = p, fi.Mode()&permissions, fi.ModTime().UnixNano()
	switch t := fi.Mode().Type(); t {
	case 0:
		it.kind, it.size = kindFile, fi.Size()
	case fs.ModeDir:
		it.kind = kindDir
	case fs.ModeSymlink:
		it.kind = kindLink
		if it.link, err = dir.Readlink(name); err != nil {
			return item{}, &problemError{ProblemRead, err}
		}
		it.link = filepath.ToSlash(it.link)
		if !linkInside(p, it.link) {
			return item{}, &problemError{ProblemLink, nil}
		}
	default:
		return item{}, &problemError{ProblemSpecial, nil}
	}
	if !validPath(p) || it.size > maxSize {
		return item{}, &problemError{ProblemName, nil}
	}
	return it, nil
}

type problemError struct {
	problem Problem
	err     error
}

func (e *problemError) Error() string { return e.problem.String() }

func (e *problemError) note(p string) Note {
	n := Note{Path: p, Problem: e.problem}
	if e.err != nil {
		n.Detail = detail(e.err)
	}
	return n
}

// walk calls f for every file, folder and symlink below the roots, folders before
// what is in them, and note for what is left out. It holds one open folder for each
// level, and at most a few hundred names at a time. It errs with f's error and ctx's.
func walk(ctx context.Context, roots []*srcRoot, f func(item) error, note func(Note)) error {
	for _, src := range roots {
		w := walker{ctx: ctx, src: src, dirs: dirs{tree: src.dir, readOnly: true}, f: f, note: note}
		err := w.one(src.rel, src.top, 0)
		w.dirs.close()
		if err != nil {
			return err
		}
	}
	return nil
}

type walker struct {
	ctx  context.Context
	src  *srcRoot
	dirs dirs
	f    func(item) error
	note func(Note)
}

func (w *walker) one(rel, p string, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if path.Base(rel) == partialName {
		return nil
	}
	dirName, name := split(rel)
	dir, err := w.dirs.get(dirName)
	if err != nil {
		w.note((&problemError{ProblemRead, err}).note(p))
		return nil
	}
	if name == "" {
		name = "."
	}
	it, err := makeItem(w.src, dir, name, rel, p)
	var pe *problemError
	if errors.As(err, &pe) {
		w.note(pe.note(p))
		return nil
	}
	if err := w.f(it); err != nil || it.kind != kindDir {
		return err
	}
	if depth >= maxDepth {
		w.note(Note{Path: p, Problem: ProblemName})
		return nil
	}
	return w.list(rel, p, depth)
}

func (w *walker) list(rel, p string, depth int) error {
	dir, err := w.dirs.get(rel)
	var f *os.File
	if err == nil {
		f, err = dir.Open(".")
	}
	if err != nil {
		w.note((&problemError{ProblemRead, err}).note(p))
		return nil
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		for _, name := range names {
			if err := w.one(path.Join(rel, name), p+"/"+name, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			w.note((&problemError{ProblemRead, err}).note(p))
			return nil
		}
	}
}

// open opens an item's file.
func (it *item) open(d *dirs) (*os.File, error) {
	dirName, name := split(it.rel)
	dir, err := d.get(dirName)
	if err != nil {
		return nil, err
	}
	return dir.OpenFile(name, os.O_RDONLY|openNonblock, 0)
}

// fresh takes size, mode and time from an open file. It errs with a problemError if
// it is not a file any more.
func (it *item) fresh(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return &problemError{ProblemRead, err}
	}
	if !fi.Mode().IsRegular() {
		return &problemError{ProblemSpecial, nil}
	}
	it.size, it.mode, it.mtime = fi.Size(), fi.Mode()&permissions, fi.ModTime().UnixNano()
	if it.size > maxSize {
		return &problemError{ProblemName, nil}
	}
	return nil
}

// unchanged reports whether an open file still has the size and time of the item.
func (it *item) unchanged(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Size() == it.size && fi.ModTime().UnixNano() == it.mtime
}
