package kith_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/link"
)

// A reachRow is one line of the NAT matrix: two homes, and what must come of it.
type reachRow struct {
	a, b     nettest.NAT
	straight bool          // a straight path must be found
	within   time.Duration // until it is (median of make natmatrix)
}

// reachRows are the situations that have to work.
func reachRows() []reachRow {
	return []reachRow{
		{nettest.NATEasy, nettest.NATEasy, true, time.Second},
		{nettest.NATEasy, nettest.NATNone, true, time.Second},
		{nettest.NATFullCone, nettest.NATEasy, true, time.Second},
		{nettest.NATv6Firewall, nettest.NATv6Firewall, true, time.Second},
		{nettest.NATCGN, nettest.NATEasy, true, time.Second},
		{nettest.NATEasy, nettest.NATHard, true, 2 * time.Second},
		{nettest.NATHard, nettest.NATEasy, true, 2 * time.Second},
		{nettest.NATSeq, nettest.NATSeq, true, 5 * time.Second},
		{nettest.NATHard, nettest.NATHard, false, 2 * time.Second},
		{nettest.NATUDPBlocked, nettest.NATEasy, false, 2 * time.Second},
		{nettest.NATUDPBlocked, nettest.NATUDPBlocked, false, 2 * time.Second},
		{nettest.NATUPnP, nettest.NATHard, true, 2 * time.Second},
	}
}

// A reachLab is two paired devices in homes of their own, and a hub.
type reachLab struct {
	lab   *nettest.Lab
	inet  *nettest.Internet
	hub   *station
	sites [2]*nettest.Site
	nodes [2]*station
	up    *nettest.Process // the hub
	text  string           // the hub's address
	v6    bool             // there is no IPv4

	spare, hard *nettest.Site // to move to
}

func newReachLab(ctx context.Context, t *testing.T, a, b nettest.NAT) *reachLab {
	t.Helper()
	lab := nettest.New(t)
	r := &reachLab{lab: lab, inet: lab.Internet(), v6: a == nettest.NATv6Firewall || b == nettest.NATv6Firewall}
	server := r.inet.Server("hub")
	r.hub = newStation(t, server)
	r.startHub(ctx)
	for i, nat := range []nettest.NAT{a, b} {
		r.sites[i] = r.inet.Site([]string{"left", "right"}[i], nat)
		r.nodes[i] = newStation(t, r.sites[i].Host([]string{"desk", "laptop"}[i]))
		r.nodes[i].run(ctx, "config", "rendezvous", "lan", "off")
		r.nodes[i].run(ctx, "config", "hub", r.text)
		r.nodes[i].daemon(ctx)
	}
	pairStations(ctx, t, r.nodes[0], r.nodes[1], "words")
	return r
}

// startHub starts a hub on the server: on both of its IPv4 addresses, or on all
// for homes that have IPv6 alone.
func (r *reachLab) startHub(ctx context.Context, more ...string) {
	var v4 []string
	var v6 string
	for _, a := range r.hub.host.Addrs() {
		if a.Is4() {
			v4 = append(v4, a.String())
		} else {
			v6 = a.String()
		}
	}
	args := []string{"hub", "--dht", "off", "--listen", v4[0] + ":443", "--host", v4[0], "--alt-ip", v4[1]}
	if r.v6 {
		args = []string{"hub", "--dht", "off", "--listen", ":443", "--host", v6}
	}
	r.up = r.hub.start(append(args, more...)...)
	r.up.Await(ctx, "kith-hub:")
	r.text = strings.TrimSpace(r.hub.run(ctx, "hub", "address"))
}

// outcome is how one start of both daemons went.
type outcome struct {
	first    time.Duration // until the first path
	straight time.Duration // until a straight path; 0: none came
	path     string
}

// restart starts both daemons, which do not run, and waits until they are connected, and until
// the path is straight or patience ends.
func (r *reachLab) restart(ctx context.Context, t *testing.T, patience time.Duration) outcome {
	t.Helper()
	start := time.Now()
	for _, s := range r.nodes {
		s.up = s.start("up", "--json")
	}
	for _, s := range r.nodes { // before, a command would run without the daemon
		s.up.Await(ctx, `"event":"up"`)
	}
	var o outcome
	r.nodes[0].run(ctx, "ping", "-c", "1", "--wait", "30s", "laptop")
	o.first = time.Since(start)
	status := func() *link.Path {
		var st struct{ Devices []struct{ Path *link.Path } }
		if err := json.Unmarshal([]byte(r.nodes[0].run(ctx, "status", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		return st.Devices[0].Path
	}
	deadline := time.Now().Add(patience)
	for {
		if p := status(); p != nil {
			o.path = p.String()
			if p.Kind != link.Relay {
				o.straight = time.Since(start)
				return o
			}
		}
		if time.Now().After(deadline) {
			return o
		}
	}
}

// TestNetworkReach connects two devices behind each pair of NATs.
func TestNetworkReach(t *testing.T) {
	for _, row := range reachRows() {
		t.Run(fmt.Sprintf("%s-%s", row.a, row.b), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			r := newReachLab(ctx, t, row.a, row.b)
			patience := 10 * time.Second
			if !row.straight {
				patience = 0
			}
			for _, s := range r.nodes {
				s.up.Stop()
			}
			o := r.restart(ctx, t, patience)
			t.Logf("first byte %v, straight %v: %s", o.first.Round(time.Millisecond), o.straight.Round(time.Millisecond), o.path)
			if row.straight && o.straight == 0 {
				t.Errorf("no straight path: %s\n%s", o.path, r.nodes[0].run(ctx, "status"))
			}
		})
	}
}

// TestNetworkUDPComesBack: two idle devices leave the relay by themselves when a router
// lets UDP out again, and meanwhile the right network is said to block it.
func TestNetworkUDPComesBack(t *testing.T) {
	t.Parallel() // it mostly waits
	ctx, cancel := context.WithTimeout(t.Context(), 2*netTimeout)
	defer cancel()
	r := newReachLab(ctx, t, nettest.NATEasy, nettest.NATEasy)
	for _, s := range r.nodes {
		s.up.Stop()
	}
	r.sites[0].DropUDP(true)
	r.restart(ctx, t, 0)
	type state struct {
		NAT     string
		Devices []struct {
			Path   *link.Path
			Better string
		}
	}
	until := func(s *station, what string, ok func(state) bool) {
		t.Helper()
		for {
			var st state
			if err := json.Unmarshal([]byte(s.run(ctx, "status", "--json")), &st); err != nil {
				t.Fatal(err)
			}
			if len(st.Devices) == 1 && st.Devices[0].Path != nil && ok(st) {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %s", what, s.run(context.WithoutCancel(ctx), "status"))
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
	blocked := func(where string) func(state) bool {
		return func(st state) bool {
			return st.Devices[0].Path.Kind == link.Relay && strings.HasPrefix(st.Devices[0].Better, "UDP does not get out of "+where)
		}
	}
	until(r.nodes[0], "blocked here", blocked("this network"))
	until(r.nodes[1], "blocked there", blocked("its network"))
	until(r.nodes[1], "seen from outside", func(st state) bool { return st.NAT != "" })
	rest(ctx, t, 20*time.Second) // until the first pings to it have ended
	r.sites[0].DropUDP(false)
	start := time.Now()
	for _, s := range r.nodes {
		until(s, "straight again", func(st state) bool { return st.Devices[0].Path.Kind != link.Relay })
	}
	t.Logf("straight after %v", time.Since(start).Round(time.Second))
}

// TestNetworkHubFromQR pairs a device that knows no hub, by a QR code that names
// one, across the internet; both then meet there again after a restart.
func TestNetworkHubFromQR(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	lab := nettest.New(t)
	r := &reachLab{lab: lab, inet: lab.Internet()}
	r.hub = newStation(t, r.inet.Server("hub"))
	r.startHub(ctx)
	for i, nat := range []nettest.NAT{nettest.NATEasy, nettest.NATUDPBlocked} {
		r.sites[i] = r.inet.Site([]string{"left", "right"}[i], nat)
		r.nodes[i] = newStation(t, r.sites[i].Host([]string{"desk", "laptop"}[i]))
	}
	r.nodes[0].run(ctx, "config", "hub", r.text)
	for _, s := range r.nodes {
		s.daemon(ctx)
	}
	code := pairStations(ctx, t, r.nodes[0], r.nodes[1], "qr")
	r.nodes[0].run(ctx, "ping", "-c", "1", "laptop")
	for _, s := range r.nodes {
		s.up.Stop()
		s.daemon(ctx)
	}
	r.nodes[1].run(ctx, "ping", "-c", "1", "desk")
	if got := r.nodes[1].run(ctx, "config"); !strings.Contains(got, "kith-hub:") || strings.Contains(code, "kith-hub") {
		t.Errorf("the joiner's settings: %s", got)
	}
	if strings.Contains(r.nodes[1].run(ctx, "config"), r.text) {
		t.Error("kith config shows the hub's secret")
	}
}
