package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestShareRace has somebody swap folders and files of a share for symlinks that lead out
// of it, and back, while it is got, listed and sent: nothing from outside comes along.
func TestShareRace(t *testing.T) {
	home := t.TempDir()
	src, private := filepath.Join(home, "src"), filepath.Join(home, "private")
	for i := range 300 {
		write(t, filepath.Join(src, fmt.Sprint("d", i%10), fmt.Sprint(i)), 10+i)
	}
	secret := strings.Repeat("the secret ", 50_000) // more than a chunk
	for i := range 300 {
		p := filepath.Join(private, fmt.Sprint(i))
		if err := errors.Join(os.MkdirAll(private, 0o755), os.WriteFile(p, []byte(secret[:100+i*1500]), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	swaps := 0
	wg.Go(func() {
		for ; ctx.Err() == nil; swaps++ {
			for i := range 10 {
				// A folder for a link to the private one, relative and absolute, and a file
				// for a link to a private file.
				dir := filepath.Join(src, fmt.Sprint("d", i))
				to := []string{"../private", private}[swaps%2]
				if os.Rename(dir, filepath.Join(home, "away")) == nil {
					_ = os.Symlink(to, dir)
					_ = os.Remove(dir)
					_ = os.Rename(filepath.Join(home, "away"), dir)
				}
				file := filepath.Join(dir, fmt.Sprint(i))
				if os.Rename(file, filepath.Join(home, "away")) == nil {
					_ = os.Symlink(filepath.Join("..", to, "299"), file)
					_ = os.Remove(file)
					_ = os.Rename(filepath.Join(home, "away"), file)
				}
			}
		}
	})
	l, inbox := newLab(t, func(a, b *Config) {
		b.Shares = func(string) []Share { return []Share{{"src", src}} }
	})
	for range 3 {
		dir := t.TempDir()
		_, _ = l.a.Get(t.Context(), "b", "src", GetOptions{Dir: dir, GiveUp: -1})
		_, _ = l.a.Get(t.Context(), "b", "src/d1", GetOptions{Dir: dir, GiveUp: -1})
		_, _ = l.a.Get(t.Context(), "b", "src/d2/2", GetOptions{Dir: dir, GiveUp: -1})
		if list, err := l.a.List(t.Context(), "b", "src/d3"); err == nil {
			for _, f := range list {
				if f.Name == "299" && f.Size == int64(100+299*1500) {
					t.Error("the private folder was listed")
				}
			}
		}
		_, _ = l.a.Send(t.Context(), "b", []string{src}, SendOptions{GiveUp: -1})
		noSecret(t, dir)
		noSecret(t, inbox)
		if err := os.RemoveAll(filepath.Join(inbox, "src")); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
	if swaps < 3 {
		t.Errorf("%d rounds of swaps", swaps)
	}
}

// noSecret fails the test if a file below dir has the secret in it. What is unfinished may
// go while it looks.
func noSecret(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if p != dir && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		n++
		if strings.Contains(string(b), "the secret") {
			t.Errorf("%s came along", p)
		}
		return err
	})
	if err != nil || n == 0 {
		t.Errorf("%d files in %s: %v", n, dir, err)
	}
}

// TestShareNames asks for what no honest program asks for.
func TestShareNames(t *testing.T) {
	home := t.TempDir()
	src := filepath.Join(home, "src")
	write(t, filepath.Join(src, "sub", "f"), 10)
	write(t, filepath.Join(home, "secret"), 10)
	l, dir := newLab(t, func(_, b *Config) {
		b.Shares = func(string) []Share { return []Share{{"src", src}} }
	})
	for _, p := range []string{
		"", ".", "..", "/", "src/", "src//sub", "src/.", "src/..", "src/../secret", "src/sub/..", "src/sub/../..", "src/sub/../../secret",
		"./src", "/src", "SRC/../..", "src\x00", "src/\x00", `src\sub`, "src/sub/f/", "src/sub/f/x", strings.Repeat("a/", 3000), "src/" + strings.Repeat("x", 5000),
		filepath.Join(home, "secret"), partialName, "src/" + partialName,
	} {
		for _, kind := range []messageKind{msgGet, msgList} {
			if kind == msgList && p == "" {
				continue // lists the shares
			}
			ctl := l.raw(t).ctl
			w := writer{}
			w.string(p)
			if err := ctl.send(kind, &w); err != nil {
				t.Fatal(err)
			}
			k, msg, err := ctl.receive(t.Context())
			if err == nil && k != msgCancel {
				t.Errorf("%.40q: message %d", p, k)
			} else if err == nil && parseCancel(msg) == nil {
				t.Errorf("%.40q: no error", p)
			}
		}
	}
	if _, err := l.a.Get(t.Context(), "b", "src/sub", GetOptions{Dir: dir}); err != nil {
		t.Error(err)
	}
}

// FuzzShared holds that no path names anything outside of the share.
func FuzzShared(f *testing.F) {
	home := f.TempDir()
	src := filepath.Join(home, "src")
	write(f, filepath.Join(src, "sub", "f"), 10)
	write(f, filepath.Join(home, "secret"), 4321)
	for link, to := range map[string]string{"up": "..", "out": home, "in": "sub", "deep": "sub/../..", "key": "../secret"} {
		if err := os.Symlink(to, filepath.Join(src, link)); err != nil {
			f.Fatal(err)
		}
	}
	for _, p := range []string{"src", "src/sub/f", "src/../secret", "src/up/secret", "src/out/secret", "src/in/../../secret", "src/deep/secret", "src/key"} {
		f.Add(p)
	}
	s, err := New(Config{Shares: func(string) []Share { return []Share{{"src", src}} }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, p string) {
		root, err := s.shared("a", p)
		if err != nil {
			return
		}
		defer root.dir.Close()
		d := dirs{tree: root.dir, readOnly: true}
		defer d.close()
		for _, again := range []string{root.rel, root.rel + "/up/secret", root.rel + "/../secret"} {
			dirName, name := split(again)
			dir, err := d.get(dirName)
			if err != nil {
				continue
			}
			if it, err := makeItem(root, dir, name, again, p); err == nil && it.kind == kindFile && it.size != 10 {
				t.Errorf("%q names %+v", p, it)
			}
			it := item{src: root, rel: again}
			if file, err := it.open(&d); err == nil {
				if fi, err := file.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() != 10 {
					t.Errorf("%q opens %v", p, fi)
				}
				file.Close()
			}
		}
	})
}
