package nettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	prefix   = "kithlab-"
	netnsDir = "/var/run/netns"
)

// A Lab is a set of hosts and switches that ends with its test.
type Lab struct {
	t    testing.TB
	name string
	sw   *Host // all bridges live in a namespace of their own
	n    int   // interfaces made
	inet *Internet
}

// labs counts the labs of this process, to name them apart.
var labs atomic.Int64 //nolint:gochecknoglobals // names in the kernel are global, too

// New makes an empty lab. It skips the test where there can be none.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "network namespaces need root")
	}
	for _, tool := range []string{"ip", "bridge", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			Skip(t, "network namespaces need the command "+tool)
		}
	}
	sweep()
	l := &Lab{t: t, name: fmt.Sprintf("%s%d-%d-", prefix, os.Getpid(), labs.Add(1))}
	l.sw = l.Host("switch")
	return l
}

// sweep removes namespaces of processes that have ended without cleaning up.
func sweep() {
	entries, err := os.ReadDir(netnsDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok {
			continue
		}
		pid, _, _ := strings.Cut(rest, "-")
		if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, fs.ErrNotExist) {
			_ = exec.Command("ip", "netns", "del", e.Name()).Run()
		}
	}
}

// A Host is one network namespace.
type Host struct {
	lab  *Lab
	Name string // as given to Lab.Host
	ns   string
	next int // number of the next interface
	at   *place
	dns  bool // it has a resolv.conf of its own

	ports []string // of its cables, in the switch's namespace
}

// Host makes a host with nothing but loopback.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	h := &Host{lab: l, Name: name, ns: l.name + name}
	l.run("ip", "netns", "add", h.ns)
	l.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", h.ns).CombinedOutput(); err != nil {
			l.t.Errorf("namespace %s stays: %v: %s", h.ns, err, out)
		}
	})
	// Addresses are usable at once: nobody else is here to be asked.
	h.sysctl("net/ipv6/conf/all/accept_dad", "0")
	h.sysctl("net/ipv6/conf/default/accept_dad", "0")
	h.IP("link", "set", "lo", "up")
	return h
}

// Namespace is what the command ip calls the host.
func (h *Host) Namespace() string { return h.ns }

func (h *Host) sysctl(key, value string) {
	h.Do(func() {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			h.lab.t.Logf("sysctl %s: %v", key, err)
		}
	})
}

func (l *Lab) run(name string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// IP runs the ip command in the host's namespace; a failure ends the test.
func (h *Host) IP(args ...string) {
	h.lab.t.Helper()
	h.lab.run("ip", append([]string{"-n", h.ns}, args...)...)
}

// A Bridge is a switch.
type Bridge struct {
	lab  *Lab
	name string // of the device in the switch's namespace
	ends []end
}

// An end is a host's interface and its port of a switch.
type end struct {
	host *Host
	port string // of the device in the switch's namespace
}

// Bridge makes a switch without ports. Its name has at most 8 characters.
func (l *Lab) Bridge(name string) *Bridge {
	l.t.Helper()
	b := &Bridge{lab: l, name: "br" + name}
	// Without snooping a multicast frame goes to every port, as on a hub.
	l.sw.IP("link", "add", b.name, "type", "bridge", "mcast_snooping", "0")
	l.sw.IP("link", "set", b.name, "up")
	return b
}

// Attach connects the host to a switch by a new interface, eth0, eth1 and so on,
// with addresses such as "10.0.0.1/24"; without any it has link-local IPv6 alone.
// It returns the host.
func (h *Host) Attach(b *Bridge, addrs ...string) *Host {
	h.lab.t.Helper()
	ifi := fmt.Sprintf("eth%d", h.next)
	h.next++
	h.lab.n++
	port := fmt.Sprintf("p%d", h.lab.n)
	h.lab.run("ip", "link", "add", port, "netns", h.lab.sw.ns, "type", "veth", "peer", "name", ifi, "netns", h.ns)
	h.lab.sw.IP("link", "set", port, "master", b.name, "up")
	b.ends = append(b.ends, end{h, port})
	h.ports = append(h.ports, port)
	h.IP("link", "set", ifi, "up")
	for _, a := range addrs {
		h.Addr(ifi, a)
	}
	return h
}

// Addr adds an address to an interface.
func (h *Host) Addr(ifi, addr string) {
	h.lab.t.Helper()
	if strings.Contains(addr, ":") {
		h.IP("addr", "add", addr, "dev", ifi, "nodad")
		return
	}
	h.IP("addr", "add", addr, "dev", ifi)
}

// Route adds a route, for example "default", "via", "10.0.0.1". It returns the
// host.
func (h *Host) Route(args ...string) *Host {
	h.lab.t.Helper()
	if len(args) > 2 && strings.Contains(args[2], ":") {
		args = append([]string{"-6", "route", "add"}, args...)
	} else {
		args = append([]string{"route", "add"}, args...)
	}
	h.IP(args...)
	return h
}

// Router lets the host forward packets between its interfaces.
func (h *Host) Router() *Host {
	h.sysctl("net/ipv4/ip_forward", "1")
	h.sysctl("net/ipv6/conf/all/forwarding", "1")
	return h
}

// Nft loads a ruleset for nft in the host's namespace; a failure ends the test.
func (h *Host) Nft(rules string) {
	h.lab.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", h.ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.lab.t.Fatalf("nft on %s: %v: %s", h.Name, err, out)
	}
}

// Command returns a command that runs on the host.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.ns, name}, args...)...)
}

// Output runs a command on the host and returns what it prints; a failure ends
// the test.
func (h *Host) Output(ctx context.Context, name string, args ...string) string {
	h.lab.t.Helper()
	cmd := h.Command(ctx, name, args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		h.lab.t.Fatalf("%s on %s: %v: %s%s", name, h.Name, err, out, errOut.String())
	}
	return string(out)
}

// Do calls f on the host: sockets that f opens belong to its namespace for good,
// whoever uses them. f must not start goroutines that open sockets.
func (h *Host) Do(f func()) {
	h.lab.t.Helper()
	var failed error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is not unlocked: it ends with the goroutine, so that no
		// other one ever runs in this namespace.
		runtime.LockOSThread()
		fd, err := unix.Open(filepath.Join(netnsDir, h.ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			failed = err
			return
		}
		defer unix.Close(fd)
		if failed = unix.Setns(fd, unix.CLONE_NEWNET); failed == nil {
			f()
		}
	}()
	<-done
	if failed != nil {
		h.lab.t.Fatalf("enter %s: %v", h.Name, failed)
	}
}

// Counter returns a counter of an interface, for example "tx_bytes".
func (h *Host) Counter(ctx context.Context, ifi, name string) int64 {
	h.lab.t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(h.Output(ctx, "cat", "/sys/class/net/"+ifi+"/statistics/"+name)), 10, 64)
	if err != nil {
		h.lab.t.Fatal(err)
	}
	return n
}
