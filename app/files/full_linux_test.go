package files

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// TestDiskFull fills a small file system, makes room, and goes on.
func TestDiskFull(t *testing.T) {
	small := t.TempDir()
	if err := syscall.Mount("kith", small, "tmpfs", 0, "size=96m"); err != nil {
		t.Skip("needs root:", err)
	}
	defer syscall.Unmount(small, syscall.MNT_DETACH) //nolint:errcheck // a test's own
	ballast := filepath.Join(small, "ballast")
	write(t, ballast, 4<<20)
	src := tree(t, 100, 0)
	large := filepath.Join(src, "large")
	write(t, large, 80<<20)
	l, _ := newLab(t, func(_, b *Config) { b.Dir = filepath.Join(small, "in") })
	// Known to be too much: refused before a byte is sent.
	if _, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{}); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("err %v", err)
	}
	if list, _ := os.ReadDir(filepath.Join(small, "in")); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
	// Not known: a pipe says nothing of its length. It ends with the disk.
	if _, err := l.a.SendReader(t.Context(), "b", "log", endless{}, SendOptions{}); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("err %v", err)
	}
	clean := filepath.Join(small, "in", partialName)
	if err := os.RemoveAll(clean); err != nil {
		t.Fatal(err)
	}
	// Filled by another while it runs: what is there is kept, and it goes on.
	write(t, large, 24<<20)
	filler := filepath.Join(small, "filler")
	var once sync.Once
	l.fault = func(c *labConn) {
		if c.lane.Kind != LaneControl {
			once.Do(func() { write(t, filler, 80<<20) })
		}
	}
	_, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
	if !errors.Is(err, ErrDiskFull) {
		t.Fatalf("err %v", err)
	}
	if err := errors.Join(os.Remove(filler), os.Remove(ballast)); err != nil {
		t.Fatal(err)
	}
	res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Progress.Resumed == 0 {
		t.Error("nothing was kept")
	}
	same(t, src, filepath.Join(small, "in", "src"))
}
