package kith_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// byLanes returns how many bytes of connections to ports of the only other device came over
// lanes.
func (s *station) byLanes(ctx context.Context) (received uint64) {
	s.t.Helper()
	var st struct {
		Devices []struct {
			Received uint64 `json:"lane_received"`
		}
	}
	if err := json.Unmarshal([]byte(s.run(ctx, "status", "--json")), &st); err != nil {
		s.t.Fatal(err)
	}
	return st.Devices[0].Received
}

// awaitLanes returns when the first device has received so many bytes over lanes.
func awaitLanes(ctx context.Context, t *testing.T, s *station, bytes uint64) {
	t.Helper()
	for {
		if received := s.byLanes(ctx); received >= bytes {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("no lane\n%s", s.run(context.WithoutCancel(ctx), "status"))
		}
	}
}

// newHomeLab is two devices in one home, another home, and a hub.
func newHomeLab(ctx context.Context, t *testing.T) *reachLab {
	t.Helper()
	lab := nettest.New(t)
	r := &reachLab{lab: lab, inet: lab.Internet()}
	r.hub = newStation(t, r.inet.Server("hub"))
	r.startHub(ctx)
	home := r.inet.Site("home", nettest.NATEasy)
	r.spare = r.inet.Site("away", nettest.NATEasy)
	for i, name := range []string{"desk", "laptop"} {
		r.sites[i] = home
		r.nodes[i] = newStation(t, home.Host(name))
		r.nodes[i].run(ctx, "config", "hub", r.text)
		r.nodes[i].daemon(ctx)
	}
	pairStations(ctx, t, r.nodes[0], r.nodes[1], "words")
	return r
}

// TestNetworkForwardByLane carries a forward's bytes over the LAN, and has the lane end in
// the middle of it: the stream goes on, each byte once.
func TestNetworkForwardByLane(t *testing.T) {
	for name, happen := range map[string]func(r *reachLab){
		"moved to another home": func(r *reachLab) { r.spare.Move(r.nodes[1].host) },
		"TCP is dropped from now on": func(r *reachLab) {
			r.nodes[1].host.Nft("table inet cut { chain in { type filter hook input priority 0; iifname != lo meta l4proto tcp drop; }; chain out { type filter hook output priority 0; oifname != lo meta l4proto tcp drop; }; }")
		},
		"nothing": func(*reachLab) {},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			r := newHomeLab(ctx, t)
			tr := newPipe(ctx, t, r).transfer(ctx, t, false)
			awaitLanes(ctx, t, r.nodes[0], 8<<20)
			start := time.Now()
			happen(r)
			if err := tr.wait(ctx); err != nil {
				t.Fatal(err)
			}
			received := r.nodes[0].byLanes(ctx)
			last, pauses := tr.resumed(start)
			t.Logf("lanes carried %d MiB of %d, the last pause ended after %v (all:%s)", received>>20, transferSize>>20, last, pauses)
			if name == "nothing" && received < transferSize*3/4 {
				t.Errorf("lanes carried %d of %d bytes", received, transferSize)
			}
		})
	}
}

// miniupnpd is what a home's router maps.
func miniupnpd(ctx context.Context, s *nettest.Site) string {
	return s.Router.Output(ctx, "nft", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd")
}

// TestNetworkLaneByMappedPort has a lane between two homes: the router of one maps its
// TCP port, and releases it when lanes are used no more.
func TestNetworkLaneByMappedPort(t *testing.T) {
	for name, nat := range map[string][2]nettest.NAT{
		"of the device that dials": {nettest.NATUPnP, nettest.NATEasy},
		"of the other":             {nettest.NATEasy, nettest.NATUPnP},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			r := newReachLab(ctx, t, nat[0], nat[1])
			p := newPipe(ctx, t, r)
			start := time.Now()
			for {
				if err := p.transfer(ctx, t, false).wait(ctx); err != nil {
					t.Fatal(err)
				}
				if received := r.nodes[0].byLanes(ctx); received > 0 {
					t.Logf("lanes carried %d MiB within %v", received>>20, time.Since(start).Round(time.Millisecond))
					break
				}
			}
			for i, s := range r.nodes {
				if nat[i] != nettest.NATUPnP {
					continue
				}
				if rules := miniupnpd(ctx, r.sites[i]); strings.Count(rules, "dport") != 2 {
					t.Errorf("not the UDP port of the tunnel and the TCP port of lanes:\n%s", rules)
				}
				s.up.Stop()
				s.up.Wait(ctx)
				if rules := miniupnpd(ctx, r.sites[i]); strings.Contains(rules, "dport") {
					t.Errorf("left behind:\n%s", rules)
				}
			}
		})
	}
}
