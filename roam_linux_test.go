package kith_test

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	kith "github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/nettest"
)

// A change is what happens to the network of two connected devices, and what is
// done so that it can happen again.
type change struct {
	name string
	a, b nettest.NAT
	do   func(ctx context.Context, r *reachLab)
	undo func(ctx context.Context, r *reachLab) // nil: nothing
}

func changes() []change {
	restartHub := func(ctx context.Context, r *reachLab) {
		r.up.Kill()
		r.startHub(ctx)
	}
	// Who comes again has another address there, and would find its port taken by
	// the mapping of its earlier self, which no real device does.
	home := func(_ context.Context, r *reachLab) {
		r.sites[0].Move(r.nodes[0].host)
		for _, s := range []*nettest.Site{r.sites[0], r.spare, r.hard} {
			s.Reboot(false)
		}
	}
	return []change{
		{"one moves to another network", nettest.NATEasy, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.spare.Move(r.nodes[0].host)
		}, home},
		{"one moves behind a hard NAT", nettest.NATEasy, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.hard.Move(r.nodes[0].host)
		}, home},
		{"new public address", nettest.NATEasy, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.sites[0].Reboot(true)
		}, nil},
		{"NAT reboot, port not kept", nettest.NATEIM, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.sites[0].Reboot(false)
		}, nil},
		{"hub restart, straight path", nettest.NATEasy, nettest.NATEasy, restartHub, nil},
		{"hub restart, relayed", nettest.NATHard, nettest.NATHard, restartHub, nil},
		{"20 s without a link", nettest.NATEasy, nettest.NATEasy, func(ctx context.Context, r *reachLab) {
			r.sites[0].Cut(true)
			// Not for whole seconds: both devices probe once a second meanwhile.
			select {
			case <-time.After(20*time.Second + rand.N(time.Second)): //nolint:gosec // no secret
			case <-ctx.Done():
			}
			r.sites[0].Cut(false)
		}, nil},
		{"NAT reboot, port not kept, and no hub any more", nettest.NATEIM, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.up.Kill()
			r.sites[0].Reboot(false)
		}, func(ctx context.Context, r *reachLab) { r.startHub(ctx) }},
	}
}

// roamLimit bounds one change of TestNetworkRoam, until bytes flow: well above what
// make roam measures, so that a loaded machine does no harm, and below what it
// takes when something waits for WireGuard's or TCP's own timers.
const roamLimit = 10 * time.Second

// TestNetworkRoam holds that connections inside the tunnel live through changes of
// the network, and measures how long there is no traffic.
func TestNetworkRoam(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			r := newRoamLab(ctx, t, c)
			r.settle(ctx, t, c)
			res := r.roam(ctx, t, c, false)
			t.Logf("%s: first byte %v, bytes of the transfer %v after the network was back", c.name, res.first, res.flow)
			if res.err != nil {
				t.Errorf("transfer: %v", res.err)
			}
			if res.first > roamLimit || res.flow > roamLimit {
				t.Errorf("not within %v", roamLimit)
			}
		})
	}
}

// A roamLab is a reachLab whose devices have a connection through the tunnel.
type roamLab struct {
	*reachLab
	pipe *pipe
}

func newRoamLab(ctx context.Context, t *testing.T, c change) *roamLab {
	t.Helper()
	r := &roamLab{reachLab: newReachLab(ctx, t, c.a, c.b)}
	r.spare, r.hard = r.inet.Site("spare", nettest.NATEasy), r.inet.Site("hard", nettest.NATHard)
	r.pipe = newPipe(ctx, t, r.reachLab)
	return r
}

// settle waits until all is as it should be before a change: both devices know the
// hub, and the path is the best that there is.
func (r *roamLab) settle(ctx context.Context, t *testing.T, c change) {
	t.Helper()
	for i, s := range r.nodes {
		for !mediaReady(ctx, t, s) {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal("the hub is not found again")
			}
		}
		args := []string{"ping", "--wait", "30s", "-c", "1", r.nodes[1-i].host.Name}
		if c.a != nettest.NATHard {
			args = []string{"ping", "--wait", "30s", "--until-direct", r.nodes[1-i].host.Name}
		}
		s.run(ctx, args...)
	}
}

func mediaReady(ctx context.Context, t *testing.T, s *station) bool {
	t.Helper()
	var st kith.Status
	if err := json.Unmarshal([]byte(s.run(ctx, "status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	ready := 0
	for _, m := range st.Rendezvous {
		if m.Ready {
			ready++
		}
	}
	return ready == len(st.Rendezvous)
}

// roamed is what one change did.
type roamed struct {
	first time.Duration // from the network's return to the first answer through the tunnel
	flow  time.Duration // the same, until bytes of the transfer flow for good; 0: they never stopped
	gaps  string        // all pauses of the transfer
	err   error         // of the transfer
}

// roam makes a change while a transfer is running: to the device that it happens
// to, or from it.
func (r *roamLab) roam(ctx context.Context, t *testing.T, c change, from bool) roamed {
	t.Helper()
	tr := r.pipe.transfer(ctx, t, from)
	c.do(ctx, r.reachLab)
	back := time.Now()
	r.nodes[0].run(ctx, "ping", "-c", "1", "--wait", "60s", r.nodes[1].host.Name)
	res := roamed{first: time.Since(back).Round(time.Millisecond)}
	res.err = tr.wait(ctx)
	res.flow, res.gaps = tr.resumed(back)
	return res
}
