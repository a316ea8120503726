package files

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A rawReceiver is a receiver that does as it likes.
type rawReceiver struct {
	t   *testing.T
	ctl *control
	ln  net.Listener
}

// offered starts a Send of src to a receiver that is driven by hand, up to the offer.
func offered(t *testing.T, src string) (*rawReceiver, *offerMsg, <-chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Dial: func(ctx context.Context, _ string, _ Lane) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.Send(context.Background(), "b", []string{src}, SendOptions{GiveUp: -1})
		done <- err
	}()
	r := &rawReceiver{t: t, ln: ln}
	conn, kind := r.accept()
	if kind != helloControl {
		t.Fatalf("hello %d", kind)
	}
	r.ctl = newControl(conn, defaultQuiet)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); r.ctl.run(ctx) }()
	t.Cleanup(func() { ln.Close(); cancel(); <-ran; s.Close() })
	var o offerMsg
	if k, msg := r.next(); k != msgOffer || o.get(msg) != nil {
		t.Fatalf("message %d", k)
	}
	return r, &o, done
}

func (r *rawReceiver) accept() (net.Conn, byte) {
	r.t.Helper()
	conn, err := r.ln.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, helloSize)
	if _, err := conn.Read(b); err != nil {
		r.t.Fatal(err)
	}
	kind, _, err := parseHello(b)
	if err != nil {
		r.t.Fatal(err)
	}
	return conn, kind
}

// next returns the next message that is not about totals or notes.
func (r *rawReceiver) next() (messageKind, *reader) {
	r.t.Helper()
	for {
		kind, msg, err := r.ctl.receive(r.t.Context())
		if err != nil {
			return 0, nil
		}
		if kind != msgTotal && kind != msgNote {
			return kind, msg
		}
	}
}

func (r *rawReceiver) answer(resume bool) {
	r.t.Helper()
	w := writer{}
	(&answerMsg{verdict: verdictAccept, session: newToken(), resume: resume}).put(&w)
	if err := r.ctl.send(msgAnswer, &w); err != nil {
		r.t.Fatal(err)
	}
}

// TestHostileReceiverAsksForMore has a receiver ask again for what was not sent: beside
// the folder, above it, and behind symlinks in it that were left out.
func TestHostileReceiverAsksForMore(t *testing.T) {
	home := t.TempDir()
	src := filepath.Join(home, "src")
	write(t, filepath.Join(src, "good"), 10)
	secret := filepath.Join(home, "private", "key")
	if err := os.MkdirAll(filepath.Dir(secret), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, []byte("the secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"dir": "../private", "key": "../private/key", "abs": filepath.Dir(secret), "up": ".."} {
		if err := os.Symlink(to, filepath.Join(src, link)); err != nil {
			t.Fatal(err)
		}
	}
	r, _, done := offered(t, src)
	r.answer(false)
	conn, kind := r.accept()
	if kind != helloLane {
		t.Fatalf("hello %d", kind)
	}
	defer conn.Close()
	seen := make(chan string, 1)
	go func() { // takes all and acknowledges it
		var all strings.Builder
		defer func() { seen <- all.String() }()
		var n uint64
		for {
			h, _, err := readFrame(conn, make([]byte, headerSize))
			if err != nil || h.kind == frameBye {
				return
			}
			data := make([]byte, h.data)
			if _, err := io.ReadFull(conn, data); err != nil {
				return
			}
			all.Write(data)
			n++
			if _, err := conn.Write([]byte{0, 0, 0, 0, 0, 0, byte(n >> 8), byte(n)}); err != nil {
				return
			}
		}
	}()
	for _, ask := range [][]string{
		{"src/dir/key", "src/key", "src/abs/key", "src/up/private/key", "src/../private/key", "private/key", "../private/key", secret, "src/./dir/key"},
		{"src"}, {""}, {"src/"}, {"src/good"},
	} {
		if k, _ := r.next(); k != msgEnd {
			t.Fatalf("message %d", k)
		}
		w := writer{}
		putStrings(&w, ask)
		if err := r.ctl.send(msgAgain, &w); err != nil {
			t.Fatal(err)
		}
	}
	r.next()
	w := writer{}
	putStrings(&w, []string{"src"})
	if err := r.ctl.send(msgDone, &w); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	conn.Close()
	if got := <-seen; strings.Contains(got, "the secret") || got == "" {
		t.Errorf("the receiver has %q", got)
	}
}

// TestHostileReceiverLies holds that nonsense about what it has and what it took ends the
// transfer.
func TestHostileReceiverLies(t *testing.T) {
	src := filepath.Join(t.TempDir(), "large")
	write(t, src, 3*chunkSize)
	for name, lie := range map[string]func(r *rawReceiver){
		"has more entries than were asked for": func(r *rawReceiver) {
			r.answer(true)
			if k, _ := r.next(); k != msgAsk {
				t.Fatalf("message %d", k)
			}
			w := writer{}
			putHave(&w, []have{{all: true}, {all: true}})
			_ = r.ctl.send(msgHave, &w)
		},
		"has chunks in no order": func(r *rawReceiver) {
			r.answer(true)
			r.next()
			w := writer{}
			putHave(&w, []have{{ranges: []int64{5, 1, 1, 1}}})
			_ = r.ctl.send(msgHave, &w)
		},
		"asks again for endless names": func(r *rawReceiver) {
			r.answer(false)
			w := writer{}
			w.uint(1 << 40)
			_ = r.ctl.send(msgAgain, &w)
		},
		"is done twice": func(r *rawReceiver) {
			r.answer(false)
			for range 3 {
				w := writer{}
				putStrings(&w, nil)
				_ = r.ctl.send(msgDone, &w)
			}
		},
		"asks for a share in between": func(r *rawReceiver) {
			r.answer(false)
			w := writer{}
			w.string("x")
			_ = r.ctl.send(msgGet, &w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, done := offered(t, src)
			lie(r)
			err := <-done
			if !errors.Is(err, ErrProtocol) && !errors.Is(err, errMessage) && !(name == "is done twice" && err == nil) {
				t.Errorf("err %v", err)
			}
		})
	}
	t.Run("took more than was sent", func(t *testing.T) {
		r, _, done := offered(t, src)
		r.answer(false)
		conn, _ := r.accept()
		if _, err := conn.Write([]byte{0, 0, 0, 0, 0, 1, 0, 0}); err != nil {
			t.Fatal(err)
		}
		// The lane ends at once; the next one is honest to the end of the test.
		if _, err := io.ReadFull(conn, make([]byte, 64<<20)); err == nil {
			t.Error("the lane goes on")
		}
		w := writer{}
		w.byte(byte(reasonCancelled))
		w.string("")
		_ = r.ctl.send(msgCancel, &w)
		if err := <-done; !errors.Is(err, ErrCancelled) {
			t.Errorf("err %v", err)
		}
	})
}
