package kith_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/control"
	"github.com/kithproject/kith/internal/nettest"
)

// What issue 6 asks of a large room on a small machine, with some room for other work on
// it: the test fails beyond, the table says what was measured.
const (
	mostJoined = 30 * time.Second      // until all are in the room
	mostLine   = 50 * time.Millisecond // a line to all, on top of two round trips
	mostMember = 2 << 20               // bytes that a member costs the host
	mostIdle   = 0.01                  // of a core
	mostFirst  = 2 * time.Second       // from join to the first line
)

// A crowd is a room of many devices, each a process of its own in a home of its own.
type crowd struct {
	t    *testing.T
	host *station
	all  []*station // the host first
	code string     // a file
	lab  *roomLab
}

// newCrowd starts a hub and n daemons behind NATs. KITH_ROOM_RTT is how long a round trip
// between two of those takes at least.
func newCrowd(ctx context.Context, t *testing.T, n int) *crowd {
	t.Helper()
	l := newRoomLab(ctx, t)
	if text := os.Getenv("KITH_ROOM_RTT"); text != "" {
		rtt, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		l.inet.Delay(rtt / 2)
	}
	c := &crowd{t: t, host: l.host, all: []*station{l.host}, lab: l, code: l.code}
	for i := 1; i < n; i++ {
		name := fmt.Sprintf("m%02d", i)
		s := newStation(t, l.inet.Site(name, nettest.NATEasy).Host(name))
		s.run(ctx, "config", "rendezvous", "lan", "off")
		s.run(ctx, "config", "hub", l.text)
		c.all = append(c.all, s)
	}
	for _, s := range c.all {
		s.daemon(ctx)
	}
	return c
}

// found founds the room.
func (c *crowd) found(ctx context.Context) {
	c.t.Helper()
	var made struct{ Words string }
	out := c.host.run(ctx, "room", "create", "friends", "--password-file", c.lab.secret, "--json")
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.code, []byte(made.Words), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// join has all members enter the code at the same moment, and returns when the last
// command has said that it is in the room, and when all see all.
func (c *crowd) join(ctx context.Context) (joined, seen time.Duration) {
	c.t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for _, s := range c.all[1:] {
		wg.Go(func() { s.run(ctx, "room", "join", "--code-file", c.code, "--password-file", c.lab.secret) })
	}
	wg.Wait()
	joined = time.Since(start)
	for _, s := range c.all {
		s.untilRoom(ctx, c.t, "all there", everybody(len(c.all)))
	}
	return joined, time.Since(start)
}

// A reader is one member's chat window: a request to its daemon.
type reader struct {
	name string
	call *control.Call
	came map[string]time.Time // when a line was shown
	mu   sync.Mutex           // guards came
	news chan struct{}        // a token when came grows
}

// read opens a chat window at a member.
func (s *station) read(ctx context.Context) *reader {
	s.t.Helper()
	client, err := control.Connect(ctx, s.home)
	if err != nil {
		s.t.Fatal(err)
	}
	call, err := client.Call(ctx, control.Request{Op: control.OpChat, Device: "friends"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(call.Close)
	if _, err := call.Next(); err != nil {
		s.t.Fatal(err)
	}
	r := &reader{name: s.host.Name, call: call, came: make(map[string]time.Time), news: make(chan struct{}, 1)}
	go func() {
		for {
			reply, err := call.Next()
			if err != nil {
				return
			}
			if m := reply.Chat; m != nil {
				r.mu.Lock()
				r.came[m.Text] = time.Now()
				r.mu.Unlock()
				select {
				case r.news <- struct{}{}:
				default:
				}
			}
		}
	}()
	return r
}

// await returns when a line was shown.
func (r *reader) await(ctx context.Context, t *testing.T, text string) time.Time {
	t.Helper()
	for {
		r.mu.Lock()
		at, ok := r.came[text]
		r.mu.Unlock()
		if ok {
			return at
		}
		select {
		case <-r.news:
		case <-ctx.Done():
			t.Fatalf("%s: no line %q", r.name, text)
		}
	}
}

// line writes a line at one member and returns how long it took until it was durable and
// shown at all others.
func line(ctx context.Context, t *testing.T, windows []*reader, from int, text string) (took []time.Duration) {
	t.Helper()
	start := time.Now()
	if err := windows[from].call.Send(control.Input{Text: text}); err != nil {
		t.Fatal(err)
	}
	for i, r := range windows {
		if i != from {
			took = append(took, r.await(ctx, t, text).Sub(start))
		}
	}
	slices.Sort(took)
	return took
}

// lines writes lines at members and returns how long each took to reach the last one.
func (c *crowd) lines(ctx context.Context, windows []*reader, n int, from func(int) int) (last, median []time.Duration) {
	c.t.Helper()
	for i := range n {
		rest(ctx, c.t, 2500*time.Millisecond) // what follows the line before is over
		took := line(ctx, c.t, windows, from(i), fmt.Sprintf("line %d of %d", i, time.Now().UnixNano()))
		last, median = append(last, took[len(took)-1]), append(median, took[len(took)/2])
	}
	return last, median
}

// resident is how much memory a process has, in bytes.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// used is how much time a process has spent on processors.
func used(t *testing.T, pid int) time.Duration {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])) // from the third on
	var ticks time.Duration
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * (time.Second / 100) // USER_HZ
}

// idle watches all processes while nothing happens and returns which share of a core each
// of them takes.
func (c *crowd) idle(ctx context.Context, watch time.Duration) (shares []float64) {
	c.t.Helper()
	before := make([]time.Duration, len(c.all))
	start := time.Now()
	for i, s := range c.all {
		before[i] = used(c.t, s.up.PID())
	}
	rest(ctx, c.t, watch)
	for i, s := range c.all {
		shares = append(shares, (used(c.t, s.up.PID())-before[i]).Seconds()/time.Since(start).Seconds())
	}
	return shares
}

// roundTrip is that of a ping through the tunnel.
func (c *crowd) roundTrip(ctx context.Context, from *station, to string) time.Duration {
	c.t.Helper()
	client, err := control.Connect(ctx, from.home)
	if err != nil {
		c.t.Fatal(err)
	}
	var all []time.Duration
	for range 9 {
		r, err := client.Do(ctx, control.Request{Op: control.OpPing, Device: to, Wait: 10 * time.Second})
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, r.Ping.RTT)
	}
	return half(all)
}

func half(all []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

// A crowdPlan is how large a room is, and for how long it is watched.
type crowdPlan struct {
	members, lines int
	quiet, watch   time.Duration
}

// TestNetworkCrowd has many devices, each a process behind a NAT of its own, enter a room
// at once, write lines to all, and then be quiet. KITH_ROOM_BENCH is how many; then it
// takes minutes, and fails if it needs more than docs/rooms.md promises: make room-bench.
func TestNetworkCrowd(t *testing.T) {
	plan, limit := crowdPlan{members: 6, lines: 2, quiet: time.Second, watch: time.Second}, netTimeout
	bench := os.Getenv("KITH_ROOM_BENCH") != ""
	if bench {
		n, err := strconv.Atoi(os.Getenv("KITH_ROOM_BENCH"))
		if err != nil || n < 3 {
			t.Fatal("KITH_ROOM_BENCH is a number of members from 3")
		}
		plan, limit = crowdPlan{members: n, lines: 20, quiet: 3 * time.Minute, watch: time.Minute}, 12*time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c := newCrowd(ctx, t, plan.members)
	c.found(ctx)
	alone := resident(t, c.host.up.PID())
	joined, seen := c.join(ctx)
	c.report("all have joined", joined.Round(10*time.Millisecond).String(), !bench || joined <= mostJoined)
	c.report("all see all", seen.Round(10*time.Millisecond).String(), true)
	var windows []*reader
	for _, s := range c.all {
		windows = append(windows, s.read(ctx))
	}
	line(ctx, t, windows, 0, "from the host at first")
	line(ctx, t, windows, 1, "from a member at first")
	rest(ctx, t, plan.quiet/6) // connections that are tried at first are there, or given up
	rtt := c.roundTrip(ctx, c.all[1], c.host.host.Name+"@friends")
	c.report("round trip", ms(rtt), true)
	for _, by := range []struct {
		who  string
		from func(int) int
	}{
		{"host", func(int) int { return 0 }},
		{"member", func(i int) int { return 1 + i*7%(len(c.all)-1) }},
	} {
		last, median := c.lines(ctx, windows, plan.lines, by.from)
		took := half(last)
		c.report("a line by a "+by.who+" is shown to the last member, median", ms(took), !bench || took <= 2*rtt+mostLine)
		c.report("  … to half of the members", ms(half(median)), true)
		c.report("  … the slowest line", ms(slices.Max(last)), true)
	}
	c.report("memory of the host for each member", fmt.Sprintf("%d KiB", c.grown(alone)>>10), true)
	rest(ctx, t, plan.quiet)
	shares := c.idle(ctx, plan.watch)
	c.report("the idle host takes of a core", fmt.Sprintf("%.2f %%", 100*shares[0]), !bench || shares[0] <= mostIdle)
	others := slices.Sorted(slices.Values(shares[1:]))
	c.report("an idle member, median and most", fmt.Sprintf("%.2f %%, %.2f %%", 100*others[len(others)/2], 100*others[len(others)-1]), true)
	grown := c.grown(alone)
	c.report("memory of the host for each member then", fmt.Sprintf("%d KiB", grown>>10), !bench || grown <= mostMember)
	c.report("memory of a member, median", fmt.Sprintf("%.1f MiB", float64(c.memberMemory())/(1<<20)), true)
}

// report says a figure, and that it is not what was promised.
func (c *crowd) report(what, figure string, well bool) {
	c.t.Helper()
	c.t.Logf("%-60s %s", what, figure)
	if !well {
		c.t.Errorf("%s: %s is too much", what, figure)
	}
}

// grown is by how much the host's process is larger than when it was alone in the room,
// for each of the others.
func (c *crowd) grown(alone int64) int64 {
	return (resident(c.t, c.host.up.PID()) - alone) / int64(len(c.all)-1)
}

// memberMemory is the median of what the members' processes have in memory.
func (c *crowd) memberMemory() int64 {
	var all []int64
	for _, s := range c.all[1:] {
		all = append(all, resident(c.t, s.up.PID()))
	}
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

// TestNetworkFirstLine has a fresh device behind an easy NAT enter a room, write a line and
// get an answer, with a hub. KITH_ROOM_FIRST is how often; then it fails if that takes
// longer than docs/rooms.md promises: make room-bench.
func TestNetworkFirstLine(t *testing.T) {
	runs, limit := 2, netTimeout
	bench := os.Getenv("KITH_ROOM_FIRST") != ""
	if bench {
		n, err := strconv.Atoi(os.Getenv("KITH_ROOM_FIRST"))
		if err != nil || n < 1 {
			t.Fatal("KITH_ROOM_FIRST is how often a device enters the room")
		}
		runs, limit = n, netTimeout+time.Duration(n)*10*time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c := newCrowd(ctx, t, 1)
	c.found(ctx)
	window := c.host.read(ctx)
	home := c.lab.inet.Site("guest", nettest.NATEasy).Host("guest")
	var joined, first, answered []time.Duration
	for i := range runs {
		s := newStation(t, home)
		s.run(ctx, "config", "rendezvous", "lan", "off")
		s.run(ctx, "config", "hub", c.lab.text)
		s.daemon(ctx)
		hello, welcome := fmt.Sprintf("hello %d", i), fmt.Sprintf("welcome %d", i)
		start := time.Now()
		s.run(ctx, "room", "join", "--code-file", c.code, "--password-file", c.lab.secret)
		joined = append(joined, time.Since(start))
		chat := s.start("chat", "--plain", "friends")
		chat.Say(hello)
		first = append(first, window.await(ctx, t, hello).Sub(start))
		if err := window.call.Send(control.Input{Text: welcome}); err != nil {
			t.Fatal(err)
		}
		chat.Await(ctx, welcome)
		answered = append(answered, time.Since(start))
		chat.Stop()
		c.host.run(ctx, "room", "kick", "friends", "guest")
		s.up.Stop()
	}
	c.report("from the command to the answer that it is in, median", ms(half(joined)), true)
	c.report("… to its first line at the host, median", ms(half(first)), !bench || half(first) <= mostFirst)
	c.report("  … the slowest", ms(slices.Max(first)), true)
	c.report("… to the host's answer here, median", ms(half(answered)), !bench || half(answered) <= mostFirst)
	c.report("  … the slowest", ms(slices.Max(answered)), true)
}
