package doctor

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kithproject/kith/hub/hubaddr"
)

// TestDevicePMTU has a path that lets packets up to a size pass.
func TestDevicePMTU(t *testing.T) {
	one, two := []string{"11.0.0.2:3478"}, []string{"11.0.0.2:3478", "11.0.0.3:3478"}
	for name, test := range map[string]struct {
		pass int // bytes that arrive
		says int // MTU that a router tells
		mtu  int // of the interface
		stun []string
		want string
		size string
	}{
		"all passes":                {1500, 0, 1500, one, "ok", "1460 bytes arrive"},
		"a router says why":         {1372, 1400, 1500, one, "ok", "at most 1400"},
		"a hole at 1400":            {1372, 0, 1500, two, "hole", "1400 bytes pass"},
		"only one server says so":   {1372, 0, 1500, one, "unclear", "1400 bytes pass"},
		"a VPN knows its MTU":       {1252, 0, 1280, one, "ok", "1280 bytes arrive"},
		"a server that says little": {548, 0, 1500, one, "unclear", ""},
		"a server that is silent":   {0, 0, 1500, one, "unclear", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := testDevice()
			i := deviceIface("eth0", "192.168.1.20/24")
			i.MTU = test.mtu
			env := deviceEnv(i)
			env.STUN = test.stun
			env.Remember(factOutbound, []netip.Addr{testSelf4})
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				switch {
				case !slices.Contains(test.stun, to.String()) || !how.whole:
					t.Errorf("asked %v, whole %v", to, how.whole)
				case len(packet) <= test.pass:
					return deviceAnswer{Data: packet}
				case test.says > 0:
					return deviceAnswer{MTU: test.says}
				}
				return deviceAnswer{}
			}
			a := deviceExpect(t, d.pmtuCheck(), env, test.want)
			if !strings.Contains(strings.Join(a.Evidence, " "), test.size) {
				t.Errorf("evidence %q", a.Evidence)
			}
		})
	}
	deviceExpect(t, testDevice().pmtuCheck(), deviceEnv(), "unclear")
	deaf := testDevice() // a system that cuts packets into fragments as it likes
	deaf.ask = func(context.Context, *Env, netip.AddrPort, []byte, deviceAsk) deviceAnswer {
		return deviceAnswer{Err: errors.ErrUnsupported}
	}
	if a := deviceExpect(t, deaf.pmtuCheck(), &Env{STUN: one, Interfaces: deviceEnv().Interfaces}, "unclear"); !strings.Contains(strings.Join(a.Evidence, ""), "whole") {
		t.Errorf("evidence %q", a.Evidence)
	}
	// A hub is known to take large requests: it is enough.
	d, env := testDevice(), deviceEnv()
	env.Hubs = []hubaddr.Address{{Host: "11.0.0.2", Port: 443}}
	d.ask = func(_ context.Context, _ *Env, _ netip.AddrPort, packet []byte, _ deviceAsk) deviceAnswer {
		if len(packet) > 1300 {
			return deviceAnswer{}
		}
		return deviceAnswer{Data: packet}
	}
	env.Remember(factOutbound, []netip.Addr{testSelf4})
	a := deviceExpect(t, d.pmtuCheck(), env, "hole")
	if runtime.GOOS == "linux" && !strings.Contains(a.Fix, "(as root: ip link set dev eth0 mtu 1300)") {
		t.Errorf("fix %q", a.Fix)
	}
}

// TestHoleComesBeforeThePeer: a device that was there, and is not heard since large packets
// vanish, is not what is at fault. One that was never heard is told of, and the reader
// learns in any case who is not connected.
func TestHoleComesBeforeThePeer(t *testing.T) {
	for heard, want := range map[string][]string{
		"peers.heard/gone":   {"device.pmtu/hole"},
		"peers.heard/silent": {"peers.heard/silent", "device.pmtu/hole"},
		"peers.heard/left":   {"peers.heard/left", "device.pmtu/hole"},
	} {
		_, finding, _ := strings.Cut(heard, "/")
		table := []Check{answering("device.pmtu", Fails("hole")), answering("peers.heard", Fails(finding))}
		table[1].Subjects = func(*Env) []string { return []string{"laptop"} }
		for i, c := range table {
			at := slices.IndexFunc(Table(), func(real Check) bool { return real.Code == c.Code })
			table[i].Findings = Table()[at].Findings
		}
		r := Run(t.Context(), Config{Table: table, Env: &Env{Peers: []Peer{{Name: "laptop", Named: true}}}})
		if got := codes(r.Causes); !slices.Equal(got, want) {
			t.Errorf("%s: causes %q, want %q", heard, got, want)
		}
		if !strings.Contains(r.Verdict.State, "laptop") {
			t.Errorf("%s: %q does not tell of laptop", heard, r.Verdict.State)
		}
	}
}
