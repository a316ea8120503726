package mail

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/durable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testLimit = 20 * time.Second // for anything a test waits for

// token returns a token that is n.
func token(n int) (t [32]byte) {
	copy(t[:], strconv.Itoa(n))
	return t
}

// letter returns a sealed letter for the box of token n.
func letter(t testing.TB, n int, text string) []byte {
	t.Helper()
	blob, err := Seal(rand.Reader, sealKey(n), BoxOf(token(n)), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func sealKey(n int) (k [32]byte) {
	copy(k[:], "seal"+strconv.Itoa(n))
	return k
}

// openTest opens a store in a directory of the test; it is closed with the test.
func openTest(t testing.TB, cfg StoreConfig) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// texts takes everything from the box of token n, and opens it.
func texts(t testing.TB, s *Store, n int) (out []string) {
	t.Helper()
	items, more, err := s.Take([][32]byte{token(n)}, 1000, 64<<20)
	if err != nil || more {
		t.Fatalf("take: %v, more %v", err, more)
	}
	for _, it := range items {
		body, err := Open(sealKey(n), it.Box, it.Blob)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(body))
	}
	return out
}

// serve starts a server for a store, and returns what connects to it as a depositor.
func serve(t testing.TB, cfg ServerConfig) (*Server, func(depositor string) net.Conn) {
	t.Helper()
	srv := NewServer(cfg)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = srv.Close()
		wg.Wait()
	})
	return srv, func(depositor string) net.Conn {
		a, b := pipe(t)
		wg.Go(func() { _ = srv.Serve(b, depositor) })
		return a
	}
}

// pipe returns two ends of a TCP connection over loopback: unlike net.Pipe it buffers.
func pipe(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func client(t testing.TB, conn net.Conn) *Client {
	t.Helper()
	c, err := NewClient(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestSeal holds that a letter opens with its key in its box and nowhere else, and that
// its length is one of four.
func TestSeal(t *testing.T) {
	key, box := sealKey(1), BoxOf(token(1))
	for _, n := range []int{0, 1, 1024 - overhead, 1025 - overhead, 4096, 16384 - overhead, MaxBody} {
		body := bytes.Repeat([]byte{7}, n)
		blob, err := Seal(rand.Reader, key, box, body)
		if err != nil {
			t.Fatal(err)
		}
		if !goodSize(len(blob)) {
			t.Errorf("a letter of %d bytes is a blob of %d", n, len(blob))
		}
		got, err := Open(key, box, blob)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes: %d bytes, %v", n, len(got), err)
		}
		for what, try := range map[string]func() ([]byte, error){
			"another key": func() ([]byte, error) { return Open(sealKey(2), box, blob) },
			"another box": func() ([]byte, error) { return Open(key, BoxOf(token(2)), blob) },
			"a changed byte": func() ([]byte, error) {
				bad := bytes.Clone(blob)
				bad[len(bad)/2] ^= 1
				return Open(key, box, bad)
			},
			"a shorter blob": func() ([]byte, error) { return Open(key, box, blob[:len(blob)-1]) },
		} {
			if got, err := try(); !errors.Is(err, ErrOpen) || got != nil {
				t.Errorf("%d bytes, %s: %v", n, what, err)
			}
		}
	}
	if _, err := Seal(rand.Reader, key, box, make([]byte, MaxBody+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("a letter that is too long: %v", err)
	}
}

// TestStore holds what goes in comes out, oldest first, until it is done, through a
// restart, and that what comes twice is one.
func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, StoreConfig{Dir: dir})
	var ids [][IDSize]byte
	for i, text := range []string{"one", "two", "three"} {
		blob := letter(t, 1, text)
		for range 1 + i%2 {
			if err := s.Put("a", BoxOf(token(1)), blob); err != nil {
				t.Fatal(err)
			}
		}
		ids = append(ids, IDOf(blob))
	}
	for range 2 {
		if got := texts(t, s, 1); len(got) != 3 || got[0] != "one" || got[2] != "three" {
			t.Fatalf("took %q", got)
		}
	}
	if got := texts(t, s, 2); got != nil {
		t.Fatalf("a token of nothing: %q", got)
	}
	if err := s.Done(token(2), ids); err != nil { // of another box
		t.Fatal(err)
	}
	if err := s.Done(token(1), ids[:1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("a", BoxOf(token(1)), letter(t, 1, "late")); !errors.Is(err, ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "0011"+durable.TmpSuffix), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, StoreConfig{Dir: dir})
	if got := texts(t, s, 1); len(got) != 2 {
		t.Fatalf("after a restart: %q", got)
	}
	if st := s.Stats(); st.Letters != 2 || st.Boxes != 1 || st.Bytes != 8192 || st.Depositors != 1 {
		t.Errorf("stats %+v", st)
	}
	if _, err := os.Stat(filepath.Join(dir, "0011"+durable.TmpSuffix)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "notes.txt")); err != nil {
		t.Errorf("a file of somebody else: %v", err)
	}
}

// TestTakeInParts holds that a take is bounded, and the rest comes after Done.
func TestTakeInParts(t *testing.T) {
	s := openTest(t, StoreConfig{})
	for i := range 7 {
		if err := s.Put("a", BoxOf(token(i%2)), letter(t, i%2, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for more := true; more; {
		var items []Item
		var err error
		if items, more, err = s.Take([][32]byte{token(0), token(1), token(0)}, 3, 2048); err != nil || len(items) > 2 {
			t.Fatalf("%d items, %v", len(items), err)
		}
		for _, it := range items {
			n := 0
			if it.Box == BoxOf(token(1)) {
				n = 1
			}
			body, err := Open(sealKey(n), it.Box, it.Blob)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(body))
			if err := s.Done(token(n), [][IDSize]byte{it.ID}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(got) != 7 || got[0] != "0" || got[6] != "6" {
		t.Fatalf("got %q", got)
	}
}

// TestQuotas holds each bound, its own error, and that nothing else is lost by it.
func TestQuotas(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  StoreConfig
		want error
		ok   string // whose next letter to another box is taken
	}{
		{"in all", StoreConfig{MaxBytes: 3 * 4096, PerDepositor: 1 << 20}, ErrFull, ""},
		{"blobs", StoreConfig{MaxBlobs: 3}, ErrFull, ""},
		{"a depositor", StoreConfig{PerDepositor: 3 * 4096}, ErrShare, "b"},
		{"a box", StoreConfig{PerBox: 3}, ErrBox, "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openTest(t, c.cfg)
			for i := range 3 {
				if err := s.Put("a", BoxOf(token(1)), letter(t, 1, strconv.Itoa(i))); err != nil {
					t.Fatal(err)
				}
			}
			err := s.Put("a", BoxOf(token(1)), letter(t, 1, "x"))
			if !errors.Is(err, c.want) || !errors.Is(err, ErrFull) {
				t.Errorf("the fourth: %v, want %v", err, c.want)
			}
			if c.ok != "" {
				if err := s.Put(c.ok, BoxOf(token(2)), letter(t, 2, "x")); err != nil {
					t.Errorf("of %s: %v", c.ok, err)
				}
			}
			if got := texts(t, s, 1); len(got) != 3 {
				t.Errorf("kept %q", got)
			}
			if st := s.Stats(); st.Refused != 1 {
				t.Errorf("stats %+v", st)
			}
			items, _, err := s.Take([][32]byte{token(1)}, 1, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Done(token(1), [][IDSize]byte{items[0].ID}); err != nil {
				t.Fatal(err)
			}
			if err := s.Put("a", BoxOf(token(1)), letter(t, 1, "x")); err != nil {
				t.Errorf("after room was made: %v", err)
			}
		})
	}
}

// TestPutRefusesOtherSizes holds that only sealed sizes are kept.
func TestPutRefusesOtherSizes(t *testing.T) {
	s := openTest(t, StoreConfig{})
	for _, n := range []int{0, 1, 1023, 1025, MaxBlob + 1} {
		if err := s.Put("a", Box{}, make([]byte, n)); !errors.Is(err, ErrRefused) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// clock is a wall clock that a test sets, and the time that passes.
type clock struct {
	mu   sync.Mutex
	wall time.Time
	ran  time.Duration
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.wall }

func (c *clock) since() time.Duration { c.mu.Lock(); defer c.mu.Unlock(); return c.ran }

// pass lets time pass, and sets the clock by set in between.
func (c *clock) pass(d, set time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ran += d
	c.wall = c.wall.Add(d + set)
}

// TestExpiry holds for how long a letter stays, whatever the clock does.
func TestExpiry(t *testing.T) {
	const year = 365 * day
	steps := func(n int, d time.Duration) []time.Duration { return slices.Repeat([]time.Duration{d}, n) }
	for _, c := range []struct {
		name    string
		restart bool // after the letter came
		away    time.Duration
		set     []time.Duration // the clock is set by so much before each sweep
		want    int             // letters that are left
	}{
		{"seven days less an hour", false, 0, steps(7*72-3, 0), 1},
		{"a little over seven days", false, 0, steps(7*72+1, 0), 0},
		{"a year ahead", false, 0, append([]time.Duration{year}, steps(100, 0)...), 1},
		{"a year ahead, for seven days", false, 0, append([]time.Duration{year}, steps(7*72, 0)...), 0},
		{"a year back", false, 0, append([]time.Duration{-year}, steps(100, 0)...), 1},
		{"a year back, for seven days", false, 0, append([]time.Duration{-year}, steps(7*72, 0)...), 0},

		{"restart: six days away", true, 6 * day, steps(10, 0), 1},
		{"restart: eight days away", true, 8 * day, steps(4, 0), 0},
		{"restart: eight days away, one sweep less", true, 8 * day, steps(3, 0), 1},
		{"restart: a year ahead, corrected within the hour", true, year, []time.Duration{0, 0, -year, 0, 0, 0, 0, 0}, 1},
		{"restart: in 1970, then corrected", true, -56 * year, append([]time.Duration{0, 0, 0, 0, 56 * year}, steps(100, 0)...), 1},
		{"restart: in 1970 for good", true, -56 * year, steps(7*72+1, 0), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := &clock{wall: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), ran: time.Second}
			cfg := StoreConfig{Dir: t.TempDir(), Now: now.now, ran: now.since}
			d, err := durable.Open(cfg.Dir)
			if err != nil {
				t.Fatal(err)
			}
			open := func() *Store {
				s, err := openStore(cfg, d)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			s := open()
			if err := s.Put("a", BoxOf(token(1)), letter(t, 1, "x")); err != nil {
				t.Fatal(err)
			}
			now.pass(c.away, 0)
			if c.restart {
				s = open()
			}
			for _, set := range c.set {
				now.pass(sweepEvery, set)
				s.sweep()
			}
			if got := texts(t, s, 1); len(got) != c.want {
				t.Errorf("left: %q, want %d", got, c.want)
			}
			if got := texts(t, open(), 1); len(got) != c.want {
				t.Errorf("left after a restart: %q, want %d", got, c.want)
			}
		})
	}
}

// TestClockSet holds that a letter that came while the clock was wrong is as old as it is
// once the clock is right, also after a restart.
func TestClockSet(t *testing.T) {
	now := &clock{wall: time.Unix(100, 0), ran: time.Second}
	cfg := StoreConfig{Dir: t.TempDir(), Now: now.now, ran: now.since}
	d, err := durable.Open(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openStore(cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put("a", BoxOf(token(1)), letter(t, 1, "x")); err != nil {
		t.Fatal(err)
	}
	now.pass(sweepEvery, 56*365*day)
	s.sweep()
	if s, err = openStore(cfg, d); err != nil {
		t.Fatal(err)
	}
	for range 6 * 72 {
		now.pass(sweepEvery, 0)
		s.sweep()
	}
	if got := texts(t, s, 1); len(got) != 1 {
		t.Errorf("after six days: %q", got)
	}
}

// TestDamage holds that a file that the disk has changed is noticed, removed, and hurts
// no other.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, StoreConfig{Dir: dir})
	for i := range 3 {
		if err := s.Put("a", BoxOf(token(1)), letter(t, 1, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	items, _, err := s.Take([][32]byte{token(1)}, 10, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range s.boxes[items[1].Box] {
		if e.id == items[1].ID {
			if err := os.WriteFile(filepath.Join(dir, e.fileName()), make([]byte, 1024), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := texts(t, s, 1); len(got) != 2 || got[0] != "0" || got[1] != "2" {
		t.Errorf("took %q", got)
	}
	if st := s.Stats(); st.Damaged != 1 || st.Letters != 2 {
		t.Errorf("stats %+v", st)
	}
}

// id returns a device's ID.
func id(n byte) (d identity.DeviceID) {
	d[0] = n
	return d
}

// within returns a context that ends the test's waits.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	return ctx
}
