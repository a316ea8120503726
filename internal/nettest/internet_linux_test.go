package nettest

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// isolated checks that no packet of c reaches e, from what e receives before one
// that it is sent afterwards on its own host.
func (e *echo) isolated(t *testing.T, c *client, text string) {
	t.Helper()
	c.send(t, text, e.addr)
	e.say(t, "end of "+text, e.addr)
	for {
		select {
		case got := <-e.got:
			if got == text {
				t.Errorf("%q came through", text)
			}
			if got == "end of "+text {
				return
			}
		case <-time.After(patience):
			t.Fatal("not even what the host sent itself arrived")
		}
	}
}

func TestNATUDPBlocked(t *testing.T) {
	in := New(t).Internet()
	h := in.Site("a", NATUDPBlocked).Host("a1")
	e, c := echoes(t, in, false)[0], newClient(t, h)
	web := in.Server("web")
	dial := func(port uint16, d time.Duration) error {
		var l net.Listener
		var conn net.Conn
		var err error
		addr := netip.AddrPortFrom(web.Addrs()[0], port).String()
		web.Do(func() { l, err = net.Listen("tcp", addr) })
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		h.Do(func() { conn, err = net.DialTimeout("tcp", addr, d) })
		if err == nil {
			conn.Close()
		}
		return err
	}
	for _, port := range []uint16{443, 80} {
		if err := dial(port, patience); err != nil {
			t.Errorf("no TCP to port %d: %v", port, err)
		}
	}
	if dial(8443, 300*time.Millisecond) == nil {
		t.Error("TCP to port 8443 passes")
	}
	e.isolated(t, c, "blocked")
}

func TestDropUDP(t *testing.T) {
	in := New(t).Internet()
	site := in.Site("a", NATEasy)
	e, c := echoes(t, in, false)[0], newClient(t, site.Host("a1"))
	mapped := c.ask(t, e)
	site.DropUDP(true)
	e.isolated(t, c, "dropped on the way out")
	e.say(t, "dropped on the way in", mapped)
	site.Reboot(false)
	e.isolated(t, c, "dropped after a reboot")
	site.DropUDP(false)
	c.refuse(t, e, "dropped on the way in")
}

func TestReboot(t *testing.T) {
	for _, nat := range NATs() {
		if nat == NATUDPBlocked {
			continue
		}
		t.Run(string(nat), func(t *testing.T) {
			in := New(t).Internet()
			site := in.Site("a", nat)
			h := site.Host("a1")
			e, c := echoes(t, in, nat == NATv6Firewall)[0], newClient(t, h)
			mapped := c.ask(t, e)
			public := site.Public()
			for _, newIP := range []bool{false, true} {
				site.Reboot(newIP)
				for _, g := range site.gws {
					// A server for UPnP has announced itself again by now.
					if n := conntracks(t, g.host); n != 0 && !g.upnp {
						t.Errorf("%s remembers %d connections", g.host.Name, n)
					}
				}
				if (nat != NATNone) || newIP {
					text := fmt.Sprintf("to what was before a reboot, new address %v", newIP)
					e.say(t, text, mapped)
					// The question that refuse asks makes a new mapping, maybe the same, but after the packet.
					c.refuse(t, e, text)
				}
				after := c.ask(t, e)
				if newIP == (after.Addr() == mapped.Addr()) {
					t.Errorf("seen as %v, before as %v, new address %v", after, mapped, newIP)
				}
				if newIP == (site.Public() == public) && nat != NATv6Firewall {
					t.Errorf("public address %v, was %v, new address %v", site.Public(), public, newIP)
				}
				if site.ownAddresses() && after.Addr() != h.Addrs()[0] || !site.ownAddresses() && after.Addr() != site.Public() {
					t.Errorf("seen as %v, not %v or %v", after, h.Addrs(), site.Public())
				}
				mapped = after
			}
		})
	}
}

func TestMove(t *testing.T) {
	in := New(t).Internet()
	from, to := in.Site("a", NATEasy), in.Site("b", NATHard)
	h, stays := from.Host("h"), from.Host("stays")
	e, c, c2 := echoes(t, in, false)[0], newClient(t, h), newClient(t, stays)
	before := c.ask(t, e)
	if before.Addr() != from.Public() {
		t.Errorf("seen as %v, at %v", before, from.Public())
	}
	to.Move(h)
	if after := c.ask(t, e); after.Addr() != to.Public() {
		t.Errorf("the same socket is seen as %v, at %v", after, to.Public())
	}
	if after := newClient(t, h).ask(t, e); after.Addr() != to.Public() {
		t.Errorf("a new socket is seen as %v, at %v", after, to.Public())
	}
	e.say(t, "to the old place", before)
	c.refuse(t, e, "to the old place")
	if seen := c2.ask(t, e); seen.Addr() != from.Public() {
		t.Errorf("who stays is seen as %v, at %v", seen, from.Public())
	}
	from.Move(h)
	if back := c.ask(t, e); back.Addr() != from.Public() {
		t.Errorf("back, it is seen as %v, at %v", back, from.Public())
	}
	// A host from nowhere, and one that was public.
	nowhere, server := in.lab.Host("nowhere"), in.Server("moving")
	for _, h := range []*Host{nowhere, server} {
		to.Move(h)
		if seen := newClient(t, h).ask(t, e); seen.Addr() != to.Public() {
			t.Errorf("%s is seen as %v, at %v", h.Name, seen, to.Public())
		}
	}
	// A new address of the site where it was is no concern of who has left.
	public := in.Site("c", NATNone)
	public.Move(nowhere)
	at := nowhere.Addrs()
	to.Move(nowhere)
	public.Reboot(true)
	if slices.Equal(at, nowhere.Addrs()) || newClient(t, nowhere).ask(t, e).Addr() != to.Public() {
		t.Errorf("who has left has %v", nowhere.Addrs())
	}
}

func TestCut(t *testing.T) {
	in := New(t).Internet()
	for _, nat := range []NAT{NATEasy, NATCGN, NATv6Firewall} {
		t.Run(string(nat), func(t *testing.T) {
			in := New(t).Internet()
			site := in.Site("a", nat)
			h := site.Host("a1")
			e, c := echoes(t, in, nat == NATv6Firewall)[0], newClient(t, h)
			mapped := c.ask(t, e)
			for name, cut := range map[string]func(bool){
				"site": site.Cut,
				"host": func(cut bool) { in.Cut(h, cut) },
			} {
				cut(true)
				e.isolated(t, c, name+" cut on the way out")
				e.say(t, name+" cut on the way in", mapped)
				cut(false)
				c.refuse(t, e, name+" cut on the way in")
				if after := c.ask(t, e); after != mapped {
					t.Errorf("%s: mapping %v became %v by a cut", name, mapped, after)
				}
			}
		})
	}
	a, b := in.Server("a"), in.Server("b")
	c, e := newClient(t, a), newEcho(t, b, b.Addrs()[1], 1)
	c.ask(t, e)
	in.Cut(b, true)
	e.isolated(t, c, "server cut")
	in.Cut(b, false)
	c.ask(t, e)
}

// TestPunch: what two homes can do with nothing but the mapping that a server has
// told them.
func TestPunch(t *testing.T) {
	tests := []struct {
		a, b NAT
		ok   bool
	}{
		{NATEasy, NATEasy, true},
		{NATEIM, NATEasy, true},
		{NATCGN, NATEIM, true},
		{NATFullCone, NATHard, true},
		{NATRestricted, NATHard, true},
		{NATv6Firewall, NATv6Firewall, true},
		{NATEasy, NATHard, false},
		{NATEasy, NATSeq, false},
		{NATCGNHard, NATEIM, false},
		{NATHard, NATHard, false},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s-%s", tt.a, tt.b), func(t *testing.T) {
			in := New(t).Internet()
			e := echoes(t, in, tt.a == NATv6Firewall)[0]
			a, b := newClient(t, in.Site("a", tt.a).Host("a1")), newClient(t, in.Site("b", tt.b).Host("b1"))
			atA, atB := a.ask(t, e), b.ask(t, e)
			// The first packet of a is always early: b has sent nothing to it yet.
			a.send(t, "a early", atB)
			b.send(t, "from b", atA)
			a.send(t, "from a", atB)
			b.send(t, "b again", atA)
			if tt.ok && tt.b != NATHard {
				b.await(t, "from a")
				a.await(t, "from b")
				a.await(t, "b again")
				return
			}
			if tt.ok { // b's mapping to a is new, but a lets it in and can answer
				a.await(t, "from b")
				return
			}
			for _, text := range []string{"from b", "b again"} {
				a.refuse(t, e, text)
			}
			for _, text := range []string{"a early", "from a"} {
				b.refuse(t, e, text)
			}
		})
	}
}

// TestSameLAN: hosts of a home meet inside, and not through the public address.
func TestSameLAN(t *testing.T) {
	for _, nat := range []NAT{NATEasy, NATFullCone, NATCGN} {
		t.Run(string(nat), func(t *testing.T) {
			in := New(t).Internet()
			site := in.Site("a", nat)
			a, b := site.Host("a1"), site.Host("a2")
			e := echoes(t, in, false)[0]
			ca, cb := newClient(t, a), newClient(t, b)
			atA, atB := ca.ask(t, e), cb.ask(t, e)
			ca.send(t, "outside", atB)
			cb.send(t, "outside", atA)
			ca.send(t, "inside", netip.AddrPortFrom(b.Addrs()[0], cb.port()))
			cb.await(t, "inside")
			ca.refuse(t, e, "outside")
			cb.refuse(t, e, "outside")
		})
	}
}

// TestServerAddrs: all of a server's addresses are reachable, and a host without
// a place in an Internet has none.
func TestServerAddrs(t *testing.T) {
	in := New(t).Internet()
	if in != in.lab.Internet() {
		t.Error("a lab has two Internets")
	}
	a, b := in.Server("a"), in.Server("b")
	if n := len(a.Addrs()); n != 3 {
		t.Fatalf("%d addresses", n)
	}
	c := newClient(t, b)
	for k, addr := range a.Addrs() {
		if !addr.IsGlobalUnicast() || addr.IsPrivate() {
			t.Errorf("%v looks private", addr)
		}
		want := b.Addrs()[min(k, 2)/2*2]
		if seen := c.ask(t, newEcho(t, a, addr, 5)); seen.Addr() != want {
			t.Errorf("%v sees %v, want %v", addr, seen, want)
		}
	}
	if got := in.lab.Host("alone").Addrs(); len(got) != 0 {
		t.Errorf("a host alone has %v", got)
	}
}
