package nettest

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Process is a program that runs on a host.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{}

	mu    sync.Mutex // guards lines and grown
	lines []string
	grown chan struct{} // closed and replaced when a line comes
}

// Start runs a program on the host until it ends, Kill or the end of the test.
// Its output, both streams, goes to the test's log and can be waited for.
func (h *Host) Start(name string, args ...string) *Process {
	t := h.lab.t
	t.Helper()
	p := &Process{t: t, name: h.Name, cmd: h.Command(context.Background(), name, args...), done: make(chan struct{}), grown: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		t.Fatalf("start %s on %s: %v", name, h.Name, err)
	}
	go func() {
		defer close(p.done)
		defer r.Close()
		s := bufio.NewScanner(r)
		s.Buffer(make([]byte, 64<<10), 1<<20)
		for s.Scan() {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			close(p.grown)
			p.grown = make(chan struct{})
			p.mu.Unlock()
		}
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, l := range p.lines {
				t.Logf("%s: %s", p.name, l)
			}
		}
	})
	return p
}

// Await waits until a line of the output matches, and returns it; the end of ctx
// or of the program ends the test.
func (p *Process) Await(ctx context.Context, pattern string) string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	next := 0
	for {
		p.mu.Lock()
		lines, grown := p.lines, p.grown
		p.mu.Unlock()
		for ; next < len(lines); next++ {
			if re.MatchString(lines[next]) {
				return lines[next]
			}
		}
		select {
		case <-grown:
		case <-p.done:
			p.mu.Lock()
			rest := p.lines[next:]
			p.mu.Unlock()
			for _, l := range rest {
				if re.MatchString(l) {
					return l
				}
			}
			p.t.Fatalf("%s ended before it said %q", p.name, pattern)
		case <-ctx.Done():
			p.t.Fatalf("%s did not say %q: %v", p.name, pattern, ctx.Err())
		}
	}
}

// Say writes a line to the program's standard input.
func (p *Process) Say(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		p.t.Fatalf("say to %s: %v", p.name, err)
	}
}

// PID returns the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the program as a power cut would, and waits for its end.
func (p *Process) Kill() { p.signal(syscall.SIGKILL) }

// Stop asks the program to end, and waits for that.
func (p *Process) Stop() { p.signal(syscall.SIGINT) }

func (p *Process) signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
		p.t.Errorf("%s did not end within 10 s of %v", p.name, s)
	}
}

// Wait returns when the program has ended or ctx ends, with its exit status.
func (p *Process) Wait(ctx context.Context) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-ctx.Done():
		p.t.Fatalf("%s did not end: %v", p.name, ctx.Err())
		return -1
	}
}
