package mail

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"strconv"
	"testing"
)

var errCrash = errors.New("the power is gone")

// inode is a file's content, in memory and on the platter.
type inode struct{ data, synced []byte }

// crashDisk is a disk that loses power after a number of steps. What was not synced is
// lost then, or not.
type crashDisk struct {
	left    int // steps until the power goes
	failing int // the step that errs without a crash; 0: none
	step    int
	dir     map[string]*inode
	durable map[string]*inode // the directory as it was synced last
}

func newCrashDisk(left int) *crashDisk {
	return &crashDisk{left: left, dir: make(map[string]*inode), durable: make(map[string]*inode)}
}

func (d *crashDisk) use() error {
	if d.step++; d.step == d.failing {
		return errors.New("no space left")
	}
	if d.left--; d.left < 0 {
		return errCrash
	}
	return nil
}

func (d *crashDisk) List() (out []found, err error) {
	for name, f := range d.dir {
		out = append(out, found{name, int64(len(f.data))})
	}
	return out, d.use()
}

func (d *crashDisk) Read(name string) ([]byte, error) {
	f := d.dir[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(f.data), nil
}

// WriteSync is three steps: a name, half of the bytes, all of them synced.
func (d *crashDisk) WriteSync(name string, data []byte) error {
	if err := d.use(); err != nil {
		return err
	}
	f := new(inode)
	d.dir[name] = f
	f.data = bytes.Clone(data[:len(data)/2])
	if err := d.use(); err != nil {
		return err
	}
	f.data = bytes.Clone(data)
	if err := d.use(); err != nil {
		return err
	}
	f.synced = f.data
	return nil
}

func (d *crashDisk) Rename(from, to string) error {
	if err := d.use(); err != nil {
		return err
	}
	d.dir[to] = d.dir[from]
	delete(d.dir, from)
	return nil
}

func (d *crashDisk) Remove(name string) error {
	if err := d.use(); err != nil {
		return err
	}
	delete(d.dir, name)
	return nil
}

func (d *crashDisk) SyncDir() error {
	if err := d.use(); err != nil {
		return err
	}
	d.durable = maps.Clone(d.dir)
	return nil
}

// after returns the disk as it may be once power is back: with the names that were
// synced, or with all; and of each file what was synced, or what was written.
func (d *crashDisk) after(names, data bool) *crashDisk {
	dir := d.durable
	if names {
		dir = d.dir
	}
	out := newCrashDisk(1 << 30)
	for name, f := range dir {
		content := bytes.Clone(f.synced)
		if data {
			content = bytes.Clone(f.data)
		}
		out.dir[name] = &inode{content, content}
	}
	out.durable = maps.Clone(out.dir)
	return out
}

// TestCrash lets the power go after each step of a few puts and dones, and holds that
// what was acknowledged is there afterwards, whole, and nothing else but what was brought.
func TestCrash(t *testing.T) {
	blobs := make([][]byte, 6)
	for i := range blobs {
		blobs[i] = letter(t, 1, strconv.Itoa(i))
	}
	for steps := 0; ; steps++ {
		d := newCrashDisk(steps)
		s, err := openStore(StoreConfig{Dir: "x"}, d)
		if err != nil {
			continue // before anything was there
		}
		acked, crashed := 0, false
		for _, b := range blobs {
			if err := s.Put("a", BoxOf(token(1)), b); err != nil {
				if !errors.Is(err, ErrDisk) {
					t.Fatalf("step %d: %v", steps, err)
				}
				crashed = true
				break
			}
			acked++
		}
		removed := 0
		for i := 0; i < 2 && !crashed; i++ {
			if err := s.Done(token(1), [][IDSize]byte{IDOf(blobs[i])}); err != nil {
				t.Fatal(err)
			}
			removed++
		}
		for _, names := range []bool{false, true} {
			for _, data := range []bool{false, true} {
				again, err := openStore(StoreConfig{Dir: "x"}, d.after(names, data))
				if err != nil {
					t.Fatalf("step %d: %v", steps, err)
				}
				got := make(map[string]bool)
				for _, text := range texts(t, again, 1) {
					got[text] = true
				}
				for i := removed; i < acked; i++ {
					if !got[strconv.Itoa(i)] {
						t.Errorf("step %d (names %v, data %v): letter %d was acknowledged and is lost", steps, names, data, i)
					}
				}
				if len(got) > acked+1 {
					t.Errorf("step %d: %d letters of %d", steps, len(got), acked)
				}
			}
		}
		if !crashed && d.left > 0 {
			if steps < 20 {
				t.Fatalf("only %d steps: is the disk used?", steps)
			}
			return
		}
	}
}

// TestDiskErrors has each step fail once, without a crash: the sender is told, the place
// is given back, and the store goes on.
func TestDiskErrors(t *testing.T) {
	for failing := 2; failing < 8; failing++ { // the first step is List
		d := newCrashDisk(1 << 30)
		d.failing = failing
		s, err := openStore(StoreConfig{Dir: "x"}, d)
		if err != nil {
			t.Fatal(err)
		}
		first := s.Put("a", BoxOf(token(1)), letter(t, 1, "first"))
		if failing <= 6 && !errors.Is(first, ErrDisk) {
			t.Errorf("step %d: %v, want ErrDisk", failing, first)
		}
		second := s.Put("a", BoxOf(token(1)), letter(t, 1, "second"))
		if failing > 6 != (second != nil) && failing > 6 {
			t.Errorf("step %d: %v", failing, second)
		}
		want := 0
		for _, err := range []error{first, second} {
			if err == nil {
				want++
			}
		}
		if got := texts(t, s, 1); len(got) != want || want == 0 {
			t.Errorf("step %d: %q, want %d", failing, got, want)
		}
		if st := s.Stats(); st.Letters != want || st.Bytes != int64(want)*blockSize || len(s.pending) > 0 {
			t.Errorf("step %d: %+v", failing, st)
		}
		again, err := openStore(StoreConfig{Dir: "x"}, d.after(true, true))
		if err != nil {
			t.Fatal(err)
		}
		if got := texts(t, again, 1); len(got) != want {
			t.Errorf("step %d, after a restart: %q, want %d", failing, got, want)
		}
	}
}
