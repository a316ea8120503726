package doctor

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous/lan"
)

// lanAnswer is one of a device that hears multicast and sends it.
func lanAnswer(id uint64, from string, change func(*lan.Answer)) lan.Answer {
	a := lan.Answer{
		From: netip.AddrPortFrom(netip.MustParseAddr(from), 4000), Interface: "eth0", Both: true,
		Asked: lan.ByMulticast, Came: lan.ByUnicast, HopsThere: 1, Took: time.Millisecond,
	}
	binary.BigEndian.PutUint64(a.Device[:], id)
	if change != nil {
		change(&a)
	}
	return a
}

// viewed is what comes of answers.
func viewed(all ...lan.Answer) *Env {
	var v lanView
	for _, a := range all {
		v.add(a)
	}
	env := new(Env)
	env.Remember(factLAN, v)
	return env
}

// TestLANView: strangers on the LAN can make devices up, but not without end.
func TestLANView(t *testing.T) {
	var forged []lan.Answer
	for i := range 2304 { // as many as a question keeps answers, in nine rounds
		forged = append(forged, lanAnswer(uint64(i)+1, fmt.Sprintf("10.0.%d.%d", i/256, i%256), nil))
	}
	view, _ := Fact[lanView](viewed(forged...), factLAN)
	if n := len(view.devices); n != maxLANDevices {
		t.Errorf("%d devices", n)
	}
	closed := func(a *lan.Answer) { a.Asked = lan.ByUnicast }
	for i := range forged {
		closed(&forged[i])
	}
	forged = append(append(forged, forged...), forged...)
	env := viewed(forged...)
	for name, a := range map[string]Answer{
		"multicast": lanMulticast(t.Context(), env, ""), "find": lanFind(t.Context(), env, ""), "found": lanFound(t.Context(), env, ""),
	} {
		if n := len(a.Evidence); a.State != No || n != fewLines+1 || a.Evidence[fewLines] != fmt.Sprintf("and %d more", maxLANDevices-fewLines) {
			t.Errorf("%s: %s with %d lines: %q", name, a.State, n, a.Evidence[n-1])
		}
	}
	env = viewed(lanAnswer(1, "10.0.0.2", nil), lanAnswer(2, "10.0.0.2", nil), lanAnswer(1, "fe80::2", nil), lanAnswer(3, "fe80::2", nil))
	if view, _ = Fact[lanView](env, factLAN); len(view.devices) != 1 || view.devices[0].from.String() != "10.0.0.2" {
		t.Errorf("of one address and one ID: %+v", view.devices)
	}
	var of []lan.Answer
	for i := range 99 {
		of = append(of, lanAnswer(1, fmt.Sprintf("fe80::%x", i+1), nil))
	}
	if view, _ = Fact[lanView](viewed(of...), factLAN); len(view.devices) != 1 || len(view.devices[0].addrs) != maxLANAddrs {
		t.Errorf("of one ID: %+v", view.devices)
	}
}

// TestLANSilence: a way is called closed only where something was certainly sent on it.
func TestLANSilence(t *testing.T) {
	for name, c := range map[string]struct {
		answers                int
		change                 func(*lan.Answer)
		multicast, find, found string // the finding, or the state
	}{
		"all ways":                                {3, func(a *lan.Answer) { a.Came = lan.ByMulticast }, "yes", "yes", "yes"},
		"no multicast":                            {3, func(a *lan.Answer) { a.Asked = lan.ByUnicast }, "dropped", "deaf", "unheard"},
		"too few answers":                         {2, func(a *lan.Answer) { a.Asked = lan.ByUnicast }, "unknown", "yes", "yes"},
		"it answers others by multicast":          {9, func(a *lan.Answer) { a.Both, a.Asked = false, lan.ByUnicast }, "unknown", "yes", "unheard"},
		"its multicast does not come":             {3, nil, "yes", "deaf", "yes"},
		"whether it sends multicast is not known": {9, func(a *lan.Answer) { a.Both = false }, "yes", "yes", "yes"},
		"ours does not get there":                 {3, func(a *lan.Answer) { a.Asked, a.Came = lan.ByUnicast, lan.ByMulticast }, "yes", "yes", "unheard"},
	} {
		t.Run(name, func(t *testing.T) {
			var all []lan.Answer
			for range c.answers {
				all = append(all, lanAnswer(1, "10.0.0.2", c.change))
			}
			env := viewed(all...)
			var got []string
			for _, a := range []Answer{lanMulticast(t.Context(), env, ""), lanFind(t.Context(), env, ""), lanFound(t.Context(), env, "")} {
				if a.State == No {
					got = append(got, a.Finding)
				} else {
					got = append(got, string(a.State))
				}
			}
			if want := []string{c.multicast, c.find, c.found}; strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// TestLANAlone: where nobody else runs kith there is nothing to say of multicast, unless a
// device is looked for.
func TestLANAlone(t *testing.T) {
	for want, peers := range map[State][]Peer{Yes: {{Name: "phone", Connected: true}}, Unknown: {{Name: "laptop"}}} {
		env := viewed()
		env.Peers = peers
		if a := lanMulticast(t.Context(), env, ""); a.State != want || want == Yes && !a.Silent {
			t.Errorf("%s: %+v", peers[0].Name, a)
		}
	}
}
