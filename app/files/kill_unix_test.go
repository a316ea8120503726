//go:build unix

package files

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// killEnv makes this test binary one end of a transfer: "receive DIR" or
// "send ADDRESS PATH".
const killEnv = "KITH_FILES_TEST_END"

func runEnd(args string) error {
	f := strings.Fields(args)
	ctx := context.Background()
	if f[0] == "get" {
		return runGet(ctx, f[1], f[2], f[3])
	}
	if f[0] == "receive" || f[0] == "share" {
		cfg := Config{Dir: f[1], Policy: acceptAll}
		if f[0] == "share" {
			cfg = Config{Shares: func(string) []Share { return []Share{{"src", f[1]}} }}
		}
		s, err := New(cfg)
		if err != nil {
			return err
		}
		ln, err := net.Listen("tcp", f[2])
		if err != nil {
			return err
		}
		fmt.Println("ready", ln.Addr())
		return s.Serve(ctx, ln, func(net.Conn) (string, error) { return "a", nil })
	}
	s, err := New(Config{redial: time.Millisecond, Dial: func(ctx context.Context, _ string, _ Lane) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", f[1])
	}})
	if err != nil {
		return err
	}
	if f[0] == "hold" { // stays when it is done, so that its memory can be looked at
		s.cfg.redial = redialFirst
		fmt.Println("ready")
		res, err := s.Send(ctx, "b", []string{f[2]}, SendOptions{})
		if err != nil {
			return err
		}
		fmt.Println("sent", res.Progress.Bytes, res.Progress.Resumed, len(res.Notes))
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	fmt.Println("ready")
	// What is acknowledged is said as it grows: a process that is killed says nothing
	// at its end.
	started := func(tr *Transfer) {
		go func() {
			for last := int64(0); ; {
				<-tr.meter.changed
				if n := tr.Progress().Bytes; n > last+1<<20 || n < last {
					fmt.Println("acked", n)
					last = n
				}
			}
		}()
	}
	res, err := s.Send(ctx, "b", []string{f[2]}, SendOptions{Lanes: Lanes(LaneTunnel, 2), Started: started})
	if err != nil {
		return err
	}
	fmt.Println("sent", res.Progress.Bytes, res.Progress.Resumed, len(res.Notes))
	return nil
}

// An end is a process that runs one end.
type end struct {
	cmd *exec.Cmd
	out *bufio.Scanner
	in  io.Writer
}

func startEnd(t *testing.T, args string) *end {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), killEnv+"="+args)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe() // it ends with this process, at the latest
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &end{cmd: cmd, out: bufio.NewScanner(out), in: in}
}

func (e *end) line(t *testing.T) []string {
	t.Helper()
	if !e.out.Scan() {
		t.Fatalf("the end says nothing: %v", e.out.Err())
	}
	return strings.Fields(e.out.Text())
}

// sent reads what a sender says until it is done, and keeps the most that was
// acknowledged.
func (e *end) sent(acked *atomic.Int64) []string {
	for e.out.Scan() {
		l := strings.Fields(e.out.Text())
		if l[0] == "sent" {
			return l
		}
		if n, err := strconv.ParseInt(l[1], 10, 64); err == nil && n > acked.Load() {
			acked.Store(n)
		}
	}
	return nil
}

func (e *end) kill() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

// A tap passes streams to the receiver and counts what the sender sends. It kills
// one end when a number of bytes has passed.
type tap struct {
	to     atomic.Value // string
	passed atomic.Int64
	at     atomic.Int64
	hit    chan struct{}
}

func (p *tap) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			d, err := net.Dial("tcp", p.to.Load().(string))
			if err != nil {
				return
			}
			defer d.Close()
			go func() { _, _ = io.Copy(c, d); c.Close() }()
			buf := make([]byte, 32<<10)
			for {
				n, err := c.Read(buf)
				if n > 0 {
					if v := p.passed.Add(int64(n)); v > p.at.Load() {
						p.at.Store(1 << 60)
						p.hit <- struct{}{}
					}
					if _, err := d.Write(buf[:n]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

// TestKill9 kills either end at random moments, starts it again, and holds that all
// is right in the end and that hardly a byte that was acknowledged went twice.
// KITH_FILES_KILLS says how often; the default is 6.
func TestKill9(t *testing.T) {
	kills := 6
	if v, err := strconv.Atoi(os.Getenv("KITH_FILES_KILLS")); err == nil {
		kills = v
	}
	src := tree(t, 2000, 0)
	size := int64(96 << 20)
	want := sha256.Sum256(write(t, filepath.Join(src, "huge"), int(size)))
	var small int64
	for i := range 2000 {
		small += int64(i * 37 % 5000)
	}
	dir := t.TempDir()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := &tap{hit: make(chan struct{}, 8)}
	go p.serve(ln)

	recv := startEnd(t, "receive "+dir+" 127.0.0.1:0")
	p.to.Store(recv.line(t)[1])
	done := 0
	for done < kills {
		// Kills are spread over one transfer, and then over the next.
		per := min(kills-done, 6)
		p.passed.Store(0)
		total := size + small
		send := startEnd(t, "send "+ln.Addr().String()+" "+src)
		send.line(t)
		var acked atomic.Int64
		said := make(chan []string, 1)
		go func(e *end) { said <- e.sent(&acked) }(send)
		before := int64(0)
		for i := range per {
			p.at.Store(total * int64(i+1) / int64(per+2) * int64(90+rand.IntN(20)) / 100)
			<-p.hit
			if rand.IntN(2) == 0 {
				before = acked.Load()
				recv.kill()
				recv = startEnd(t, "receive "+dir+" 127.0.0.1:0")
				p.to.Store(recv.line(t)[1])
			} else {
				_ = send.cmd.Process.Kill()
				<-said // all that it said
				before = acked.Load()
				_ = send.cmd.Wait()
				send = startEnd(t, "send "+ln.Addr().String()+" "+src)
				send.line(t)
				go func(e *end) { said <- e.sent(&acked) }(send)
			}
			done++
		}
		p.at.Store(1 << 60)
		l := <-said
		if len(l) != 4 || l[3] != "0" {
			t.Fatalf("the sender says %q", l)
		}
		// All that was acknowledged before the last kill was there for the run after it.
		resumed, err := strconv.ParseInt(l[2], 10, 64)
		if err != nil || resumed < before*99/100 {
			t.Errorf("%d of %d acknowledged bytes were kept", resumed, before)
		}
		_ = send.cmd.Wait()
		got, err := os.ReadFile(filepath.Join(dir, "src", "huge"))
		if err != nil || sha256.Sum256(got) != want {
			t.Fatalf("the file is not the same (%d bytes, %v)", len(got), err)
		}
		same(t, src, filepath.Join(dir, "src"))
		t.Logf("%d kills, the last at %d of %d bytes acknowledged, of which %d were kept; %d were on their way and sent again",
			per, before, total, resumed, p.passed.Load()-total)
		if err := os.RemoveAll(filepath.Join(dir, "src")); err != nil {
			t.Fatal(err)
		}
		// The same is sent as new the next time.
		if err := os.RemoveAll(filepath.Join(dir, partialName)); err != nil {
			t.Fatal(err)
		}
	}
	recv.kill()
}

// A haltingConn stops reading after so many bytes of all lanes, says so, and goes on with
// the next line of standard input.
type haltingConn struct {
	net.Conn
	left *atomic.Int64
	gate chan struct{}
}

func (c *haltingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if was := c.left.Load(); was > 0 && c.left.Add(-int64(n)) <= 0 {
		fmt.Println("halt")
		<-c.gate
	}
	return n, err
}

// runGet gets src, and halts when so many bytes have come.
func runGet(ctx context.Context, addr, dir, after string) error {
	n, err := strconv.ParseInt(after, 10, 64)
	if err != nil {
		return err
	}
	var left atomic.Int64
	left.Store(n)
	goOn := make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		close(goOn)
	}()
	s, err := New(Config{redial: time.Millisecond, Dial: func(ctx context.Context, _ string, lane Lane) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil || lane.Kind == LaneControl {
			return c, err
		}
		return &haltingConn{Conn: c, left: &left, gate: goOn}, nil
	}})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	res, err := s.Get(ctx, "b", "src", GetOptions{Dir: dir})
	if err != nil {
		return err
	}
	fmt.Println("sent", res.Progress.Bytes, res.Progress.Resumed, len(res.Notes))
	return nil
}

// TestGetKill9 kills the side that gets a shared folder, gets it again, and then kills
// the side that shares it: what had come is not sent again.
func TestGetKill9(t *testing.T) {
	src := tree(t, 1000, 0)
	write(t, filepath.Join(src, "huge"), 96<<20)
	dir := t.TempDir()
	share := startEnd(t, "share "+src+" 127.0.0.1:0")
	addr := share.line(t)[1]
	const part = 30 << 20
	get := startEnd(t, fmt.Sprintf("get %s %s %d", addr, dir, part))
	get.line(t)
	get.line(t) // it halts
	get.kill()
	get = startEnd(t, fmt.Sprintf("get %s %s %d", addr, dir, part))
	defer func() { get.kill() }()
	get.line(t)
	get.line(t)
	share.kill()
	share = startEnd(t, "share "+src+" "+addr)
	defer func() { share.kill() }()
	share.line(t)
	if _, err := fmt.Fprintln(get.in); err != nil {
		t.Fatal(err)
	}
	said := get.line(t)
	resumed, err := strconv.ParseInt(said[2], 10, 64)
	if err != nil || resumed < 2*part*9/10 || said[3] != "0" {
		t.Errorf("it says %v", said)
	}
	same(t, src, filepath.Join(dir, "src"))
	if _, err := os.Lstat(filepath.Join(dir, partialName)); err == nil {
		t.Errorf("%s is left", partialName)
	}
}
