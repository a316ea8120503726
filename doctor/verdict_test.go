package doctor

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestVerdict shows that a device is said to be out of reach only for a cause of its own.
func TestVerdict(t *testing.T) {
	subject := func(c Check, names ...string) Check {
		c.Subjects = func(*Env) []string { return names }
		return c
	}
	laptop, phone := Peer{Name: "laptop", Named: true}, Peer{Name: "phone"}
	there := laptop
	there.Connected = true
	came, went, ended := laptop, there, laptop
	then := there
	then.Path = "lan 192.0.2.2:4000 (1.2ms)"
	came.Now, went.Now, ended.Ended = func() Peer { return then }, func() Peer { return laptop }, true
	lossy := Check{Code: "peers.loss", Findings: []Finding{{ID: "lossy", Severity: Limit, Cause: "A.", Fix: "B."}}, Run: func(context.Context, *Env, string) Answer { return Fails("lossy") }}
	blocked := Peer{Name: "old", Blocked: true}
	for name, test := range map[string]struct {
		peers []Peer
		table []Check
		first string
		state string
	}{
		"all is well":      {peers: []Peer{there}, state: "Nothing is in the way of this device."},
		"nobody is there":  {peers: []Peer{phone, blocked}, state: "Nothing is in the way of this device; phone is not connected."},
		"two are not":      {peers: []Peer{laptop, phone}, state: "Nothing is in the way of this device; laptop and phone are not connected."},
		"many are not":     {peers: []Peer{laptop, phone, phone, phone}, state: "Nothing is in the way of this device; 4 devices are not connected."},
		"not all is known": {table: []Check{answering("device.a", Unclear())}, state: "Nothing is known to be in the way of this device; one answer could not be found out."},
		"a note":           {table: []Check{answering("nat.a", Fails("odd"))}, first: "nat.a/odd", state: "Nothing is in the way of this device."},
		"a NAT, and a device that is off": {
			peers: []Peer{laptop}, table: []Check{answering("nat.a", Fails("poor")), subject(answering("peers.b", Fails("poor")), "laptop")},
			first: "peers.b/poor", state: "laptop cannot be reached at the moment.",
		},
		"a NAT, and another device that is off": {
			peers: []Peer{phone}, table: []Check{answering("nat.a", Fails("poor")), subject(answering("peers.b", Fails("poor")), "phone")},
			first: "nat.a/poor", state: "This device can connect, but not everywhere; phone is not connected.",
		},
		"a fault comes before the device": {
			peers: []Peer{laptop}, table: []Check{answering("device.a", Fails("bad")), subject(answering("peers.b", Fails("poor")), "laptop")},
			first: "device.a/bad", state: "This device cannot connect to others as it is.",
		},
		"a fault, and a device that answers all the same": {
			peers: []Peer{there}, table: []Check{answering("device.a", Fails("bad")), subject(answering("peers.loss", OK("all come back")), "laptop")},
			first: "device.a/bad", state: "laptop was reached just now, but something is wrong here.",
		},
		"a fault, and a device that answers to most": {
			peers: []Peer{there}, table: []Check{answering("device.a", Fails("bad")), subject(lossy, "laptop")},
			first: "device.a/bad", state: "laptop was reached just now, but something is wrong here.",
		},
		"a full disk, and nobody is there": {
			peers: []Peer{laptop}, table: []Check{answering("device.state", Fails("bad"))},
			first: "device.state/bad", state: "Something is wrong here.",
		},
		"a device that has ended the pair": {
			peers: []Peer{ended}, table: []Check{subject(Check{Code: "peers.known", Findings: []Finding{{ID: "ended", Severity: Limit, Cause: "A.", Fix: "B."}}, Run: func(context.Context, *Env, string) Answer { return Fails("ended") }}, "laptop")},
			first: "peers.known/ended", state: "laptop is not paired with this device any more.",
		},
		"it went away meanwhile": {peers: []Peer{went}, state: "Nothing is in the way of this device; laptop is not connected."},
		"it came meanwhile":      {peers: []Peer{came}, state: "Nothing is in the way of this device. laptop is connected straight."},
		"it went, and was measured": {
			peers: []Peer{laptop}, table: []Check{subject(answering("peers.loss", OK("all come back")), "laptop")}, state: "Nothing is in the way of this device.",
		},
		"a limit, and one that came meanwhile": {peers: []Peer{came}, table: []Check{answering("nat.a", Fails("poor"))}, first: "nat.a/poor", state: "This device can connect, but not everywhere."},
		"a fault, and a device that was connected": {
			peers: []Peer{there}, table: []Check{answering("device.a", Fails("bad")), subject(answering("peers.loss", Unclear("nothing came back")), "laptop")},
			first: "device.a/bad", state: "This device cannot connect to others as it is.",
		},
		"a fault, and a device that was not asked": {
			peers: []Peer{laptop}, table: []Check{answering("device.a", Fails("bad")), subject(answering("peers.loss", Nothing("laptop is not connected")), "laptop")},
			first: "device.a/bad", state: "This device cannot connect to others as it is.",
		},
		"a device that is connected": {
			peers: []Peer{there}, table: []Check{subject(answering("peers.b", Fails("poor")), "laptop")},
			first: "peers.b/poor", state: "laptop is connected, but not as well as it could be.",
		},
		"a device that counts as connected, and does not answer": {
			peers: []Peer{there}, table: []Check{subject(answering("peers.b", Fails("poor")), "laptop"), subject(answering("peers.loss", Unclear("nothing came back")), "laptop")},
			first: "peers.b/poor", state: "laptop cannot be reached at the moment.",
		},
		"a device that counts as connected, and is not heard": {
			peers: []Peer{there}, table: []Check{subject(answering("peers.heard", Fails("poor")), "laptop"), subject(answering("peers.loss", OK("all come back"), "peers.heard"), "laptop")},
			first: "peers.heard/poor", state: "laptop cannot be reached at the moment.",
		},
		"a NAT alone": {peers: []Peer{there}, table: []Check{answering("nat.a", Fails("poor"))}, first: "nat.a/poor", state: "This device can connect, but not everywhere."},
	} {
		t.Run(name, func(t *testing.T) {
			r := Run(t.Context(), Config{Table: test.table, Env: &Env{Peers: test.peers}})
			if test.first != "" && (len(r.Causes) == 0 || r.Causes[0].Name() != test.first) || test.first == "" && len(r.Causes) > 0 {
				t.Errorf("first cause of %v, want %s", codes(r.Causes), test.first)
			}
			if r.Verdict.State != test.state {
				t.Errorf("%q, want %q", r.Verdict.State, test.state)
			}
			if slices.ContainsFunc(r.Causes, func(c Result) bool { return c.Severity > r.Causes[0].Severity }) {
				t.Errorf("not worst first: %v", codes(r.Causes))
			}
		})
	}
}

// TestVerdictAskedAbout: where all is well, the device that was asked about is told of: how it
// is connected, and what came of the echoes and the measurement.
func TestVerdictAskedAbout(t *testing.T) {
	const well = "Nothing is in the way of this device."
	for name, test := range map[string]struct {
		path, force, measured string
		named                 bool
		want                  string
	}{
		"straight":                    {path: "lan 192.0.2.2:4000 (1.2ms)", named: true, want: well + " laptop is connected straight, with a round trip of 12ms."},
		"measured":                    {path: "punched 192.0.2.2:4000", measured: "punched 192.0.2.2:4000 (13ms)", named: true, want: well + " laptop is connected straight, with a round trip of 12ms, and the path carries 8.0 Mbit/s to it and 16.0 Mbit/s from it."},
		"through a relay":             {path: "relay via hub.example", measured: "relay via hub.example", named: true, want: well + " laptop is connected through a relay, with a round trip of 12ms, and the path carries 8.0 Mbit/s to it and 16.0 Mbit/s from it."},
		"measured over another path":  {path: "lan 192.0.2.2:4000", measured: "relay via hub.example", force: "relay", named: true, want: well + " laptop is connected straight, with a round trip of 12ms, and the path through a relay carries 8.0 Mbit/s to it and 16.0 Mbit/s from it."},
		"nobody was asked about":      {path: "lan 192.0.2.2:4000", want: well},
		"through a VPN or containers": {path: "virtual 10.8.0.2:4000", named: true, want: well + " laptop is connected through a VPN or container network, with a round trip of 12ms."},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := healthy()
				p.Path, p.Named, p.Echo = test.path, test.named, echoes(0, 12*time.Millisecond)
				if test.measured != "" {
					p.Measure = measured(Measurement{Path: test.measured, RateOut: 1e6, RateIn: 2e6}, nil)
				}
				env := &Env{Peers: []Peer{p}, Force: test.force, Media: []Medium{{Name: "memory", Exchange: mute{ready: true}}}}
				if r := Run(t.Context(), Config{Table: peersWith(routers), Env: env}); r.Verdict.State != test.want {
					t.Errorf("%q, want %q", r.Verdict.State, test.want)
				}
			})
		})
	}
}
