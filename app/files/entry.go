package files

import (
	"io/fs"
	"path"
	"strings"
	"time"
)

// Limits of one entry.
const (
	maxPath  = 4096    // bytes of a path or of a symlink's target
	maxDepth = 128     // names of a path
	maxName  = 255     // bytes of one name
	maxSize  = 1 << 44 // bytes of one file: what a bitmap in memory can follow
)

// chunkSize is the unit of work, of hashing and of resuming, in bytes. It is a
// power of two and a multiple of BLAKE3's subtree of 16 KiB. A quarter of a MiB is
// large enough that what is paid per chunk is lost in the noise, and small enough
// that a stream of 5 Mbit/s holds the end of a transfer up by 0.4 s.
const chunkSize = 256 << 10

type entryKind uint8

const (
	kindFile entryKind = iota + 1
	kindDir
	kindLink
	kindStream // a file whose size is known at its end
)

// An entry is one file, folder or symlink, as it travels.
type entry struct {
	kind  entryKind
	path  string // relative, with slashes
	size  int64  // bytes; 0 but for a file
	mode  fs.FileMode
	mtime int64  // nanoseconds since 1970, UTC
	link  string // target of a symlink
}

func (e *entry) modTime() time.Time { return time.Unix(0, e.mtime) }

func (e *entry) chunks() int64 { return (e.size + chunkSize - 1) / chunkSize }

// mapBytes is how many bytes of bitmap a receiver may need for it.
func (e *entry) mapBytes() int64 {
	if e.kind == kindStream {
		return maxSize / chunkSize / 8 // nobody knows how long it gets
	}
	return e.chunks() / 8
}

// permissions are the bits that travel: never setuid, setgid or sticky.
const permissions = fs.FileMode(0o777)

func (e *entry) put(w *writer) {
	w.byte(byte(e.kind))
	w.string(e.path)
	w.uint(uint64(e.mode & permissions))
	w.int(e.mtime)
	switch e.kind {
	case kindFile:
		w.uint(uint64(e.size))
	case kindLink:
		w.string(e.link)
	}
}

func (e *entry) get(r *reader) {
	e.kind = entryKind(r.byte())
	e.path = r.string(maxPath)
	e.mode = fs.FileMode(r.uint(uint64(permissions)))
	e.mtime = r.int()
	e.size, e.link = 0, ""
	switch e.kind {
	case kindFile:
		e.size = int64(r.uint(maxSize))
	case kindLink:
		e.link = r.string(maxPath)
	case kindDir, kindStream:
	default:
		r.fail()
	}
	if !validPath(e.path) {
		r.fail()
	}
}

// validPath reports whether a path is one that an honest sender makes: relative,
// clean, with no name that leads elsewhere. What its names look like is the
// business of the receiver's safeName.
func validPath(p string) bool {
	if p == "" || len(p) > maxPath || strings.IndexByte(p, 0) >= 0 || path.Clean(p) != p || p[0] == '/' {
		return false
	}
	if p == "." || p == ".." || strings.HasPrefix(p, "../") {
		return false
	}
	if strings.Count(p, "/") >= maxDepth {
		return false
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > maxName {
			return false
		}
	}
	return true
}

// linkInside reports whether a symlink at p (a path within the transfer) leads to
// a place within the same top-level folder, wherever that folder is moved. The
// ".." of its target may only stand at its front: after a name they would be
// resolved at wherever that name leads, if it is a symlink itself. The folder that
// holds the link is a real one, since links are made last; so by induction no chain
// of such links leaves the folder.
func linkInside(p, target string) bool {
	if target == "" || len(target) > maxPath || target[0] == '/' || strings.ContainsAny(target, "\x00\\") {
		return false
	}
	if len(target) > 1 && target[1] == ':' { // C:
		return false
	}
	up, names := 0, false
	for name := range strings.SplitSeq(target, "/") {
		switch name {
		case "", ".":
		case "..":
			if names {
				return false
			}
			up++
		default:
			names = true
		}
	}
	return up < strings.Count(p, "/")
}
