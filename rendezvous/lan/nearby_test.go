package lan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kithproject/kith/internal/netmon"
)

const testInstance = "0123456789abcdef"

var laptop = Device{Name: "Anna's laptop", Kind: "linux", ShowsCode: true}

func pairBytes(t testing.TB, instance string, d Device, bye bool) []byte {
	t.Helper()
	b, err := pairAnswer(instance, d, 4000, testAddrs(), false, bye)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPairMessages(t *testing.T) {
	q, err := pairQuestion()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parsePair(q); err != nil || !m.asks || len(m.heard) != 0 {
		t.Errorf("question: %+v, %v", m, err)
	}
	for _, six := range []bool{false, true} {
		b, err := pairAnswer(testInstance, laptop, 4000, testAddrs(), six, false)
		if err != nil || len(b)+len(nearbyMagic) > maxNearby {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		m, err := parsePair(b)
		if err != nil || m.asks || len(m.heard) != 1 {
			t.Fatalf("answer: %+v, %v", m, err)
		}
		if r := m.heard[0]; r.instance != testInstance || !sameDevice(r.device, laptop) || r.port != 4000 || r.bye {
			t.Errorf("heard %+v", r)
		}
	}
	if m, err := parsePair(pairBytes(t, testInstance, laptop, true)); err != nil || len(m.heard) != 1 || !m.heard[0].bye {
		t.Errorf("goodbye: %+v, %v", m, err)
	}
	t.Logf("an announcement has %d bytes, a goodbye %d", len(pairBytes(t, testInstance, laptop, false)), len(pairBytes(t, testInstance, laptop, true)))
	// The longest that may be.
	many := slices.Repeat(prefixes("fd00::1/64"), 100)
	long := Device{Name: strings.Repeat("n", maxName), Kind: strings.Repeat("k", maxKind)}
	b, err := pairAnswer(testInstance, long, 4000, many, true, false)
	if err != nil || len(b)+len(nearbyMagic) > maxNearby {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestPairByTheBook holds that others can read an announcement: RFC 6763.
func TestPairByTheBook(t *testing.T) {
	var m dnsmessage.Message
	if err := m.Unpack(pairBytes(t, testInstance, laptop, false)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range slices.Concat(m.Answers, m.Additionals) {
		body := ""
		switch b := r.Body.(type) {
		case *dnsmessage.PTRResource:
			body = "PTR " + b.PTR.String()
		case *dnsmessage.SRVResource:
			body = fmt.Sprint("SRV ", b.Port, " ", b.Target)
		case *dnsmessage.TXTResource:
			body = fmt.Sprintf("TXT %q", b.TXT)
		case *dnsmessage.AResource:
			body = "A " + netip.AddrFrom4(b.A).String()
		}
		got = append(got, fmt.Sprint(r.Header.Name, " ", r.Header.TTL, " ", body))
	}
	want := []string{
		`_kith-pair._udp.local. 10 PTR 0123456789abcdef._kith-pair._udp.local.`,
		`0123456789abcdef._kith-pair._udp.local. 10 SRV 4000 kith-0123456789abcdef.local.`,
		`0123456789abcdef._kith-pair._udp.local. 10 TXT ["txtvers=1" "n=Anna's laptop" "k=linux" "c=1"]`,
		`kith-0123456789abcdef.local. 10 A 10.0.0.1`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestPairTexts(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want Device
	}{
		{nil, Device{}},
		{[]string{"n=a", "k=b", "c=1"}, Device{Name: "a", Kind: "b", ShowsCode: true}},
		{[]string{"N=a", "n=b", "c=true"}, Device{Name: "a"}},
		{[]string{"n", "=x", "x=y", "k= \t b\x1b[31m \u202egpj "}, Device{Kind: "b[31m gpj"}},
		{[]string{"n=" + strings.Repeat("é", 60)}, Device{Name: strings.Repeat("é", 32)}},
	} {
		if got := readText(c.in); !sameDevice(got, c.want) {
			t.Errorf("%q: %+v, want %+v", c.in, got, c.want)
		}
	}
	b := pairBytes(t, testInstance, Device{Name: "\x00\x1b"}, false)
	if m, err := parsePair(b); err != nil || m.heard[0].device.Name != "unnamed" {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "x._kith-pair._udp.local.", "0123456789abcdeg._kith-pair._udp.local.", testInstance + "._kith._udp.local.", "a." + testInstance[2:] + "._kith-pair._udp.local."} {
		if s, ok := instanceOf(bad); ok {
			t.Errorf("%q was taken for instance %q", bad, s)
		}
	}
}

func FuzzPair(f *testing.F) {
	q, err := pairQuestion()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q)
	f.Add(pairBytes(f, testInstance, laptop, false))
	f.Add(pairBytes(f, testInstance, laptop, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parsePair(b)
		if err != nil {
			return
		}
		if len(m.heard) > maxAnswers {
			t.Fatalf("%d announcements", len(m.heard))
		}
		for _, r := range m.heard {
			if len(r.instance) != instanceLen || r.device.Name == "" || len(r.device.Name) > maxName || len(r.device.Kind) > maxKind ||
				r.device.Name != cleanName(r.device.Name, maxName) || r.device.Kind != cleanName(r.device.Kind, maxKind) {
				t.Fatalf("%+v", r)
			}
		}
	})
}

func FuzzNearbyName(f *testing.F) {
	for _, s := range []string{"Anna's laptop", "\x1b[2J", "a\u202eb", strings.Repeat("é", 200), "\xff\xfe", " \t\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := cleanName(s, maxName)
		if len(got) > maxName || !utf8.ValidString(got) || got != cleanName(got, maxName) || got != strings.TrimSpace(got) ||
			strings.ContainsFunc(got, func(r rune) bool {
				return r < ' ' || r == 0x7f || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069)
			}) {
			t.Fatalf("%q gives %q", s, got)
		}
	})
}

func record(instance, name string) pairRecord {
	return pairRecord{instance: instance, device: Device{Name: name}, port: 9}
}

func instance(n int) string { return fmt.Sprintf("%016x", n) }

func namesOf(list []Device) string {
	var out []string
	for _, d := range list {
		out = append(out, d.Name)
	}
	return strings.Join(out, " ")
}

// TestNearbyTable holds that a liar can add to the list, and neither change nor
// crowd out who is in it.
func TestNearbyTable(t *testing.T) {
	now := time.Unix(1000, 0)
	anna4, anna6, eve := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("10.0.0.66")
	var table nearbyTable
	table.heard(now, anna4, record(testInstance, "anna"))
	if !table.heard(now, anna6, record(testInstance, "anna")) || table.heard(now, anna6, record(testInstance, "anna")) {
		t.Error("a change is one that is seen, and no other is")
	}
	list := table.list()
	want := []netip.AddrPort{netip.AddrPortFrom(anna4, 9), netip.AddrPortFrom(anna6, 9)}
	if len(list) != 1 || !slices.Equal(list[0].Addrs, want) || list[0].Instance != testInstance {
		t.Fatalf("%+v", list)
	}
	// Eve takes anna's name and instance: anna's goodbye and words stay anna's.
	if table.heard(now, eve, pairRecord{instance: testInstance, bye: true}) {
		t.Error("somebody else took an announcement back")
	}
	table.heard(now, eve, record(testInstance, "anna's new phone"))
	if got := namesOf(table.list()); got != "anna anna's new phone" {
		t.Errorf("listed: %s", got)
	}
	// Eve has more and more devices.
	for n := range 1000 {
		table.heard(now.Add(time.Duration(n)), eve, record(instance(n), fmt.Sprint("eve", n)))
	}
	if got := namesOf(table.list()); got != "anna eve996 eve997 eve998 eve999" {
		t.Errorf("listed: %s", got)
	}
	// Eve has more and more addresses, too.
	for n := range 1000 {
		table.heard(now.Add(time.Second), netip.AddrFrom4([4]byte{10, 0, byte(1 + n>>8), byte(n)}), record(instance(n), fmt.Sprint("eve", n)))
	}
	list = table.list()
	if len(table.entries) != maxNearbyEntries || len(list) != maxNearbyDevices || !strings.HasPrefix(namesOf(list), "anna eve") {
		t.Errorf("%d entries, %d listed: %s", len(table.entries), len(list), namesOf(list))
	}
	for n := range 1000 { // and says all that anna says
		table.heard(now.Add(time.Second), netip.AddrFrom4([4]byte{10, 0, byte(1 + n>>8), byte(n)}), record(testInstance, "anna"))
	}
	if list := table.list(); len(list[0].Addrs) > maxDeviceAddrs || !slices.Equal(list[0].Addrs[:2], want) {
		t.Errorf("%+v", list[0])
	}
	// What is not refreshed goes; anna's IPv6 address is refreshed.
	table.heard(now.Add(9*time.Second), anna6, record(testInstance, "anna"))
	changed, next := table.expire(now.Add(nearbyLife + time.Second))
	if list := table.list(); !changed || next != now.Add(9*time.Second+nearbyLife) || len(list) != 1 || len(list[0].Addrs) != 1 {
		t.Errorf("after %v: %v, next %v, %+v", nearbyLife, changed, next, list)
	}
	if !table.heard(now, anna6, pairRecord{instance: testInstance, bye: true}) || len(table.entries) != 0 {
		t.Error("a goodbye did not count")
	}
	if changed, next := table.expire(now); changed || !next.IsZero() {
		t.Error("an empty table expires")
	}
}

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

func TestNearbyErrors(t *testing.T) {
	c, err := openConn(false, 0, false) // a port of this test alone: other devices may be near
	if err != nil {
		t.Fatal(err)
	}
	port := c.port()
	c.udp.Close()
	e := newTest(t, Config{DisableMDNS: true, Port: port})
	if _, err := e.AnnounceNearby(t.Context(), Device{Name: " \x1b "}); err == nil {
		t.Error("a device without a name is announced")
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := e.AnnounceNearby(ctx, laptop); err != nil {
		t.Error(err)
	}
	w, err := e.Nearby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if list := <-w; len(list) != 0 {
		t.Errorf("a device finds itself: %+v", list)
	}
	cancel()
	e.Close()
	if _, ok := <-w; ok {
		t.Error("a list after Close")
	}
	if _, err := e.AnnounceNearby(t.Context(), laptop); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := e.Nearby(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	none := newTest(t, Config{DisableMDNS: true, DisableMulticast: true})
	if _, err := none.AnnounceNearby(t.Context(), laptop); err == nil {
		t.Error("announced over nothing")
	}
	if _, err := none.Nearby(t.Context()); err == nil {
		t.Error("found over nothing")
	}
}
