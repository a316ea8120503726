package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lukechampine.com/blake3"
	"lukechampine.com/blake3/guts"
)

// TestNothingOverwritten sends the same three times, and then asks for overwriting.
func TestNothingOverwritten(t *testing.T) {
	over := false
	l, dir := newLab(t, func(_, b *Config) {
		b.Policy = func(Offer) Decision { return Decision{Action: Accept, Overwrite: over} }
	})
	src := tree(t, 20, 1)
	file := filepath.Join(t.TempDir(), "report.pdf")
	for i, want := range [][2]string{{"report.pdf", "src"}, {"report (1).pdf", "src (1)"}, {"report (2).pdf", "src (2)"}} {
		write(t, file, 1000+i)
		res, err := l.a.Send(t.Context(), "b", []string{file, src}, SendOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(res.Names) != fmt.Sprint(want) {
			t.Errorf("names %q", res.Names)
		}
		same(t, file, filepath.Join(dir, want[0]))
		same(t, src, filepath.Join(dir, want[1]))
		clean(t, l, dir)
	}
	over = true
	write(t, file, 77)
	write(t, filepath.Join(src, "d1", "f1"), 99)
	extra := filepath.Join(dir, "src", "mine")
	write(t, extra, 5)
	if _, err := l.a.Send(t.Context(), "b", []string{file, src}, SendOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, file, filepath.Join(dir, "report.pdf"))
	if _, err := os.Lstat(extra); err != nil {
		t.Errorf("what was there besides: %v", err)
	}
	if err := os.Remove(extra); err != nil {
		t.Fatal(err)
	}
	same(t, filepath.Join(src, "d1", "f1"), filepath.Join(dir, "src", "d1", "f1"))
}

func TestInbox(t *testing.T) {
	offers := make(chan Offer, 4)
	l, dir := newLab(t, func(_, b *Config) { b.Policy = nil; b.OnOffer = func(o Offer) { offers <- o } })
	src := filepath.Join(t.TempDir(), "a\x1b[2Jb")
	write(t, src, 5)
	send := func(ctx context.Context) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := l.a.Send(ctx, "b", []string{src}, SendOptions{})
			done <- err
		}()
		return done
	}
	done := send(t.Context())
	o := <-offers
	if o.Peer != "a" || len(o.Names) != 1 || o.Names[0] != "a_[2Jb" || o.Files != 1 || o.Bytes != 5 || !o.Known || o.Folder {
		t.Errorf("offer %+v", o)
	}
	if list := l.b.Offers(); len(list) != 1 || list[0].Number != o.Number {
		t.Errorf("offers %+v", list)
	}
	if !l.b.Decline(o.Number) || l.b.Decline(o.Number) {
		t.Error("declined not once")
	}
	if err := <-done; !errors.Is(err, ErrDeclined) {
		t.Errorf("err %v", err)
	}
	// Accepted, into another folder.
	other := t.TempDir()
	done = send(t.Context())
	o = <-offers
	l.b.Accept(o.Number, Decision{Dir: other})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	clean(t, l, dir)
	clean(t, l, other)
	if list, _ := os.ReadDir(other); len(list) != 1 || !strings.HasPrefix(list[0].Name(), "a_[2Jb~") {
		t.Errorf("received %v", list)
	}
	// A sender that leaves takes its offer along.
	ctx, cancel := context.WithCancel(t.Context())
	done = send(ctx)
	<-offers
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
	clean(t, l, dir)
	if list := l.b.Offers(); len(list) != 0 {
		t.Errorf("offers %+v", list)
	}
	// Rights that are withdrawn.
	done = send(t.Context())
	<-offers
	l.b.EndPeer("a", "blocked")
	if err := <-done; !errors.Is(err, ErrDeclined) {
		t.Errorf("err %v", err)
	}
}

func TestCancel(t *testing.T) {
	src := filepath.Join(t.TempDir(), "f")
	write(t, src, 200<<20)
	for name, end := range map[string]func(l *lab, own *Transfer){
		"by the sender":   func(_ *lab, own *Transfer) { own.Cancel() },
		"by the receiver": func(l *lab, _ *Transfer) { l.b.EndPeer("a", "blocked") },
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := newLab(t)
			done := make(chan error, 1)
			started := make(chan *Transfer, 1)
			go func() {
				_, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{Started: func(x *Transfer) { started <- x }})
				done <- err
			}()
			own := <-started
			for own.Progress().Bytes == 0 {
				select {
				case err := <-done:
					t.Fatalf("too fast: %v", err)
				case <-own.meter.changed:
				}
			}
			end(l, own)
			if err := <-done; !errors.Is(err, ErrCancelled) && !errors.Is(err, ErrWithdrawn) {
				t.Errorf("err %v", err)
			}
		})
	}
}

func TestShare(t *testing.T) {
	src := tree(t, 50, 1)
	secret := filepath.Join(filepath.Dir(src), "secret")
	write(t, secret, 10)
	if err := os.Symlink(secret, filepath.Join(src, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", filepath.Join(src, "up")); err != nil {
		t.Fatal(err)
	}
	l, _ := newLab(t, func(_, b *Config) {
		b.Shares = func(peer string) []Share {
			if peer != "a" {
				return nil
			}
			return []Share{{Name: "photos", Dir: src}}
		}
	})
	list, err := l.a.List(t.Context(), "b", "")
	if err != nil || len(list) != 1 || list[0].Name != "photos" {
		t.Errorf("shares %v %v", list, err)
	}
	if list, err = l.a.List(t.Context(), "b", "photos/d1"); err != nil || len(list) == 0 {
		t.Errorf("list %v %v", list, err)
	}
	dir := t.TempDir()
	res, err := l.a.Get(t.Context(), "b", "photos/d1", GetOptions{Dir: dir})
	if err != nil || fmt.Sprint(res.Names) != "[d1]" {
		t.Fatalf("%+v %v", res, err)
	}
	same(t, filepath.Join(src, "d1"), filepath.Join(dir, "d1"))
	if res, err = l.a.Get(t.Context(), "b", "photos/large0", GetOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	same(t, filepath.Join(src, "large0"), filepath.Join(dir, "large0"))
	if res, err = l.a.Get(t.Context(), "b", "photos", GetOptions{Dir: dir}); err != nil || len(res.Notes) != 2 {
		t.Errorf("notes %v %v", res.Notes, err)
	}
	clean(t, l, dir)
	for _, p := range []string{"secret", "photos/../secret", "photos/out", "photos/up", "photos/up/secret", "photos/out/x", "photos/none", "/etc", "..", "other"} {
		if res, err := l.a.Get(t.Context(), "b", p, GetOptions{Dir: dir}); err == nil {
			t.Errorf("got %q: %+v", p, res)
		}
		// Also from one whose own program does not look.
		for _, kind := range []messageKind{msgGet, msgList} {
			ctl := l.raw(t).ctl
			w := writer{}
			w.string(p)
			if err := ctl.send(kind, &w); err != nil {
				t.Fatal(err)
			}
			if k, msg, err := ctl.receive(t.Context()); err != nil || k != msgCancel || !errors.Is(parseCancel(msg), ErrNotShared) {
				t.Errorf("%q: message %d, %v", p, k, err)
			}
		}
	}
	if _, err := l.b.List(t.Context(), "a", "photos"); !errors.Is(err, ErrNotShared) {
		t.Errorf("a shares: %v", err)
	}
}

// TestChanged changes a file between two parts of its way.
func TestChanged(t *testing.T) {
	src := filepath.Join(t.TempDir(), "log")
	write(t, src, 60<<20)
	l, dir := newLab(t)
	changed := false
	res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{Started: func(tr *Transfer) {
		l.fault = func(c *labConn) {
			if c.lane.Kind != LaneControl && !changed {
				changed = true
				f, err := os.OpenFile(src, os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = f.Write([]byte("more"))
				_ = f.Close()
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	// The walk may come before or after the change: either all of the new file is
	// there, or none of it, and that is said.
	_, statErr := os.Lstat(filepath.Join(dir, "log"))
	if !changed || len(res.Notes) == 0 == (statErr != nil) {
		t.Errorf("notes %v, file there: %v", res.Notes, statErr == nil)
	}
	if statErr == nil {
		same(t, src, filepath.Join(dir, "log"))
	}
}

// TestSparse holds that holes stay holes and that zeros become some.
func TestSparse(t *testing.T) {
	src := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(20 << 30); err != nil {
		t.Skip("no sparse files here")
	}
	for _, off := range []int64{0, 5<<30 + 12345, 19 << 30} {
		if _, err := f.WriteAt(bytes.Repeat([]byte("data"), 1000), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	l, dir := newLab(t)
	res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
	if errors.Is(err, ErrDiskFull) {
		t.Skip("less than 20 GiB free")
	}
	if err != nil || len(res.Notes) > 0 {
		t.Fatal(err, res.Notes)
	}
	g, err := os.Open(filepath.Join(dir, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	begin, end := nextData(g, 1<<30, 20<<30)
	if begin < 5<<30 && bootID() != "" {
		t.Errorf("data from %d to %d", begin, end)
	}
	b := make([]byte, 8)
	if _, err := g.ReadAt(b, 5<<30+12345); err != nil || string(b) != "datadata" {
		t.Errorf("%q %v", b, err)
	}
}

// TestSpecial holds that what is no file is left out and said.
func TestSpecial(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	write(t, filepath.Join(src, "good"), 10)
	if err := makePipe(filepath.Join(src, "pipe")); err != nil {
		t.Skip(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(src, "abs")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(src, "aux.txt"), 7)
	l, dir := newLab(t)
	res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]Problem)
	for _, n := range res.Notes {
		got[n.Path] = n.Problem
		if n.String() == "" {
			t.Error("a note says nothing")
		}
	}
	for path, p := range map[string]Problem{"src/pipe": ProblemSpecial, "src/abs": ProblemLink, "src/aux.txt": ProblemRenamed} {
		if got[path] != p {
			t.Errorf("%s: %v", path, got[path])
		}
	}
	if list, _ := os.ReadDir(filepath.Join(dir, "src")); len(list) != 2 {
		t.Errorf("received %v", list)
	}
}

// TestLimit holds that no more comes than is allowed, offered or not.
func TestLimit(t *testing.T) {
	l, dir := newLab(t, func(_, b *Config) { b.MaxBytes = 1 << 20 })
	src := tree(t, 10, 1)
	if _, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{}); !errors.Is(err, ErrLimit) {
		t.Errorf("err %v", err)
	}
	if _, err := l.a.SendReader(t.Context(), "b", "endless", endless{}, SendOptions{}); !errors.Is(err, ErrLimit) {
		t.Errorf("err %v", err)
	}
	if list, _ := os.ReadDir(dir); len(list) > 1 {
		t.Errorf("received %v", list)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	return copy(p, bytes.Repeat([]byte("y\n"), len(p)/2+1)), nil
}

// TestFold keeps names apart that a file system holds for the same.
func TestFold(t *testing.T) {
	st, err := openStage(t.TempDir(), "x", NamesPortable)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	st.folds = true
	sk, err := newSink(st, t.TempDir(), SumBLAKE3, []string{"x"}, newMeter(Progress{}))
	if err != nil {
		t.Fatal(err)
	}
	defer sk.close()
	a, b := sk.place("x/Readme"), sk.place("x/README")
	if a != "x/Readme" || strings.EqualFold(a, b) || b != sk.place("x/README") || a != sk.place("x/Readme") {
		t.Errorf("%q and %q", a, b)
	}
}

// TestAfterReboot holds that what may not have come to the disk is looked at again.
func TestAfterReboot(t *testing.T) {
	st, err := openStage(t.TempDir(), "x", NamesPortable)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	e := entry{kind: kindFile, path: "x", size: 4 * chunkSize, mtime: 1e18}
	p, err := st.openPart(&e, "x", SumBLAKE3, true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		buf := bytes.Repeat([]byte{byte(i + 1)}, chunkSize)
		d := chunkSum(SumBLAKE3, buf, i*chunkSize)
		if _, err := p.put(i*chunkSize, buf, &d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.file.WriteAt([]byte{0}, chunkSize+5); err != nil { // lost with the power
		t.Fatal(err)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	if p, err = st.openPart(&e, "x", SumBLAKE3, false); err != nil || p == nil {
		t.Fatal(p, err)
	}
	defer p.close()
	if got := fmt.Sprint(p.ranges(10)); got != "[0 3]" {
		t.Errorf("before: %s", got)
	}
	if st.suspect(p) {
		t.Error("suspected before the machine went down")
	}
	st.since = time.Now().Add(time.Hour)
	if !st.suspect(p) {
		t.Error("not suspected after the machine went down")
	}
	if err := p.verify(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.ranges(10)); got != "[0 1 2 1]" {
		t.Errorf("after: %s", got)
	}
	small := entry{kind: kindFile, path: "s", size: 1, mode: 0o644, mtime: 1e18}
	d := dirs{tree: st.tree}
	if err := st.writeSmall(&d, "s", &small, []byte("x")); err != nil {
		t.Fatal(err)
	}
	st.since = time.Time{}
	if !st.has(st.tree, "s", &small) {
		t.Error("a whole file is not there")
	}
	st.since, st.synced = time.Now().Add(time.Hour), time.Unix(1, 0)
	if bootID() != "" && st.has(st.tree, "s", &small) {
		t.Error("a file that may be lost is believed")
	}
	if st.since = time.Unix(2, 0); !st.has(st.tree, "s", &small) {
		t.Error("a file that was written since is not believed")
	}
}

// TestChunkSum compares the tree of chunks with the whole BLAKE3: the digest of a
// file of two chunks is the parent of theirs.
func TestChunkSum(t *testing.T) {
	buf := make([]byte, chunkSize)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for _, n := range []int{1, 1024, 1025, 16384, 16385, 100_000, chunkSize - 1} {
		a := chunkSum(SumBLAKE3, buf[:n], chunkSize)
		if a == chunkSum(SumBLAKE3, buf[:n], 0) || a == chunkSum(SumBLAKE3, append(make([]byte, 0, chunkSize), buf[:n-1]...), chunkSize) {
			t.Errorf("%d bytes: offset or length does not count", n)
		}
		whole := append(bytes.Clone(buf), buf[:n]...)
		left := chunkSum(SumBLAKE3, buf, 0)
		if got, want := rootOfTwo(left, a), blake3.Sum256(whole); got != want {
			t.Errorf("%d bytes: not BLAKE3's tree", n)
		}
	}
}

// rootOfTwo is the BLAKE3 of what two chaining values are the halves of.
func rootOfTwo(a, b digest) (out [32]byte) {
	n := guts.ParentNode(words(a), words(b), &guts.IV, guts.FlagRoot)
	w := guts.WordsToBytes(guts.CompressNode(n))
	copy(out[:], w[:])
	return out
}

func words(d digest) (w [8]uint32) {
	for i := range w {
		w[i] = uint32(d[4*i]) | uint32(d[4*i+1])<<8 | uint32(d[4*i+2])<<16 | uint32(d[4*i+3])<<24
	}
	return w
}
