package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/lan"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// A wire is a LAN of a test.
type wire struct {
	t   *testing.T
	lab *nettest.Lab
	br  *nettest.Bridge
	sw  string // the switch's namespace
	n   int
}

func newWire(t *testing.T) *wire {
	l := nettest.New(t)
	w := &wire{t: t, lab: l, br: l.Bridge("lan")}
	return w
}

func (w *wire) run(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.CommandContext(w.t.Context(), name, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// host attaches one more host.
func (w *wire) host(addrs ...string) *nettest.Host {
	w.n++
	h := w.lab.Host(fmt.Sprint("h", w.n))
	if w.sw == "" {
		w.sw = strings.TrimSuffix(h.Namespace(), "h1") + "switch"
	}
	return h.Attach(w.br, addrs...)
}

// dropMulticast has the switch drop multicast, but for what finds IPv6 neighbours.
func (w *wire) dropMulticast() {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "ip", "netns", "exec", w.sw, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(`table bridge f { chain forward { type filter hook forward priority 0; ip daddr 224.0.0.0/4 drop; ip6 daddr ff12::/16 drop; ip6 daddr ff02::fb drop; }; }`)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// isolate keeps the ports of the first hosts apart.
func (w *wire) isolate(hosts int) {
	for i := range hosts {
		w.run("bridge", "-n", w.sw, "link", "set", "dev", fmt.Sprint("p", i+1), "isolated", "on")
	}
}

// unicastApart keeps the ports of the first two hosts apart, but for multicast.
func (w *wire) unicastApart() {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "ip", "netns", "exec", w.sw, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(`table bridge f { chain apart { ether type arp drop; ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 drop; }; chain forward { type filter hook forward priority 0; iifname { p1, p2 } oifname { p1, p2 } jump apart; }; }`)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// openLAN opens the LAN of a host.
func openLAN(t *testing.T, h *nettest.Host, cfg lan.Config) (*lan.Exchange, func() (rendezvous.Exchange, error)) {
	t.Helper()
	mon := netmon.New(netmon.Config{Poll: 50 * time.Millisecond, Source: interfacesOf(h)})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = mon.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	cfg.Monitor = mon
	open := func() (x rendezvous.Exchange, err error) {
		h.Do(func() { x, err = lan.New(cfg) })
		return x, err
	}
	x, err := open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x.(*lan.Exchange), open
}

func interfacesOf(h *nettest.Host) func() ([]netmon.Interface, error) {
	return func() (list []netmon.Interface, err error) {
		h.Do(func() { list, err = netmon.Interfaces() })
		return list, err
	}
}

// lanEnv is what the doctor sees on a host.
func lanEnv(t *testing.T, h *nettest.Host) *Env {
	x, open := openLAN(t, h, lan.Config{})
	return &Env{
		Port: 1, Pacer: NewPacer(), Interfaces: interfacesOf(h),
		Media:     []Medium{{Name: "lan", Exchange: x, Fresh: open}},
		Behaviour: func() punch.Behaviour { return punch.Behaviour{Public: netip.MustParseAddr("11.0.0.1")} },
	}
}

// look runs the checks of the group on a host. ownRouter says whether the router has the
// public address itself.
func look(t *testing.T, h *nettest.Host, env *Env, ownRouter bool) Report {
	t.Helper()
	const total = 6 * time.Second // shorter than the system takes to forget a neighbour, on which nothing here depends
	return Run(t.Context(), Config{Env: env, Total: total, Table: meetingWith(lanSources{func() (out []lanNeighbour) {
		h.Do(func() { out = lanNeighbours() })
		return out
	}, func(context.Context, *Env, netip.Addr) bool { return ownRouter }})})
}

// peerAt is a paired device behind the same router, that was heard just now.
func peerAt(addr string) Peer {
	return Peer{
		ID: identity.DeviceID{1}, Name: "laptop", Finished: true, Connected: true, Heard: time.Now(),
		Candidates: func() []Candidate {
			return []Candidate{
				{Remote: netip.AddrPortFrom(netip.MustParseAddr(addr), 4000), Kind: "host"},
				{Remote: netip.MustParseAddrPort("11.0.0.1:4000"), Kind: "reflexive"},
			}
		},
	}
}

// greet has the system find a neighbour.
func greet(t *testing.T, h *nettest.Host, to string) {
	t.Helper()
	h.Do(func() {
		c, err := net.Dial("udp4", net.JoinHostPort(to, "9"))
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = c.Write([]byte("hello"))
	})
	rendezvoustest.Await(t, "the neighbour is found", func() bool {
		var all []lanNeighbour
		h.Do(func() { all = lanNeighbours() })
		return slices.ContainsFunc(all, func(n lanNeighbour) bool { return n.addr.String() == to && n.found })
	})
}

func TestMeetingLAN(t *testing.T) {
	const (
		noGroupsIn  = "table inet f { chain in { type filter hook input priority 0; ip daddr 224.0.0.0/4 drop; ip6 daddr ff00::/8 udp dport 27491 drop; }; }"
		noGroupsOut = "table inet f { chain out { type filter hook output priority 0; udp dport 27491 ip daddr 224.0.0.0/4 drop; udp dport 27491 ip6 daddr ff00::/8 drop; }; }"
		noPortIn    = "table inet f { chain in { type filter hook input priority 0; udp dport 27491 drop; }; }"
	)
	for name, c := range map[string]struct {
		six     bool // there is IPv6, too
		rules   [2]string
		before  func(w *wire)             // the devices are opened
		after   func(w *wire, peer *Peer) // what the other one is known for
		alone   bool                      // the other one does not run kith
		carrier bool                      // the provider shares the public address
		peer    string                    // address of the paired device; "": none
		want    []string
		state   map[Code]State
	}{
		"healthy": {
			peer: "10.0.0.2",
			state: map[Code]State{
				"meeting.lan.port": Yes, "meeting.lan.send": Yes, "meeting.lan.loop": Yes, "meeting.lan.others": Yes, "meeting.lan.multicast": Yes,
				"meeting.lan.find": Yes, "meeting.lan.found": Yes, "meeting.lan.isolation": Yes,
			},
		},
		"healthy, IPv6 as well":  {six: true, peer: "10.0.0.2", state: map[Code]State{"meeting.lan.find": Yes, "meeting.lan.isolation": Yes}},
		"healthy, with snooping": {before: func(w *wire) { w.snoop() }, peer: "10.0.0.2", state: map[Code]State{"meeting.lan.multicast": Yes}},
		"healthy, nobody else": {
			alone: true, state: map[Code]State{"meeting.lan.multicast": Yes, "meeting.lan.isolation": Yes, "meeting.lan.loop": Yes},
		},
		"healthy, the other has no kith": {alone: true, peer: "10.0.0.2", state: map[Code]State{"meeting.lan.isolation": Unknown}},
		"healthy, the other has an older kith": {
			alone: true, peer: "10.0.0.2", state: map[Code]State{"meeting.lan.isolation": Yes},
			after: func(w *wire, p *Peer) {
				all := p.Candidates()
				all[0].Sent, all[0].Answered = 9, 9
				p.Candidates = func() []Candidate { return all }
			},
		},
		"healthy, the peer is off": {
			alone: true, peer: "10.0.0.77", after: func(_ *wire, p *Peer) { p.Connected, p.Heard = false, time.Time{} },
			state: map[Code]State{"meeting.lan.isolation": Unknown},
		},
		"healthy, the peer is elsewhere, on a LAN with the same addresses": {
			alone: true, peer: "10.0.0.77", after: func(_ *wire, p *Peer) {
				all := p.Candidates()
				p.Candidates = func() []Candidate { return all[:1] }
			}, state: map[Code]State{"meeting.lan.isolation": Unknown},
		},
		"multicast dropped":               {before: func(w *wire) { w.dropMulticast() }, want: []string{"meeting.lan.multicast/dropped"}},
		"multicast dropped, IPv6 as well": {six: true, before: func(w *wire) { w.dropMulticast() }, want: []string{"meeting.lan.multicast/dropped"}},
		"multicast and broadcast dropped, a paired device": {
			before: func(w *wire) { w.dropMulticast() }, rules: [2]string{"", "table inet f { chain in { type filter hook input priority 0; ip daddr 10.0.0.255 drop; }; }"},
			peer: "10.0.0.2", want: []string{"meeting.lan.multicast/dropped"},
		},
		"client isolation": {
			before: func(w *wire) { w.isolate(2) }, peer: "10.0.0.2", want: []string{"meeting.lan.isolation/isolated"},
		},
		"healthy, the peer is elsewhere, behind the same carrier's NAT": {
			alone: true, carrier: true, peer: "10.0.0.77", state: map[Code]State{"meeting.lan.isolation": Unknown},
		},
		"client isolation, and a carrier's NAT": {
			carrier: true, before: func(w *wire) { w.isolate(2) }, peer: "10.0.0.2", state: map[Code]State{"meeting.lan.isolation": Unknown},
		},
		"client isolation behind a carrier's NAT, with IPv6": {
			carrier: true, before: func(w *wire) { w.isolate(2) }, peer: "10.0.0.2", want: []string{"meeting.lan.isolation/isolated"},
			six: true, after: func(_ *wire, p *Peer) {
				all := append(p.Candidates(), Candidate{Remote: netip.MustParseAddrPort("[2001:db8:1::2]:4000"), Kind: "host"})
				p.Candidates = func() []Candidate { return all }
			},
		},
		"client isolation that lets multicast pass, and a carrier's NAT": {
			carrier: true, peer: "10.0.0.2", want: []string{"meeting.lan.isolation/isolated"},
			before: func(w *wire) { w.unicastApart() },
		},
		"client isolation that came later": {
			before: func(w *wire) { w.isolate(2) }, peer: "10.0.0.2", want: []string{"meeting.lan.isolation/isolated"},
			after: func(_ *wire, p *Peer) {
				all := p.Candidates()
				all[0].Sent, all[0].Answered = 90, 80
				p.Candidates = func() []Candidate { return all }
			},
		},
		"client isolation, the peer is asked": {
			before: func(w *wire) { w.isolate(2) }, peer: "10.0.0.2", want: []string{"meeting.lan.isolation/isolated"},
			after: func(_ *wire, p *Peer) {
				p.Connected, p.Heard = false, time.Time{}
				p.Ask = func(context.Context, Question) (Reply, error) { return Reply{}, nil }
			},
		},
		"client isolation, and nothing is known of the peer": {
			before: func(w *wire) { w.isolate(2) }, peer: "10.0.0.2", state: map[Code]State{"meeting.lan.isolation": Unknown},
			after: func(_ *wire, p *Peer) {
				p.Connected, p.Heard = false, time.Time{}
				p.Ask = func(context.Context, Question) (Reply, error) { return Reply{}, errors.New("silent") }
			},
		},
		"the other's firewall": {rules: [2]string{"", noGroupsIn}, want: []string{"meeting.lan.found/unheard"}},
		"the other's firewall, out": {
			rules: [2]string{"", noGroupsOut}, want: []string{"meeting.lan.find/deaf"},
		},
		"own firewall":      {rules: [2]string{noPortIn, ""}, want: []string{"meeting.lan.loop/firewall"}},
		"own firewall, out": {rules: [2]string{noGroupsOut, ""}, want: []string{"meeting.lan.send/send"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			h, other := w.host(), w.host()
			w.host("10.0.0.254/24") // the router
			for i, x := range []*nettest.Host{h, other} {
				if c.six {
					x.Addr("eth0", fmt.Sprintf("fd00::%d/64", i+1))
					x.Addr("eth0", fmt.Sprintf("2001:db8:1::%d/64", i+1))
				} else {
					x.Output(t.Context(), "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
				}
				x.Addr("eth0", fmt.Sprintf("10.0.0.%d/24", i+1))
				if c.rules[i] != "" {
					x.Nft(c.rules[i])
				}
			}
			if c.before != nil {
				c.before(w)
			}
			greet(t, h, "10.0.0.254")
			if c.alone && c.peer == "10.0.0.2" {
				greet(t, h, c.peer)
			}
			if !c.alone {
				openLAN(t, other, lan.Config{})
			}
			env := lanEnv(t, h)
			if c.peer != "" {
				env.Peers = []Peer{peerAt(c.peer)}
				if c.after != nil {
					c.after(w, &env.Peers[0])
				}
			}
			start := time.Now()
			r := look(t, h, env, !c.carrier)
			wantCauses(t, r, c.want...)
			for code, want := range c.state {
				if x := result(t, r, code); x.State != want {
					t.Errorf("%s: %s, want %s; %q", code, x.State, want, x.Evidence)
				}
			}
			t.Logf("took %v", time.Since(start))
		})
	}
}

// snoop has the switch pass multicast on only to those who are members, as many do.
func (w *wire) snoop() {
	w.run("ip", "-n", w.sw, "link", "set", "brlan", "type", "bridge", "mcast_snooping", "1", "mcast_querier", "1")
}

// TestMeetingPort: another program holds the port.
func TestMeetingPort(t *testing.T) {
	w := newWire(t)
	h := w.host("10.0.0.1/24")
	for _, network := range []string{"udp4", "udp6"} {
		var c net.PacketConn
		var err error
		h.Do(func() { c, err = net.ListenPacket(network, fmt.Sprint(":", lan.Port)) })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r := look(t, h, lanEnv(t, h), true)
	wantCauses(t, r, "meeting.lan.port/taken")
	if x := result(t, r, "meeting.lan.loop"); x.State != Skipped {
		t.Errorf("%+v", x)
	}

	h = w.host("10.0.0.2/24")
	var c net.PacketConn
	var err error
	h.Do(func() { c, err = net.ListenPacket("udp4", fmt.Sprint(":", mdnsPort)) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r = look(t, h, lanEnv(t, h), true)
	wantCauses(t, r, "meeting.lan.port/mdns")
	if r.Causes[0].Severity != Note || result(t, r, "meeting.lan.loop").State != Yes {
		t.Errorf("%+v", r.Causes)
	}
}

// TestMeetingNoNetwork: a device that is not connected at all is accused of nothing here.
func TestMeetingNoNetwork(t *testing.T) {
	h := newWire(t).lab.Host("alone")
	wantCauses(t, look(t, h, lanEnv(t, h), true))
}

// TestMeetingPackets counts what the checks send.
func TestMeetingPackets(t *testing.T) {
	w := newWire(t)
	h, other := w.host("10.0.0.1/24"), w.host("10.0.0.2/24")
	openLAN(t, other, lan.Config{})
	w.dropMulticast() // the longest way
	env := lanEnv(t, h)
	before, start := h.Counter(t.Context(), "eth0", "tx_packets"), time.Now()
	r := look(t, h, env, true)
	sent, took := h.Counter(t.Context(), "eth0", "tx_packets")-before, time.Since(start)
	wantCauses(t, r, "meeting.lan.multicast/dropped")
	t.Logf("%d packets in %v", sent, took)
	if float64(sent) > 200*max(took.Seconds(), 1) {
		t.Errorf("%d packets in %v", sent, took)
	}
	if !slices.ContainsFunc(r.Results, func(x Result) bool { return x.Code == "meeting.lan.loop" && x.State == Yes }) {
		t.Error("the device's own multicast is not heard")
	}
}

// TestRouterIsPublic: who shares a public address with others of a provider is not
// certainly on one LAN with them.
func TestRouterIsPublic(t *testing.T) {
	inet := nettest.New(t).Internet()
	for _, test := range []struct {
		nat  nettest.NAT
		want bool
	}{{nettest.NATEasy, true}, {nettest.NATCGN, false}} {
		site := inet.Site(fmt.Sprint("home", test.nat), test.nat)
		home := site.Host(fmt.Sprint("desk", test.nat))
		var got bool
		home.Do(func() { got = routerIsPublic(t.Context(), new(Env), site.Public()) })
		if got != test.want {
			t.Errorf("%v: %v", test.nat, got)
		}
	}
}
