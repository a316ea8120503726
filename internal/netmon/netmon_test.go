package netmon

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// watch runs a Monitor on a list of interfaces that the test changes.
func watch(t *testing.T, cfg Config) (changes <-chan struct{}, set func([]Interface)) {
	t.Helper()
	var list atomic.Pointer[[]Interface]
	list.Store(&[]Interface{})
	cfg.Source = func() ([]Interface, error) { return *list.Load(), nil }
	m := New(cfg)
	changes, stop := m.Subscribe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	synctest.Wait()
	return changes, func(l []Interface) { list.Store(&l) }
}

func told(changes <-chan struct{}) bool {
	select {
	case <-changes:
		return true
	default:
		return false
	}
}

func TestChangesAreTold(t *testing.T) {
	eth := Interface{Name: "eth0", Index: 2, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}
	down, moved, other := eth, eth, eth
	down.Up = false
	moved.Addrs = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}
	other.Name, other.Index = "eth1", 3
	for _, c := range []struct {
		name          string
		before, after []Interface
		want          bool
	}{
		{"nothing", []Interface{eth}, []Interface{eth}, false},
		{"another address", []Interface{eth}, []Interface{moved}, true},
		{"down", []Interface{eth}, []Interface{down}, true},
		{"one more", []Interface{eth}, []Interface{eth, other}, true},
		{"one that is down", []Interface{eth}, []Interface{eth, {Name: "eth2"}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				changes, set := watch(t, Config{})
				set(c.before)
				time.Sleep(defaultPoll)
				synctest.Wait()
				told(changes)
				set(c.after)
				time.Sleep(defaultPoll)
				synctest.Wait()
				if got := told(changes); got != c.want {
					t.Errorf("told %v, want %v", got, c.want)
				}
			})
		})
	}
}

// TestWakingUpIsAChange: while a laptop sleeps, the wall clock goes on and the
// program's does not.
func TestWakingUpIsAChange(t *testing.T) {
	for _, c := range []struct {
		name string
		jump time.Duration
		want bool
	}{
		{"no jump", 0, false},
		{"the clock is corrected by a second", time.Second, false},
		{"the clock is set back", -time.Hour, false},
		{"a minute's sleep", time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var off atomic.Int64
				changes, _ := watch(t, Config{Wall: func() time.Time { return time.Now().Round(0).Add(time.Duration(off.Load())) }})
				time.Sleep(time.Minute)
				synctest.Wait()
				if told(changes) {
					t.Fatal("a change, and nothing happened")
				}
				off.Store(int64(c.jump))
				time.Sleep(wakeCheck)
				synctest.Wait()
				if got := told(changes); got != c.want {
					t.Errorf("told %v, want %v", got, c.want)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if told(changes) {
					t.Error("told once more")
				}
			})
		})
	}
}

// TestTheSystemTells runs a Monitor on this machine until its end.
func TestTheSystemTells(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := New(Config{})
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	list, err := m.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		for _, p := range i.Addrs {
			if p.Addr().Is4In6() || p.Addr().Zone() != "" {
				t.Errorf("%s: %v is not in the promised form", i.Name, p)
			}
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestVirtualByName(t *testing.T) {
	for name, want := range map[string]bool{"eth0": false, "wlan0": false, "en0": false, "tailscale0": true, "docker0": true, "br-12ab": true, "utun3": true} {
		if virtual(name) != want {
			t.Errorf("%s: virtual is %v", name, !want)
		}
	}
}

// TestOurInterface leaves out the interface of kith up --tun, and no other.
func TestOurInterface(t *testing.T) {
	p := netip.MustParsePrefix
	for _, c := range []struct {
		addrs []netip.Prefix
		want  bool
	}{
		{nil, false}, {[]netip.Prefix{p("fd6b:6974:6801::1/128")}, true}, {[]netip.Prefix{p("fd6b:6974:6901::1/128")}, false},
		{[]netip.Prefix{p("fd6b:6974:6801::1/128"), p("10.0.0.1/24")}, false}, {[]netip.Prefix{p("10.0.0.1/24")}, false},
	} {
		i := Interface{Addrs: c.addrs}
		if got := i.ours(); got != c.want {
			t.Errorf("%v: %v", c.addrs, got)
		}
	}
}
