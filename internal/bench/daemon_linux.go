package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The devices of the table of uses.
const (
	nameServer = "barn"
	nameClient = "attic"
)

// A daemon is a kith up in a namespace.
type daemon struct {
	bin, ns, home, inbox string
	cmd                  *exec.Cmd
	ended                chan struct{}
}

// command is a kith of this device.
func (d *daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", d.ns, d.bin, "--home", d.home}, args...)...)
	cmd.WaitDelay = 2 * time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd
}

// run runs one command to its end.
func (d *daemon) run(ctx context.Context, args ...string) error {
	if out, err := d.command(ctx, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("bench: kith %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// A running is a command that goes on.
type running struct{ cmd *exec.Cmd }

// wait lets it end by itself.
func (r running) wait() error { return r.cmd.Wait() }

// stop interrupts it, and waits.
func (r running) stop() {
	_ = r.cmd.Process.Signal(os.Interrupt) // it may have ended
	_ = r.cmd.Wait()                       // with the status of an interrupt
}

// follow starts a command and waits for a line of its output that holds want.
func follow(cmd *exec.Cmd, want string) (line string, r running, err error) {
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", r, err
	}
	if err := cmd.Start(); err != nil {
		return "", r, fmt.Errorf("bench: %w", err)
	}
	r = running{cmd}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, want) {
			go func() { _, _ = io.Copy(io.Discard, lines) }() // ends with the command
			return line, r, nil
		}
		if err != nil {
			r.stop()
			return "", r, fmt.Errorf("bench: %s: %w: %s", cmd, err, errs.Bytes())
		}
	}
}

// up starts the daemon and waits until it answers.
func (d *daemon) up(ctx context.Context) error {
	d.cmd = d.command(context.WithoutCancel(ctx), "up", "--json")
	d.cmd.Stderr = os.Stderr
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("bench: kith up: %w", err)
	}
	d.ended = make(chan struct{})
	go func() {
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	for {
		if d.run(ctx, "status") == nil && d.pid() != 0 {
			return nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// down ends it. It is idempotent.
func (d *daemon) down() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-d.ended:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.ended
	}
	d.cmd = nil
}

// pid is the daemon's own: ip replaces itself by what it runs.
func (d *daemon) pid() int { return d.cmd.Process.Pid }

// A usage is what a process has used.
type usage struct {
	cpu       float64 // seconds, user and system
	rss, peak float64 // MiB
}

const ticks = 100 // of /proc's clock in a second

func (d *daemon) usage() (u usage, err error) { return usageOf(d.pid()) }

func usageOf(pid int) (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	const utime, stime = 11, 12 // after the name (proc_pid_stat(5))
	if len(fields) <= stime {
		return u, errors.New("bench: /proc/PID/stat is not as expected")
	}
	for _, i := range []int{utime, stime} {
		n, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return u, err
		}
		u.cpu += n / ticks
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmHWM:":
			u.peak = n / 1024
		case "VmRSS:":
			u.rss = n / 1024
		}
	}
	return u, nil
}

// forgetPeak lets the peak of the memory count anew (proc_pid_clear_refs(5)).
func (d *daemon) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.pid()), []byte("5"), 0)
}

// pair pairs two devices that are not up, and starts both.
func pair(ctx context.Context, a, b *daemon) error {
	for d, name := range map[*daemon]string{a: nameServer, b: nameClient} {
		// On the LAN of the namespaces there is nobody else, and nothing beyond it.
		for _, args := range [][]string{{"config", "name", name}, {"config", "rendezvous", "dht", "off"}, {"config", "portmap", "off"}, {"config", "inbox", d.inbox}} {
			if err := d.run(ctx, args...); err != nil {
				return err
			}
		}
	}
	line, offer, err := follow(a.command(ctx, "pair", "--yes", "--json"), `"words"`)
	if err != nil {
		return err
	}
	var ev struct{ Words string }
	if err := json.Unmarshal([]byte(line), &ev); err != nil {
		offer.stop()
		return err
	}
	join := b.command(ctx, "join", "--yes", "--json")
	join.Stdin = strings.NewReader(ev.Words + "\n")
	if out, err := join.CombinedOutput(); err != nil {
		offer.stop()
		return fmt.Errorf("bench: kith join: %w: %s", err, out)
	}
	if err := offer.wait(); err != nil {
		return fmt.Errorf("bench: kith pair: %w", err)
	}
	if err := a.up(ctx); err != nil {
		return err
	}
	if err := b.up(ctx); err != nil {
		return err
	}
	return b.run(ctx, "ping", nameServer)
}

// newDaemon is a device whose state and inbox are below dir.
func newDaemon(bin, ns, dir, name string) (*daemon, error) {
	d := &daemon{bin: bin, ns: ns, home: filepath.Join(dir, name), inbox: filepath.Join(dir, name+"-inbox")}
	return d, os.MkdirAll(d.inbox, 0o700)
}
