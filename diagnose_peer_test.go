package kith_test

import (
	"context"
	"errors"
	"testing"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// examine has a node look at one device, and returns what it says of it.
func examine(ctx context.Context, t *testing.T, n *kith.Node, cfg kith.DiagnoseConfig) map[doctor.Code]doctor.Result {
	t.Helper()
	cfg.Only = []string{"peers"}
	report, err := n.Diagnose(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[doctor.Code]doctor.Result)
	for _, r := range report.Results {
		t.Logf("%s %s %s: %s %q", r.Subject, r.Name(), r.State, r.Cause, r.Evidence)
		out[r.Code] = r
	}
	return out
}

// TestDiagnosePeer has two nodes look at each other: all is well, they answer, and what
// lies between them is measured, also by a kind of path.
func TestDiagnosePeer(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
	pairNodes(ctx, t, a, b, code.MethodQR)
	if _, err := a.Ping(ctx, "laptop"); err != nil {
		t.Fatal(err)
	}
	for _, force := range []string{"", "lan", "relay"} {
		got := examine(ctx, t, a, kith.DiagnoseConfig{Device: "laptop", Force: force})
		for _, code := range []doctor.Code{"known", "heard", "version", "clock", "remote", "policy", "candidates", "path", "loss", "latency", "rate"} {
			want := "peers." + string(code)
			if force == "relay" && code == "rate" {
				want += "/no-path" // there is no relay
			}
			// What the other one finds wrong with the machine of the test is not the test's.
			if r := got["peers."+code]; r.Name() != want && code != "remote" || r.State == doctor.Unknown || r.State == doctor.Skipped {
				t.Errorf("force %q: %s says %s %s: %s %q", force, code, r.State, r.Name(), r.Cause, r.Evidence)
			}
		}
	}
}

// TestDiagnosePeerFaults breaks one of two nodes at a time.
func TestDiagnosePeerFaults(t *testing.T) {
	for name, fault := range map[string]struct {
		do   func(ctx context.Context, t *testing.T, n *rendezvoustest.Network, a, b *kith.Node) *kith.Node // returns who looks
		want string
	}{
		"it said goodbye": {func(_ context.Context, t *testing.T, _ *rendezvoustest.Network, a, b *kith.Node) *kith.Node {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			return a
		}, "peers.heard/left"},
		"it was never heard": {func(_ context.Context, t *testing.T, n *rendezvoustest.Network, a, b *kith.Node) *kith.Node {
			dir := a.Dir()
			if err := errors.Join(a.Close(), b.Close()); err != nil {
				t.Error(err)
			}
			return openNode(t, n, dir, "desk")
		}, "peers.heard/silent"},
		"it has blocked this device": {func(_ context.Context, t *testing.T, _ *rendezvoustest.Network, a, b *kith.Node) *kith.Node {
			if _, err := b.SetRights("desk", func(r *kith.Rights) error { r.Blocked = true; return nil }); err != nil {
				t.Error(err)
			}
			return a
		}, "peers.heard/gone"},
		"it is blocked": {func(_ context.Context, t *testing.T, _ *rendezvoustest.Network, a, _ *kith.Node) *kith.Node {
			if _, err := a.SetRights("laptop", func(r *kith.Rights) error { r.Blocked = true; return nil }); err != nil {
				t.Error(err)
			}
			return a
		}, "peers.known/blocked"},
		"it has ended the pair": {func(ctx context.Context, t *testing.T, _ *rendezvoustest.Network, a, b *kith.Node) *kith.Node {
			if told, err := b.Unpair(ctx, "desk"); err != nil || !told {
				t.Errorf("told %v, %v", told, err)
			}
			return a
		}, "peers.known/ended"},
		"relays alone here": {func(_ context.Context, t *testing.T, n *rendezvoustest.Network, a, _ *kith.Node) *kith.Node {
			dir := a.Dir()
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			return openNodeAs(t, n, "desk", func(c *kith.Config) { c.Dir, c.Relay = dir, kith.RelayAlways })
		}, "peers.policy/always-here"},
		"relays alone there": {func(_ context.Context, t *testing.T, n *rendezvoustest.Network, a, b *kith.Node) *kith.Node {
			dir := b.Dir()
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			openNodeAs(t, n, "laptop", func(c *kith.Config) { c.Dir, c.Relay = dir, kith.RelayAlways })
			return a
		}, "peers.policy/always-there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
			a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
			pairNodes(ctx, t, a, b, code.MethodQR)
			if _, err := a.Ping(ctx, "laptop"); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Ping(ctx, "desk"); err != nil { // only who is connected says goodbye
				t.Fatal(err)
			}
			looks := fault.do(ctx, t, network, a, b)
			report, err := looks.Diagnose(ctx, kith.DiagnoseConfig{Device: "laptop", Only: []string{"peers"}})
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Causes) == 0 || report.Causes[0].Name() != fault.want {
				t.Errorf("causes %+v, want %s first", report.Causes, fault.want)
				for _, r := range report.Results {
					t.Logf("%s %s %q", r.Name(), r.State, r.Evidence)
				}
			}
		})
	}
}

// TestDiagnoseNobody errs for a device that there is none of, and for one whose pair this
// device's user has ended.
func TestDiagnoseNobody(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
	pairNodes(ctx, t, a, b, code.MethodQR)
	if _, err := a.Ping(ctx, "laptop"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Unpair(ctx, "laptop"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tablet", "laptop"} {
		if _, err := a.Diagnose(ctx, kith.DiagnoseConfig{Device: name}); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.Diagnose(ctx, kith.DiagnoseConfig{Force: "sideways"}); err == nil {
		t.Error("took a force that is none")
	}
}
