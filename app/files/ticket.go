package files

import (
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A ticket is what the stage of an accepted transfer remembers of it.
type ticket struct {
	run       token
	peer      string
	sum       Sum
	tops      []string
	overwrite bool
	maxBytes  int64
	boot      string
	synced    int64 // nanoseconds since 1970: what was written before is on the disk
	since     int64 // nanoseconds since 1970: what was written later is there; 0: all is
	ask       bool  // no person took it, or it was ended here: another run of it is an offer again
}

func (t *ticket) put(w *writer) {
	w.byte(1)
	w.b = append(w.b, t.run[:]...)
	w.string(t.peer)
	w.byte(byte(t.sum))
	w.bool(t.overwrite)
	w.uint(uint64(t.maxBytes))
	w.string(t.boot)
	w.int(t.synced)
	w.int(t.since)
	w.bool(t.ask)
	putStrings(w, t.tops)
}

func (t *ticket) get(b []byte) error {
	r := reader{b: b}
	if r.byte() != 1 || len(r.b) < len(t.run) {
		return errMessage
	}
	copy(t.run[:], r.b)
	r.b = r.b[len(t.run):]
	t.peer = r.string(1024)
	t.sum = Sum(r.byte())
	t.overwrite = r.bool()
	t.maxBytes = int64(r.uint(1 << 60))
	t.boot = r.string(64)
	t.synced, t.since, t.ask = r.int(), r.int(), r.bool()
	var err error
	t.tops, err = parseStrings(&r, maxTops, maxName)
	return err
}

func (s *stage) save(t *ticket) error {
	var w writer
	t.put(&w)
	return s.writeFile("offer", w.b)
}

// ticket returns what was saved, or nil.
func (s *stage) ticket() *ticket {
	b, err := s.readFile("offer", 1<<20)
	var t ticket
	if err != nil || t.get(b) != nil {
		return nil
	}
	return &t
}

// findStage opens the stage that an earlier run of a transfer left, with its ticket;
// nil if there is none.
func (s *Service) findStage(dir, key string, o *offerMsg) (*stage, *ticket, error) {
	where := filepath.Join(dir, partialName, key)
	if _, err := os.Lstat(where); err != nil {
		return nil, nil, nil
	}
	if at, err := os.ReadFile(where + ".at"); err == nil {
		dir = string(at)
	}
	st, err := openStage(dir, key, s.cfg.Names)
	if err != nil {
		return nil, nil, err
	}
	t := st.ticket()
	same := t != nil && t.sum == o.sum && len(t.tops) == len(o.tops)
	for i := 0; same && i < len(t.tops); i++ {
		same = t.tops[i] == o.tops[i]
	}
	if !same {
		err := st.remove()
		st.close()
		return nil, nil, err
	}
	if boot := bootID(); boot == "" || boot != t.boot {
		t.boot, t.since = boot, time.Now().UnixNano()
	}
	if t.since != 0 {
		st.synced, st.since = time.Unix(0, t.synced), time.Unix(0, t.since)
	}
	return st, t, nil
}

// keepPartial is how long a transfer that was broken is kept for another try.
const keepPartial = 30 * 24 * time.Hour

// sweep removes stages that nobody will come back for.
func sweep(dir string, now time.Time) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return
	}
	defer root.Close()
	hidden, err := root.OpenRoot(partialName)
	if err != nil {
		return
	}
	defer hidden.Close()
	names, err := fs.ReadDir(hidden.FS(), ".")
	if err != nil {
		return
	}
	for _, d := range names {
		age := func(name string) time.Duration {
			fi, err := hidden.Lstat(name)
			if err != nil {
				return -1
			}
			return now.Sub(fi.ModTime())
		}
		if age(d.Name()+"/done") > recentDone || age(d.Name()+"/offer") > keepPartial ||
			age(d.Name()+"/offer") < 0 && age(d.Name()) > keepPartial { // of one that is elsewhere
			_ = hidden.RemoveAll(d.Name())
			_ = hidden.Remove(d.Name() + ".at")
		}
	}
	_ = root.Remove(partialName)
}
