// Package netmon lists the machine's network interfaces and says when they
// change: at once on Linux (netlink), and by looking every few seconds where the
// system tells nothing or does not allow to ask. Waking up from sleep, which shows
// as a jump of the wall clock, counts as a change.
package netmon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	defaultPoll     = 5 * time.Second
	defaultDebounce = 200 * time.Millisecond
	// wakeCheck is how often the wall clock is compared with the time that passed
	// for this program, and sleepJump what they differ by after a sleep: connections
	// and NAT mappings are as good as new then, although no address changed.
	wakeCheck = 5 * time.Second
	sleepJump = 10 * time.Second
)

// An Interface is one network interface and its addresses.
type Interface struct {
	Name         string
	Index        int            // the system's number of the interface
	MTU          int            // bytes
	Addrs        []netip.Prefix // unmapped, without zones: the zone is Name
	Up           bool
	NoCarrier    bool // it is up, but no cable is plugged in and no Wi-Fi joined, where the system tells
	Loopback     bool
	Multicast    bool
	PointToPoint bool
	Virtual      bool // a VPN's, container's or bridge's, by name
}

// Interfaces lists the interfaces, but for that of kith up --tun, which leads nowhere but
// into the tunnels. It errs if the system does not answer.
func Interfaces() ([]Interface, error) {
	list, err := netInterfaces()
	if err != nil {
		return nil, fmt.Errorf("netmon: list interfaces: %w", err)
	}
	out := make([]Interface, 0, len(list))
	for _, ifi := range list {
		i := Interface{
			Name: ifi.Name, Index: ifi.Index, MTU: ifi.MTU,
			Up:           ifi.Flags&net.FlagUp != 0,
			NoCarrier:    runtime.GOOS != "android" && ifi.Flags&net.FlagUp != 0 && ifi.Flags&net.FlagRunning == 0,
			Loopback:     ifi.Flags&net.FlagLoopback != 0,
			Multicast:    ifi.Flags&net.FlagMulticast != 0,
			PointToPoint: ifi.Flags&net.FlagPointToPoint != 0,
			Virtual:      virtual(ifi.Name),
		}
		addrs, err := interfaceAddrs(&ifi)
		if err != nil {
			continue // it went away while we looked
		}
		for _, a := range addrs {
			if p, ok := prefix(a); ok {
				i.Addrs = append(i.Addrs, p)
			}
		}
		if i.ours() {
			continue
		}
		out = append(out, i)
	}
	return out, nil
}

// ours reports whether an interface has addresses inside the tunnels alone.
func (i *Interface) ours() bool {
	other := func(p netip.Prefix) bool { return !identity.Prefix().Contains(p.Addr()) }
	return len(i.Addrs) > 0 && !slices.ContainsFunc(i.Addrs, other)
}

func prefix(a net.Addr) (netip.Prefix, bool) {
	n, ok := a.(*net.IPNet)
	if !ok {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if addr.Is4In6() {
		addr = addr.Unmap()
		if bits == 128 {
			ones -= 96
		}
	}
	return netip.PrefixFrom(addr, ones), true
}

// virtualNames are how VPNs, containers and bridges name their interfaces.
var virtualNames = []string{ //nolint:gochecknoglobals // a table
	"tun", "tap", "wg", "utun", "ppp", "tailscale", "zt", "nebula", "docker", "br-", "veth", "virbr", "vmnet",
	"vboxnet", "lxc", "lxd", "cni", "flannel", "cali", "podman", "ham", "ipsec", "gif", "stf", "awdl", "llw", "bridge",
}

func virtual(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(virtualNames, func(p string) bool { return strings.HasPrefix(name, p) })
}

// Config is what a Monitor may be given. The zero value asks the system.
type Config struct {
	Poll     time.Duration // how often to look where the system does not tell; default 5 s
	Debounce time.Duration // how long changes are collected before they are told; default 200 ms
	Logger   *slog.Logger  // default: discard
	// Source replaces the system in tests. Default: Interfaces.
	Source func() ([]Interface, error)
	// Wall replaces the wall clock in tests. Default: time.Now without its
	// monotonic reading.
	Wall func() time.Time
}

// A Monitor tells subscribers when interfaces or their addresses change. It is
// safe for concurrent use.
type Monitor struct {
	cfg Config

	mu   sync.Mutex // guards subs
	subs map[chan struct{}]struct{}
}

// New returns a Monitor. It does nothing until Run.
func New(cfg Config) *Monitor {
	if cfg.Poll <= 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Debounce <= 0 {
		cfg.Debounce = defaultDebounce
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Wall == nil {
		cfg.Wall = func() time.Time { return time.Now().Round(0) }
	}
	return &Monitor{cfg: cfg, subs: make(map[chan struct{}]struct{})}
}

// Interfaces lists the interfaces as this monitor sees them. It errs as the
// package's Interfaces does.
func (m *Monitor) Interfaces() ([]Interface, error) {
	if m.cfg.Source != nil {
		return m.cfg.Source()
	}
	return Interfaces()
}

// Subscribe returns a channel that holds one token after each change, and what
// ends the subscription. Several changes between two reads are one token.
func (m *Monitor) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	m.mu.Lock()
	m.subs[ch] = struct{}{}
	m.mu.Unlock()
	return ch, func() {
		m.mu.Lock()
		delete(m.subs, ch)
		m.mu.Unlock()
	}
}

func (m *Monitor) tell() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ch := range m.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Run watches until ctx ends, and returns the context's error.
func (m *Monitor) Run(ctx context.Context) error {
	hints := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	poll := m.cfg.Poll
	if m.cfg.Source == nil {
		if watch, err := systemWatch(); err != nil {
			m.cfg.Logger.Debug("interfaces are polled", "err", err)
		} else if watch != nil {
			// The system tells: look by oneself only now and then.
			poll = max(poll, time.Minute)
			wg.Go(func() { watch(ctx, hints) })
		}
	}
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	wake := time.NewTicker(wakeCheck)
	defer wake.Stop()
	wall, run := m.cfg.Wall(), time.Now()
	last := m.snapshot()
	var settle <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hints:
			if settle == nil {
				settle = time.After(m.cfg.Debounce)
			}
			continue
		case <-wake.C:
			wallNow, runNow := m.cfg.Wall(), time.Now()
			slept := wallNow.Sub(wall) - runNow.Sub(run)
			wall, run = wallNow, runNow
			if slept > sleepJump {
				m.cfg.Logger.Info("woke up", "slept", slept)
				m.tell()
			}
			continue
		case <-settle:
			settle = nil
		case <-ticker.C:
		}
		if now := m.snapshot(); now != last {
			last = now
			m.tell()
		}
	}
}

// snapshot is a text that differs when the interfaces do.
func (m *Monitor) snapshot() string {
	list, err := m.Interfaces()
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, i := range list {
		if !i.Up {
			continue
		}
		fmt.Fprintln(&b, i.Name, i.Index, i.MTU, i.Multicast, i.Addrs)
	}
	return b.String()
}
