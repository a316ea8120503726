package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if args := os.Getenv("KITH_FILES_TEST_END"); args != "" {
		if err := runEnd(args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A lab is two services, "a" and "b", joined by TCP on loopback. A stream can be
// lost at any moment.
type lab struct {
	t    *testing.T
	a, b *Service

	mu    sync.Mutex
	addr  map[string]string
	conns map[*labConn]bool
	stops map[*Service]func()
	dials int
	fault func(*labConn) // called for each new stream of a dialler
}

// A labConn is the dialling end of one stream.
type labConn struct {
	net.Conn
	lab   *lab
	lane  Lane
	mu    sync.Mutex
	limit int64 // bytes that may be written before it dies; 0 is no limit
	sent  int64
}

func (c *labConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	limit := c.limit
	c.sent += int64(len(p))
	dead := limit > 0 && c.sent > limit
	c.mu.Unlock()
	if dead {
		c.Conn.Close()
		return 0, errors.New("lab: the stream is lost")
	}
	return c.Conn.Write(p)
}

func (c *labConn) Close() error {
	c.lab.mu.Lock()
	delete(c.lab.conns, c)
	c.lab.mu.Unlock()
	return c.Conn.Close()
}

func acceptAll(Offer) Decision { return Decision{Action: Accept} }

// newLab makes a lab; the config functions may change what they like. b accepts all
// and receives into the returned folder.
func newLab(t *testing.T, configs ...func(a, b *Config)) (*lab, string) {
	t.Helper()
	l := &lab{t: t, addr: make(map[string]string), conns: make(map[*labConn]bool), stops: make(map[*Service]func())}
	dir := t.TempDir()
	a := Config{Dial: l.dial("a"), Quiet: 20 * time.Second, redial: time.Millisecond}
	b := Config{Dial: l.dial("b"), Dir: dir, Policy: acceptAll, Quiet: 20 * time.Second, redial: time.Millisecond}
	for _, f := range configs {
		f(&a, &b)
	}
	l.a, l.b = l.start("a", a), l.start("b", b)
	t.Cleanup(func() { l.stop(l.a); l.stop(l.b) })
	return l, dir
}

func (l *lab) start(name string, cfg Config) *Service {
	l.t.Helper()
	s, err := New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	other := map[string]string{"a": "b", "b": "a"}[name]
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln, func(net.Conn) (string, error) { return other, nil }) }()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addr[name] = ln.Addr().String()
	l.stops[s] = func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
		s.Close()
	}
	return s
}

func (l *lab) stop(s *Service) {
	l.mu.Lock()
	stop := l.stops[s]
	delete(l.stops, s)
	l.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (l *lab) dial(from string) DialFunc {
	return func(ctx context.Context, peer string, lane Lane) (net.Conn, error) {
		l.mu.Lock()
		addr, fault := l.addr[peer], l.fault
		l.dials++
		l.mu.Unlock()
		if addr == "" || peer == from {
			return nil, fmt.Errorf("lab: no %s", peer)
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		c := &labConn{Conn: conn, lab: l, lane: lane}
		if fault != nil {
			fault(c)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns[c] = true
		return c, nil
	}
}

// lose breaks every stream that match says.
func (l *lab) lose(match func(*labConn) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if match(c) {
			c.Conn.Close()
		}
	}
}

// write makes a file of random bytes.
func write(t testing.TB, path string, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)})
	_, _ = r.Read(b)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

// same fails the test if two trees differ in names, contents, modes, times or links.
func same(t testing.TB, want, got string) {
	t.Helper()
	seen := make(map[string]bool)
	err := filepath.WalkDir(want, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(want, p)
		seen[rel] = true
		q := filepath.Join(got, rel)
		x, err := os.Lstat(p)
		if err != nil {
			return err
		}
		y, err := os.Lstat(q)
		if err != nil {
			return err
		}
		if x.Mode() != y.Mode() {
			t.Errorf("%s: mode %v, was %v", rel, y.Mode(), x.Mode())
		}
		if x.Mode()&fs.ModeSymlink != 0 {
			a, _ := os.Readlink(p)
			if b, _ := os.Readlink(q); a != b {
				t.Errorf("%s: leads to %q, not %q", rel, b, a)
			}
			return nil
		}
		if !x.ModTime().Equal(y.ModTime()) {
			t.Errorf("%s: time %v, was %v", rel, y.ModTime(), x.ModTime())
		}
		if x.IsDir() {
			return nil
		}
		a, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(q)
		if err != nil {
			return err
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s: other content, %d and %d bytes", rel, len(a), len(b))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	err = filepath.WalkDir(got, func(p string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(got, p)
		if err == nil && !seen[rel] {
			t.Errorf("%s appeared", rel)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// clean fails the test if something hidden is left in the target once b is done.
func clean(t testing.TB, l *lab, dir string) {
	t.Helper()
	for _, s := range []*Service{l.a, l.b} {
		s.mu.Lock()
		active := slices.Collect(maps.Values(s.active))
		s.mu.Unlock()
		for _, r := range active {
			<-r.done
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, partialName)); err == nil {
		t.Errorf("%s is left", partialName)
	}
}
