package files

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestSendOneFile(t *testing.T) {
	for _, size := range []int{0, 1, 1000, chunkSize, chunkSize + 1, 5*chunkSize - 3, 40 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l, dir := newLab(t)
			src := filepath.Join(t.TempDir(), "report.pdf")
			write(t, src, size)
			res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Names) != 1 || res.Names[0] != "report.pdf" || len(res.Notes) > 0 {
				t.Errorf("result %+v", res)
			}
			if p := res.Progress; p.Bytes != int64(size) || p.Files != 1 || p.TotalBytes != int64(size) || p.State != StateFinished {
				t.Errorf("progress %+v", p)
			}
			same(t, src, filepath.Join(dir, "report.pdf"))
			clean(t, l, dir)
		})
	}
}

func TestSendTree(t *testing.T) {
	src := filepath.Join(t.TempDir(), "photos")
	for i := range 1200 {
		write(t, filepath.Join(src, fmt.Sprint("d", i%7), fmt.Sprint("e", i%5), fmt.Sprint(i)), i)
	}
	write(t, filepath.Join(src, "large"), 3<<20+17)
	if err := os.Mkdir(filepath.Join(src, "empty"), 0o750); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(src, "locked", "in"), 5)
	for _, s := range [][2]string{{"large", "link"}, {"../../large", "d1/e1/up"}, {"d1", "folder"}} {
		if err := os.Symlink(s[0], filepath.Join(src, s[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(src, "d1/e1/1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(src, "locked"), 0o555); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	if err := os.Chtimes(filepath.Join(src, "d2"), old, old); err != nil {
		t.Fatal(err)
	}
	for _, lanes := range []int{1, 5} {
		t.Run(fmt.Sprint(lanes, " lanes"), func(t *testing.T) {
			l, dir := newLab(t)
			res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{Lanes: Lanes(LaneTunnel, lanes)})
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Notes) > 0 {
				t.Errorf("notes %v", res.Notes)
			}
			same(t, src, filepath.Join(dir, "photos"))
			clean(t, l, dir)
		})
	}
}

// TestCounted holds that what is left is known although the walk waits for the lanes.
func TestCounted(t *testing.T) {
	src := tree(t, 300, 40)
	roots, err := openSources([]string{src})
	if err != nil {
		t.Fatal(err)
	}
	defer closeSources(roots)
	m := newMeter(Progress{})
	s := newSource(roots, SumBLAKE3, m)
	s.count = 0
	done := make(chan error, 1)
	go func() { done <- s.produce(t.Context()) }() // no lane takes anything
	for !m.progress().TotalKnown {
		<-m.changed
	}
	if p := m.progress(); p.TotalFiles != 300+40+13+4 || p.Bytes != 0 || p.TotalBytes < 40<<20 {
		t.Errorf("progress %+v", p)
	}
	s.q.stop(context.Canceled)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestGiveUp holds that a device that does not come is not waited for any longer than is
// said, also while it is being dialled.
func TestGiveUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ giveUp, want time.Duration }{{time.Second, time.Second}, {time.Hour, time.Hour}, {-1, helloWait}} {
		synctest.Test(t, func(t *testing.T) {
			s, err := New(Config{Dial: func(ctx context.Context, _ string, _ Lane) (net.Conn, error) {
				<-ctx.Done()
				return nil, fmt.Errorf("away: %w", ctx.Err())
			}})
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if _, err = s.Send(t.Context(), "laptop", []string{path}, SendOptions{GiveUp: c.giveUp}); !errors.Is(err, ErrNoConnection) {
				t.Errorf("%v: %v", c.giveUp, err)
			}
			if took := time.Since(begin); took != c.want {
				t.Errorf("%v: gave up after %v", c.giveUp, took)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
