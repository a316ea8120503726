package files

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A halt holds a lab's transfer at some place: each lane is lost after so many bytes of
// the side that dials, and no other comes until go on.
type halt struct {
	l     *lab
	gate  chan struct{}
	stuck chan struct{} // closed when the first lane was lost and another is wanted
	once  sync.Once
}

func (l *lab) halt(after int64) *halt {
	h := &halt{l: l, gate: make(chan struct{}), stuck: make(chan struct{})}
	var lanes atomic.Int32
	l.mu.Lock()
	l.fault = func(c *labConn) {
		if c.lane.Kind == LaneControl {
			return
		}
		if lanes.Add(1) == 1 {
			c.limit = after
			return
		}
		h.once.Do(func() { close(h.stuck) })
		<-h.gate
	}
	l.mu.Unlock()
	return h
}

// goOn lets all lanes come again.
func (h *halt) goOn() {
	h.l.mu.Lock()
	h.l.fault = nil
	h.l.mu.Unlock()
	close(h.gate)
}

// TestWithdrawn withdraws the right by which a transfer was taken while it runs: both
// sides are told, what has come is kept, and it goes on only when somebody takes it.
func TestWithdrawn(t *testing.T) {
	src := filepath.Join(t.TempDir(), "f")
	write(t, src, 24<<20)
	for name, c := range map[string]struct {
		end        func(s *Service)
		there      error
		here       string
		stillTaken bool
	}{
		"right withdrawn": {func(s *Service) { s.Recheck("a") }, ErrWithdrawn, "withdrawn on this device", false},
		"device blocked":  {func(s *Service) { s.EndPeer("a", "the device was blocked") }, ErrWithdrawn, "was blocked", false},
		"declined while it runs": {func(s *Service) {
			if n := s.Transfers()[0].Progress().Number; n == 0 || !s.Decline(n) || s.Decline(n+1) {
				t.Errorf("number %d", n)
			}
		}, ErrCancelled, "cancelled on this device", false},
	} {
		t.Run(name, func(t *testing.T) {
			var trusted atomic.Bool
			ended, offers := make(chan Received, 4), make(chan Offer, 4)
			l, dir := newLab(t, func(_, b *Config) {
				b.Policy = trust(&trusted)
				b.OnReceived, b.OnOffer = func(r Received) { ended <- r }, func(o Offer) { offers <- o }
			})
			h := l.halt(8 << 20)
			done := make(chan error, 1)
			send := func() {
				_, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
				done <- err
			}
			go send()
			<-h.stuck
			for _, x := range []*Service{l.a, l.b} { // what is left is known on both sides
				if p := x.Transfers()[0].Progress(); !p.TotalKnown || p.TotalBytes != 24<<20 || p.TotalFiles != 1 {
					t.Errorf("progress %+v", p)
				}
			}
			l.b.Recheck("a") // nothing has changed
			select {
			case err := <-done:
				t.Fatalf("ended: %v", err)
			default:
			}
			trusted.Store(false)
			c.end(l.b)
			r := <-ended
			h.goOn()
			if err := <-done; !errors.Is(err, c.there) || !strings.Contains(err.Error(), "the other device") {
				t.Errorf("the sender is told: %v", err)
			}
			if r.Err == nil || !strings.Contains(r.Err.Error(), c.here) || r.Progress.State != StateFailed || r.Progress.Bytes == 0 {
				t.Errorf("the receiver is told: %+v", r)
			}
			if _, err := os.Lstat(filepath.Join(dir, "f")); err == nil {
				t.Error("half a file is there")
			}
			// Again: it is an offer, and once it is taken what has come is not sent twice.
			go send()
			o := <-offers
			if !l.b.Accept(o.Number, Decision{}) {
				t.Error("not taken")
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if r := <-ended; r.Err != nil || r.Progress.Resumed < 1<<20 || r.Progress.Number != o.Number {
				t.Errorf("received %+v", r)
			}
			same(t, src, filepath.Join(dir, "f"))
			clean(t, l, dir)
		})
	}
}

// TestUnshared takes a share away while it is got; another share stays.
func TestUnshared(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	write(t, filepath.Join(one, "f"), 24<<20)
	write(t, filepath.Join(two, "g"), 1000)
	var gone atomic.Bool
	l, _ := newLab(t, func(_, b *Config) {
		b.Shares = func(string) []Share {
			if gone.Load() {
				return []Share{{"two", two}}
			}
			return []Share{{"one", one}, {"two", two}}
		}
	})
	h := l.halt(150) // acknowledgements of a few MiB
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() {
		_, err := l.a.Get(t.Context(), "b", "one/f", GetOptions{Dir: dir})
		done <- err
	}()
	<-h.stuck
	gone.Store(true)
	l.b.Recheck("a")
	h.goOn()
	if err := <-done; !errors.Is(err, ErrWithdrawn) || !strings.Contains(err.Error(), "the other device") {
		t.Errorf("err %v", err)
	}
	if _, err := l.a.Get(t.Context(), "b", "two/g", GetOptions{Dir: dir}); err != nil {
		t.Error(err)
	}
	if _, err := l.a.Get(t.Context(), "b", "one/f", GetOptions{Dir: dir}); !errors.Is(err, ErrNotShared) {
		t.Errorf("err %v", err)
	}
	gone.Store(false)
	res, err := l.a.Get(t.Context(), "b", "one/f", GetOptions{Dir: dir})
	if err != nil || res.Progress.Resumed == 0 {
		t.Errorf("%+v %v", res.Progress, err)
	}
	same(t, filepath.Join(one, "f"), filepath.Join(dir, "f"))
}

// TestStoppedBySender ends a Send by its context: the receiver is told so and keeps what
// it has.
func TestStoppedBySender(t *testing.T) {
	src := filepath.Join(t.TempDir(), "f")
	write(t, src, 24<<20)
	ended := make(chan Received, 1)
	l, _ := newLab(t, func(_, b *Config) { b.OnReceived = func(r Received) { ended <- r } })
	h := l.halt(8 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := l.a.Send(ctx, "b", []string{src}, SendOptions{})
		done <- err
	}()
	<-h.stuck
	cancel()
	h.goOn()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
	if r := <-ended; !errors.Is(r.Err, ErrCancelled) || r.Progress.State != StateFailed {
		t.Errorf("received %+v", r)
	}
	res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
	if err != nil || res.Progress.Resumed < 1<<20 {
		t.Errorf("%+v %v", res.Progress, err)
	}
}

// TestSourceChanges changes a large file while it is sent, in each way: what arrives is
// one version of it, or nothing and a note.
func TestSourceChanges(t *testing.T) {
	for name, c := range map[string]struct {
		change func(path string) error
		whole  bool
	}{
		"truncated": {func(p string) error { return os.Truncate(p, 1<<20) }, false},
		"emptied":   {func(p string) error { return os.Truncate(p, 0) }, false},
		"longer": {func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("more")
			return errors.Join(err, f.Close())
		}, false},
		"written over": {func(p string) error { return os.WriteFile(p, make([]byte, 24<<20), 0o644) }, false},
		"deleted":      {os.Remove, true}, // it is open, and all there
		"replaced": {func(p string) error {
			return errors.Join(os.WriteFile(p+".new", []byte("new"), 0o644), os.Rename(p+".new", p))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			src, kept := filepath.Join(home, "src"), filepath.Join(home, "kept")
			write(t, filepath.Join(src, "f"), 24<<20)
			write(t, filepath.Join(src, "small"), 100)
			if err := os.Link(filepath.Join(src, "f"), kept); err != nil {
				t.Skip(err)
			}
			l, dir := newLab(t)
			h := l.halt(4 << 20)
			done := make(chan Result, 1)
			go func() {
				res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
				if err != nil {
					t.Error(err)
				}
				done <- res
			}()
			<-h.stuck
			if err := c.change(filepath.Join(src, "f")); err != nil {
				t.Error(err)
			}
			h.goOn()
			res := <-done
			if c.whole {
				same(t, kept, filepath.Join(dir, "src", "f"))
				return
			}
			if len(res.Notes) != 1 || res.Notes[0].Path != "src/f" || res.Notes[0].Problem != ProblemChanged {
				t.Errorf("notes %v", res.Notes)
			}
			if _, err := os.Lstat(filepath.Join(dir, "src", "f")); err == nil {
				t.Error("some of it is there")
			}
			same(t, filepath.Join(src, "small"), filepath.Join(dir, "src", "small"))
			clean(t, l, dir)
		})
	}
}

// TestTargetRemoved takes the folder away that files come into: it ends with an error,
// and the next time all is sent.
func TestTargetRemoved(t *testing.T) {
	src := tree(t, 300, 4)
	for _, what := range []string{"", partialName} {
		t.Run("in/"+what, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "in")
			ended := make(chan Received, 4)
			l, _ := newLab(t, func(_, b *Config) { b.Dir, b.OnReceived = dir, func(r Received) { ended <- r } })
			h := l.halt(3 << 20)
			done := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				_, err := l.a.Send(ctx, "b", []string{src}, SendOptions{})
				done <- err
			}()
			<-h.stuck
			if err := os.RemoveAll(filepath.Join(dir, what)); err != nil {
				t.Fatal(err)
			}
			h.goOn()
			if err := <-done; err == nil || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the sender is told: %v", err)
			}
			if r := <-ended; r.Err == nil || strings.Contains(r.Err.Error(), "\n") {
				t.Errorf("the receiver is told: %v", r.Err)
			}
			if _, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{}); err != nil {
				t.Fatal(err)
			}
			same(t, src, filepath.Join(dir, "src"))
			outside(t, parent, "in")
		})
	}
}

// trust is a Policy that takes everything until trusted is set to false, and then asks.
func trust(trusted *atomic.Bool) func(Offer) Decision {
	trusted.Store(true)
	return func(Offer) Decision {
		if trusted.Load() {
			return Decision{Action: Accept}
		}
		return Decision{}
	}
}

// TestWithdrawnWhileBroken withdraws the right by which a transfer was taken while there
// is no connection: it is an offer when it comes again.
func TestWithdrawnWhileBroken(t *testing.T) {
	src := filepath.Join(t.TempDir(), "f")
	write(t, src, 24<<20)
	var trusted atomic.Bool
	offers, ended := make(chan Offer, 1), make(chan Received, 4)
	l, dir := newLab(t, func(_, b *Config) {
		b.Policy = trust(&trusted)
		b.OnOffer, b.OnReceived = func(o Offer) { offers <- o }, func(r Received) { ended <- r }
	})
	h := l.halt(8 << 20)
	done := make(chan error, 1)
	go func() {
		_, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
		done <- err
	}()
	<-h.stuck
	trusted.Store(false) // and it breaks before anybody has looked
	l.lose(func(c *labConn) bool { return c.lane.Kind == LaneControl })
	if r := <-ended; r.Progress.State != StateBroken {
		t.Errorf("ended: %+v", r)
	}
	h.goOn()
	select {
	case o := <-offers:
		l.b.Accept(o.Number, Decision{})
	case err := <-done:
		t.Fatalf("nobody was asked; err %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	same(t, src, filepath.Join(dir, "f"))
}

// TestWithdrawnAtOnce withdraws the right to a transfer after it was asked for and before
// the transfer is among those that Recheck looks at.
func TestWithdrawnAtOnce(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, "f"), 1000)
	var asked, shared atomic.Int32
	l, dir := newLab(t, func(_, b *Config) {
		b.Policy = func(Offer) Decision {
			if asked.Add(1) == 1 {
				return Decision{Action: Accept}
			}
			return Decision{}
		}
		b.Shares = func(string) []Share {
			if shared.Add(1) == 1 {
				return []Share{{"s", src}}
			}
			return nil
		}
	})
	if _, err := l.a.Send(t.Context(), "b", []string{filepath.Join(src, "f")}, SendOptions{}); !errors.Is(err, ErrWithdrawn) {
		t.Errorf("sent: %v", err)
	}
	if _, err := l.a.Get(t.Context(), "b", "s/f", GetOptions{Dir: dir}); !errors.Is(err, ErrWithdrawn) {
		t.Errorf("got: %v", err)
	}
	clean(t, l, dir)
}

// TestGetElsewhere gets into another folder than that of what others send, which has
// nothing to do with it.
func TestGetElsewhere(t *testing.T) {
	src, inbox := t.TempDir(), t.TempDir()
	write(t, filepath.Join(src, "f"), 1000)
	l, _ := newLab(t, func(a, b *Config) {
		a.Dir = inbox
		b.Shares = func(string) []Share { return []Share{{"s", src}} }
	})
	dir := t.TempDir()
	if _, err := l.a.Get(t.Context(), "b", "s/f", GetOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	clean(t, l, dir)
	clean(t, l, inbox)
}

// TestGetTwice begins the same Get again while it runs: the second goes on, the first ends.
func TestGetTwice(t *testing.T) {
	src, dir := t.TempDir(), t.TempDir()
	write(t, filepath.Join(src, "f"), 24<<20)
	l, _ := newLab(t, func(_, b *Config) {
		b.Shares = func(string) []Share { return []Share{{"s", src}} }
	})
	begun, goOn := make(chan struct{}), make(chan struct{})
	var lanes atomic.Int32
	l.fault = func(c *labConn) {
		if c.lane.Kind == LaneControl {
			return
		}
		switch lanes.Add(1) {
		case 1:
			c.limit = 150
			return
		case 2:
			close(begun)
		}
		select {
		case <-goOn:
		default:
			c.limit = 1 // no lane stands
		}
	}
	one, two := make(chan error, 1), make(chan error, 1)
	get := func(to chan error) {
		_, err := l.a.Get(t.Context(), "b", "s/f", GetOptions{Dir: dir})
		to <- err
	}
	go get(one)
	<-begun
	go get(two)
	if err := <-one; !errors.Is(err, errReplaced) {
		t.Errorf("the first: %v", err)
	}
	close(goOn)
	if err := <-two; err != nil {
		t.Errorf("the second: %v", err)
	}
	clean(t, l, dir)
}

// TestUnfinishedIsNotShared asks for what others have sent in part to a shared folder.
func TestUnfinishedIsNotShared(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, partialName, "key", "tree", "secret"), 10)
	l, _ := newLab(t, func(_, b *Config) {
		b.Shares = func(string) []Share { return []Share{{"s", src}} }
	})
	for _, path := range []string{"s/" + partialName, "s/" + partialName + "/key", "s/" + partialName + "/key/tree/secret"} {
		if list, err := l.a.List(t.Context(), "b", path); !errors.Is(err, ErrNotShared) {
			t.Errorf("%s is listed: %v %v", path, list, err)
		}
		if _, err := l.a.Get(t.Context(), "b", path, GetOptions{Dir: t.TempDir()}); !errors.Is(err, ErrNotShared) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
