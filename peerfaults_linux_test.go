package kith_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/internal/wan"
)

// inbound are rules for what comes in at a host.
func inbound(rule string) string {
	return "table inet fault {\n chain in { type filter hook input priority 0;\n" + rule + "\n }\n}\n"
}

// breaks has a rule for what comes in at the UDP port of the tunnel, or, if it says so
// itself, for all; mend takes it away.
func (s *station) breaks(ctx context.Context, rule string) (mend func()) {
	var status struct{ Port int }
	if err := json.Unmarshal([]byte(s.run(ctx, "status", "--json")), &status); err != nil {
		s.t.Fatal(err)
	}
	if !strings.HasPrefix(rule, "meta") {
		rule = fmt.Sprintf("udp dport %d %s", status.Port, rule)
	}
	s.host.Nft(inbound(rule))
	return func() { s.host.Nft("delete table inet fault\n") }
}

// again kills the daemon and starts another one.
func (s *station) again(ctx context.Context) {
	s.up.Kill()
	s.up.Wait(ctx)
	s.daemon(ctx)
}

// doctorOf runs kith doctor about a device on a station, and returns the report.
func (s *station) doctorOf(ctx context.Context, device string, args ...string) doctor.Report {
	s.t.Helper()
	cmd := s.host.Command(ctx, s.kith, s.args(append([]string{"doctor", device, "--json", "--only", "peers"}, args...)...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output() // its status is that of what was found
	var report doctor.Report
	if bad := json.Unmarshal(out, &report); bad != nil {
		s.t.Fatalf("kith doctor: %v, %v: %s%s", err, bad, out, said.String())
	}
	return report
}

// blames checks which cause a report names first; "" is none.
func blames(t *testing.T, r doctor.Report, want string) {
	t.Helper()
	got := ""
	if len(r.Causes) > 0 && r.Causes[0].Severity > doctor.Note { // the LAN has no way out, which is known
		got = r.Causes[0].Name()
	}
	t.Logf("%s (%s)", r.Verdict, r.Took.Round(100*time.Millisecond))
	if got != want {
		t.Errorf("the first cause is %q, want %q", got, want)
		for _, x := range r.Results {
			t.Logf("%s %s: %s %q", x.Name(), x.State, x.Cause, x.Evidence)
		}
	}
	if r.Took > 30*time.Second {
		t.Errorf("took %v", r.Took)
	}
}

// doctorPair are two stations on a LAN that are paired and connected, and whether the
// network is whole again after each fault.
func doctorPair(ctx context.Context, t *testing.T) (desk, laptop *station) {
	t.Helper()
	desk, laptop = stationsOn(t, "10.0.0.1/24", "10.0.0.2/24", "")
	desk.daemon(ctx)
	laptop.daemon(ctx)
	pairStations(ctx, t, desk, laptop, "words")
	desk.run(ctx, "ping", "-c", "1", "laptop")
	return desk, laptop
}

// TestNetworkPeerFaults breaks what is between two devices, and each of them, and has the
// doctor of one say what it is.
func TestNetworkPeerFaults(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 4*netTimeout)
	defer cancel()
	desk, laptop := doctorPair(ctx, t)
	for _, fault := range []struct {
		name, want   string
		desk, laptop string // rules for what comes in
		restart      bool   // with the rules
	}{
		{name: "nothing"},
		{name: "30 % loss", want: "peers.loss/lossy", laptop: "numgen random mod 10 < 3 drop"},
		{name: "packets over 1300 bytes get lost", want: "peers.path/mtu", laptop: "udp length > 1300 drop", restart: true},
		{name: "the same, to devices that are connected", want: "peers.path/mtu", laptop: "udp length > 1300 drop"},
		{name: "a firewall there lets nothing in", want: "peers.candidates/out", laptop: "drop", restart: true},
		{name: "a firewall here lets nothing in", want: "peers.candidates/in", desk: "drop", restart: true},
		{name: "both let nothing in", want: "peers.candidates/nothing", desk: "drop", laptop: "drop", restart: true},
		{name: "nothing at all gets in there", want: "peers.heard/deaf", laptop: "meta l4proto udp drop", restart: true},
	} {
		t.Run(fault.name, func(t *testing.T) {
			var mend []func()
			for s, rule := range map[*station]string{desk: fault.desk, laptop: fault.laptop} {
				if rule != "" {
					mend = append(mend, s.breaks(ctx, rule))
				}
			}
			if fault.restart {
				laptop.again(ctx)
			}
			blames(t, desk.doctorOf(ctx, "laptop"), fault.want)
			for _, f := range mend {
				f()
			}
			for _, s := range []*station{desk, laptop} {
				s.again(ctx)
			}
			desk.run(ctx, "ping", "-c", "1", "laptop")
		})
	}
	t.Run("it said goodbye", func(t *testing.T) {
		laptop.run(ctx, "ping", "-c", "1", "--wait", "60s", "desk") // only who is connected says it
		laptop.up.Stop()
		laptop.up.Wait(ctx)
		blames(t, desk.doctorOf(ctx, "laptop"), "peers.heard/left")
	})
	t.Run("it was killed", func(t *testing.T) {
		laptop.daemon(ctx)
		desk.run(ctx, "ping", "-c", "1", "laptop")
		laptop.up.Kill()
		laptop.up.Wait(ctx)
		blames(t, desk.doctorOf(ctx, "laptop"), "peers.heard/gone")
	})
	t.Run("it was off all the time", func(t *testing.T) {
		desk.again(ctx)
		blames(t, desk.doctorOf(ctx, "laptop"), "peers.heard/silent")
	})
	t.Run("blocked", func(t *testing.T) {
		desk.run(ctx, "block", "laptop")
		blames(t, desk.doctorOf(ctx, "laptop"), "peers.known/blocked")
		desk.run(ctx, "unblock", "laptop")
	})
	t.Run("it has ended the pair", func(t *testing.T) {
		laptop.daemon(ctx)
		desk.run(ctx, "ping", "-c", "1", "laptop")
		laptop.run(ctx, "unpair", "desk")
		blames(t, desk.doctorOf(ctx, "laptop"), "peers.known/ended")
	})
}

// TestNetworkPeerEnded has a device end the pair while the other one is away, and be
// asked before it says so by itself.
func TestNetworkPeerEnded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	desk, laptop := doctorPair(ctx, t)
	mend := desk.breaks(ctx, "meta l4proto udp drop") // it hears nothing of it
	unpair := laptop.start("unpair", "desk")          // it waits until the other one is told
	laptop.up.Await(ctx, `"event":"unpaired"`)
	mend()
	r := desk.doctorOf(ctx, "laptop")
	unpair.Wait(ctx)
	blames(t, r, "peers.known/ended")
}

// TestNetworkPeerFar has two devices meet on a LAN and reach each other only over a
// way with delay: 2 s there and back, and 4 s, which is more than kith waits.
func TestNetworkPeerFar(t *testing.T) {
	t.Parallel()
	for _, far := range []struct {
		name, want string
		delay      time.Duration
	}{
		{"2 s", "peers.latency/late", time.Second},
		{"4 s", "peers.candidates/late", 2 * time.Second},
	} {
		t.Run(far.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			desk, laptop := doctorPair(ctx, t)
			for _, s := range []*station{desk, laptop} {
				defer s.breaks(ctx, "iifname != far0 drop")()
				s.up.Stop()
				s.up.Wait(ctx)
			}
			way, err := wan.Join(ctx, wan.End{Namespace: desk.host.Namespace(), Interface: "far0", Address: "10.9.0.1/24"},
				wan.End{Namespace: laptop.host.Namespace(), Interface: "far0", Address: "10.9.0.2/24"}, wan.Config{Delay: far.delay})
			if err != nil {
				nettest.Skip(t, err.Error())
			}
			defer way.Close()
			for _, s := range []*station{desk, laptop} {
				s.daemon(ctx)
			}
			if far.want == "peers.latency/late" {
				desk.run(ctx, "ping", "-c", "1", "--wait", "45s", "laptop")
			}
			blames(t, desk.doctorOf(ctx, "laptop"), far.want)
		})
	}
}

// TestNetworkPeerOld has a device of the version before there were questions. It needs
// that version's command: KITH_OLD is its path.
func TestNetworkPeerOld(t *testing.T) {
	old := os.Getenv("KITH_OLD")
	if _, err := exec.LookPath(old); err != nil {
		t.Skip("KITH_OLD does not name a command of an older version")
	}
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	desk, laptop := stationsOn(t, "10.0.0.1/24", "10.0.0.2/24", "")
	laptop.kith = old
	desk.daemon(ctx)
	laptop.daemon(ctx)
	pairStations(ctx, t, desk, laptop, "words")
	desk.run(ctx, "ping", "-c", "1", "laptop")
	blames(t, desk.doctorOf(ctx, "laptop"), "peers.version/old")
	defer laptop.breaks(ctx, "drop")()
	laptop.again(ctx)
	blames(t, desk.doctorOf(ctx, "laptop"), "peers.version/old")
}
