package kith_test

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/link"
)

// hubsBound is how long a start or a loss may take with a dead hub configured. It
// is generous, for busy machines; the times that are logged are the measurement.
const hubsBound = 10 * time.Second

// A hubServer is a public server that a hub runs on, or not.
type hubServer struct {
	*station
	args []string
	up   *nettest.Process // nil: not running
	text string           // the hub's address
	deaf bool
}

func newHubServer(ctx context.Context, t *testing.T, inet *nettest.Internet, name string) *hubServer {
	t.Helper()
	h := &hubServer{station: newStation(t, inet.Server(name))}
	v4 := h.host.Addrs()
	h.args = []string{"hub", "--dht", "off", "--listen", v4[0].String() + ":443", "--host", v4[0].String(), "--alt-ip", v4[1].String()}
	h.run(ctx)
	h.text = strings.TrimSpace(h.station.run(ctx, "hub", "address"))
	return h
}

// run has the hub run, and answer.
func (h *hubServer) run(ctx context.Context) {
	if h.deaf {
		h.host.Nft("delete table inet hole\n")
		h.deaf = false
	}
	if h.up == nil {
		h.up = h.start(h.args...)
		h.up.Await(ctx, "kith-hub:")
	}
}

// stop ends the hub; the server still says that nobody listens.
func (h *hubServer) stop() {
	if h.up != nil {
		h.up.Kill()
		h.up = nil
	}
}

// swallow has the server take everything and answer nothing.
func (h *hubServer) swallow() {
	if !h.deaf {
		h.host.Nft("table inet hole {\n chain in { type filter hook input priority 0; policy drop\n }\n}\n")
		h.deaf = true
	}
}

// A hubsLab is two paired devices in homes of their own, and two hubs.
type hubsLab struct {
	*reachLab
	hubs [2]*hubServer
}

func newHubsLab(ctx context.Context, t *testing.T, nat nettest.NAT) *hubsLab {
	t.Helper()
	lab := nettest.New(t)
	r := &hubsLab{reachLab: &reachLab{lab: lab, inet: lab.Internet()}}
	for i, name := range []string{"huba", "hubb"} {
		r.hubs[i] = newHubServer(ctx, t, r.inet, name)
	}
	for i := range r.nodes {
		r.sites[i] = r.inet.Site([]string{"left", "right"}[i], nat)
		r.nodes[i] = newStation(t, r.sites[i].Host([]string{"desk", "laptop"}[i]))
		r.nodes[i].run(ctx, "config", "rendezvous", "lan", "off")
	}
	r.configure(ctx, 0)
	for _, s := range r.nodes {
		s.daemon(ctx)
	}
	pairStations(ctx, t, r.nodes[0], r.nodes[1], "words")
	for _, s := range r.nodes {
		s.up.Stop()
	}
	return r
}

// configure sets hubs on both devices, which do not run, in this order.
func (r *hubsLab) configure(ctx context.Context, hubs ...int) {
	for _, s := range r.nodes {
		s.run(ctx, "config", "hub", "--remove", "all")
		for _, h := range hubs {
			s.run(ctx, "config", "hub", r.hubs[h].text)
		}
	}
}

// TestNetworkDeadHub starts two devices with one hub, and with a second one that is
// dead, and compares. KITH_HUBS is the number of runs; 1 without it.
func TestNetworkDeadHub(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("KITH_HUBS"))
	if err != nil || runs < 1 {
		runs = 1
	}
	for _, nat := range []nettest.NAT{nettest.NATEasy, nettest.NATHard} {
		t.Run(string(nat), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(runs+1)*netTimeout)
			defer cancel()
			r := newHubsLab(ctx, t, nat)
			cases := []struct {
				name string
				dead func(*hubServer)
				hubs []int // in the order of configuration; the second is dead
			}{
				{"one hub alone", (*hubServer).stop, []int{0}},
				{"port closed, dead hub first", (*hubServer).stop, []int{1, 0}},
				{"port closed, dead hub last", (*hubServer).stop, []int{0, 1}},
				{"black hole, dead hub first", (*hubServer).swallow, []int{1, 0}},
				{"black hole, dead hub last", (*hubServer).swallow, []int{0, 1}},
			}
			first, straight := make([][]time.Duration, len(cases)), make([][]time.Duration, len(cases))
			for range runs {
				for i, c := range cases {
					r.hubs[1].run(ctx)
					c.dead(r.hubs[1])
					r.configure(ctx, c.hubs...)
					for _, s := range r.sites {
						s.Reboot(true) // what they remember of each other is of no use
					}
					patience := 10 * time.Second
					if nat == nettest.NATHard {
						patience = 0
					}
					o := r.restart(ctx, t, patience)
					for _, s := range r.nodes {
						s.up.Stop()
					}
					if o.first > hubsBound || nat == nettest.NATEasy && (o.straight == 0 || o.straight > hubsBound) {
						t.Errorf("%s: first byte after %v, straight after %v: %s", c.name, o.first, o.straight, o.path)
					}
					if nat == nettest.NATHard && !strings.HasPrefix(o.path, "relay") {
						t.Errorf("%s: %s, want a relay", c.name, o.path)
					}
					first[i] = append(first[i], o.first)
					if o.straight != 0 {
						straight[i] = append(straight[i], o.straight)
					}
				}
			}
			for i, c := range cases {
				t.Logf("%s, %d runs: first byte median %s, 95 %% %s; straight median %s, 95 %% %s", c.name, runs,
					quantile(first[i], 50), quantile(first[i], 95), quantile(straight[i], 50), quantile(straight[i], 95))
			}
		})
	}
}

// TestNetworkRelayDies kills the hub whose relay two devices use, and lets it fall
// silent; the other one relays from then on.
func TestNetworkRelayDies(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("KITH_HUBS"))
	if err != nil || runs < 1 {
		runs = 1
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(runs+1)*netTimeout)
	defer cancel()
	r := newHubsLab(ctx, t, nettest.NATHard)
	r.configure(ctx, 0, 1)
	for _, c := range []struct {
		name string
		dies func(*hubServer)
	}{{"killed", (*hubServer).stop}, {"silent", (*hubServer).swallow}} {
		var gaps []time.Duration
		for range runs {
			for _, h := range r.hubs {
				h.run(ctx)
			}
			r.restart(ctx, t, 0)
			stop := r.chatter(ctx, t)
			h := r.inUse(ctx, t)
			start := time.Now()
			c.dies(h)
			r.nodes[0].run(ctx, "ping", "-c", "1", "--wait", "30s", "laptop")
			gap := time.Since(start)
			stop()
			if gap > hubsBound {
				t.Errorf("%s: traffic again after %v", c.name, gap)
			}
			gaps = append(gaps, gap)
			if now := r.inUse(ctx, t); now == h {
				t.Errorf("%s: the dead hub is in use", c.name)
			}
			for _, s := range r.nodes {
				s.up.Stop()
			}
		}
		slices.Sort(gaps)
		t.Logf("%s, %d runs: traffic again after median %s, 95 %% %s: %v", c.name, runs, quantile(gaps, 50), quantile(gaps, 95), gaps)
	}
}

// chatter has the first device ask the second again and again, until stop.
func (r *hubsLab) chatter(ctx context.Context, t *testing.T) (stop func()) {
	t.Helper()
	p := r.nodes[1].start("ping", "-c", "1000", "--wait", "30s", "desk")
	p.Await(ctx, "relay")
	return p.Kill
}

// inUse returns the hub that relays; the path of the first device counts.
func (r *hubsLab) inUse(ctx context.Context, t *testing.T) *hubServer {
	t.Helper()
	var st struct{ Devices []struct{ Path *link.Path } }
	if err := json.Unmarshal([]byte(r.nodes[0].run(ctx, "status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	path := st.Devices[0].Path
	if path == nil || path.Kind != link.Relay {
		t.Fatalf("no relay is in use: %v", path)
	}
	for _, h := range r.hubs {
		if path.Via == h.host.Addrs()[0].String() || path.Via == "" && slices.Contains(h.host.Addrs(), path.Remote.Addr()) {
			return h
		}
	}
	t.Fatalf("no hub is on the path %v", path)
	return nil
}
