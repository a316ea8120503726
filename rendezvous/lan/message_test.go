package lan

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

var testTag = rendezvous.Tag{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4}

func testAddrs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64"), netip.MustParsePrefix("fe80::1/64")}
}

func TestMessagesRoundTrip(t *testing.T) {
	q, err := question(testTag)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMDNS(q)
	if err != nil || len(m.questions) != 1 || m.questions[0] != testTag {
		t.Fatalf("question: %+v, %v", m, err)
	}
	a, err := answer("kith-0123", testTag, 4000, 6000, testAddrs(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(a) > 1200 {
		t.Errorf("an answer of %d bytes may be fragmented", len(a))
	}
	if m, err = parseMDNS(a); err != nil || len(m.found) != 2 {
		t.Fatalf("answer: %+v, %v", m, err)
	}
	for _, f := range m.found {
		if f.tag != testTag || f.label != "kith-0123" {
			t.Errorf("found %+v", f)
		}
		for _, addr := range f.addrs {
			if want := map[bool]uint16{true: 4000, false: 6000}[addr.Is4()]; f.port != want {
				t.Errorf("%v has port %d", addr, f.port)
			}
		}
	}
	bye, err := answer("kith-0123", testTag, 4000, 6000, testAddrs(), true)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parseMDNS(bye); err == nil {
		t.Errorf("a goodbye was taken for an answer: %+v", m)
	}
}

func TestTagNames(t *testing.T) {
	if tag, ok := tagOf("_DEADBEEF01020304._sub._kith._udp.local."); !ok || tag != testTag {
		t.Error("upper case is not understood")
	}
	for _, bad := range []string{"", "_kith._udp.local.", "_xyz._sub._kith._udp.local.", "deadbeef01020304._sub._kith._udp.local.", "_deadbeef0102030405._sub._kith._udp.local.", "_deadbeef01020304._sub._http._tcp.local."} {
		if _, ok := tagOf(bad); ok {
			t.Errorf("%q was taken for a tag", bad)
		}
	}
}

func FuzzMDNS(f *testing.F) {
	q, err := question(testTag)
	if err != nil {
		f.Fatal(err)
	}
	a, err := answer("kith-0123", testTag, 4000, 6000, testAddrs(), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q)
	f.Add(a)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMDNS(b)
		if err != nil {
			return
		}
		if len(m.questions) > maxRecords || len(m.found) > 2*maxRecords {
			t.Fatalf("%d questions, %d services", len(m.questions), len(m.found))
		}
	})
}

// FuzzDatagram gives datagrams to an exchange with one session that also looks for
// devices: only a frame of its tag may come out, and a list that is bounded.
func FuzzDatagram(f *testing.F) {
	i := netmon.Interface{Name: "eth0", Index: 1, Up: true, Addrs: testAddrs()}
	e := &Exchange{
		topics: map[rendezvous.Tag]map[*session]struct{}{}, peers: make(map[rendezvous.Tag]map[netip.AddrPort]time.Time),
		socks: &sockets{use: []netmon.Interface{i}}, echoes: newEchoes(), opened: make(chan struct{}),
	}
	close(e.opened)
	e.near = newNearby(func(func(netmon.Interface, bool) []byte) {}, e.nearbyPorts)
	e.near.watchers[&watcher{changed: make(chan struct{}, 1)}] = struct{}{}
	s := &session{e: e, tag: testTag, Inbox: rendezvous.NewInbox("lan")}
	e.topics[testTag] = map[*session]struct{}{s: {}}
	good := append(testTag[:], make([]byte, rendezvous.FrameSize)...)
	f.Add(good)
	f.Add(good[:100])
	f.Add(append([]byte(nearbyMagic), pairBytes(f, testInstance, laptop, false)...))
	over, cancel := context.WithCancel(context.Background())
	cancel() // only what waits is received
	f.Fuzz(func(t *testing.T, b []byte) {
		e.takeGroup(b, arrival{from: netip.MustParseAddrPort("10.0.0.9:9"), to: Group4(), index: 1})
		if m, err := s.Receive(over); err == nil {
			if len(b) != datagramSize || rendezvous.Tag(b[:8]) != testTag || len(m.Frame) != rendezvous.FrameSize {
				t.Fatal("a datagram that is none was delivered")
			}
		}
		if n := len(e.near.table.entries); n > maxPerSource {
			t.Fatalf("%d entries of one address", n)
		}
	})
}
