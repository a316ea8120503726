package lan

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/rendezvous"
)

// awaitList reads lists until one is as wanted, and returns it.
func awaitList(t *testing.T, c <-chan []Device, what string, ok func([]Device) bool) []Device {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	var last []Device
	for {
		select {
		case list, open := <-c:
			if !open {
				t.Fatalf("%s: the channel was closed", what)
			}
			if last = list; ok(list) {
				return list
			}
		case <-limit.C:
			t.Fatalf("%s: the last list is %+v", what, last)
		}
	}
}

func has(name string, addrs int) func([]Device) bool {
	return func(list []Device) bool {
		for _, d := range list {
			if d.Name == name && len(d.Addrs) >= addrs {
				return true
			}
		}
		return false
	}
}

// TestNearbyOnLAN finds a device over each medium, with each family, and loses it
// when it stops.
func TestNearbyOnLAN(t *testing.T) {
	for _, c := range []struct {
		name  string
		cfg   Config
		addrs []string
		want  int // addresses
	}{
		{"both media and families", Config{}, []string{"10.0.0.1/24", "fd00::1/64"}, 2},
		{"mDNS", Config{DisableMulticast: true}, []string{"10.0.0.1/24"}, 2},
		{"kith's groups", Config{DisableMDNS: true}, []string{"10.0.0.1/24"}, 2},
		{"IPv6 link-local", Config{}, nil, 1},
		{"multicast only", Config{MulticastOnly: true}, nil, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := nettest.New(t)
			br := l.Bridge("lan")
			a := open(t, l.Host("a").Attach(br, c.addrs...), c.cfg)
			var addrs []string
			for _, p := range c.addrs {
				addrs = append(addrs, strings.Replace(p, "1/", "2/", 1))
			}
			b := open(t, l.Host("b").Attach(br, addrs...), c.cfg)
			stop, err := a.AnnounceNearby(t.Context(), Device{Name: "Anna's \x1b[1mlaptop", Kind: "linux", ShowsCode: true})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			w, err := b.Nearby(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			list := awaitList(t, w, "announced", has("Anna's [1mlaptop", c.want))
			t.Logf("found after %v: %+v", time.Since(start), list)
			d := list[0]
			if len(list) != 1 || d.Kind != "linux" || !d.ShowsCode || len(d.Instance) != instanceLen || time.Since(d.Seen) > time.Minute {
				t.Errorf("%+v", list)
			}
			ports := map[bool]uint16{true: a.socks.conns[0].port(), false: a.socks.conns[1].port()}
			if c.cfg.MulticastOnly {
				ports = map[bool]uint16{}
			}
			for _, at := range d.Addrs {
				if at.Port() != ports[at.Addr().Is4()] || !hasAddr(a.socks.interfaces(), at.Addr()) {
					t.Errorf("%v is not an address of it", at)
				}
				if at.Addr().IsLinkLocalUnicast() && at.Addr().Zone() != "eth0" {
					t.Errorf("%v does not name the interface", at)
				}
			}
			start = time.Now()
			stop()
			awaitList(t, w, "stopped", func(list []Device) bool { return len(list) == 0 })
			if took := time.Since(start); took > nearbyLife/2 {
				t.Errorf("gone after %v: the goodbye did not count", took)
			}
			// Closing says goodbye as well.
			if _, err := a.AnnounceNearby(t.Context(), laptop); err != nil {
				t.Fatal(err)
			}
			awaitList(t, w, "announced again", has(laptop.Name, 1))
			start = time.Now()
			a.Close()
			awaitList(t, w, "closed", func(list []Device) bool { return len(list) == 0 })
			if took := time.Since(start); took > nearbyLife/2 {
				t.Errorf("gone after %v: the goodbye did not count", took)
			}
		})
	}
}

// TestNearbyLeadsToFrames uses the addresses of the list as endpoints: nothing
// else leads there.
func TestNearbyLeadsToFrames(t *testing.T) {
	l := nettest.New(t)
	br := l.Bridge("lan")
	a := open(t, l.Host("a").Attach(br, "10.0.0.1/24"), Config{})
	hb := l.Host("b").Attach(br, "10.0.0.2/24")
	b, quiet := open(t, hb, Config{}), open(t, hb, Config{DisableMulticast: true, DisableMDNS: true})
	if _, err := a.AnnounceNearby(t.Context(), laptop); err != nil {
		t.Fatal(err)
	}
	w, err := b.Nearby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := awaitList(t, w, "announced", func(list []Device) bool {
		return len(list) == 1 && strings.Contains(fmt.Sprint(list[0].Addrs), "10.0.0.1:")
	})
	topic := randomTopic(t)
	both(t, quiet.join(rendezvous.Point{Topic: topic, Endpoints: list[0].Addrs}), a.join(rendezvous.Point{Topic: topic}), 1)
}

// TestNothingNamesADevice records all packets of a device that is looked for,
// talks and looks itself, but is not in pairing mode.
func TestNothingNamesADevice(t *testing.T) {
	const name = "Anna's secret laptop"
	l := nettest.New(t)
	br := l.Bridge("lan")
	ha, hb := l.Host("a").Attach(br, "10.0.0.1/24", "fd00::1/64"), l.Host("b").Attach(br, "10.0.0.2/24", "fd00::2/64")
	a, b := open(t, ha, Config{}), open(t, hb, Config{})
	// Once it is in pairing mode, the recording shows it; then no longer.
	rec := br.Record()
	stop, err := a.AnnounceNearby(t.Context(), Device{Name: name, Kind: "linux"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.Nearby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := awaitList(t, w, "announced", has(name, 2))
	stop()
	awaitList(t, w, "stopped", func(list []Device) bool { return len(list) == 0 })
	named := 0
	for _, p := range udpPackets(rec.Stop()) {
		if bytes.Contains(p.payload, []byte(name)) {
			named++
		}
	}
	if named < 4 { // both media, both families
		t.Errorf("%d datagrams name it in pairing mode", named)
	}

	rec = br.Record()
	topic := randomTopic(t)
	sa, sb := a.join(rendezvous.Point{Topic: topic, Announce: true}), b.join(rendezvous.Point{Topic: topic, Announce: true})
	if _, err := a.Nearby(t.Context()); err != nil {
		t.Fatal(err)
	}
	// b asks, by both media: the second time when all that a could answer to the
	// first has been sent.
	b.near.question()
	both(t, sa, sb, 1)
	wait, cancel := context.WithTimeout(t.Context(), nearbyGap+answerMost)
	defer cancel()
	for { // meanwhile they talk
		if _, _, ok := passes(t, sa, sb, 9, 5*time.Second); !ok {
			t.Fatal("a does not talk")
		}
		if wait.Err() != nil {
			break
		}
		select {
		case <-wait.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	asked := 0
	for _, p := range udpPackets(rec.Stop()) {
		if len(p.payload) == datagramSize {
			continue // sealed
		}
		if m, err := parsePair(bytes.TrimPrefix(p.payload, []byte(nearbyMagic))); err == nil {
			if len(m.heard) > 0 {
				t.Errorf("an announcement: %+v", m.heard)
			}
			asked++
		}
		for _, s := range []string{"Anna", "secret", list[0].Instance} {
			if bytes.Contains(p.payload, []byte(s)) {
				t.Errorf("a datagram of %d bytes to %v names it: %q", len(p.payload), p.to, p.payload)
			}
		}
	}
	if asked < 4 {
		t.Errorf("%d questions were recorded", asked)
	}
}

// TestSpoofedAnnouncements has a host invent devices, and take others' back.
func TestSpoofedAnnouncements(t *testing.T) {
	l := nettest.New(t)
	br := l.Bridge("lan")
	ha, hb := l.Host("a"), l.Host("b")
	ipv4Only(t, ha)
	ipv4Only(t, hb)
	a, b := open(t, ha.Attach(br, "10.0.0.1/24"), Config{}), open(t, hb.Attach(br, "10.0.0.2/24"), Config{})
	eve := l.Host("eve").Attach(br, "10.0.0.66/24", "10.0.0.67/24", "192.0.2.66/24")
	w, err := b.Nearby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.AnnounceNearby(t.Context(), Device{Name: "anna"}); err != nil {
		t.Fatal(err)
	}
	list := awaitList(t, w, "announced", has("anna", 1))

	send := func(from, to string, payloads ...[]byte) {
		t.Helper()
		var c *net.UDPConn
		var err error
		eve.Do(func() {
			c, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), Port)))
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, p := range payloads {
			if _, err := c.Write(append([]byte(nearbyMagic), p...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	group := Group4().String()
	eve.IP("route", "add", "224.0.0.0/4", "dev", "eth0")
	send("10.0.0.66", group, pairBytes(t, list[0].Instance, Device{}, true)) // anna's goodbye
	send("10.0.0.66", group, pairBytes(t, list[0].Instance, Device{Name: "anna's new phone"}, false))
	send("192.0.2.66", group, pairBytes(t, instance(1), Device{Name: "from elsewhere"}, false)) // of no network that b is on
	send("10.0.0.67", "10.0.0.2", pairBytes(t, instance(2), Device{Name: "by unicast"}, false))
	var flood [][]byte
	for n := range 30 {
		flood = append(flood, pairBytes(t, instance(100+n), Device{Name: fmt.Sprint("eve", n)}, false))
	}
	send("10.0.0.66", group, flood...)
	list = awaitList(t, w, "flooded", has("eve29", 1))
	if got := namesOf(list); got != "anna eve26 eve27 eve28 eve29" {
		t.Errorf("listed: %s", got)
	}
	// A flood beyond what is looked at delays, and no more.
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			send("10.0.0.66", group, bytes.Repeat([]byte{byte(n)}, 200))
		}
	})
	stop, err := a.AnnounceNearby(t.Context(), Device{Name: "anna again"})
	if err != nil {
		t.Fatal(err)
	}
	awaitList(t, w, "announced in a flood", has("anna again", 1))
	cancel()
	wg.Wait()
	stop()
}

// TestFirstFrame measures from Join on both sides to the first frame.
func TestFirstFrame(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    Config
		rounds int
	}{
		{"every way", Config{}, 11}, // more at once are more than mDNS looks at
		{"multicast only", Config{MulticastOnly: true}, 31},
		{"mDNS only", Config{DisableMulticast: true}, 11},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := nettest.New(t)
			br := l.Bridge("lan")
			a := open(t, l.Host("a").Attach(br, "10.0.0.1/24", "fd00::1/64"), c.cfg)
			b := open(t, l.Host("b").Attach(br, "10.0.0.2/24", "fd00::2/64"), c.cfg)
			var took []time.Duration
			for range c.rounds {
				topic := randomTopic(t)
				start := time.Now()
				sa := a.join(rendezvous.Point{Topic: topic, Announce: true})
				sb := b.join(rendezvous.Point{Topic: topic})
				if _, _, ok := passes(t, sb, sa, 1, 10*time.Second); !ok {
					t.Fatal("no frame")
				}
				took = append(took, time.Since(start))
				sa.Close()
				sb.Close()
			}
			med, worst := median(took)
			t.Logf("median %v, worst %v", med, worst)
			if med > 100*time.Millisecond {
				t.Errorf("median %v", med)
			}
		})
	}
}
