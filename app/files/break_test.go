package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// tree makes a folder with many small and some large files.
func tree(t testing.TB, small, large int) string {
	t.Helper()
	src := filepath.Join(t.TempDir(), "src")
	for i := range small {
		write(t, filepath.Join(src, fmt.Sprint("d", i%13), fmt.Sprint("f", i)), i*37%5000)
	}
	for i := range large {
		write(t, filepath.Join(src, fmt.Sprint("large", i)), (i+2)<<20+i*777)
	}
	if err := os.MkdirAll(filepath.Join(src, "nothing", "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("large0", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	return src
}

// TestLanesDie kills streams at random places, all kinds of them, and holds that
// every byte arrives.
func TestLanesDie(t *testing.T) {
	src := tree(t, 150, 2)
	rapid.Check(t, func(rt *rapid.T) {
		limits := rapid.SliceOfN(rapid.Int64Range(1, 3<<20), 0, 12).Draw(rt, "limits")
		lanes := rapid.IntRange(1, 6).Draw(rt, "lanes")
		control := rapid.SliceOfN(rapid.Int64Range(40, 3000), 0, 2).Draw(rt, "control")
		l, dir := newLab(t)
		var mu sync.Mutex
		l.fault = func(c *labConn) {
			mu.Lock()
			defer mu.Unlock()
			if c.lane.Kind == LaneControl {
				if len(control) > 0 {
					c.limit, control = control[0], control[1:]
				}
				return
			}
			if len(limits) > 0 {
				c.limit, limits = limits[0], limits[1:]
			}
		}
		res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{Lanes: Lanes(LaneTunnel, lanes)})
		if err != nil {
			rt.Fatal(err)
		}
		if len(res.Notes) > 0 {
			rt.Errorf("notes %v", res.Notes)
		}
		same(t, src, filepath.Join(dir, "src"))
		l.stop(l.a)
		l.stop(l.b)
		if err := os.RemoveAll(filepath.Join(dir, "src")); err != nil {
			rt.Fatal(err)
		}
	})
}

// TestAcknowledgedOnce holds that a lane that dies costs no more than what it had
// out, and that a break of everything costs nothing that was acknowledged.
func TestAcknowledgedOnce(t *testing.T) {
	src := filepath.Join(t.TempDir(), "large")
	write(t, src, 64<<20)
	l, dir := newLab(t)
	var mu sync.Mutex
	breaks := 0
	var tr *Transfer
	l.fault = func(c *labConn) {
		mu.Lock()
		defer mu.Unlock()
		if c.lane.Kind != LaneControl && breaks < 5 {
			breaks++
			c.limit = 8 << 20
		}
	}
	_, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{
		Lanes: Lanes(LaneDirect, 1), Started: func(x *Transfer) { tr = x },
	})
	if err != nil {
		t.Fatal(err)
	}
	if p := tr.Progress(); p.Bytes != 64<<20 {
		t.Errorf("%d bytes counted as acknowledged", p.Bytes)
	}
	if breaks != 5 {
		t.Errorf("%d breaks", breaks)
	}
	same(t, src, filepath.Join(dir, "large"))
}

// TestLanesChange adds and takes lanes while a transfer runs.
func TestLanesChange(t *testing.T) {
	src := tree(t, 2000, 6)
	for name, get := range map[string]bool{"send": false, "get": true} {
		t.Run(name, func(t *testing.T) {
			l, dir := newLab(t, func(_, b *Config) {
				b.Shares = func(string) []Share { return []Share{{Name: "src", Dir: src}} }
			})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			started := func(tr *Transfer) {
				wg.Go(func() {
					last := int64(-1)
					for i := 0; ctx.Err() == nil; {
						p := tr.Progress()
						if p.Lanes > maxLanes {
							t.Errorf("%d lanes", p.Lanes)
						}
						if p.Bytes == last {
							runtime.Gosched()
							continue
						}
						last = p.Bytes
						i++
						tr.SetLanes(Lanes(LaneKind(1+i%2), 1+i%5))
					}
				})
			}
			var err error
			if get {
				dir = t.TempDir()
				_, err = l.a.Get(t.Context(), "b", "src", GetOptions{Dir: dir, Started: started})
			} else {
				_, err = l.a.Send(t.Context(), "b", []string{src}, SendOptions{Started: started})
			}
			cancel()
			wg.Wait()
			if err != nil {
				t.Fatal(err)
			}
			same(t, src, filepath.Join(dir, "src"))
			clean(t, l, dir)
		})
	}
}

// TestGoOn ends one call of Send in the middle, restarts both services, and calls
// again: what was acknowledged is not sent twice.
func TestGoOn(t *testing.T) {
	src := tree(t, 1000, 8)
	l, dir := newLab(t)
	var acked int64
	for i := 0; ; i++ {
		ctx, cancel := context.WithCancel(t.Context())
		stopAt := int64(rand.IntN(6 << 20))
		var tr *Transfer
		res, err := l.a.Send(ctx, "b", []string{src}, SendOptions{
			Lanes:   Lanes(LaneTunnel, 3),
			Started: func(x *Transfer) { tr = x },
			Progress: func(p Progress) {
				if i < 4 && p.Bytes > acked+stopAt {
					cancel()
				}
			},
		})
		cancel()
		p := tr.Progress()
		if p.State != StateFailed && p.State != StateFinished {
			t.Errorf("state %v", p.State)
		}
		if i > 0 && p.Resumed < acked*99/100 && err == nil {
			t.Errorf("%d of %d acknowledged bytes were kept", p.Resumed, acked)
		}
		if err == nil {
			if len(res.Notes) > 0 {
				t.Errorf("notes %v", res.Notes)
			}
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		acked = max(acked, p.Bytes)
		cfgA, cfgB := l.a.cfg, l.b.cfg
		l.stop(l.a)
		l.stop(l.b)
		l.a, l.b = l.start("a", cfgA), l.start("b", cfgB)
	}
	t.Cleanup(func() { l.stop(l.a); l.stop(l.b) })
	same(t, src, filepath.Join(dir, "src"))
	clean(t, l, dir)
}

// TestPipe sends a stream of unknown length over lanes and controls that die.
func TestPipe(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize, 30<<20 + 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l, dir := newLab(t)
			want := write(t, filepath.Join(t.TempDir(), "x"), size)
			var mu sync.Mutex
			faults := 0
			l.fault = func(c *labConn) {
				mu.Lock()
				defer mu.Unlock()
				if faults++; faults < 8 {
					c.limit = int64(faults) << 20
					if c.lane.Kind == LaneControl {
						c.limit = 300
					}
				}
			}
			res, err := l.a.SendReader(t.Context(), "b", "log.txt", bytes.NewReader(want), SendOptions{Lanes: Lanes(LaneTunnel, 3)})
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "log.txt"))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d: %v; %+v", len(got), len(want), err, res)
			}
			if res.Progress.Bytes != int64(size) {
				t.Errorf("progress %+v", res.Progress)
			}
			clean(t, l, dir)
		})
	}
}

// TestPipeFails holds that a reader's error is the sender's, and that the receiver
// keeps nothing under the final name.
func TestPipeFails(t *testing.T) {
	l, dir := newLab(t)
	broken := errors.New("broken")
	_, err := l.a.SendReader(t.Context(), "b", "log", io.MultiReader(bytes.NewReader(make([]byte, 3<<20)), errReader{broken}), SendOptions{})
	if !errors.Is(err, broken) {
		t.Errorf("err %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "log")); err == nil {
		t.Error("half a stream is in place")
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestPipeCancelled holds that Send ends while its reader waits.
func TestPipeCancelled(t *testing.T) {
	l, _ := newLab(t)
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := l.a.SendReader(ctx, "b", "log", r, SendOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err %v", err)
	}
}

// TestPipeCutShort sends what comes from a reader that ends too early and says so: a
// part of it is not taken for all.
func TestPipeCutShort(t *testing.T) {
	l, dir := newLab(t)
	r := io.MultiReader(bytes.NewReader(make([]byte, chunkSize+10)), errReader{io.ErrUnexpectedEOF})
	if _, err := l.a.SendReader(t.Context(), "b", "x", r, SendOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("err %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
		t.Error("half of it is there")
	}
}

// TestPipeLost takes away what the receiver has of a pipe, which cannot be sent again.
func TestPipeLost(t *testing.T) {
	l, dir := newLab(t)
	r, w := io.Pipe()
	arrived, once := make(chan struct{}), sync.Once{}
	done := make(chan error, 1)
	go func() {
		_, err := l.a.SendReader(t.Context(), "b", "log", r, SendOptions{Progress: func(p Progress) {
			if p.Bytes > 0 {
				once.Do(func() { close(arrived) })
			}
		}})
		done <- err
	}()
	if _, err := w.Write(make([]byte, chunkSize)); err != nil {
		t.Fatal(err)
	}
	<-arrived
	if err := os.RemoveAll(filepath.Join(dir, partialName)); err != nil {
		t.Fatal(err)
	}
	l.lose(func(*labConn) bool { return true })
	go func() { // the pipe's other end may be gone already
		_, _ = w.Write(make([]byte, 10))
		w.Close()
	}()
	if err := <-done; !errors.Is(err, errLostStream) {
		t.Errorf("err %v", err)
	}
}
