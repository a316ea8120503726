package lan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"
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
