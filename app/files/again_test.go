package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// openSink is a sink of one transfer called x.
func openSink(t *testing.T) (*sink, string) {
	t.Helper()
	dir := t.TempDir()
	st, err := openStage(dir, "x", NamesPortable)
	if err != nil {
		t.Fatal(err)
	}
	sk, err := newSink(st, dir, SumBLAKE3, []string{"x"}, newMeter(Progress{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sk.close(); st.close() })
	return sk, dir
}

// put gives a sink one frame as it would come over a lane.
func (s *sink) put(d *dirs, f *outFrame) error {
	h := header{kind: f.kind, meta: len(f.meta), data: f.len, sum: f.sum}
	var data []byte
	if f.buf != nil {
		data = f.buf.data()[:f.len]
	}
	return s.frame(d, &h, f.meta, data)
}

// wholeOf makes the frames of a file of zero-free bytes: chunks and the end.
func wholeOf(e entry) []*outFrame {
	root := newRoot()
	var out []*outFrame
	for off := int64(0); off < e.size; off += chunkSize {
		data := make([]byte, min(chunkSize, e.size-off))
		data[0] = byte(off/chunkSize + 1)
		f := chunkOf(e, off, data)
		root.add(&f.sum)
		out = append(out, f)
	}
	return append(out, endOf(e, root.sum(e.size)))
}

func endOf(e entry, root digest) *outFrame {
	return (&source{}).placed(frameEnd, &bigFile{item: item{entry: e}}, place{off: e.size, state: endWhole, root: root})
}

// TestFramesAgain sends the frames of a file again over another lane while it becomes
// whole, as after a lane that died before it could acknowledge: the file stays as it is.
func TestFramesAgain(t *testing.T) {
	sk, _ := openSink(t)
	for i := range 200 {
		e := entry{kind: kindFile, path: fmt.Sprint("x/", i), size: 2*chunkSize + 5, mode: 0o644, mtime: 1e18}
		frames := wholeOf(e)
		var wg sync.WaitGroup
		for _, list := range [][]*outFrame{frames, frames[:3]} {
			wg.Go(func() {
				d := dirs{tree: sk.stage.tree}
				defer d.close()
				for _, f := range list {
					if err := sk.put(&d, f); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		sk.mu.Lock()
		open := len(sk.parts)
		sk.mu.Unlock()
		fi, err := sk.stage.tree.Lstat(e.path)
		if open != 0 || err != nil || fi.Size() != e.size || fi.ModTime().UnixNano() != e.mtime {
			t.Fatalf("file %d: %d are open, %v %v", i, open, fi, err)
		}
	}
	if p := sk.meter.progress(); p.Notes != 0 || p.Files != 200 || p.Bytes != 200*(2*chunkSize+5) {
		t.Errorf("counted %+v, noted %v", p, sk.meter.allNotes())
	}
}

// TestWrongFilesAreBounded holds that what a sender can have remembered of files whose
// digest is wrong has an end.
func TestWrongFilesAreBounded(t *testing.T) {
	sk, _ := openSink(t)
	d := dirs{tree: sk.stage.tree}
	defer d.close()
	for i := range 2 * maxBad {
		e := entry{kind: kindFile, path: fmt.Sprint("x/", i), size: chunkSize + 1, mode: 0o644, mtime: 1e18}
		big := &bigFile{item: item{entry: e}}
		err := sk.put(&d, (&source{}).placed(frameHole, big, place{len: e.size}))
		if err == nil {
			err = sk.put(&d, endOf(e, digest{1}))
		}
		if errors.Is(err, ErrProtocol) {
			if i < maxBad || len(sk.bad) > maxBad+1 {
				t.Errorf("refused after %d; %d are remembered", i, len(sk.bad))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("no end")
}

// TestStreamsAreBounded holds that a stream counts by its length, that it has no holes,
// and that its bitmaps have a bound: a few bytes far out are no cheap bomb.
func TestStreamsAreBounded(t *testing.T) {
	d := dirs{}
	defer d.close()
	sk, _ := openSink(t)
	d.tree = sk.stage.tree
	stream := func(i int) entry { return streamEntry(fmt.Sprint("x/", i), time.Unix(1, 0)) }
	if err := sk.put(&d, (&source{}).placed(frameHole, &bigFile{item: item{entry: stream(0)}}, place{len: chunkSize})); !errors.Is(err, errMessage) {
		t.Errorf("a hole: %v", err)
	}
	var err error
	n := 0
	for ; n < 100 && err == nil; n++ {
		err = sk.put(&d, chunkOf(stream(n), maxSize-chunkSize, []byte{1}))
	}
	if !errors.Is(err, ErrProtocol) || n > maxMaps/(maxSize/chunkSize/8)+1 {
		t.Errorf("after %d: %v", n, err)
	}
	sk, _ = openSink(t)
	d.close()
	d.tree = sk.stage.tree
	sk.maxBytes = 1 << 30
	if err := sk.put(&d, chunkOf(stream(0), 1<<20, []byte{1})); err != nil {
		t.Error(err)
	}
	if err := sk.put(&d, chunkOf(stream(0), 1<<30, []byte{1})); !errors.Is(err, ErrLimit) {
		t.Errorf("beyond the limit: %v", err)
	}
}

// TestEndlessFiles holds that no more files come than are allowed, small, large or made
// of nothing.
func TestEndlessFiles(t *testing.T) {
	for name, frame := range map[string]func(i int) *outFrame{
		"small": func(i int) *outFrame {
			return batchOf([]entry{{kind: kindFile, path: fmt.Sprint("x/", i), size: 1, mode: 0o644, mtime: 1e18}}, "a")
		},
		"folders": func(i int) *outFrame {
			return batchOf([]entry{{kind: kindDir, path: fmt.Sprint("x/", i), mode: 0o755, mtime: 1e18}})
		},
		"links": func(i int) *outFrame {
			return batchOf([]entry{{kind: kindLink, path: fmt.Sprint("x/", i), link: "y", mtime: 1e18}})
		},
		"large": func(i int) *outFrame {
			return chunkOf(entry{kind: kindFile, path: fmt.Sprint("x/", i), size: 2 * chunkSize, mode: 0o644, mtime: 1e18}, 0, []byte{0: 1, chunkSize - 1: 1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			sk, _ := openSink(t)
			sk.maxFiles = 50
			d := dirs{tree: sk.stage.tree}
			defer d.close()
			for i := range 51 {
				if err := sk.put(&d, frame(i)); errors.Is(err, ErrLimit) != (i == 50) {
					t.Fatalf("file %d: %v", i, err)
				}
			}
		})
	}
}

// TestCountedOnce holds that frames which come again do not count against the limits.
func TestCountedOnce(t *testing.T) {
	sk, _ := openSink(t)
	d := dirs{tree: sk.stage.tree}
	defer d.close()
	e := entry{kind: kindFile, path: "x/f", size: 2*chunkSize + 5, mode: 0o644, mtime: 1e18}
	sk.maxBytes, sk.maxFiles = e.size, 1
	for range 2 {
		for _, f := range wholeOf(e) {
			if err := sk.put(&d, f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestStreamAfterReboot holds that a chunk of a stream that was lost when the machine
// went down is not taken for one that is there: it cannot be sent again.
func TestStreamAfterReboot(t *testing.T) {
	sk, dir := openSink(t)
	d := dirs{tree: sk.stage.tree}
	defer d.close()
	e := streamEntry("x", time.Unix(1, 0))
	data := make([]byte, chunkSize)
	data[0] = 1
	f := chunkOf(e, 0, data)
	if err := sk.put(&d, f); err != nil {
		t.Fatal(err)
	}
	sk.close()
	if err := os.Truncate(filepath.Join(dir, sk.stage.path, "tree", "x"), 0); err != nil { // the journal came to the disk, the file did not
		t.Fatal(err)
	}
	again, err := newSink(sk.stage, dir, SumBLAKE3, []string{"x"}, newMeter(Progress{}))
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	sk.stage.since = time.Now().Add(time.Hour)
	root := newRoot()
	root.add(&f.sum)
	end := (&source{}).placed(frameEnd, &bigFile{item: item{entry: e}}, place{off: chunkSize, state: endWhole, root: root.sum(chunkSize)})
	if err := again.put(&d, end); err != nil {
		t.Fatal(err)
	}
	again.abandon()
	if notes := again.meter.allNotes(); len(notes) != 1 {
		t.Errorf("notes %v", notes)
	}
}

// TestEndlessQuestions holds that no more is asked for than may come.
func TestEndlessQuestions(t *testing.T) {
	sk, _ := openSink(t)
	sk.maxFiles, sk.stage.folds = 50, true
	d := dirs{tree: sk.stage.tree, readOnly: true}
	defer d.close()
	for i := range 51 {
		_, err := sk.have(&d, &entry{kind: kindFile, path: fmt.Sprint("x/", i), size: 1, mode: 0o644, mtime: 1e18})
		if errors.Is(err, ErrLimit) != (i == 50) {
			t.Fatalf("question %d: %v", i, err)
		}
	}
}
