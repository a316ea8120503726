package kith_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
)

// lanNode is a node that meets others on this machine's LAN driver.
func lanNode(b *testing.B, dir, name string) *kith.Node {
	b.Helper()
	n, err := kith.Open(b.Context(), kith.Config{Dir: dir, Name: name, NoDHT: true, Loopback: true})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// reportMedian reports the median of several times instead of their mean.
func reportMedian(b *testing.B, times []time.Duration, what string) {
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, what)
	b.ReportMetric(0, "ns/op")
}

// pairQuick pairs two nodes as --yes does, and returns the time from the entered
// code to "paired" on both sides.
func pairQuick(ctx context.Context, b *testing.B, x, y *kith.Node) time.Duration {
	b.Helper()
	offer, err := x.Offer(ctx, kith.OfferConfig{AutoAccept: true})
	if err != nil {
		b.Fatal(err)
	}
	words := offer.Code().Words()
	start := time.Now()
	c, err := code.Parse(words, start)
	if err != nil {
		b.Fatal(err)
	}
	join, err := y.Join(ctx, c, kith.JoinConfig{AutoAccept: true})
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range []*kith.Pairing{offer, join} {
		if _, err := p.Wait(ctx); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start)
}

// BenchmarkPair: from the last word typed to "paired" on both sides, on one LAN.
// The target is a median under 300 ms.
func BenchmarkPair(b *testing.B) {
	var times []time.Duration
	for b.Loop() {
		x, y := lanNode(b, filepath.Join(b.TempDir(), "x"), "desk"), lanNode(b, filepath.Join(b.TempDir(), "y"), "laptop")
		times = append(times, pairQuick(b.Context(), b, x, y))
		x.Close()
		y.Close()
	}
	reportMedian(b, times, "ms/pairing")
}

// BenchmarkStartToPing: from the start of both nodes to the first ping answered.
// The target is a median under 1 s.
func BenchmarkStartToPing(b *testing.B) {
	dx, dy := filepath.Join(b.TempDir(), "x"), filepath.Join(b.TempDir(), "y")
	x, y := lanNode(b, dx, "desk"), lanNode(b, dy, "laptop")
	pairQuick(b.Context(), b, x, y)
	x.Close()
	y.Close()
	var times []time.Duration
	for b.Loop() {
		start := time.Now()
		x, y := lanNode(b, dx, "desk"), lanNode(b, dy, "laptop")
		if _, err := x.Ping(b.Context(), "laptop"); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
		x.Close()
		y.Close()
	}
	reportMedian(b, times, "ms/first-ping")
}

// process is the real command as a daemon.
func process(b *testing.B, kithBin, home string) *exec.Cmd {
	b.Helper()
	cmd := exec.Command(kithBin, "--home", home, "--loopback", "up")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return cmd
}

func runKith(b *testing.B, kithBin string, args ...string) string {
	b.Helper()
	out, err := exec.Command(kithBin, args...).CombinedOutput()
	if err != nil {
		b.Fatalf("kith %v: %v: %s", args, err, out)
	}
	return string(out)
}

// pairedProcesses starts two daemons that are paired and connected.
func pairedProcesses(b *testing.B) (kithBin string, homes [2]string, cmds [2]*exec.Cmd) {
	b.Helper()
	kithBin, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	root, err := os.MkdirTemp("", "kb")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(root) })
	homes = [2]string{filepath.Join(root, "x"), filepath.Join(root, "y")}
	x, y := lanNode(b, homes[0], "desk"), lanNode(b, homes[1], "laptop")
	pairQuick(b.Context(), b, x, y)
	x.Close()
	y.Close()
	for i, h := range homes {
		cmds[i] = process(b, kithBin, h)
		b.Cleanup(func() {
			_ = cmds[i].Process.Kill()
			_ = cmds[i].Wait()
		})
	}
	awaitPing(b, kithBin, homes[0], "laptop")
	return kithBin, homes, cmds
}

// awaitPing asks until a daemon is there and its ping is answered.
func awaitPing(b *testing.B, kithBin, home, device string) {
	b.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for exec.Command(kithBin, "--home", home, "ping", "-c", "1", device).Run() != nil {
		if time.Now().After(deadline) {
			b.Fatal("no ping was answered")
		}
	}
}

// BenchmarkKillToPing: from the restart after kill -9 of one side to the first
// ping answered. The target is under 2 s.
func BenchmarkKillToPing(b *testing.B) {
	kithBin, homes, cmds := pairedProcesses(b)
	var times []time.Duration
	for b.Loop() {
		_ = cmds[1].Process.Kill()
		_ = cmds[1].Wait()
		start := time.Now()
		cmds[1] = process(b, kithBin, homes[1])
		awaitPing(b, kithBin, homes[1], "desk")
		times = append(times, time.Since(start))
	}
	reportMedian(b, times, "ms/first-ping")
}

// BenchmarkIdle: resident memory and CPU of a daemon that is connected to one
// device and has nothing to do. The targets are 40 MiB and 0.2 % of one core.
func BenchmarkIdle(b *testing.B) {
	kithBin, homes, cmds := pairedProcesses(b)
	const watch = 30 * time.Second
	pid := cmds[0].Process.Pid
	for b.Loop() {
		before := cpuTime(b, pid)
		timer := time.NewTimer(watch)
		<-timer.C
		used := cpuTime(b, pid) - before
		b.ReportMetric(100*used.Seconds()/watch.Seconds(), "%core")
	}
	b.ReportMetric(residentMiB(b, pid), "MiB")
	b.ReportMetric(0, "ns/op")
	var st kith.Status
	if err := json.Unmarshal([]byte(runKith(b, kithBin, "--home", homes[0], "status", "--json")), &st); err != nil || !st.Devices[0].Connected {
		b.Fatalf("the device is not connected any more: %v", err)
	}
}

func cpuTime(b testing.TB, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		b.Skip("this kernel does not count CPU time per process: ", err)
	}
	// The main thread alone; the others are in task/*/schedstat.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(raw) == 0 {
		b.Fatal(err)
	}
	var sum time.Duration
	for _, t := range tasks {
		raw, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		ns, err := strconv.ParseInt(strings.Fields(string(raw))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

func residentMiB(b *testing.B, pid int) float64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
