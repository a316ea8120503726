package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show two devices pair, connect and survive a kill, on this machine",
		Long: `Run two devices on this machine, each a process with a state directory of its own:
pair them with a code, connect them, exchange chat and bytes both ways, kill one
and see it come back. It prints what happened and how long each stage took, and
leaves nothing behind.
` + exitHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.demo(cmd.Context()) },
	}
}

const (
	demoTimeout = 2 * time.Minute
	demoBytes   = 64 << 20 // sent each way
)

// demoDevice is one of the two devices: a directory, and a daemon's process.
type demoDevice struct {
	name string
	dir  string
	exe  string
	cmd  *exec.Cmd
	log  bytes.Buffer
}

// demoRun is one demo under way.
type demoRun struct {
	e             *env
	start         time.Time
	desk, laptop  *demoDevice
	deskC, laptoC *control.Client
}

func (e *env) demo(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	dir, err := os.MkdirTemp("", "kith-demo-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d := &demoRun{
		e: e, start: time.Now(),
		desk:   &demoDevice{name: "desk", dir: filepath.Join(dir, "desk"), exe: exe},
		laptop: &demoDevice{name: "laptop", dir: filepath.Join(dir, "laptop"), exe: exe},
	}
	defer d.desk.kill()
	defer d.laptop.kill()
	if err := d.run(ctx); err != nil {
		d.desk.kill() // their logs are complete then
		d.laptop.kill()
		for _, dev := range []*demoDevice{d.desk, d.laptop} {
			fmt.Fprintf(e.err, "--- %s said:\n%s", dev.name, dev.log.String())
		}
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// stage runs one step and prints what it did and how long it took.
func (d *demoRun) stage(what string, f func() (string, error)) error {
	start := time.Now()
	detail, err := f()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	took := time.Since(start).Round(time.Millisecond)
	fmt.Fprintf(d.e.out, "  %-36s %8s   %s\n", what, took, detail)
	return nil
}

func (d *demoRun) run(ctx context.Context) error {
	fmt.Fprintln(d.e.out, "Two devices on this machine, each a process of its own:")
	for _, step := range []struct {
		what string
		f    func() (string, error)
	}{
		{"start both", func() (string, error) { return d.startBoth(ctx) }},
		{"pair with twelve words", func() (string, error) { return d.pair(ctx) }},
		{"connect through WireGuard", func() (string, error) { return d.connect(ctx) }},
		{"chat both ways", func() (string, error) { return d.chatBoth(ctx) }},
		{"a port that is not allowed", func() (string, error) { return d.denied(ctx) }},
		{"64 MiB desk to laptop", func() (string, error) { return d.bytes(ctx, d.deskC, d.laptoC, "laptop", "desk") }},
		{"64 MiB laptop to desk", func() (string, error) { return d.bytes(ctx, d.laptoC, d.deskC, "desk", "laptop") }},
		{"kill -9 laptop, start it again", func() (string, error) { return d.restart(ctx) }},
		{"unpair", func() (string, error) { return d.unpair(ctx) }},
	} {
		if err := d.stage(step.what, step.f); err != nil {
			return err
		}
	}
	fmt.Fprintf(d.e.out, "All of it worked, in %s.\n", time.Since(d.start).Round(10*time.Millisecond))
	return nil
}

func (d *demoRun) startBoth(ctx context.Context) (string, error) {
	var err error
	for _, dev := range []*demoDevice{d.desk, d.laptop} {
		if err := (settings{Name: dev.name, Loopback: true, NoDHT: true}).save(dev.dir); err != nil {
			return "", err
		}
	}
	if d.deskC, err = d.desk.up(ctx); err != nil {
		return "", err
	}
	d.laptoC, err = d.laptop.up(ctx)
	return "no account, no server, no root", err
}

// up starts the device's daemon and waits for its first line.
func (dev *demoDevice) up(ctx context.Context) (*control.Client, error) {
	started := make(chan struct{})
	dev.cmd = exec.Command(dev.exe, "--home", dev.dir, "up", "--json") //nolint:noctx // killed by kill
	dev.cmd.Stdout, dev.cmd.Stderr = &firstLine{seen: started}, &dev.log
	if err := dev.cmd.Start(); err != nil {
		return nil, err
	}
	select {
	case <-started:
	case <-ctx.Done():
		return nil, fmt.Errorf("%s did not start: %s", dev.name, oneLine(dev.log.String()))
	}
	return control.Connect(ctx, dev.dir)
}

// firstLine closes seen when it is first written to, and drops everything.
type firstLine struct {
	seen chan struct{}
	once sync.Once
}

func (f *firstLine) Write(b []byte) (int, error) {
	f.once.Do(func() { close(f.seen) })
	return len(b), nil
}

// kill ends the process as a power cut would.
func (dev *demoDevice) kill() {
	if dev.cmd == nil || dev.cmd.Process == nil {
		return
	}
	_ = dev.cmd.Process.Signal(syscall.SIGKILL)
	_ = dev.cmd.Wait()
	dev.cmd = nil
}

// pair lets desk offer and laptop join, as two people with two screens would:
// the words go from one to the other, and the check number back.
func (d *demoRun) pair(ctx context.Context) (string, error) {
	offer, err := d.deskC.Call(ctx, control.Request{Op: control.OpOffer, Method: "words"})
	if err != nil {
		return "", err
	}
	defer offer.Close()
	r, err := offer.Next()
	if err != nil {
		return "", err
	}
	join, err := d.laptoC.Call(ctx, control.Request{Op: control.OpJoin, Code: r.Offer.Words, Yes: true})
	if err != nil {
		return "", err
	}
	defer join.Close()
	var check string
	for check == "" {
		r, err := join.Next()
		if err != nil {
			return "", err
		}
		if r.Pair != nil && r.Pair.Kind == "check" {
			check = r.Pair.Check
		}
	}
	if err := d.answer(offer, check); err != nil {
		return "", err
	}
	if err := finish(join); err != nil {
		return "", err
	}
	return "check number " + spaced(check) + " typed on desk", nil
}

// answer types the check number where it is asked for, and waits for the pair.
func (d *demoRun) answer(offer *control.Call, check string) error {
	for {
		r, err := offer.Next()
		if err != nil || r.Done {
			return err
		}
		if r.Pair != nil && r.Pair.Ask {
			if err := offer.Send(control.Input{Accept: &check}); err != nil {
				return err
			}
		}
	}
}

func finish(call *control.Call) error {
	for {
		r, err := call.Next()
		if err != nil || r.Done {
			return err
		}
	}
}

func (d *demoRun) ping(ctx context.Context, c *control.Client, device string) (*kith.PingResult, error) {
	r, err := c.Do(ctx, control.Request{Op: control.OpPing, Device: device})
	return r.Ping, err
}

func (d *demoRun) connect(ctx context.Context) (string, error) {
	if _, err := d.ping(ctx, d.laptoC, "desk"); err != nil {
		return "", err
	}
	p, err := d.ping(ctx, d.deskC, "laptop")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("round trip %s, %s", rtt(p.RTT), p.Path), nil
}

func (d *demoRun) chatBoth(ctx context.Context) (string, error) {
	a, err := d.deskC.Call(ctx, control.Request{Op: control.OpChat, Device: "laptop"})
	if err != nil {
		return "", err
	}
	defer a.Close()
	b, err := d.laptoC.Call(ctx, control.Request{Op: control.OpChat, Device: "desk"})
	if err != nil {
		return "", err
	}
	defer b.Close()
	for _, way := range []struct {
		from, to *control.Call
		text     string
	}{{a, b, "hello from desk"}, {b, a, "hello from laptop"}} {
		if err := way.from.Send(control.Input{Text: way.text}); err != nil {
			return "", err
		}
		if err := expectChat(way.to, way.text); err != nil {
			return "", err
		}
	}
	return "“hello from desk”, “hello from laptop”", nil
}

func expectChat(call *control.Call, text string) error {
	for {
		r, err := call.Next()
		if err != nil {
			return err
		}
		if r.Chat != nil && !r.Chat.Mine {
			if r.Chat.Text != text {
				return fmt.Errorf("got %q, sent %q", r.Chat.Text, text)
			}
			return nil
		}
	}
}

func (d *demoRun) denied(ctx context.Context) (string, error) {
	_, err := d.deskC.Do(ctx, control.Request{Op: control.OpAsk, Device: "laptop", Port: 22})
	var told *control.Error
	if !errors.As(err, &told) || told.Kind != control.KindDenied {
		return "", fmt.Errorf("port 22 should be denied, got: %w", err)
	}
	return "refused, as everything is by default", nil
}

// bytes sends demoBytes to a program on the other device's localhost, after
// that device has allowed its port, and compares what arrived.
func (d *demoRun) bytes(ctx context.Context, from, to *control.Client, toName, fromName string) (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed below
	if err != nil {
		return "", err
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	if _, err := to.Do(ctx, control.Request{Op: control.OpRights, Device: fromName, Change: &control.Change{Ports: []control.Port{{Network: "tcp", Number: port}}}}); err != nil {
		return "", err
	}
	sums := make(chan received, 1)
	go receiveSum(ln, sums) // ends with the connection or the listener
	conn, err := from.Dial(ctx, control.Request{Device: toName, Port: port})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	start := time.Now()
	want, err := sendRandom(conn)
	if err != nil {
		return "", err
	}
	select {
	case got := <-sums:
		if got.err != nil || got.bytes != demoBytes {
			return "", fmt.Errorf("%d of %d bytes arrived: %w", got.bytes, demoBytes, got.err)
		}
		if got.sum != want {
			return "", errors.New("the bytes that arrived are not those that were sent")
		}
	case <-ctx.Done():
		return "", ctx.Err()
	}
	rate := float64(demoBytes) * 8 / 1e6 / time.Since(start).Seconds()
	return strconv.Itoa(int(rate)) + " Mbit/s, SHA-256 equal", nil
}

// received is what came over a forwarded port.
type received struct {
	sum   [32]byte
	bytes int64
	err   error
}

func receiveSum(ln net.Listener, sums chan<- received) {
	conn, err := ln.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(conn, demoBytes))
	sums <- received{[32]byte(h.Sum(nil)), n, err}
}

func sendRandom(w io.Writer) ([32]byte, error) {
	h := sha256.New()
	block := make([]byte, 1<<20)
	if _, err := rand.Read(block); err != nil {
		return [32]byte{}, err
	}
	for i := range demoBytes / len(block) {
		block[0] = byte(i)
		h.Write(block)
		if _, err := w.Write(block); err != nil {
			return [32]byte{}, err
		}
	}
	return [32]byte(h.Sum(nil)), nil
}

func (d *demoRun) restart(ctx context.Context) (string, error) {
	d.laptop.kill()
	killed := time.Now()
	var err error
	if d.laptoC, err = d.laptop.up(ctx); err != nil {
		return "", err
	}
	if _, err := d.ping(ctx, d.laptoC, "desk"); err != nil {
		return "", err
	}
	first := time.Since(killed).Round(time.Millisecond)
	if _, err := d.ping(ctx, d.deskC, "laptop"); err != nil {
		return "", err
	}
	return fmt.Sprintf("first ping answered %s after the kill", first), nil
}

func (d *demoRun) unpair(ctx context.Context) (string, error) {
	r, err := d.deskC.Do(ctx, control.Request{Op: control.OpUnpair, Device: "laptop"})
	if err != nil {
		return "", err
	}
	if !r.Told {
		return "", errors.New("the laptop has not confirmed")
	}
	st, err := d.laptoC.Do(ctx, control.Request{Op: control.OpStatus})
	if err != nil {
		return "", err
	}
	if n := len(st.Status.Devices); n != 0 {
		raw, _ := json.Marshal(st.Status.Devices)
		return "", fmt.Errorf("laptop still lists %d devices: %s", n, strings.TrimSpace(string(raw)))
	}
	return "both sides have forgotten each other", nil
}
