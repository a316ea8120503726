package kin

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipeListener brings ends of pipes.
type pipeListener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{ch: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.ch <- far:
		return near, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// post is a Service with what it was given and has given.
type post struct {
	*Service
	ln *pipeListener

	mu      sync.Mutex
	pending []Letter
	took    []Letter
	answers []Status
	calls   int
	answer  Status
	refuse  bool // calls do not get through
}

func newPost(t *testing.T, to *post) *post {
	t.Helper()
	p := &post{ln: newPipeListener(), answer: StatusOK}
	p.Service = NewService(Config{
		Listener: p.ln,
		Dial: func(ctx context.Context, _ identity.DeviceID) (net.Conn, error) {
			p.mu.Lock()
			p.calls++
			refuse := p.refuse
			p.mu.Unlock()
			if refuse {
				return nil, errors.New("no path")
			}
			return to.ln.dial(ctx)
		},
		Who: func(net.Addr) (identity.DeviceID, bool) { return identity.DeviceID{1}, true },
		Pending: func(identity.DeviceID) []Letter {
			p.mu.Lock()
			defer p.mu.Unlock()
			return append([]Letter{}, p.pending...)
		},
		Delivered: func(_ identity.DeviceID, l Letter, s Status) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.answers = append(p.answers, s)
			for i, have := range p.pending {
				if keyOf(have) == keyOf(l) && s == StatusOK {
					p.pending = append(p.pending[:i:i], p.pending[i+1:]...)
					return
				}
			}
		},
		Take: func(_ context.Context, _ identity.DeviceID, l Letter) Status {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.took = append(p.took, l)
			return p.answer
		},
	})
	return p
}

func (p *post) counts() (calls, answers, took int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls, len(p.answers), len(p.took)
}

func (p *post) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func undoLetter(n byte) Letter { return Letter{Kind: LetterUndo, ID: ID{n}} }

// TestCarries holds that letters go out when the device is there, once each, and over one
// connection.
func TestCarries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPost(t, nil)
		a := newPost(t, b)
		a.set(func() { a.pending = []Letter{undoLetter(1), undoLetter(2)} })
		a.Changed() // nobody is there
		synctest.Wait()
		if calls, _, _ := a.counts(); calls != 0 {
			t.Error("it called a device that is away")
		}
		a.Connected(identity.DeviceID{2})
		a.Connected(identity.DeviceID{2})
		synctest.Wait()
		if calls, answers, _ := a.counts(); calls != 1 || answers != 2 {
			t.Errorf("%d calls, %d answers, want 1 and 2", calls, answers)
		}
		if _, _, took := b.counts(); took != 2 || b.took[0].ID != (ID{1}) {
			t.Errorf("took %+v", b.took)
		}
		a.Disconnected(identity.DeviceID{2})
		a.set(func() { a.pending = []Letter{undoLetter(3)} })
		a.Changed()
		time.Sleep(time.Hour)
		if calls, _, _ := a.counts(); calls != 1 {
			t.Error("it called a device that has gone")
		}
		for _, p := range []*post{a, b} {
			if err := errors.Join(p.Close(), p.Close()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRetries holds how often a letter is repeated: soon after a call that failed, rarely
// after one that was refused, at once when the device asks for it.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPost(t, nil)
		a := newPost(t, b)
		a.set(func() { a.pending, a.refuse = []Letter{undoLetter(1)}, true })
		a.Connected(identity.DeviceID{2})
		time.Sleep(time.Hour)
		if calls, _, _ := a.counts(); calls < 10 || calls > 25 {
			t.Errorf("%d calls in an hour of a broken path", calls)
		}
		b.set(func() { b.answer = StatusRefused })
		a.set(func() { a.refuse = false })
		time.Sleep(slowestRetry)
		_, before, _ := a.counts()
		time.Sleep(10 * time.Hour)
		if _, answers, _ := a.counts(); answers-before < 9 || answers-before > 11 {
			t.Errorf("%d times refused in ten hours, want once an hour", answers-before)
		}
		b.set(func() { b.answer = StatusOK })
		a.Connected(identity.DeviceID{2}) // does not hurry it
		synctest.Wait()
		a.set(func() {
			if len(a.pending) != 1 {
				t.Error("a refused letter was repeated at once")
			}
		})
		b.cfg.Dial = func(ctx context.Context, _ identity.DeviceID) (net.Conn, error) { return a.ln.dial(ctx) }
		b.Connected(identity.DeviceID{1})
		a.Connected(identity.DeviceID{1})
		b.Ask(identity.DeviceID{1})
		time.Sleep(2 * firstRetry)
		a.mu.Lock()
		left := len(a.pending)
		a.mu.Unlock()
		if left != 0 {
			t.Error("it was not repeated when asked for")
		}
		for _, p := range []*post{a, b} {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestStuckAnswer holds that a letter whose answer cannot be stored is not repeated fast.
func TestStuckAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPost(t, nil)
		a := newPost(t, b)
		a.cfg.Delivered = func(identity.DeviceID, Letter, Status) {}
		a.set(func() { a.pending = []Letter{undoLetter(1)} })
		a.Connected(identity.DeviceID{2})
		time.Sleep(10 * time.Minute)
		if _, _, took := b.counts(); took < 8 || took > 12 {
			t.Errorf("repeated %d times in ten minutes, want once a minute", took)
		}
		for _, p := range []*post{a, b} {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestBadCallers holds what who calls and says nothing, nonsense or too much costs.
func TestBadCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPost(t, nil)
		for _, bytes := range [][]byte{{0xff, 0xff}, {0, 0}, {0, 1, 99}, append([]byte{0, 20, 1}, make([]byte, 19)...)} {
			conn, err := b.ln.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(bytes)
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("%x is answered with %d bytes", bytes, n)
			}
			conn.Close()
		}
		synctest.Wait() // none of them counts any more
		var idle []net.Conn
		for range maxConnsFrom + 3 {
			conn, err := b.ln.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, conn)
		}
		synctest.Wait()
		open := 0
		for _, c := range idle {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				open++
			}
		}
		if open != maxConnsFrom {
			t.Errorf("%d connections of one device stay, want %d", open, maxConnsFrom)
		}
		time.Sleep(letterTimeout + time.Second)
		for _, c := range idle {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("a silent connection stays: %v", err)
			}
			c.Close()
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

var update = flag.Bool("update", false, "write the vectors anew")

const vectorFile = "../../testdata/vectors/introduction.json"

// letterVectors are one letter of each kind, in hexadecimal. The introduction's seeds are
// SHA-256("sign desk") and so on, as in the tests of package pairing.
type letterVectors struct {
	By        string `json:"by"`
	To        string `json:"to"`
	Other     string `json:"other"`
	Statement string `json:"statement"`
	Sig       string `json:"signature"`
	Introduce string `json:"introduce"`
	Answer    string `json:"answer_paired"`
	Notice    string `json:"notice"`
	Undo      string `json:"undo"`
}

func vectorLetters(t *testing.T) (letters []Letter, in Introduction) {
	desk, laptop, phone := newDevice(t, "desk"), newDevice(t, "laptop"), newDevice(t, "phone")
	in = Introduction{
		ID: ID{1, 2, 3}, By: desk.Self(), To: laptop.Self(), Other: phone.Self(), WireGuard: phone.id.WireGuardPublic(),
		Name: "phone", Secret: [32]byte{4, 5, 6}, Expires: t0.Add(Life),
	}
	in.resign(desk)
	return []Letter{
		{Kind: LetterIntroduce, Introduction: in},
		{Kind: LetterAnswer, ID: in.ID, End: EndPaired},
		{Kind: LetterNotice, Notice: Notice{ID: ID{7}, Peer: phone.Self(), Name: "phone", OS: "android", Method: "intro", Introducer: "desk", Paired: t0.Add(-time.Hour)}},
		{Kind: LetterUndo, ID: ID{7}},
	}, in
}

// TestVectors freezes the letters.
func TestVectors(t *testing.T) {
	letters, in := vectorLetters(t)
	var hexes []string
	for _, l := range letters {
		var buf bytes.Buffer
		if err := writeLetter(&buf, l, t0); err != nil {
			t.Fatal(err)
		}
		hexes = append(hexes, hex.EncodeToString(buf.Bytes()))
		back, err := readLetter(&buf, func() time.Time { return t0 })
		if err != nil || !reflect.DeepEqual(back, l) {
			t.Errorf("letter %d comes back as %#v, %v", l.Kind, back, err)
		}
	}
	got := letterVectors{
		By: hex.EncodeToString(in.By[:]), To: hex.EncodeToString(in.To[:]), Other: hex.EncodeToString(in.Other[:]),
		Statement: hex.EncodeToString(in.statement()), Sig: hex.EncodeToString(in.Sig[:]),
		Introduce: hexes[0], Answer: hexes[1], Notice: hexes[2], Undo: hexes[3],
	}
	if *update {
		raw, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(raw, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var want letterVectors
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// FuzzLetter holds that whatever comes is a letter that is the same when it is written
// again, or none.
func FuzzLetter(f *testing.F) {
	f.Add([]byte{4, 0xa0})
	f.Add([]byte{5, 0xa1, 1, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	if raw, err := os.ReadFile(vectorFile); err == nil {
		var v map[string]string
		if json.Unmarshal(raw, &v) == nil {
			for _, name := range []string{"introduce", "answer_paired", "notice", "undo"} {
				if b, err := hex.DecodeString(v[name]); err == nil && len(b) > 2 {
					f.Add(b[2:])
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := decodeLetter(raw, t0)
		if err != nil {
			return
		}
		again, err := l.encode(t0)
		if err != nil {
			if l.Kind == LetterIntroduce || l.Kind == LetterNotice {
				t.Fatalf("not written again: %v", err)
			}
			return
		}
		back, err := decodeLetter(again, t0)
		if err != nil || !reflect.DeepEqual(back, l) {
			t.Fatalf("%#v comes back as %#v, %v", l, back, err)
		}
		d := newDevice(t, "laptop")
		d.peers[l.Introduction.By] = Peer{ID: l.Introduction.By, Own: true}
		d.book.Take(t0, l.Introduction.By, l)
	})
}

// FuzzState holds that a damaged book is refused, or read to something that is written the
// same.
func FuzzState(f *testing.F) {
	desk, laptop, phone := circle(f)
	laptop.mark(desk, own)
	desk.mark(laptop, own)
	if _, _, err := desk.book.Introduce(t0, laptop.Self(), phone.Self()); err != nil {
		f.Fatal(err)
	}
	carry(t0, desk, laptop, phone)
	laptop.pairs(3, t0)
	carry(t0, desk, laptop)
	if _, err := desk.book.AskUndo(t0, laptop.Self(), desk.heard(t0)[0].Notice.ID); err != nil {
		f.Fatal(err)
	}
	f.Add(desk.disk)
	f.Add(laptop.disk)
	f.Add(phone.disk)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := decodeState(raw)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatal(err)
			}
			return
		}
		first, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeState(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := again.encode(); err != nil || len(second) != len(first) {
			t.Fatalf("%x is written as %x, %v", first, second, err)
		}
	})
}

// TestPace holds that a device that writes as fast as it can, over as many connections as
// it likes, has only so many letters taken.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPost(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for range maxConnsFrom {
			wg.Go(func() {
				for ctx.Err() == nil {
					conn, err := b.ln.dial(ctx)
					if err != nil {
						return
					}
					for err == nil && ctx.Err() == nil {
						if err = writeLetter(conn, undoLetter(1), time.Now()); err == nil {
							_, err = io.ReadFull(conn, make([]byte, 1))
						}
					}
					conn.Close()
				}
			})
		}
		wg.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		_, _, took := b.counts()
		if want := letterBurst + 60*letterRate; took < want || took > want+maxConnsFrom {
			t.Errorf("%d letters were taken in a minute, want %d", took, want)
		}
	})
}
