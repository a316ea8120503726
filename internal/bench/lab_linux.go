package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kithproject/kith/internal/wan"
)

// The addresses of the two ends on their LAN.
const (
	serverIP = "10.99.0.1"
	clientIP = "10.99.0.2"
	ifName   = "veth0"
)

// A lab is two namespaces with a veth pair between them, and a home with a NAT
// around each (homes_linux.go).
type lab struct {
	server, client, serverRouter, clientRouter, public string
	way                                                *wan.Way // instead of the veth pair, or nil
}

func newLab(ctx context.Context, opt options, homes bool) (*lab, error) {
	name := func(end string) string { return fmt.Sprintf("kithbench-%d-%s", os.Getpid(), end) }
	l := &lab{server: name("s"), client: name("c"), serverRouter: name("sr"), clientRouter: name("cr"), public: name("p")}
	size := strconv.Itoa(opt.mtu)
	steps := [][]string{
		{"netns", "add", l.server},
		{"netns", "add", l.client},
		{"-n", l.server, "link", "set", "lo", "up"},
		{"-n", l.client, "link", "set", "lo", "up"},
	}
	far := opt.wan.Delay > 0
	if !far {
		steps = append(steps, [][]string{
			{"link", "add", ifName, "netns", l.server, "mtu", size, "type", "veth", "peer", "name", ifName, "netns", l.client, "mtu", size},
			{"-n", l.server, "addr", "add", serverIP + "/24", "dev", ifName},
			{"-n", l.client, "addr", "add", clientIP + "/24", "dev", ifName},
			{"-n", l.server, "link", "set", ifName, "up"},
			{"-n", l.client, "link", "set", ifName, "up"},
		}...)
	}
	if homes {
		steps = append(steps, l.homes(size)...)
	}
	for _, args := range steps {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil { //nolint:noctx // done in milliseconds
			l.close()
			return nil, fmt.Errorf("bench: ip %v: %w: %s", args, err, out)
		}
	}
	if far {
		var err error
		l.way, err = wan.Join(ctx, wan.End{Namespace: l.server, Interface: ifName, Address: serverIP + "/24"},
			wan.End{Namespace: l.client, Interface: ifName, Address: clientIP + "/24"}, opt.wan)
		if err != nil {
			l.close()
			return nil, err
		}
	}
	if homes {
		if err := l.routers(); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

func (l *lab) close() {
	if l.way != nil {
		l.way.Close()
	}
	for _, ns := range []string{l.server, l.client, l.serverRouter, l.clientRouter, l.public} {
		_ = exec.Command("ip", "netns", "del", ns).Run() //nolint:noctx // also after an interrupt; it may not exist
	}
}

// An end is a running process of one side.
type end struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	hub string // its address, of a hub
}

// startEnd runs this program again inside a namespace and waits until it is ready.
func startEnd(ctx context.Context, ns string, cfg sideConfig) (*end, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	e := &end{cmd: exec.CommandContext(ctx, "ip", "netns", "exec", ns, self, sideCommand, string(text))}
	e.cmd.Stderr = os.Stderr
	e.cmd.WaitDelay = time.Second
	if e.in, err = e.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e.out = bufio.NewReader(out)
	if err := e.cmd.Start(); err != nil {
		return nil, fmt.Errorf("bench: start %s: %w", cfg.Side, err)
	}
	ready, err := e.reply()
	if err != nil {
		return nil, errors.Join(err, e.quit())
	}
	e.hub = ready.Hub
	return e, nil
}

func (e *end) reply() (mark, error) {
	var m mark
	line, err := e.out.ReadBytes('\n')
	if err != nil {
		return m, fmt.Errorf("bench: an end died: %w", err)
	}
	return m, json.Unmarshal(line, &m)
}

// mark asks for the counters.
func (e *end) mark() (mark, error) {
	if _, err := io.WriteString(e.in, "mark\n"); err != nil {
		return mark{}, err
	}
	return e.reply()
}

// quit ends the process by closing its standard input, and waits.
func (e *end) quit() error {
	e.in.Close()
	return e.cmd.Wait()
}

// measure runs all rounds.
func measure(ctx context.Context, opt options, progress io.Writer) (*result, error) {
	if os.Geteuid() != 0 {
		return nil, errUnsupported
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errUnsupported
	}
	homes := slices.ContainsFunc(opt.ways, behindNATs)
	if _, err := exec.LookPath("nft"); homes && err != nil {
		fmt.Fprintln(progress, "bench: what goes through NATs is left out: there is no command nft")
		opt.ways = slices.DeleteFunc(slices.Clone(opt.ways), behindNATs)
		homes = false
	}
	l, err := newLab(ctx, opt, homes)
	if err != nil {
		return nil, err
	}
	defer l.close()
	res := &result{}
	for round := range opt.rounds {
		for _, way := range opt.ways {
			s, err := l.run(ctx, opt, way, round)
			if err != nil {
				return nil, fmt.Errorf("bench: %s: %w", way, err)
			}
			res.add(way, s)
			fmt.Fprintf(progress, "round %d  %-15s %6.2f Gbit/s  %6.2f CPU-s/GB\n", round+1, way, s.gbit(), s.cpuPerGB())
		}
	}
	return res, nil
}

// run measures one way once.
func (l *lab) run(ctx context.Context, opt options, way string, round int) (s sample, err error) {
	// Nothing waits for ever: an end that hangs is killed with this context.
	ctx, cancel := context.WithTimeout(ctx, opt.time+opt.warm+30*time.Second)
	defer cancel()
	cfg := sideConfig{Side: sideServer, Way: way, Streams: opt.streams}
	profile := func(side string) string {
		if opt.profile == "" {
			return ""
		}
		return filepath.Join(opt.profile, fmt.Sprintf("%s-%s-%d.pprof", way, side, round+1))
	}
	ends := make([]*end, 0, 3)
	if way == wayRelay || way == wayRelayDown {
		hub, err := startEnd(ctx, l.public, sideConfig{Side: sideHub, Way: way, Profile: profile(sideHub)})
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, hub.quit()) }()
		ends, cfg.Hub = append(ends, hub), hub.hub
	}
	cfg.Profile = profile(sideServer)
	server, err := startEnd(ctx, l.server, cfg)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.quit()) }()
	cfg.Side, cfg.Profile = sideClient, profile(sideClient)
	client, err := startEnd(ctx, l.client, cfg)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, client.quit()) }()
	if err := wait(ctx, opt.warm); err != nil {
		return s, err
	}
	ends = append(ends, client, server)
	before, err := marks(ends)
	if err != nil {
		return s, err
	}
	if err := wait(ctx, opt.time); err != nil {
		return s, err
	}
	after, err := marks(ends)
	if err != nil {
		return s, err
	}
	s = sample{bytes: after.Bytes - before.Bytes, seconds: after.At - before.At, cpu: after.CPU - before.CPU, hub: after.HubCPU - before.HubCPU}
	if s.bytes <= 0 || s.seconds <= 0 {
		return s, errors.New("no data arrived")
	}
	return s, nil
}

// marks returns the counters of all: CPU time of both ends, that of the hub, which
// is the first of three, and bytes and time of the server, which is the last.
func marks(ends []*end) (mark, error) {
	var all mark
	for i, e := range ends {
		m, err := e.mark()
		if err != nil {
			return mark{}, err
		}
		if len(ends) == 3 && i == 0 {
			all.HubCPU = m.CPU
			continue
		}
		all.CPU += m.CPU
		all.Bytes, all.At = m.Bytes, m.At
	}
	return all, nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
