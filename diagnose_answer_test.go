package kith

import (
	"context"
	"net/netip"
	"testing"

	"github.com/kithproject/kith/doctor/dialback"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/signaling"
)

// TestMembersAreNotAnswered: who is known as a member of a room alone is told nothing.
func TestMembersAreNotAnswered(t *testing.T) {
	member, paired := &peer{member: true}, &peer{}
	if member.takeQuestion() != nil || member.capabilities() != 0 {
		t.Error("a member of a room may ask")
	}
	if paired.takeQuestion() == nil || paired.capabilities()&signaling.Answers == 0 {
		t.Error("a paired device may not ask")
	}
}

// TestWhatIsTold: a reply has the asker's addresses alone, each once, with what came of it
// over all ways.
func TestWhatIsTold(t *testing.T) {
	at := netip.MustParseAddrPort("[fe80::1%eth0]:4000")
	tried, from := triedOf([]link.Candidate{
		{Remote: at, Origin: signaling.Host, Sent: 2, Answered: 1, Size: 1200},
		{Remote: netip.MustParseAddrPort("[fe80::1%wlan0]:4000"), Origin: signaling.Host, Sent: 1 << 60, Received: 3, Size: 1432},
		{Remote: netip.MustParseAddrPort("192.0.2.1:9"), Sent: 1},
	})
	if len(tried) != 2 || tried[0].Addr.String() != "[fe80::1]:4000" || tried[0].Sent < 1<<20 || tried[0].Received != 3 || tried[0].Size != 1432 {
		t.Errorf("%+v", tried)
	}
	if len(from) != 1 || from[0] != tried[0].Addr {
		t.Errorf("from %v", from)
	}
}

// TestDialBackOnlyToTheAsker: nobody has this device connect to somebody else, to itself,
// to what it has not proved to be its own, or to anybody if relays alone are to be used.
func TestDialBackOnlyToTheAsker(t *testing.T) {
	l, err := dialback.Listen(t.Context(), netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Port())
	loopback := Config{Loopback: true}
	proved := link.Candidate{Remote: netip.AddrPortFrom(at.Addr(), 1), Sent: 3, Answered: 1}
	with := func(change func(*link.Candidate)) link.Candidate {
		c := proved
		change(&c)
		return c
	}
	for name, test := range map[string]struct {
		cfg   Config
		to    netip.AddrPort
		known link.Candidate
		want  dialback.Outcome
	}{
		"it has answered there":    {loopback, at, proved, dialback.OK},
		"loopback is not allowed":  {Config{}, at, proved, dialback.Forbidden},
		"relays alone":             {Config{Loopback: true, Relay: RelayAlways}, at, proved, dialback.Forbidden},
		"a low port":               {loopback, netip.AddrPortFrom(at.Addr(), 631), proved, dialback.Forbidden},
		"it merely names it":       {loopback, at, with(func(c *link.Candidate) { c.Answered, c.Origin = 0, signaling.Host }), dialback.Forbidden},
		"it was merely heard from": {loopback, at, with(func(c *link.Candidate) { c.Answered, c.Received = 0, 5 }), dialback.Forbidden},
		"a relay's address":        {loopback, at, with(func(c *link.Candidate) { c.Via = "hub" }), dialback.Forbidden},
		"somebody else's":          {loopback, at, with(func(c *link.Candidate) { c.Remote = netip.MustParseAddrPort("192.0.2.1:1") }), dialback.Forbidden},
	} {
		n := &Node{cfg: test.cfg}
		q := signaling.Question{DialBack: test.to, Secret: l.Code(), Pin: l.Pin()}
		if got := n.dialBack(t.Context(), q, []link.Candidate{test.known}); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

// TestDialBackNotToOneself: an address of this machine is not dialed, whoever has
// answered there.
func TestDialBackNotToOneself(t *testing.T) {
	list, err := netmon.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, i := range list {
		for _, p := range i.Addrs {
			to := netip.AddrPortFrom(p.Addr(), 40000)
			known := []link.Candidate{{Remote: to, Answered: 1}}
			if got := new(Node).dialBack(t.Context(), signaling.Question{DialBack: to}, known); got != dialback.Forbidden {
				t.Errorf("%s: %s", to, got)
			}
			tried++
		}
	}
	if tried == 0 {
		t.Skip("this machine has no addresses")
	}
	// 192.0.2.0/24 is nobody's: an address that is not ours is dialed.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	to := netip.MustParseAddrPort("192.0.2.1:40000")
	if got := new(Node).dialBack(ctx, signaling.Question{DialBack: to}, []link.Candidate{{Remote: to, Answered: 1}}); got == dialback.Forbidden {
		t.Error("a proved address is not dialed")
	}
}
