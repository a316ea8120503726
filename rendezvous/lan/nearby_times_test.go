package lan

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/internal/netmon"
)

// A fakeLink joins nearbys without a network. It lives in a bubble.
type fakeLink struct {
	start time.Time

	mu  sync.Mutex // guards the fields below
	all map[netip.Addr]*nearby
	log []string // who said what, when
}

func (l *fakeLink) add(addr string) *nearby {
	a := netip.MustParseAddr(addr)
	n := newNearby(func(build func(netmon.Interface, bool) []byte) {
		b := build(netmon.Interface{Name: "eth0", Index: 1, Addrs: prefixes(addr + "/24")}, false)
		m, err := parsePair(b)
		what := "asks"
		switch {
		case err != nil:
			what = err.Error()
		case len(m.heard) > 0 && m.heard[0].bye:
			what = "bye"
		case len(m.heard) > 0:
			what = m.heard[0].device.Name
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.log = append(l.log, fmt.Sprintf("%s %s", time.Since(l.start).Round(100*time.Millisecond), what))
		for other, to := range l.all {
			if other != a {
				to.take(b, a)
			}
		}
	}, func() (uint16, uint16) { return 9, 9 })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[a] = n
	return n
}

func newLink() *fakeLink { return &fakeLink{start: time.Now(), all: make(map[netip.Addr]*nearby)} }

func (l *fakeLink) close() {
	l.mu.Lock()
	all := slices.Collect(maps.Values(l.all))
	l.mu.Unlock()
	for _, n := range all {
		n.close()
	}
}

func (l *fakeLink) cut(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, netip.MustParseAddr(addr))
}

func (l *fakeLink) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := strings.Join(l.log, ", ")
	l.log = nil
	return out
}

func mustAnnounce(t *testing.T, n *nearby, d Device) func() {
	t.Helper()
	stop, err := n.announce(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return stop
}

func mustWatch(t *testing.T, ctx context.Context, n *nearby) <-chan []Device {
	t.Helper()
	c, err := n.watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func latest(c <-chan []Device) string {
	select {
	case list, ok := <-c:
		if !ok {
			return "closed"
		}
		return "[" + namesOf(list) + "]"
	default:
		return "nothing new"
	}
}

func TestNearbyTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink()
		defer l.close()
		anna, bob := l.add("10.0.0.1"), l.add("10.0.0.2")
		time.Sleep(time.Minute)
		if got := l.said(); got != "" {
			t.Errorf("without being asked to: %s", got)
		}
		l.start = time.Now()
		stop := mustAnnounce(t, anna, Device{Name: "anna"})
		time.Sleep(8 * time.Second)
		synctest.Wait()
		if got, want := l.said(), "0s anna, 1s anna, 4s anna, 7s anna"; got != want {
			t.Errorf("announced %s, want %s", got, want)
		}
		// A question is answered at once if it may be, and only then.
		ctx, cancel := context.WithCancel(t.Context())
		w := mustWatch(t, ctx, bob)
		time.Sleep(answerLeast - 1)
		synctest.Wait()
		if list, said := latest(w), l.said(); list != "[]" || said != "8s asks" {
			t.Errorf("the first list: %s; %s", list, said)
		}
		time.Sleep(answerMost)
		synctest.Wait()
		if got := latest(w); got != "[anna]" {
			t.Errorf("after the answer: %s", got)
		}
		got := l.said()
		if !strings.HasSuffix(got, " anna") || strings.Count(got, "anna") != 1 {
			t.Errorf("asked: %s", got)
		}
		time.Sleep(time.Minute)
		got = l.said()
		if n := strings.Count(got, "anna"); n < 20 || n > 22 || strings.Count(got, "asks") != 2 {
			t.Errorf("in a minute: %s", got)
		}
		if got := latest(w); got != "nothing new" {
			t.Errorf("a refresh is news: %s", got)
		}
		stop()
		stop()
		synctest.Wait()
		if got := latest(w); got != "[]" {
			t.Errorf("after goodbye: %s", got)
		}
		if got := l.said(); !strings.HasSuffix(got, "bye") || strings.Count(got, "bye") != 1 {
			t.Errorf("stopped: %s", got)
		}
		bob.question()
		time.Sleep(time.Minute)
		if got := l.said(); strings.Contains(got, "anna") {
			t.Errorf("after the end: %s", got)
		}
		cancel()
		synctest.Wait()
		if got := latest(w); got != "closed" {
			t.Errorf("after its context: %s", got)
		}
	})
}

// TestNearbyExpiry has a device go without goodbye, before two who look.
func TestNearbyExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink()
		defer l.close()
		anna, bob := l.add("10.0.0.1"), l.add("10.0.0.2")
		mustAnnounce(t, anna, Device{Name: "anna"})
		one := mustWatch(t, t.Context(), bob)
		time.Sleep(5 * time.Second)
		two := mustWatch(t, t.Context(), bob)
		synctest.Wait()
		if a, b := latest(one), latest(two); a != "[anna]" || b != "[anna]" {
			t.Errorf("%s, %s", a, b)
		}
		l.cut("10.0.0.2") // bob hears nothing any more
		defer bob.close()
		time.Sleep(nearbyLife - 2*nearbyEvery)
		if a, b := latest(one), latest(two); a != "nothing new" || b != "nothing new" {
			t.Errorf("too early: %s, %s", a, b)
		}
		time.Sleep(2 * nearbyEvery)
		synctest.Wait()
		if a, b := latest(one), latest(two); a != "[]" || b != "[]" {
			t.Errorf("after %v: %s, %s", nearbyLife, a, b)
		}
	})
}

// TestNearbyEcho has what a device said itself come back to it, also after it
// stopped: a device does not find itself.
func TestNearbyEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink()
		defer l.close()
		anna := l.add("10.0.0.1")
		w := mustWatch(t, t.Context(), anna)
		synctest.Wait()
		if got := latest(w); got != "[]" {
			t.Errorf("at first: %s", got)
		}
		stop := mustAnnounce(t, anna, Device{Name: "anna"})
		anna.mu.Lock()
		own := slices.Collect(maps.Keys(anna.announced))[0]
		anna.mu.Unlock()
		echo := func() {
			anna.take(pairBytes(t, own, Device{Name: "anna"}, false), netip.MustParseAddr("10.0.0.1"))
			synctest.Wait()
			if got := latest(w); got != "nothing new" {
				t.Errorf("a device found itself: %s", got)
			}
		}
		echo()
		stop()
		echo()
		for range 100 { // what it remembers of that ends
			mustAnnounce(t, anna, Device{Name: "anna"})()
			time.Sleep(time.Second)
		}
		anna.mu.Lock()
		defer anna.mu.Unlock()
		if n := len(anna.former); n > 12 {
			t.Errorf("%d former instances are kept", n)
		}
	})
}

// TestNearbySlowWatcher holds that one who does not look holds up nobody and then
// gets the newest list.
func TestNearbySlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink()
		defer l.close()
		bob := l.add("10.0.0.2")
		w := mustWatch(t, t.Context(), bob)
		for n := range 3 {
			mustAnnounce(t, l.add(fmt.Sprintf("10.0.0.%d", 10+n)), Device{Name: fmt.Sprint("d", n)})
			time.Sleep(2 * time.Second)
		}
		if got := latest(w); got != "[d0 d1 d2]" {
			t.Errorf("got %s", got)
		}
	})
}
