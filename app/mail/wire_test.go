package mail

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/durable/disktest"
)

// TestClientServer walks through all requests over a connection.
func TestClientServer(t *testing.T) {
	ctx := within(t)
	store := openTest(t, StoreConfig{PerBox: 3})
	_, dial := serve(t, ServerConfig{Store: store})
	a, b := client(t, dial("a")), client(t, dial("b"))
	if a.KeptFor() != Days*day {
		t.Errorf("kept for %v", a.KeptFor())
	}
	tokens := make([][32]byte, 0, 2000) // more than one request holds
	for i := range cap(tokens) {
		tokens = append(tokens, token(i))
	}
	if err := b.Watch(ctx, tokens); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 1999, 3, 5000} {
		if err := a.Put(ctx, BoxOf(token(n)), letter(t, n, "to "+strconv.Itoa(n))); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-b.News():
	case <-ctx.Done():
		t.Fatal("no news")
	}
	items, err := b.Take(ctx, tokens)
	if err != nil || len(items) != 3 {
		t.Fatalf("took %d, %v", len(items), err)
	}
	counts, err := a.Count(ctx, tokens)
	if err != nil || len(counts) != 2000 || counts[3] != (Count{2, 2048}) || counts[1999].Letters != 1 || counts[0].Letters != 0 {
		t.Fatalf("counts %v, %v", counts[3], err)
	}
	if err := a.Put(ctx, BoxOf(token(3)), letter(t, 3, "x")); err != nil {
		t.Fatal(err)
	}
	if err := a.Put(ctx, BoxOf(token(3)), letter(t, 3, "y")); !errors.Is(err, ErrBox) {
		t.Errorf("a full box: %v", err)
	}
	if err := a.Put(ctx, BoxOf(token(3)), []byte("short")); !errors.Is(err, ErrRefused) {
		t.Errorf("another size: %v", err)
	}
	select {
	case <-b.News():
	case <-ctx.Done():
		t.Fatal("no news of the second letter")
	}
	if err := b.Done(ctx, token(3), [][IDSize]byte{items[0].ID, items[1].ID}); err != nil {
		t.Fatal(err)
	}
	if items, err = b.Take(ctx, tokens[:10]); err != nil || len(items) != 1 {
		t.Errorf("after done: %d, %v", len(items), err)
	}
	if err := a.Ping(ctx); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Ping(ctx); !errors.Is(err, ErrClosed) || !errors.Is(a.Err(), ErrClosed) {
		t.Errorf("after close: %v, %v", err, a.Err())
	}
}

// TestWrongToken holds that a wrong token cannot be told from an empty box.
func TestWrongToken(t *testing.T) {
	store := openTest(t, StoreConfig{})
	_, dial := serve(t, ServerConfig{Store: store})
	if err := store.Put("a", BoxOf(token(1)), letter(t, 1, "x")); err != nil {
		t.Fatal(err)
	}
	conn := dial("b")
	if _, err := readHello(conn); err != nil {
		t.Fatal(err)
	}
	box := BoxOf(token(1))
	asBox := [32]byte{}
	copy(asBox[:], box[:]) // the box's name is not the token
	answers := make([][]byte, 0, 3)
	for _, tok := range [][32]byte{token(2), asBox, {}} {
		var out []byte
		for _, f := range []frame{
			{kind: fTake, body: joinTake(0, [][32]byte{tok})}, {kind: fCount, body: tok[:]}, {kind: fWatch, body: append([]byte{1}, tok[:]...)},
			{kind: fDone, body: joinDone(tok, [][IDSize]byte{IDOf(nil)})},
		} {
			if _, err := conn.Write(f.append(nil)); err != nil {
				t.Fatal(err)
			}
			got, err := readFrame(conn)
			if err != nil {
				t.Fatal(err)
			}
			out = got.append(out)
		}
		answers = append(answers, out)
	}
	if !bytes.Equal(answers[0], answers[1]) || !bytes.Equal(answers[0], answers[2]) {
		t.Errorf("answers differ: %x", answers)
	}
	if got := texts(t, store, 1); len(got) != 1 {
		t.Errorf("the letter is gone: %q", got)
	}
}

// TestNonsense holds that a client that does not speak the protocol is left, and nobody
// else is harmed.
func TestNonsense(t *testing.T) {
	store := openTest(t, StoreConfig{})
	_, dial := serve(t, ServerConfig{Store: store})
	good := client(t, dial("good"))
	for name, raw := range map[string][]byte{
		"text":            []byte("GET / HTTP/1.1\r\n\r\n"),
		"too long":        {0xff, 0xff, 0xff, 0xff, fPut, 0, 0, 0, 1},
		"too short":       {0, 0, 0, 1, fPut, 0, 0, 0, 1},
		"unknown":         frame{kind: 77, id: 1}.append(nil),
		"an answer":       frame{kind: fOk, id: 1}.append(nil),
		"a put of a size": frame{kind: fPut, id: 1, body: make([]byte, BoxSize+1000)}.append(nil),
		"a put of less":   frame{kind: fPut, id: 1, body: make([]byte, 3)}.append(nil),
		"half a token":    frame{kind: fTake, id: 1, body: make([]byte, 33)}.append(nil),
		"no token":        frame{kind: fTake, id: 1, body: make([]byte, orderSize)}.append(nil),
		"many tokens":     frame{kind: fTake, id: 1, body: make([]byte, orderSize+32*(maxTokens+1))}.append(nil),
		"half an id":      frame{kind: fDone, id: 1, body: make([]byte, 33)}.append(nil),
		"many ids":        frame{kind: fDone, id: 1, body: make([]byte, 32+IDSize*(maxIDs+1))}.append(nil),
		"watch nothing":   frame{kind: fWatch, id: 1}.append(nil),
		"count nothing":   frame{kind: fCount, id: 1}.append(nil),
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial("bad")
			if _, err := conn.Write(raw); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(testLimit))
			got, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the server waits for more")
			}
			if want := len(hello(stOK, 0).append(nil)); len(got) != want {
				t.Errorf("%d bytes came, the greeting has %d", len(got), want)
			}
			if err := good.Ping(within(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestConnections holds the bounds of connections, and who gives way.
func TestConnections(t *testing.T) {
	store := openTest(t, StoreConfig{})
	ctx := within(t)
	_, dial := serve(t, ServerConfig{Store: store, MaxConns: 3, ConnsPerDepositor: 2})
	first := client(t, dial("a"))
	client(t, dial("a"))
	if _, err := NewClient(ctx, dial("a")); !errors.Is(err, ErrBusy) {
		t.Errorf("a third of one depositor: %v", err)
	}
	client(t, dial("b"))
	if _, err := NewClient(ctx, dial("c")); !errors.Is(err, ErrBusy) {
		t.Errorf("a fourth: %v", err)
	}
	if err := first.Ping(ctx); err != nil {
		t.Error(err)
	}
	srv, dial := serve(t, ServerConfig{Store: store, ConnsPerDepositor: 2, Displace: true})
	first = client(t, dial("a"))
	client(t, dial("a"))
	third := client(t, dial("a"))
	select {
	case <-first.Ended():
	case <-ctx.Done():
		t.Error("the oldest does not give way")
	}
	if err := third.Ping(ctx); err != nil {
		t.Error(err)
	}
	srv.End("a")
	select {
	case <-third.Ended():
	case <-ctx.Done():
		t.Error("End does not end it")
	}
}

// TestPace holds that one depositor's requests are slowed down, and nobody else's.
func TestPace(t *testing.T) {
	s := NewServer(ServerConfig{})
	now := time.Now()
	s.accounts["a"] = &account{tokens: opBurst, last: now}
	s.accounts["b"] = &account{tokens: opBurst, last: now}
	for i := range int(opBurst) {
		if w := s.pace("a", opCost(fPut), now); w != 0 {
			t.Fatalf("request %d waits %v", i, w)
		}
	}
	if w := s.pace("a", opCost(fPut), now); w != time.Second/opRate {
		t.Errorf("the next waits %v", w)
	}
	if w := s.pace("b", opCost(fTake), now); w != 0 {
		t.Errorf("another depositor waits %v", w)
	}
	if w := s.pace("a", opCost(fPut), now.Add(time.Hour)); w != 0 {
		t.Errorf("after an hour: %v", w)
	}
	if w := s.pace("a", opCost(fPut), now); w != 0 { // the clock was set back
		t.Errorf("after the clock was set back: %v", w)
	}
}

// TestRefuse holds what a client hears of a keeper that does not serve it.
func TestRefuse(t *testing.T) {
	for _, why := range []error{ErrOff, ErrLogin, ErrBusy} {
		a, b := pipe(t)
		if err := Refuse(b, why); err != nil {
			t.Fatal(err)
		}
		if _, err := NewClient(within(t), a); !errors.Is(err, why) {
			t.Errorf("%v, want %v", err, why)
		}
	}
}

// TestStatuses holds that every error crosses the wire as itself.
func TestStatuses(t *testing.T) {
	for s, err := range statuses() {
		if got := statusOf(err); got != s {
			t.Errorf("%v is %d, want %d", err, got, s)
		}
		if !errors.Is(s.err(), err) {
			t.Errorf("%d is %v, want %v", s, s.err(), err)
		}
	}
	if !errors.Is(status(200).err(), ErrRefused) || statusOf(io.ErrUnexpectedEOF) != stDisk {
		t.Error("unknown ones")
	}
}

// TestHostileKeeper holds that a keeper that answers nonsense ends its connection, and
// nothing else.
func TestHostileKeeper(t *testing.T) {
	item := func(n int) []byte { return append(make([]byte, BoxSize), make([]byte, n)...) }
	for name, f := range map[string]frame{
		"an answer to nothing":    {kind: fOk, id: 99},
		"another kind":            {kind: 0x99, id: 1},
		"an item of another size": {kind: fItem, id: 1, body: item(1000)},
		"counts of nothing":       {kind: fCounts, id: 99},
		"failed without why":      {kind: fFailed, id: 1},
		"failed with no error":    {kind: fFailed, id: 1, body: []byte{0}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pipe(t)
			if _, err := b.Write(append(hello(stOK, day).append(nil), f.append(nil)...)); err != nil {
				t.Fatal(err)
			}
			c, err := NewClient(within(t), a)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Take(within(t), [][32]byte{token(1)})
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("take: %v", err)
			}
		})
	}
	t.Run("items without end", func(t *testing.T) {
		a, b := pipe(t)
		go func() {
			_, _ = b.Write(hello(stOK, day).append(nil))
			one := frame{kind: fItem, id: 1, body: item(MaxBlob)}.append(nil)
			for {
				if _, err := b.Write(one); err != nil {
					return
				}
			}
		}()
		c, err := NewClient(within(t), a)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Take(within(t), [][32]byte{token(1)}); !errors.Is(err, ErrProtocol) {
			t.Errorf("take: %v", err)
		}
	})
	for name, raw := range map[string][]byte{
		"text":            []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"a later version": frame{kind: fHello, body: []byte{9, 0, 0, 0}}.append(nil),
		"a short one":     frame{kind: fHello, body: []byte{1}}.append(nil),
		"a long one":      frame{kind: fHello, body: make([]byte, 100)}.append(nil),
	} {
		a, b := pipe(t)
		if _, err := b.Write(raw); err != nil {
			t.Fatal(err)
		}
		if _, err := NewClient(within(t), a); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// fakeConn is the server's end of a connection whose client says what the fuzzer wants.
type fakeConn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *fakeConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *fakeConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *fakeConn) Close() error                     { return nil }
func (c *fakeConn) SetReadDeadline(time.Time) error  { return nil }
func (c *fakeConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzServer feeds a server anything. What it answers has to be of the protocol, and the
// store has to stay within its bounds.
func FuzzServer(f *testing.F) {
	blob := letter(f, 1, "x")
	tok, box := token(1), BoxOf(token(1))
	put := frame{kind: fPut, id: 1, body: append(slices.Clip(box[:]), blob...)}.append(nil)
	f.Add(put)
	f.Add(frame{kind: fTake, id: 2, body: joinTake(0, [][32]byte{tok})}.append(slices.Clone(put)))
	f.Add(frame{kind: fDone, id: 3, body: joinDone(tok, [][IDSize]byte{IDOf(blob)})}.append(nil))
	f.Add(frame{kind: fWatch, id: 4, body: append([]byte{1}, tok[:]...)}.append(nil))
	f.Add(frame{kind: fCount, id: 5, body: tok[:]}.append(frame{kind: fPing, id: 6}.append(nil)))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		store, err := openStore(StoreConfig{MaxBlobs: 4}, disktest.New())
		if err != nil {
			t.Fatal(err)
		}
		srv := NewServer(ServerConfig{Store: store})
		conn := &fakeConn{in: bytes.NewReader(raw)}
		_ = srv.Serve(conn, "a")
		if st := store.Stats(); st.Letters > 4 || store.watched != 0 || srv.Clients() != 0 {
			t.Fatalf("after the client is gone: %+v, %d watched", st, store.watched)
		}
		if _, err := readHello(fakeRead{&conn.out}); err != nil {
			t.Fatal(err)
		}
		for conn.out.Len() > 0 {
			if f, err := readFrame(&conn.out); err != nil || f.kind < fOk || f.kind > fCounts {
				t.Fatalf("answered %+v, %v", f, err)
			}
		}
	})
}

// fakeRead is a connection that is read only.
type fakeRead struct{ *bytes.Buffer }

func (fakeRead) Close() error                     { return nil }
func (fakeRead) LocalAddr() net.Addr              { return nil }
func (fakeRead) RemoteAddr() net.Addr             { return nil }
func (fakeRead) SetDeadline(time.Time) error      { return nil }
func (fakeRead) SetReadDeadline(time.Time) error  { return nil }
func (fakeRead) SetWriteDeadline(time.Time) error { return nil }

// FuzzClient feeds a client's request anything as its answer.
func FuzzClient(f *testing.F) {
	body := append(make([]byte, BoxSize), letter(f, 1, "x")...)
	f.Add(byte(0), frame{kind: fItem, id: 1, body: body}.append(frame{kind: fOk, id: 1, body: make([]byte, 1+orderSize)}.append(nil)))
	f.Add(byte(1), frame{kind: fCounts, id: 1, body: make([]byte, countSize)}.append(nil))
	f.Add(byte(0), frame{kind: fOk, id: 1, body: bytes.Repeat([]byte{1}, 1+orderSize)}.append(nil))
	f.Add(byte(0), frame{kind: fFailed, id: 1, body: []byte{2}}.append(nil))
	f.Add(byte(2), frame{kind: fNews}.append(frame{kind: fOk, id: 1}.append(nil)))
	f.Fuzz(func(t *testing.T, what byte, raw []byte) {
		conn := &fakeConn{in: bytes.NewReader(append(hello(stOK, day).append(nil), raw...))}
		c, err := NewClient(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		switch tok := [][32]byte{token(1)}; what % 3 {
		case 0:
			items, err := c.Take(t.Context(), tok)
			if err != nil && items != nil || len(items) > takeItems {
				t.Fatalf("%d items, %v", len(items), err)
			}
			for _, it := range items {
				if it.ID != IDOf(it.Blob) || !goodSize(len(it.Blob)) {
					t.Fatal("an item that is none")
				}
			}
		case 1:
			counts, err := c.Count(t.Context(), tok)
			if err == nil && (len(counts) != 1 || counts[0].Letters < 0 || counts[0].Bytes < 0) {
				t.Fatalf("counts %v", counts)
			}
		case 2:
			_ = c.Watch(t.Context(), tok)
		}
	})
}

// FuzzName holds that a file's name is read in one form only.
func FuzzName(f *testing.F) {
	e := &entry{box: BoxOf(token(1)), id: IDOf(nil), at: 1764000000000, owner: ownerOf("a")}
	f.Add(e.fileName())
	f.Add("0011223344556677.tmp")
	f.Add("----")
	f.Fuzz(func(t *testing.T, name string) {
		if e, ok := parseName(name); ok && (e.fileName() != name || e.at < 0) {
			t.Fatalf("%q is read as %q", name, e.fileName())
		}
	})
}

// FuzzOpen holds that nothing opens but what was sealed.
func FuzzOpen(f *testing.F) {
	good, err := Seal(bytes.NewReader(make([]byte, 24)), sealKey(1), BoxOf(token(1)), []byte("x")) // the same in every process
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if body, err := Open(sealKey(1), BoxOf(token(1)), blob); err == nil && !bytes.Equal(blob, good) {
			t.Fatalf("opened %q", body)
		}
	})
}
