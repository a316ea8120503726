package dns_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// A Folder is a whole driver: a directory that both devices see, on a file server
// or kept in step by a program, is the medium. docs/drivers.md explains it.
type Folder struct {
	dir    string
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex // guards wg against additions after Close
	wg     sync.WaitGroup
}

func NewFolder(dir string) *Folder {
	f := &Folder{dir: dir}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

func (f *Folder) Name() string { return "folder" }

func (f *Folder) Health() rendezvous.Health {
	_, err := os.Stat(f.dir)
	return rendezvous.Health{Name: "folder", Ready: err == nil, Detail: "directory " + f.dir, Err: err}
}

func (f *Folder) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if f.ctx.Err() != nil {
		return nil, fmt.Errorf("folder: join: %w", net.ErrClosed)
	}
	name := sha256.Sum256(append([]byte("folder "), p.Topic[:]...)) // one-way, with a label of our own
	s := &entry{Inbox: rendezvous.NewInbox("folder"), prefix: filepath.Join(f.dir, fmt.Sprintf("%x-", name[:20])), own: rand.Text()}
	s.ctx, s.cancel = context.WithCancel(f.ctx)
	if p.Mode == rendezvous.SendOnly {
		f.wg.Go(func() { <-s.ctx.Done(); s.Close() })
	} else {
		f.wg.Go(s.poll)
	}
	return s, nil
}

func (f *Folder) Close() error {
	f.mu.Lock()
	f.cancel()
	f.mu.Unlock()
	f.wg.Wait()
	return nil
}

// An entry is one use of a topic. The Inbox has Receive.
type entry struct {
	*rendezvous.Inbox
	ctx         context.Context //nolint:containedctx // ends with Close
	cancel      context.CancelFunc
	prefix, own string
}

func (s *entry) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	draft := s.prefix + s.own + ".new" // the newest frame of each session is enough: who misses one is sent it again
	err := os.WriteFile(draft, frame, 0o600)
	if err == nil {
		err = os.Rename(draft, s.prefix+s.own)
	}
	if err != nil {
		return fmt.Errorf("folder: %w: %w", rendezvous.ErrUnreachable, err)
	}
	return nil
}

func (s *entry) poll() {
	defer s.Close() // if it was the Folder that was closed
	for seen := make(map[string]time.Time); s.ctx.Err() == nil; {
		files, _ := filepath.Glob(s.prefix + "*")
		for _, file := range files[:min(len(files), 16)] { // anybody may have written anything
			info, err := os.Stat(file)
			if err != nil || info.Size() != rendezvous.FrameSize || info.ModTime().Equal(seen[file]) || filepath.Ext(file) == ".new" {
				continue
			}
			if raw, err := os.ReadFile(file); err == nil && len(raw) == rendezvous.FrameSize {
				seen[file] = info.ModTime()
				s.Deliver(rendezvous.Message{Frame: raw, Exchange: "folder"})
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-s.ctx.Done():
		}
	}
}

func (s *entry) Close() error {
	s.Shut(func() {
		s.cancel()
		os.Remove(s.prefix + s.own)
	})
	return nil
}

// Example_driver is how a driver is used. In a program, both ends are
// kith.Config.Exchanges of two devices.
func Example_driver() {
	dir, err := os.MkdirTemp("", "folder")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	desk, laptop := NewFolder(dir), NewFolder(dir)
	defer desk.Close()
	defer laptop.Close()
	ctx, topic := context.Background(), rendezvous.Topic{1, 2, 3}
	from, _ := desk.Join(ctx, rendezvous.Point{Topic: topic})
	to, _ := laptop.Join(ctx, rendezvous.Point{Topic: topic, Side: 1})
	if err := from.Publish(ctx, bytes.Repeat([]byte{42}, rendezvous.FrameSize)); err != nil {
		fmt.Println(err)
	}
	m, err := to.Receive(ctx)
	fmt.Println(len(m.Frame), m.Frame[0], m.Exchange, err)
	// Output: 1340 42 folder <nil>
}

func TestExampleDriver(t *testing.T) {
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		dir := t.TempDir()
		return NewFolder(dir), NewFolder(dir)
	})
}
