package chat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a service on loopback that calls every caller "peer".
func serve(t *testing.T, dial func(context.Context, string) (net.Conn, error)) (*Service, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Listener: ln, Dial: dial, Who: func(net.Addr) (string, bool) { return "peer", true }})
	t.Cleanup(func() { s.Close() })
	return s, ln.Addr().String()
}

func dialTo(address *string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", *address)
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestLinesArriveInOrder(t *testing.T) {
	ctx := testContext(t)
	var addrA, addrB string
	a, aa := serve(t, dialTo(&addrB))
	b, bb := serve(t, dialTo(&addrA))
	addrA, addrB = aa, bb
	for i := range 50 { // nobody reads yet
		if _, err := a.Send(ctx, "peer", fmt.Sprint("line ", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.Unread()["peer"]; n != 50 {
		t.Errorf("%d lines wait, want 50", n)
	}
	r := b.Read("peer")
	for i := range 50 {
		m, err := r.Next(ctx)
		if err != nil || m.Text != fmt.Sprint("line ", i) || m.Mine {
			t.Fatalf("line %d: %+v, %v", i, m, err)
		}
	}
	if _, err := b.Send(ctx, "peer", "answer"); err != nil {
		t.Fatal(err)
	}
	ra := a.Read("peer")
	if m, err := ra.Next(ctx); err != nil || m.Text != "answer" {
		t.Errorf("answer: %+v, %v", m, err)
	}
	// What a reader did not take waits for the next one.
	if _, err := a.Send(ctx, "peer", "left over"); err != nil {
		t.Fatal(err)
	}
	r.Close()
	r.Close()
	r = b.Read("peer")
	if m, err := r.Next(ctx); err != nil || m.Text != "left over" {
		t.Errorf("left over: %+v, %v", m, err)
	}
	if got := r.Drain(); len(got) != 0 {
		t.Errorf("more than was sent: %+v", got)
	}
}

// cutConn loses the connection after a number of writes of the called side, so
// that an acknowledgement is lost.
type cutConn struct {
	net.Conn
	left *int
	mu   *sync.Mutex
}

func (c cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if *c.left--; *c.left == 0 {
		c.Close()
		return 0, errors.New("cut")
	}
	return n, err
}

func TestLostAcknowledgementShowsALineOnce(t *testing.T) {
	ctx := testContext(t)
	var address string
	left := 2 // the second acknowledgement is lost
	var mu sync.Mutex
	inner := dialTo(&address)
	a, _ := serve(t, func(ctx context.Context, peer string) (net.Conn, error) {
		c, err := inner(ctx, peer)
		if err != nil {
			return nil, err
		}
		return cutConn{c, &left, &mu}, nil
	})
	b, bb := serve(t, nil)
	address = bb
	for _, text := range []string{"one", "two", "three"} {
		if _, err := a.Send(ctx, "peer", text); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, m := range b.Read("peer").Drain() {
		got = append(got, m.Text)
	}
	if strings.Join(got, " ") != "one two three" {
		t.Errorf("got %q", got)
	}
}

func TestErrors(t *testing.T) {
	ctx := testContext(t)
	down := errors.New("no way there")
	a, _ := serve(t, func(context.Context, string) (net.Conn, error) { return nil, down })
	for _, bad := range []string{"", "  \t", strings.Repeat("x", MaxText+1), "\x1b\x07", string([]byte{0xff, 0xfe})} {
		if _, err := a.Send(ctx, "peer", bad); !errors.Is(err, ErrText) {
			t.Errorf("%q: %v, want ErrText", bad, err)
		}
	}
	if _, err := a.Send(ctx, "peer", "hello"); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := a.Send(ctx, "peer", "late"); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

func TestStrangersAndGarbage(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var known atomic.Bool
	s := New(Config{Listener: ln, Who: func(net.Addr) (string, bool) { return "peer", known.Load() }})
	defer s.Close()
	for _, in := range []string{`{"id":"1","text":"x"}` + "\n", "junk\n", strings.Repeat("a", maxLine+10) + "\n", `{"id":"","text":"x"}` + "\n"} {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(in))
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%.20q was answered (%d bytes)", in, n)
		}
		c.Close()
		known.Store(true) // the first was a stranger; the others are of a paired device
	}
	if n := len(s.Unread()); n != 0 {
		t.Errorf("%d devices have lines", n)
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"hello":                      "hello",
		"\x1b[31mred\x1b[0m":         "[31mred[0m",
		"a\nb\rc\td":                 "a b c d",
		"abc\u202egnp.exe":           "abcgnp.exe",
		"zero\u200bwidth":            "zerowidth",
		"👩\u200d🚀 family":            "👩\u200d🚀 family",
		"  trimmed  ":                "trimmed",
		"\u2066isolated\u2069":       "isolated",
		"\x00\x07\x7f\u0085":         "",
		"bell\a and \x9bcsi":         "bell and csi",
		strings.Repeat("é", MaxText): strings.Repeat("é", MaxText/2),
	} {
		if got := CleanText(in); got != want {
			t.Errorf("%.30q became %.30q, want %.30q", in, got, want)
		}
	}
}

func FuzzCleanText(f *testing.F) {
	f.Add("hello\x1b[2J")
	f.Fuzz(func(t *testing.T, in string) {
		got := CleanText(in)
		if len(got) > MaxText || strings.ContainsFunc(got, func(r rune) bool { return unicode.IsControl(r) }) || CleanText(got) != got {
			t.Fatalf("%q became %q", in, got)
		}
	})
}
