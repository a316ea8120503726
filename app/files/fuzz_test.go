package files

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func FuzzMessages(f *testing.F) {
	seed := func(put func(w *writer)) {
		var w writer
		put(&w)
		f.Add(w.b)
	}
	seed(func(w *writer) { (&offerMsg{tops: []string{"a", "b.txt"}, files: 3, bytes: 9}).put(w) })
	seed(func(w *writer) { (&answerMsg{verdict: verdictAccept, resume: true}).put(w) })
	seed(func(w *writer) { putAsk(w, []item{{entry: entry{kind: kindFile, path: "a/b", size: 7}}}) })
	seed(func(w *writer) { putHave(w, []have{{all: true}, {ranges: []int64{0, 3, 9, 1}}}) })
	seed(func(w *writer) { putNote(w, Note{Path: "x", Problem: ProblemRead, Detail: "no"}) })
	seed(func(w *writer) { putListing(w, []Listed{{Name: "x", Size: 1}}, true) })
	seed(func(w *writer) { (&ticket{peer: "p", tops: []string{"a"}, boot: "b"}).put(w) })
	f.Fuzz(func(t *testing.T, b []byte) {
		r := func() *reader { return &reader{b: bytes.Clone(b)} }
		var o offerMsg
		if o.get(r()) == nil {
			var w writer
			o.put(&w)
			var again offerMsg
			if again.get(&reader{b: w.b}) != nil || len(o.tops) == 0 || len(o.tops) > maxTops {
				t.Errorf("offer %+v", o)
			}
			for _, name := range o.tops {
				if !validPath(name) || top(name) != name {
					t.Errorf("top %q", name)
				}
			}
		}
		var a answerMsg
		_ = a.get(r())
		if list, err := parseAsk(r()); err == nil {
			for _, e := range list {
				if !validPath(e.path) || e.size < 0 || e.size > maxSize || e.mode&^permissions != 0 {
					t.Errorf("entry %+v", e)
				}
			}
		}
		for n := range 4 {
			list, _ := parseHave(r(), n)
			for _, h := range list {
				for c := range int64(64) {
					h.chunk(c)
				}
			}
		}
		_, _ = parseNote(r())
		_, _, _ = parseListing(r())
		_, _ = parseStrings(r(), maxTops, maxPath)
		_ = parseCancel(r())
		var tk ticket
		_ = tk.get(bytes.Clone(b))
		_, _, _ = parseHello(b)
		_, _, _ = readMessage(bytes.NewReader(b))
	})
}

func FuzzFrame(f *testing.F) {
	add := func(o *outFrame) { f.Add(bytes.Join(toSlices(putFrame(o, nil)), nil)) }
	add(batchOf([]entry{{kind: kindFile, path: "x/a", size: 1}, {kind: kindDir, path: "x/d", mode: 0o755}}, "1"))
	add(chunkOf(entry{kind: kindFile, path: "x", size: chunkSize + 1}, chunkSize, []byte{1}))
	add(&outFrame{kind: frameBye})
	dir := f.TempDir()
	st, err := openStage(dir, "fuzz", NamesPortable)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(st.close)
	f.Fuzz(func(t *testing.T, b []byte) {
		sk, err := newSink(st, dir, SumBLAKE3, []string{"x"}, newMeter(Progress{}))
		if err != nil {
			t.Fatal(err)
		}
		defer sk.close()
		sk.maxBytes, sk.maxFiles = 1<<30, 100
		d := dirs{tree: st.tree}
		defer d.close()
		r := bytes.NewReader(b)
		for {
			h, meta, err := readFrame(r, make([]byte, headerSize))
			if err != nil {
				return
			}
			buf := new(buffer)
			if _, err := io.ReadFull(r, buf.data()[:h.data]); err != nil {
				return
			}
			// The fuzzer does not find digests.
			h.sum = chunkSum(SumBLAKE3, buf.data()[:h.data], 0)
			_ = sk.frame(&d, &h, meta, buf.data()[:h.data])
			checkTree(t, filepath.Join(dir, partialName, "fuzz", "tree"))
		}
	})
}

func toSlices(a [2][]byte) [][]byte { return a[:] }

// checkTree holds that only what was offered is in a tree.
func checkTree(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.Name() != "x" {
			t.Errorf("%q was made", d.Name())
		}
	}
}

func FuzzMeta(f *testing.F) {
	for kind := frameChunk; kind <= frameEnd; kind++ {
		var w writer
		(&place{entry: entry{kind: kindFile, path: "x/a", size: 3 * chunkSize}, off: chunkSize, len: chunkSize, state: endWhole}).put(&w, kind)
		f.Add(byte(kind), w.b, chunkSize)
	}
	f.Add(byte(frameBatch), batchOf([]entry{{kind: kindFile, path: "x/a", size: 1}}, "1").meta, 1)
	f.Fuzz(func(t *testing.T, kind byte, meta []byte, data int) {
		if data < 0 || data > chunkSize {
			return
		}
		if frameKind(kind) == frameBatch {
			n := 0
			_ = parseBatch(meta, make([]byte, data), func(e *entry, content []byte) error {
				n += len(content)
				if !validPath(e.path) || e.kind == kindFile && int64(len(content)) != e.size {
					t.Errorf("entry %+v with %d bytes", e, len(content))
				}
				return nil
			})
			if n > data {
				t.Errorf("%d bytes of %d", n, data)
			}
			return
		}
		p, err := parsePlace(frameKind(kind), meta, data)
		if err != nil {
			return
		}
		if p.off < 0 || p.len < 0 || p.off+p.len > maxSize || p.entry.kind == kindFile && p.off+p.len > p.entry.size {
			t.Errorf("place %+v", p)
		}
	})
}

func FuzzJournal(f *testing.F) {
	var j memFile
	if err := putJournalHead(&j, &entry{kind: kindFile, path: "x", size: 3 * chunkSize}, SumBLAKE3); err != nil {
		f.Fatal(err)
	}
	f.Add(j.b, []byte{1, 0, 2})
	var later bytes.Buffer
	w := writer{b: make([]byte, 4)}
	(&entry{kind: kindDir, path: "x", mode: 0o700}).put(&w)
	w.b[3] = byte(len(w.b) - 4)
	later.Write(w.b)
	f.Add(later.Bytes(), []byte{9})
	f.Fuzz(func(t *testing.T, head, states []byte) {
		e, _, err := parseJournalHead(head)
		if err == nil && (!validPath(e.path) || e.size < 0 || e.size > maxSize) {
			t.Errorf("entry %+v", e)
		}
		have, err := loadStates(bytes.NewReader(append(make([]byte, journalHead), states...)), 1000)
		if err != nil || have.set > 1000 {
			t.Errorf("%d chunks, %v", have.set, err)
		}
		_ = readLater(bytes.NewReader(head), func(e *entry) error {
			if !validPath(e.path) {
				t.Errorf("entry %+v", e)
			}
			return nil
		})
	})
}

// A memFile is a file in memory.
type memFile struct{ b []byte }

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}
