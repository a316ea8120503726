package files

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A rawPeer speaks the protocol by hand.
type rawPeer struct {
	t    *testing.T
	l    *lab
	ctl  *control
	lane net.Conn
}

func (l *lab) raw(t *testing.T) *rawPeer {
	t.Helper()
	ctl, end, err := l.a.dialControl(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return &rawPeer{t: t, l: l, ctl: ctl}
}

// offer offers names and opens a lane.
func (p *rawPeer) offer(o *offerMsg) error {
	p.t.Helper()
	var w writer
	o.put(&w)
	if err := p.ctl.send(msgOffer, &w); err != nil {
		p.t.Fatal(err)
	}
	kind, msg, err := p.ctl.receive(p.t.Context())
	if err != nil {
		return err
	}
	if kind == msgCancel {
		return parseCancel(msg)
	}
	var a answerMsg
	if err := a.get(msg); err != nil {
		return err
	}
	if p.lane, err = p.l.a.dialHello(p.t.Context(), "b", Lane{}, helloLane, a.session); err != nil {
		return err
	}
	p.t.Cleanup(func() { p.lane.Close() })
	return nil
}

// frame sends one frame, as it is.
func (p *rawPeer) frame(f *outFrame) error {
	for _, b := range putFrame(f, nil) {
		if len(b) == 0 {
			continue
		}
		if _, err := p.lane.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// refused waits for the word that ends the transfer.
func (p *rawPeer) refused() error {
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	for {
		kind, msg, err := p.ctl.receive(ctx)
		if err != nil {
			return err
		}
		if kind == msgCancel {
			return parseCancel(msg)
		}
		if kind == msgDone {
			return nil
		}
	}
}

func batchOf(entries []entry, contents ...string) *outFrame {
	b := &batch{w: writer{b: make([]byte, countBytes)}, buf: new(buffer)}
	for i := range entries {
		entries[i].put(&b.w)
		b.n++
		if i < len(contents) {
			b.used += copy(b.buf.data()[b.used:], contents[i])
		}
	}
	return b.frame(SumBLAKE3)
}

func chunkOf(e entry, off int64, data []byte) *outFrame {
	f := (&source{}).placed(frameChunk, &bigFile{item: item{entry: e}}, place{off: off})
	f.buf = new(buffer)
	f.len = copy(f.buf.data(), data)
	f.sum = chunkSum(SumBLAKE3, f.buf.data()[:f.len], off)
	return f
}

func offerNamed(names ...string) *offerMsg {
	return &offerMsg{id: TransferID(newToken()), run: newToken(), tops: names}
}

// outside fails the test if anything but the target changed beside it.
func outside(t *testing.T, parent string, want ...string) {
	t.Helper()
	list, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range list {
		got = append(got, d.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("beside the target are %v, not %v", got, want)
	}
}

func TestHostileSender(t *testing.T) {
	file := func(p string, size int64) entry {
		return entry{kind: kindFile, path: p, size: size, mode: 0o644, mtime: 1e18}
	}
	big := make([]byte, chunkSize)
	big[0] = 1
	for name, frame := range map[string]func() *outFrame{
		"a path out":           func() *outFrame { return batchOf([]entry{file("x/../../evil", 1)}, "x") },
		"a path out at once":   func() *outFrame { return batchOf([]entry{file("../evil", 1)}, "x") },
		"an absolute path":     func() *outFrame { return batchOf([]entry{file("/tmp/evil", 1)}, "x") },
		"a zero in a path":     func() *outFrame { return batchOf([]entry{file("x/a\x00b", 1)}, "x") },
		"what was not offered": func() *outFrame { return batchOf([]entry{file("y/evil", 1)}, "x") },
		"a chunk not offered":  func() *outFrame { return chunkOf(file("y", 2*chunkSize), 0, big) },
		"a size that lies":     func() *outFrame { return batchOf([]entry{file("x/a", 1000)}, "x") },
		"content without entry": func() *outFrame {
			f := batchOf([]entry{file("x/a", 1)}, "x")
			f.len = 3
			f.sum = chunkSum(SumBLAKE3, f.buf.data()[:3], 0)
			return f
		},
		"a folder too deep": func() *outFrame { return batchOf([]entry{file("x/"+strings.Repeat("a/", 200)+"b", 1)}, "x") },
		"a setuid bit": func() *outFrame {
			e := file("x/a", 1)
			w := batchOf([]entry{e}, "x")
			w.meta = bytesReplaceMode(w.meta)
			return w
		},
		"a file of an exabyte": func() *outFrame { return chunkOf(file("x", 1<<60), 0, big) },
		"more than allowed":    func() *outFrame { return chunkOf(file("x", 1<<41), 0, big) },
		"a hole over the end": func() *outFrame {
			return (&source{}).placed(frameHole, &bigFile{item: item{entry: file("x", chunkSize*2)}}, place{off: 0, len: 3 * chunkSize})
		},
		"a chunk off the grid": func() *outFrame { return chunkOf(file("x", 4*chunkSize), 17, big) },
		"a chunk past the end": func() *outFrame { return chunkOf(file("x", 2*chunkSize), 2*chunkSize, big) },
		"a short chunk":        func() *outFrame { return chunkOf(file("x", 2*chunkSize), 0, big[:100]) },
		"another digest":       func() *outFrame { f := chunkOf(file("x", 2*chunkSize), 0, big); f.sum[3]++; return f },
		"another batch digest": func() *outFrame { f := batchOf([]entry{file("x/a", 1)}, "x"); f.sum[3]++; return f },
		"a stream in a batch":  func() *outFrame { return batchOf([]entry{{kind: kindStream, path: "x"}}) },
		"an entry of no kind":  func() *outFrame { return batchOf([]entry{{kind: 9, path: "x"}}) },
		"an end of another len": func() *outFrame {
			return (&source{}).placed(frameEnd, &bigFile{item: item{entry: file("x", chunkSize*2)}}, place{off: 5, state: endWhole})
		},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "in")
			l, _ := newLab(t, func(_, b *Config) { b.Dir, b.MaxBytes, b.MaxFiles = dir, 1<<40, 1000 })
			p := l.raw(t)
			if err := p.offer(offerNamed("x")); err != nil {
				t.Fatal(err)
			}
			_ = p.frame(frame())
			if err := p.refused(); err == nil {
				t.Error("taken")
			} else if !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrLimit) && !strings.Contains(err.Error(), "not understood") {
				t.Errorf("err %v", err)
			}
			outside(t, parent, "in")
		})
	}
}

// bytesReplaceMode sets a mode above the permissions in a batch of one entry "x/a".
func bytesReplaceMode(meta []byte) []byte {
	var good, bad writer
	good.uint(0o644)
	bad.uint(0o4755)
	return []byte(strings.Replace(string(meta), string(good.b), string(bad.b), 1))
}

func TestHostileFrames(t *testing.T) {
	for name, raw := range map[string][]byte{
		"no frame":         []byte(strings.Repeat("x", 100)),
		"a frame too long": func() []byte { b := make([]byte, headerSize); b[0] = 1; b[8] = 0xff; return b }(),
		"no check":         func() []byte { b := make([]byte, headerSize); b[0] = 1; return b }(),
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := newLab(t)
			p := l.raw(t)
			if err := p.offer(offerNamed("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := p.lane.Write(raw); err != nil {
				t.Fatal(err)
			}
			// The lane is closed; nobody waits for more.
			if _, err := p.lane.Read(make([]byte, 1)); err == nil {
				t.Error("answered")
			}
		})
	}
}

func TestHostileLinks(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "in")
	l, _ := newLab(t, func(_, b *Config) { b.Dir = dir })
	p := l.raw(t)
	if err := p.offer(offerNamed("x", "l")); err != nil {
		t.Fatal(err)
	}
	link := func(p, to string) entry { return entry{kind: kindLink, path: p, link: to, mtime: 1e18} }
	bad := []entry{
		link("x/abs", "/etc"), link("x/out", "../../.."), link("x/sneaky", "d/../../.."), link("l", "x"), link("x/empty", ""),
		link("x/win", `C:\x`), link("x/back", `..\..`), link("x/top", ".."),
	}
	frame := batchOf(append(bad,
		entry{kind: kindDir, path: "x/d", mode: 0o755, mtime: 1e18}, link("x/d/good", "../f"),
		// A link, and a file through it, in both orders.
		link("x/s", "d"), entry{kind: kindFile, path: "x/s/f", size: 1, mode: 0o644, mtime: 1e18},
		entry{kind: kindFile, path: "x/f", size: 1, mode: 0o644, mtime: 1e18},
	), "", "", "", "", "", "", "", "", "", "", "", "1", "2")
	if err := p.frame(frame); err != nil {
		t.Fatal(err)
	}
	if _, err := p.lane.Read(make([]byte, ackSize)); err != nil {
		t.Fatal(err)
	}
	if err := p.ctl.send(msgEnd, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.refused(); err != nil {
		t.Fatal(err)
	}
	outside(t, parent, "in")
	if to, err := os.Readlink(filepath.Join(dir, "x/d/good")); err != nil || to != "../f" {
		t.Errorf("the good link: %q %v", to, err)
	}
	for _, e := range bad {
		if _, err := os.Lstat(filepath.Join(dir, e.path)); err == nil {
			t.Errorf("%s -> %q was made", e.path, e.link)
		}
	}
	if fi, err := os.Lstat(filepath.Join(dir, "x/s")); err != nil || !fi.IsDir() {
		t.Errorf("x/s: %v %v", fi, err)
	}
}

// TestOffersAreBounded floods the inbox.
func TestOffersAreBounded(t *testing.T) {
	waits := make(chan Offer, 64)
	l, _ := newLab(t, func(_, b *Config) {
		b.Policy, b.MaxWaiting, b.OnOffer = nil, 3, func(o Offer) { waits <- o }
	})
	for i := range 40 {
		p := l.raw(t)
		var w writer
		offerNamed("x").put(&w)
		if err := p.ctl.send(msgOffer, &w); err != nil {
			t.Fatal(err)
		}
		if i < 3 {
			<-waits
			continue
		}
		kind, msg, err := p.ctl.receive(t.Context())
		if err != nil || kind != msgCancel || !errors.Is(parseCancel(msg), ErrBusy) {
			t.Fatalf("message %d, %v", kind, err)
		}
	}
	if n := len(l.b.Offers()); n != 3 {
		t.Errorf("%d wait", n)
	}
}

// TestOtherPeersLane holds that a session's token is worth nothing to another peer.
func TestOtherPeersLane(t *testing.T) {
	l, _ := newLab(t)
	p := l.raw(t)
	if err := p.offer(offerNamed("x")); err != nil {
		t.Fatal(err)
	}
	l.b.mu.Lock()
	var tok token
	for k := range l.b.sessions {
		tok = k
	}
	l.b.mu.Unlock()
	mine, theirs := net.Pipe()
	defer mine.Close()
	done := make(chan error, 1)
	go func() { done <- l.b.Handle(context.Background(), "mallory", theirs) }()
	if _, err := mine.Write(putHello(helloLane, tok)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrProtocol) {
		t.Errorf("err %v", err)
	}
}

// TestSymlinkRace has somebody on the receiver's machine swap folders of the tree
// for symlinks while it is written.
func TestSymlinkRace(t *testing.T) {
	parent := t.TempDir()
	dir, trap := filepath.Join(parent, "in"), filepath.Join(parent, "trap")
	if err := os.Mkdir(trap, 0o755); err != nil {
		t.Fatal(err)
	}
	src := tree(t, 400, 1)
	l, _ := newLab(t, func(_, b *Config) { b.Dir = dir })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	swaps := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			trees, _ := filepath.Glob(filepath.Join(dir, partialName, "*", "tree", "src", "*"))
			for _, p := range trees {
				if fi, err := os.Lstat(p); err == nil && fi.IsDir() && os.Rename(p, p+".was") == nil {
					swaps++
					_ = os.Symlink(trap, p)
					_ = os.Remove(p)
					_ = os.Rename(p+".was", p)
				}
			}
		}
	})
	for range 3 {
		_, _ = l.a.Send(t.Context(), "b", []string{src}, SendOptions{Lanes: Lanes(LaneTunnel, 3), GiveUp: -1})
		_ = os.RemoveAll(filepath.Join(dir, "src"))
	}
	cancel()
	wg.Wait()
	if swaps == 0 {
		t.Error("nothing was swapped")
	}
	if list, _ := os.ReadDir(trap); len(list) > 0 {
		t.Errorf("%d files went through a symlink", len(list))
	}
}

// TestStalledReceiver holds that a receiver that stops reading ends the transfer.
func TestStalledReceiver(t *testing.T) {
	src := filepath.Join(t.TempDir(), "f")
	write(t, src, 40<<20)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, err := New(Config{Quiet: time.Second, Dial: func(ctx context.Context, _ string, _ Lane) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Send(t.Context(), "b", []string{src}, SendOptions{GiveUp: -1}); err == nil {
		t.Error("sent")
	}
}

// TestOffersLeaveNothing makes offers that are taken and leaves: nothing stays of them,
// in memory or on the disk, and of those that bring something there is a bound.
func TestOffersLeaveNothing(t *testing.T) {
	l, dir := newLab(t)
	leave := func(bring bool) error {
		ctl, end, err := l.a.dialControl(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		defer end()
		p := &rawPeer{t: t, l: l, ctl: ctl}
		if err := p.offer(offerNamed("x")); err != nil {
			return err
		}
		defer p.lane.Close()
		if bring {
			if err := p.frame(batchOf([]entry{{kind: kindFile, path: "x/a", size: 1, mode: 0o644, mtime: 1e18}}, "x")); err != nil {
				return err
			}
			_, err = p.lane.Read(make([]byte, ackSize))
		}
		return err
	}
	for range 200 {
		if err := leave(false); err != nil {
			t.Fatal(err)
		}
	}
	clean(t, l, dir)
	l.b.mu.Lock()
	if n := len(l.b.sessions) + len(l.b.active) + len(l.b.list) + len(l.b.Offers()); n > 0 {
		t.Errorf("%d things are remembered", n)
	}
	l.b.mu.Unlock()
	if err := leave(true); err != nil {
		t.Fatal(err)
	}
	for i := range maxStages {
		if err := os.MkdirAll(filepath.Join(dir, partialName, fmt.Sprint("other", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := leave(true); !errors.Is(err, ErrBusy) {
		t.Errorf("one too many: %v", err)
	}
}
