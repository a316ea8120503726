package doctor

import (
	"slices"
	"testing"
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
			first: "device.a/bad", state: "This device is connected to laptop, but could not connect anew as it is.",
		},
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
