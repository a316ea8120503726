//go:build unix

package kith_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
)

// crashEnv makes the test binary one device of TestKillAtEveryStep.
const crashEnv = "KITH_CRASH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		if err := crashChild(); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// badMedium is an Exchange between two processes that loses 30 % of the frames,
// doubles 20 %, and lets them overtake each other. At its n-th use the process
// kills itself as a power cut would.
type badMedium struct {
	conn  *net.UnixConn
	peer  *net.UnixAddr
	steps atomic.Int64
	crash int64

	mu       sync.Mutex
	sessions map[rendezvous.Topic][]chan rendezvous.Message
}

func (m *badMedium) step() {
	if m.steps.Add(1) == m.crash {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (m *badMedium) Name() string              { return "bad" }
func (m *badMedium) Health() rendezvous.Health { return rendezvous.Health{Name: "bad", Ready: true} }
func (m *badMedium) Close() error              { return m.conn.Close() }

func (m *badMedium) Join(_ context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	s := &badSession{m: m, topic: p.Topic, in: make(chan rendezvous.Message, rendezvous.QueueSize), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[p.Topic] = append(m.sessions[p.Topic], s.in)
	return s, nil
}

func (m *badMedium) run() {
	buf := make([]byte, 4096)
	for {
		n, err := m.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != rendezvous.TopicSize+rendezvous.FrameSize {
			continue
		}
		m.step()
		m.mu.Lock()
		for _, in := range m.sessions[rendezvous.Topic(buf[:rendezvous.TopicSize])] {
			select {
			case in <- rendezvous.Message{Frame: append([]byte(nil), buf[rendezvous.TopicSize:n]...), Exchange: "bad"}:
			default:
			}
		}
		m.mu.Unlock()
	}
}

type badSession struct {
	m     *badMedium
	topic rendezvous.Topic
	in    chan rendezvous.Message
	done  chan struct{}
	once  sync.Once
}

func (s *badSession) Publish(_ context.Context, frame []byte) error {
	s.m.step()
	b := append(append([]byte(nil), s.topic[:]...), frame...)
	copies := 1
	if rand.Float64() < 0.2 {
		copies = 2
	}
	for range copies {
		if rand.Float64() < 0.3 {
			continue
		}
		time.AfterFunc(time.Duration(rand.IntN(15))*time.Millisecond, func() { _, _ = s.m.conn.WriteToUnix(b, s.m.peer) })
	}
	s.m.step()
	return nil
}

func (s *badSession) Receive(ctx context.Context) (rendezvous.Message, error) {
	select {
	case msg := <-s.in:
		return msg, nil
	case <-ctx.Done():
		return rendezvous.Message{}, ctx.Err()
	case <-s.done:
		return rendezvous.Message{}, net.ErrClosed
	}
}

func (s *badSession) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// crashChild runs one device: its directory, role ("offer", "join" or "none"
// after a restart) and crash step are in the environment. It prints the code, and
// a line when the pair is made; it ends when its standard input does.
func crashChild() error {
	dir, role := os.Getenv("KITH_CRASH_DIR"), os.Getenv(crashEnv)
	step, err := strconv.ParseInt(os.Getenv("KITH_CRASH_STEP"), 10, 64)
	if err != nil {
		return err
	}
	own := filepath.Join(filepath.Dir(dir), filepath.Base(dir)+".sock")
	peer := filepath.Join(filepath.Dir(dir), map[string]string{"a": "b", "b": "a"}[filepath.Base(dir)]+".sock")
	_ = os.Remove(own)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: own, Net: "unixgram"})
	if err != nil {
		return err
	}
	m := &badMedium{conn: conn, peer: &net.UnixAddr{Name: peer, Net: "unixgram"}, crash: step, sessions: make(map[rendezvous.Topic][]chan rendezvous.Message)}
	go m.run()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	node, err := kith.Open(ctx, kith.Config{Dir: dir, Name: filepath.Base(dir), NoLAN: true, NoDHT: true, Loopback: true, Exchanges: []rendezvous.Exchange{m}})
	if err != nil {
		return err
	}
	defer node.Close()
	in := bufio.NewReader(os.Stdin)
	var p *kith.Pairing
	switch role {
	case "offer":
		if p, err = node.Offer(ctx, kith.OfferConfig{AutoAccept: true}); err != nil {
			return err
		}
		fmt.Println("code", p.Code().Words())
	case "join":
		text, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		c, err := code.Parse(text, time.Now())
		if err != nil {
			return err
		}
		if p, err = node.Join(ctx, c, kith.JoinConfig{AutoAccept: true}); err != nil {
			return err
		}
	}
	if p != nil {
		go func() {
			if _, err := p.Wait(ctx); err == nil {
				fmt.Println("paired")
			}
		}()
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, in) // until the parent has seen enough
	return nil
}

// A crashDevice is one process of a run.
type crashDevice struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	done chan struct{}
}

func startCrash(t *testing.T, dir, role string, step int) *crashDevice {
	t.Helper()
	d := &crashDevice{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	d.cmd.Env = append(os.Environ(), crashEnv+"="+role, "KITH_CRASH_DIR="+dir, "KITH_CRASH_STEP="+strconv.Itoa(step))
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	d.out = bufio.NewReader(out)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// line returns the rest of the next line that begins with a word; ok is false if
// the process ends first.
func (d *crashDevice) line(word string) (rest string, ok bool) {
	for {
		l, err := d.out.ReadString('\n')
		if err != nil {
			return "", false
		}
		if rest, ok := strings.CutPrefix(strings.TrimSpace(l), word); ok {
			return strings.TrimSpace(rest), true
		}
	}
}

// end stops the process, however it is.
func (d *crashDevice) end() {
	d.in.Close()
	_ = d.cmd.Process.Kill()
	_, _ = io.Copy(io.Discard, d.out)
	_ = d.cmd.Wait()
}

// crashState reads what is durable of a device: the state of its one pair, or 0.
// It reads a copy, as the device may be running: opening a store tidies it up.
func crashState(t *testing.T, dir string) (registry.Device, registry.State) {
	t.Helper()
	copied := t.TempDir()
	if err := os.Mkdir(filepath.Join(copied, "pairs"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "pairs", "*.cbor"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, "pairs", filepath.Base(f)), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store, err := registry.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	if p := store.Problems(); len(p) > 0 {
		t.Errorf("damaged records after a kill: %v", p)
	}
	list := append(store.List(), store.Tombs()...)
	var best registry.Device
	for _, d := range list {
		if best.State == 0 || d.State == registry.Active {
			best = d
		}
	}
	return best, best.State
}

// TestKillAtEveryStep kills either device at each use of a medium that loses,
// doubles and reorders, during a pairing; the victim is started again without the
// code. Never may one side be paired with nothing on the other, and no file may
// be damaged.
func TestKillAtEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: 240 runs of two processes take a minute")
	}
	const steps, repeats, parallel = 40, 3, 8
	type job struct {
		victim string
		step   int
	}
	jobs := make(chan job)
	var mu sync.Mutex
	outcomes := make(map[string]int)
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for j := range jobs {
				outcome := crashRun(t, j.victim, j.step)
				mu.Lock()
				outcomes[outcome]++
				mu.Unlock()
			}
		})
	}
	for range repeats {
		for step := 1; step <= steps; step++ {
			for _, victim := range []string{"a", "b"} {
				jobs <- job{victim, step}
			}
		}
	}
	close(jobs)
	wg.Wait()
	t.Logf("offerer/joiner: %v", outcomes)
	if outcomes["ACTIVE/ACTIVE"] == 0 {
		t.Error("no run ended with a pair: the test shows nothing")
	}
}

var stateNames = map[registry.State]string{0: "NONE", registry.Prepared: "PREPARED", registry.Active: "ACTIVE", registry.Tomb: "TOMB"}

// crashRun is one pairing with one kill. Device a offers, b joins.
func crashRun(t *testing.T, victim string, step int) string {
	root, err := os.MkdirTemp("", "kc")
	if err != nil {
		t.Error(err)
		return "error"
	}
	defer os.RemoveAll(root)
	dirs := map[string]string{"a": filepath.Join(root, "a"), "b": filepath.Join(root, "b")}
	at := map[string]int{victim: step}
	a := startCrash(t, dirs["a"], "offer", at["a"])
	defer a.end()
	words, ok := a.line("code")
	if !ok {
		return crashOutcome(t, dirs) // killed before it could show a code
	}
	b := startCrash(t, dirs["b"], "join", at["b"])
	defer b.end()
	if _, err := io.WriteString(b.in, words+"\n"); err != nil && victim != "b" {
		t.Errorf("step %d of %s: %v", step, victim, err)
	}
	v := map[string]*crashDevice{"a": a, "b": b}[victim]
	// The victim dies, or is paired before its step comes.
	if _, paired := v.line("paired"); !paired {
		v.end()
		again := startCrash(t, dirs[victim], "none", 0)
		defer again.end()
		again.line("ready")
	}
	settled := time.After(2500 * time.Millisecond)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		out := crashOutcome(t, dirs)
		if out == "ACTIVE/ACTIVE" {
			return out
		}
		select {
		case <-tick.C:
		case <-settled:
			return out
		}
	}
}

func crashOutcome(t *testing.T, dirs map[string]string) string {
	t.Helper()
	da, a := crashState(t, dirs["a"])
	db, b := crashState(t, dirs["b"])
	if a == registry.Active && b == 0 || b == registry.Active && a == 0 {
		t.Errorf("one side is paired alone: %s/%s", stateNames[a], stateNames[b])
	}
	if a == registry.Active && b == registry.Active && (da.PairID != db.PairID || da.Chain != db.Chain) {
		t.Error("both sides are paired with different keys")
	}
	return stateNames[a] + "/" + stateNames[b]
}
