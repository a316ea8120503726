package nettest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const patience = 10 * time.Second

// An echo answers each packet with the sender's address as it sees it.
type echo struct {
	*net.UDPConn
	addr netip.AddrPort
	got  chan string
}

func newEcho(t *testing.T, h *Host, addr netip.Addr, port uint16) *echo {
	t.Helper()
	e := &echo{addr: netip.AddrPortFrom(addr, port), got: make(chan string, 1000)}
	var err error
	h.Do(func() { e.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(e.addr)) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := e.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			e.got <- string(buf[:n])
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			if from == e.addr { // what it sends to itself would go round for ever
				continue
			}
			_, _ = e.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %v", buf[:n], from), from)
		}
	}()
	t.Cleanup(func() { e.Close(); <-done })
	return e
}

// say sends a text to an address.
func (e *echo) say(t *testing.T, text string, to netip.AddrPort) {
	t.Helper()
	if _, err := e.WriteToUDPAddrPort([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}

// A client asks echoes, and keeps whatever else it receives.
type client struct {
	*net.UDPConn
	n    int
	seen []string
}

func newClient(t *testing.T, h *Host) *client {
	t.Helper()
	c := &client{}
	var err error
	h.Do(func() { c.UDPConn, err = net.ListenUDP("udp", nil) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *client) port() uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// read returns the next packet's text, "" if there is none within d.
func (c *client) read(t *testing.T, d time.Duration) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// ask returns the address that e sees. Packets may be lost where a neighbor is
// new, so it asks again.
func (c *client) ask(t *testing.T, e *echo) netip.AddrPort {
	t.Helper()
	c.n++
	token := fmt.Sprintf("ask%d-%d", c.port(), c.n)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		c.send(t, token, e.addr)
		for {
			text := c.read(t, time.Second)
			if text == "" {
				break
			}
			if rest, ok := strings.CutPrefix(text, token+" "); ok {
				return netip.MustParseAddrPort(rest)
			}
			c.seen = append(c.seen, text)
		}
	}
	t.Fatalf("no answer from %v", e.addr)
	return netip.AddrPort{}
}

func (c *client) send(t *testing.T, text string, to netip.AddrPort) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}

// await waits for a text.
func (c *client) await(t *testing.T, want string) {
	t.Helper()
	for !slices.Contains(c.seen, want) {
		text := c.read(t, patience)
		if text == "" {
			t.Fatalf("%q did not arrive; these did: %q", want, c.seen)
		}
		c.seen = append(c.seen, text)
	}
}

// refuse checks that a text sent before does not come: later packets have overtaken it.
func (c *client) refuse(t *testing.T, e *echo, text string) {
	t.Helper()
	c.ask(t, e)
	c.ask(t, e)
	if slices.Contains(c.seen, text) {
		t.Errorf("%q came in", text)
	}
}

// echoes returns four: 0 and 1 differ in the port, and 2 and 3 have another address.
func echoes(t *testing.T, in *Internet, v6 bool) []*echo {
	t.Helper()
	h := in.Server("srv")
	other, addrs := h, h.Addrs()
	if v6 {
		other = in.Server("srv2")
		addrs = []netip.Addr{addrs[2], other.Addrs()[2]}
	}
	return []*echo{
		newEcho(t, h, addrs[0], 3478), newEcho(t, h, addrs[0], 3479),
		newEcho(t, other, addrs[1], 3478), newEcho(t, other, addrs[1], 3479),
	}
}

func conntracks(t *testing.T, h *Host) int {
	t.Helper()
	var b []byte
	var err error
	h.Do(func() { b, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count") })
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNAT(t *testing.T) {
	const everybody, address, addressPort = 2, 1, 0 // whom a filter lets in
	tests := map[NAT]struct {
		mapping  string // none, same (port for all), random, sequential
		keepPort bool
		filter   int
	}{
		NATNone:       {"none", true, everybody},
		NATv6Firewall: {"none", true, addressPort},
		NATEasy:       {"same", true, addressPort},
		NATEIM:        {"same", false, addressPort},
		NATFullCone:   {"same", true, everybody},
		NATRestricted: {"same", true, address},
		NATHard:       {"random", false, addressPort},
		NATSeq:        {"sequential", false, addressPort},
		NATCGN:        {"same", true, addressPort},
		NATCGNHard:    {"random", false, addressPort},
		NATUPnP:       {"same", true, addressPort},
		NATHardUPnP:   {"random", false, addressPort},
	}
	for _, nat := range NATs() {
		if nat == NATUDPBlocked {
			continue
		}
		tt, ok := tests[nat]
		if !ok {
			t.Errorf("%s is not tested", nat)
			continue
		}
		t.Run(string(nat), func(t *testing.T) {
			in := New(t).Internet()
			site := in.Site("a", nat)
			h := site.Host("a1")
			es := echoes(t, in, nat == NATv6Firewall)
			c := newClient(t, h)

			first := c.ask(t, es[0])
			if tt.mapping == "none" && first.Addr() != h.Addrs()[0] || tt.mapping != "none" && first.Addr() != site.Public() {
				t.Errorf("seen as %v, host has %v, site has %v", first, h.Addrs(), site.Public())
			}
			if tt.keepPort != (first.Port() == c.port()) {
				t.Errorf("port %d became %d", c.port(), first.Port())
			}
			for k, from := range map[int]int{address: 1, everybody: 2} {
				text := fmt.Sprintf("uninvited %d", k)
				es[from].say(t, text, first)
				if k <= tt.filter {
					c.await(t, text)
				} else {
					c.refuse(t, es[0], text)
				}
			}
			// The packets that were not let in must not have moved the mapping.
			seen := []netip.AddrPort{first}
			step := []int{}
			for k, e := range es[1:] {
				seen = append(seen, c.ask(t, e))
				step = append(step, int(seen[k+1].Port())-int(seen[k].Port()))
			}
			got := "random"
			switch {
			case slices.Equal(step, []int{0, 0, 0}):
				got = "same"
			case slices.Equal(step, []int{1, 1, 1}):
				got = "sequential"
			}
			if want := strings.Replace(tt.mapping, "none", "same", 1); got != want {
				t.Errorf("mapping %s, want %s: %v", got, want, seen)
			}
			if n := conntracks(t, in.Router); n != 0 {
				t.Errorf("the Internet remembers %d connections", n)
			}
			// Two hosts behind one router do not share a mapping.
			c2 := newClient(t, site.Host("a2"))
			if second := c2.ask(t, es[0]); slices.Contains(seen, second) {
				t.Errorf("two hosts are seen as %v", second)
			}
		})
	}
}

// TestConeFollows: an uninvited packet goes to whoever has a port now, not to who
// had it last.
func TestConeFollows(t *testing.T) {
	in := New(t).Internet()
	site := in.Site("a", NATFullCone)
	h := site.Host("a1")
	es, c := echoes(t, in, false), newClient(t, h)
	before := c.ask(t, es[0])
	site.Move(h) // another address of the same LAN
	after := c.ask(t, es[1])
	if before != after {
		t.Fatalf("the port %v has become %v", before, after)
	}
	es[2].say(t, "uninvited", after)
	c.await(t, "uninvited")
}

// mapPort asks a site's router by NAT-PMP (RFC 6886 section 3.3) to map a client's
// port to some port of the public address.
func mapPort(t *testing.T, site *Site, h *Host, c *client) netip.AddrPort {
	t.Helper()
	var pmp net.Conn
	var err error
	h.Do(func() { pmp, err = net.Dial("udp", netip.AddrPortFrom(site.Gateway(), 5351).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer pmp.Close()
	request := []byte{0, 1, 0, 0}
	request = binary.BigEndian.AppendUint16(request, c.port())
	request = binary.BigEndian.AppendUint16(request, 40001)
	request = binary.BigEndian.AppendUint32(request, 3600)
	if _, err = pmp.Write(request); err != nil {
		t.Fatal(err)
	}
	if err = pmp.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 100)
	n, err := pmp.Read(answer)
	if err != nil {
		t.Fatal(err)
	}
	if n != 16 || answer[1] != 129 || binary.BigEndian.Uint16(answer[2:]) != 0 {
		t.Fatalf("answer %x", answer[:n])
	}
	return netip.AddrPortFrom(site.Public(), binary.BigEndian.Uint16(answer[10:]))
}

func TestUPnP(t *testing.T) {
	for _, nat := range []NAT{NATUPnP, NATHardUPnP} {
		t.Run(string(nat), func(t *testing.T) {
			in := New(t).Internet()
			site := in.Site("a", nat)
			h := site.Host("a1")
			es, c := echoes(t, in, false), newClient(t, h)
			mapped := mapPort(t, site, h, c)
			es[2].say(t, "invited", mapped)
			c.await(t, "invited")
			daemon := site.daemons[0]
			site.Reboot(false)
			select {
			case <-daemon.done:
			default:
				t.Error("the server for UPnP has survived a reboot")
			}
			es[3].say(t, "invited before the reboot", mapped)
			c.refuse(t, es[0], "invited before the reboot")
			site.Reboot(true)
			mapped = mapPort(t, site, h, c)
			es[1].say(t, "invited again", mapped)
			c.await(t, "invited again")
		})
	}
}
