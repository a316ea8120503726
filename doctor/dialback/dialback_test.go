package dialback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParseAddrPort("127.0.0.1:0") //nolint:gochecknoglobals // never changed

func listen(t *testing.T) *Listener {
	t.Helper()
	l, err := Listen(t.Context(), loopback)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestDial(t *testing.T) {
	l := listen(t)
	outcome, seen := Dial(t.Context(), l.Addr(), l.Code(), l.Pin())
	from, err := l.Wait(t.Context())
	if outcome != OK || err != nil || seen != from || from.Addr() != loopback.Addr() {
		t.Errorf("%v, seen as %v, from %v, %v", outcome, seen, from, err)
	}
}

// TestDialOthers: what is no proof.
func TestDialOthers(t *testing.T) {
	l := listen(t)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // a router's web page
		defer close(done)
		for {
			c, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = plain.Close(); <-done })
	gone := listen(t)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	wrong := l.Code()
	wrong[3]++
	for name, test := range map[string]struct {
		ctx  context.Context
		to   netip.AddrPort
		code Code
		pin  Pin
		want Outcome
	}{
		"wrong code":  {t.Context(), l.Addr(), wrong, l.Pin(), Other},
		"wrong pin":   {t.Context(), l.Addr(), l.Code(), Pin{1}, Other},
		"no TLS":      {t.Context(), addrOf(plain.Addr()), l.Code(), l.Pin(), Other},
		"nobody":      {t.Context(), gone.Addr(), l.Code(), l.Pin(), Refused},
		"out of time": {over, l.Addr(), l.Code(), l.Pin(), Silent},
	} {
		if got, _ := Dial(test.ctx, test.to, test.code, test.pin); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	select {
	case from := <-l.came:
		t.Errorf("%v counts as a dial-back", from)
	default:
	}
	if _, err := l.Wait(ended); err == nil {
		t.Error("waits for ever")
	}
}

// TestCloseInTheMiddle: Close waits for nobody who says nothing.
func TestCloseInTheMiddle(t *testing.T) {
	l, err := Listen(t.Context(), loopback)
	if err != nil {
		t.Fatal(err)
	}
	for range maxConns + 2 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Wait(t.Context()); err == nil {
		t.Error("waits for ever")
	}
}

func TestAsk(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	want := Request{Port: 4711, Code: Code{1, 2, 3}, Pin: Pin{9}}
	says := Answer{Outcome: Refused, Client: netip.MustParseAddrPort("192.0.2.7:99"), Took: 20 * time.Millisecond}
	done := make(chan error, 1)
	go func() {
		defer server.Close()
		login := make([]byte, 5)
		if _, err := io.ReadFull(server, login); err != nil || string(login) != "LOGIN" {
			done <- fmt.Errorf("login %q: %w", login, err)
			return
		}
		got, err := ReadRequest(server)
		if err == nil && got != want {
			err = fmt.Errorf("read %d %v", got.Port, got.Pin)
		}
		if err == nil {
			err = WriteAnswer(server, says)
		}
		done <- err
	}()
	got, err := Ask(t.Context(), client, []byte("LOGIN"), want)
	if err != nil || got != says {
		t.Errorf("%+v, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAskOld: a hub that does not know the question hangs up.
func TestAskOld(t *testing.T) {
	for name, says := range map[string]string{"hangs up": "", "in the middle": "KDB1\x00", "something else": strings.Repeat("x", answerSize), "outcome": "KDB1\xff" + strings.Repeat("x", answerSize)} {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			if _, err := ReadRequest(server); err == nil {
				_, _ = io.WriteString(server, says)
			}
		}()
		if _, err := Ask(t.Context(), client, nil, Request{}); err == nil || !strings.Contains(err.Error(), "dial back") {
			t.Errorf("%s: %v", name, err)
		}
		_ = client.Close()
	}
}

func TestAskEnds(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ask(ctx, client, nil, Request{}); err == nil {
		t.Error("it waits for ever")
	}
}

func TestRedacted(t *testing.T) {
	if s := fmt.Sprintf("%v %x %s", Code{0xab}, Code{0xab}, Code{0xab}); strings.Contains(s, "ab") {
		t.Error(s)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(bytes.Repeat([]byte{7}, requestSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ReadRequest(bytes.NewReader(b))
		if (err == nil) != (len(b) >= requestSize) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err == nil && (q.Code != Code(b[2:18]) || q.Pin != Pin(b[18:50])) {
			t.Fatal("read something else")
		}
	})
}

func FuzzAnswer(f *testing.F) {
	var b bytes.Buffer
	if err := WriteAnswer(&b, Answer{Outcome: OK, Client: netip.MustParseAddrPort("192.0.2.7:99"), Took: time.Second}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != answerSize {
			return
		}
		a, err := parseAnswer([answerSize]byte(b))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := WriteAnswer(&out, a); err != nil || !bytes.Equal(out.Bytes(), b) {
			t.Fatalf("%v: % x became % x", err, b, out.Bytes())
		}
	})
}

// TestOneAddress holds that one address, or one network of IPv6, does not take all places.
func TestOneAddress(t *testing.T) {
	l := listen(t)
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		for i := range fromOne + 1 {
			if _, ok := l.enter(netip.MustParseAddr(a)); ok != (i < fromOne) {
				t.Errorf("%s: connection %d is taken: %v", a, i, ok)
			}
		}
	}
	if _, ok := l.enter(netip.MustParseAddr("2001:db8::2")); ok {
		t.Error("another address of the network is another place")
	}
	if _, ok := l.enter(netip.MustParseAddr("2001:db8:0:1::1")); !ok {
		t.Error("another network has no place")
	}
	who := netip.MustParseAddr("192.0.2.1")
	l.leave(who)
	if _, ok := l.enter(who); !ok {
		t.Error("a place that was left is not free")
	}
	// In earnest: silent connections of one host, and one more.
	for range fromOne {
		c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Port()).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(Timeout / 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many is served: %v", err)
	}
}
