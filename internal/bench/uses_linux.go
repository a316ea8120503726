package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
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
	"time"

	"github.com/kithproject/kith/internal/wan"
)

// The ports of the tools.
const (
	takePort = 5001
	webPort  = 8080
	askPort  = 8081 // where the client's end of the forward listens
)

// onlyUDP are rules for a device behind which no TCP gets through, so that files take
// the tunnel.
const onlyUDP = "table inet kithbench { chain in { type filter hook input priority 0; iifname != lo meta l4proto tcp drop; }; " +
	"chain out { type filter hook output priority 0; oifname != lo meta l4proto tcp drop; }; }"

// A useLab measures what programs see: files and ports between two devices that run the
// kith command.
type useLab struct {
	opt      appOptions
	progress io.Writer
	bin      string
	dir      string // on tmpfs
	lab      *lab
	server   *daemon
	client   *daemon
	res      useResult
}

// measureUses runs all rows.
func measureUses(ctx context.Context, opt appOptions, progress io.Writer) (*useResult, error) {
	if os.Geteuid() != 0 {
		return nil, errUnsupported
	}
	for _, name := range []string{"ip", "nft", "tar", "go"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, errUnsupported
		}
	}
	dir, err := os.MkdirTemp("/dev/shm", "kithbench")
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	defer os.RemoveAll(dir)
	u := &useLab{opt: opt, progress: progress, bin: filepath.Join(dir, "kith"), dir: dir}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", u.bin, "./cmd/kith")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("bench: go build ./cmd/kith, from the top of the repository: %w: %s", err, out)
	}
	for _, part := range []struct {
		name string
		far  *wan.Config
		udp  bool
		run  func(context.Context) error
	}{
		{rowLAN, nil, false, u.largeFile},
		{rowTunnel, nil, true, u.largeFileTunnel},
		{rowSmall, nil, false, u.smallFiles},
		{rowForward, nil, false, u.forward},
		{rowAsk, &wan.Config{Delay: askRTT / 2}, false, u.requests},
		{rowLossy, &wan.Config{Delay: 10 * time.Millisecond, Loss: 0.01, Rate: 300e6, Queue: 40 * time.Millisecond}, true, u.lossy},
	} {
		if !opt.wants(part.name) {
			continue
		}
		if err := u.between(ctx, part.far, part.udp, part.run); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return &u.res, nil
}

// between makes a network with two paired devices for one part.
func (u *useLab) between(ctx context.Context, far *wan.Config, udp bool, run func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	opt := options{mtu: 1500}
	if far != nil {
		opt.wan = *far
	}
	if u.lab, err = newLab(ctx, opt, false); err != nil {
		return err
	}
	defer u.lab.close()
	state, err := os.MkdirTemp(u.dir, "state")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	if u.server, err = newDaemon(u.bin, u.lab.server, state, nameServer); err != nil {
		return err
	}
	if u.client, err = newDaemon(u.bin, u.lab.client, state, nameClient); err != nil {
		return err
	}
	defer u.server.down()
	defer u.client.down()
	if err := pair(ctx, u.server, u.client); err != nil {
		return err
	}
	if udp {
		if err := u.nft(ctx, onlyUDP); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"allow", nameClient, "files"}, {"allow", nameClient, strconv.Itoa(webPort)}} {
		if err := u.server.run(ctx, args...); err != nil {
			return err
		}
	}
	return run(ctx)
}

func (u *useLab) nft(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", u.lab.client, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("bench: nft: %w: %s", err, out)
	}
	return nil
}

func (u *useLab) say(row, way string, s sample, more string) {
	fmt.Fprintf(u.progress, "%-9s %-14s %7.3f Gbit/s  %6.2f CPU-s/GB  %s\n", row, way, s.gbit(), s.cpuPerGB(), more)
}

// tool runs a tool in a namespace. begun, if not nil, is called when it is ready.
func (u *useLab) tool(ctx context.Context, ns string, cfg toolConfig, begun func() error) (r toolResult, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", ns, self, toolCommand, string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, err
	}
	lines := bufio.NewReader(out)
	if begun != nil {
		if _, err = lines.ReadString('\n'); err == nil {
			err = begun()
		}
		if cfg.Tool == toolServe || err != nil {
			cancel() // it has no end of its own
			_ = cmd.Wait()
			return r, err
		}
	}
	err = json.NewDecoder(lines).Decode(&r)
	return r, errors.Join(err, cmd.Wait())
}

// random writes a file that cannot be compressed.
func random(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := io.CopyN(w, r, size); err != nil {
		return err
	}
	return w.Flush()
}

// same errs unless two files have the same bytes.
func same(ctx context.Context, a, b string) error {
	if out, err := exec.CommandContext(ctx, "cmp", a, b).CombinedOutput(); err != nil {
		return fmt.Errorf("bench: what arrived is not what was sent: %w: %s", err, out)
	}
	return nil
}

// send sends a path from the client to the server, and takes it away there.
func (u *useLab) send(ctx context.Context, path string, bytes float64) (s sample, peak float64, err error) {
	before, err := u.usages()
	if err != nil {
		return s, 0, err
	}
	for _, d := range []*daemon{u.server, u.client} {
		if err := d.forgetPeak(); err != nil {
			return s, 0, err
		}
	}
	idle := [2]float64{before[0].rss, before[1].rss}
	start := time.Now()
	if err := u.client.run(ctx, "send", "--json", path, nameServer); err != nil {
		return s, 0, err
	}
	s = sample{bytes: bytes, seconds: time.Since(start).Seconds()}
	after, err := u.usages()
	if err != nil {
		return s, 0, err
	}
	for i := range after {
		s.cpu += after[i].cpu - before[i].cpu
		peak = max(peak, after[i].peak-idle[i])
	}
	arrived := filepath.Join(u.server.inbox, filepath.Base(path))
	if i, err := os.Stat(path); err == nil && !i.IsDir() {
		if err := same(ctx, path, arrived); err != nil {
			return s, 0, err
		}
	}
	return s, peak, os.RemoveAll(arrived)
}

func (u *useLab) usages() (out [2]usage, err error) {
	for i, d := range []*daemon{u.server, u.client} {
		if out[i], err = d.usage(); err != nil {
			return out, err
		}
	}
	return out, nil
}

// plain sends a file over one TLS stream, with io.Copy at both ends.
func (u *useLab) plain(ctx context.Context, path string) (s sample, err error) {
	at, copied := net.JoinHostPort(serverIP, strconv.Itoa(takePort)), filepath.Join(u.dir, "plain")
	defer os.Remove(copied)
	var sent toolResult
	start := time.Now()
	got, err := u.tool(ctx, u.lab.server, toolConfig{Tool: toolTake, Address: at, File: copied}, func() error {
		start = time.Now()
		sent, err = u.tool(ctx, u.lab.client, toolConfig{Tool: toolGive, Address: at, File: path}, nil)
		s.seconds = time.Since(start).Seconds()
		return err
	})
	s.bytes, s.cpu = got.Bytes, got.CPU+sent.CPU
	return s, err
}

// largeFile is one file over a lane, beside plain TLS.
func (u *useLab) largeFile(ctx context.Context) error {
	file := filepath.Join(u.dir, "large")
	if err := random(file, u.opt.size); err != nil {
		return err
	}
	defer os.Remove(file)
	for range u.opt.rounds {
		p, err := u.plain(ctx, file)
		if err != nil {
			return err
		}
		u.say(rowLAN, wayTLS, p, "")
		s, peak, err := u.send(ctx, file, float64(u.opt.size))
		if err != nil {
			return err
		}
		u.say(rowLAN, waySend, s, fmt.Sprintf("%.0f MiB above idle", peak))
		u.res.add(rowLAN, wayTLS, p)
		u.res.add(rowLAN, waySend, s)
		u.res.peak = append(u.res.peak, peak)
	}
	return nil
}

// largeFileTunnel is one file through the tunnel, beside a stream of the tunnel.
func (u *useLab) largeFileTunnel(ctx context.Context) error {
	file := filepath.Join(u.dir, "large")
	if err := random(file, u.opt.size/4); err != nil {
		return err
	}
	defer os.Remove(file)
	return u.serving(ctx, func(url string) error {
		for range u.opt.rounds {
			p, err := u.load(ctx, url, 1)
			if err != nil {
				return err
			}
			u.say(rowTunnel, wayStream, p, "")
			s, _, err := u.send(ctx, file, float64(u.opt.size/4))
			if err != nil {
				return err
			}
			u.say(rowTunnel, waySend, s, "")
			u.res.add(rowTunnel, wayStream, p)
			u.res.add(rowTunnel, waySend, s)
		}
		return nil
	})
}

// serving runs the web server at one device, and the forward to it at the other.
func (u *useLab) serving(ctx context.Context, run func(url string) error) error {
	_, err := u.tool(ctx, u.lab.server, toolConfig{Tool: toolServe, Address: "127.0.0.1:" + strconv.Itoa(webPort)}, func() error {
		local := "127.0.0.1:" + strconv.Itoa(askPort)
		_, forward, err := follow(u.client.command(ctx, "forward", local, nameServer+":"+strconv.Itoa(webPort)), "is port")
		if err != nil {
			return err
		}
		defer forward.stop()
		return run("http://" + local + "/")
	})
	return err
}

// load downloads over a number of connections; CPU time is that of both daemons.
func (u *useLab) load(ctx context.Context, url string, conns int) (s sample, err error) {
	before, err := u.usages()
	if err != nil {
		return s, err
	}
	r, err := u.tool(ctx, u.lab.client, toolConfig{Tool: toolLoad, URL: url + strconv.Itoa(64<<20), Conns: conns, For: u.opt.time}, nil)
	if err != nil {
		return s, err
	}
	after, err := u.usages()
	if err != nil {
		return s, err
	}
	s = sample{bytes: r.Bytes, seconds: r.Seconds}
	const begun = 0.5 // seconds, which load does not count
	for i := range after {
		s.cpu += (after[i].cpu - before[i].cpu) * r.Seconds / (r.Seconds + begun)
	}
	return s, nil
}

func (u *useLab) forward(ctx context.Context) error {
	return u.serving(ctx, func(url string) error {
		for range u.opt.rounds {
			for _, way := range []string{wayStream, wayMany} {
				s, err := u.load(ctx, url, map[string]int{wayStream: 1, wayMany: manyConns}[way])
				if err != nil {
					return err
				}
				u.say(rowForward, way, s, "")
				u.res.add(rowForward, way, s)
			}
		}
		return nil
	})
}

// requests are small ones through the forward, over a long way.
func (u *useLab) requests(ctx context.Context) error {
	return u.serving(ctx, func(url string) error {
		for range u.opt.rounds {
			for _, fresh := range []bool{false, true} {
				r, err := u.tool(ctx, u.lab.client, toolConfig{Tool: toolAsk, URL: url + "200", Conns: manyConns, For: u.opt.time, Fresh: fresh}, nil)
				if err != nil {
					return err
				}
				fmt.Fprintf(u.progress, "%-9s fresh %-5v  median %5.1f ms  p99 %5.1f ms  %d requests\n", rowAsk, fresh, 1e3*r.P50, 1e3*r.P99, r.Count)
				if fresh {
					u.res.fresh = append(u.res.fresh, r.P99)
				} else {
					u.res.kept = append(u.res.kept, r.P99)
				}
			}
		}
		return nil
	})
}

// lossy is one file through the tunnel over a way that loses packets.
func (u *useLab) lossy(ctx context.Context) error {
	const size = 600 << 20
	file := filepath.Join(u.dir, "lossy")
	if err := random(file, size); err != nil {
		return err
	}
	defer os.Remove(file)
	for range u.opt.rounds {
		s, _, err := u.send(ctx, file, size)
		if err != nil {
			return err
		}
		u.say(rowLossy, waySend, s, "")
		u.res.add(rowLossy, waySend, s)
	}
	return nil
}

// smallFiles are many, beside tar through a plain TCP connection.
func (u *useLab) smallFiles(ctx context.Context) error {
	dir := filepath.Join(u.dir, "many")
	defer os.RemoveAll(dir)
	content := bytes.Repeat([]byte("kith"), smallSize/4)
	for i := range u.opt.files {
		at := filepath.Join(dir, strconv.Itoa(i/1000))
		if i%1000 == 0 {
			if err := os.MkdirAll(at, 0o755); err != nil { //nolint:gosec // what tar writes is alike
				return err
			}
		}
		copy(content, strconv.Itoa(i))
		if err := os.WriteFile(filepath.Join(at, strconv.Itoa(i)), content, 0o644); err != nil { //nolint:gosec // as above
			return err
		}
	}
	total := float64(u.opt.files * smallSize)
	for range u.opt.rounds {
		p, err := u.tar(ctx, dir, total)
		if err != nil {
			return err
		}
		u.say(rowSmall, wayTar, p, fmt.Sprintf("%.2f s", p.seconds))
		s, peak, err := u.send(ctx, dir, total)
		if err != nil {
			return err
		}
		u.say(rowSmall, waySend, s, fmt.Sprintf("%.2f s, %.0f MiB above idle", s.seconds, peak))
		u.res.add(rowSmall, wayTar, p)
		u.res.add(rowSmall, waySend, s)
	}
	return nil
}

// tar is tar on both sides of a TCP connection, as tar | nc makes it, without a second
// copy of each byte.
func (u *useLab) tar(ctx context.Context, dir string, total float64) (s sample, err error) {
	to := filepath.Join(u.dir, "tarred")
	if err := os.MkdirAll(to, 0o700); err != nil {
		return s, err
	}
	defer os.RemoveAll(to)
	at := net.JoinHostPort(serverIP, strconv.Itoa(takePort))
	var seconds float64
	_, err = u.tool(ctx, u.lab.server, toolConfig{Tool: toolUntar, Address: at, File: to}, func() error {
		start := time.Now()
		_, err := u.tool(ctx, u.lab.client, toolConfig{Tool: toolTar, Address: at, File: dir}, nil)
		seconds = time.Since(start).Seconds()
		return err
	})
	return sample{bytes: total, seconds: seconds}, err
}
