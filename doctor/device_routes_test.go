package doctor

import (
	"context"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var (
	testSelf4 = netip.MustParseAddr("192.168.1.20")
	testSelf6 = netip.MustParseAddr("2001:db8::20")
)

func TestDeviceRoutes(t *testing.T) {
	d, env := testDevice(), deviceEnv()
	deviceExpect(t, d.routesCheck(), env, "ok")
	if a, _ := Fact[[]netip.Addr](env, factOutbound); !slices.Equal(a, []netip.Addr{testSelf4}) {
		t.Errorf("remembered %v", a)
	}
	d.outbound = deviceWays(netip.Addr{}, testSelf6)
	deviceExpect(t, d.routesCheck(), deviceEnv(), "ok")
	d.outbound = deviceWays(netip.Addr{}, netip.Addr{})
	deviceExpect(t, d.routesCheck(), deviceEnv(), "near") // it needs none: a LAN of its own
	for _, far := range []*Env{{STUN: []string{"11.0.0.2:3478"}}, {Peers: []Peer{{Name: "laptop"}}}} {
		deviceExpect(t, d.routesCheck(), far, "none")
	}
	near := Peer{Name: "laptop", Connected: true, Path: "lan 192.168.1.21:41641 (1ms)"}
	deviceExpect(t, d.routesCheck(), &Env{STUN: []string{"11.0.0.2:3478"}, Peers: []Peer{near}}, "near")
	heard := Peer{Name: "laptop", Heard: time.Now()}
	deviceExpect(t, d.routesCheck(), &Env{Peers: []Peer{heard}}, "near") // on the LAN, where else
	for _, far := range []Peer{heard, {Name: "laptop", Connected: true, Path: "punched 11.2.0.2:41641 (1ms)"}} {
		deviceExpect(t, d.routesCheck(), &Env{STUN: []string{"11.0.0.2:3478"}, Peers: []Peer{far}}, "none") // that was before
	}
	d.outbound = func(to netip.Addr) (netip.Addr, error) { // a company's network without the internet
		if to == netip.MustParseAddr("10.1.2.3") {
			return netip.MustParseAddr("10.0.0.9"), nil
		}
		return netip.Addr{}, syscall.ENETUNREACH
	}
	inside := deviceEnv()
	inside.STUN = []string{"10.1.2.3:3478"}
	deviceExpect(t, d.routesCheck(), inside, "ok")
	d.outbound = func(netip.Addr) (netip.Addr, error) { return netip.Addr{}, errDeviceNone }
	deviceExpect(t, d.routesCheck(), deviceEnv(), "ok") // not known is no accusation
}

func TestDeviceGateway(t *testing.T) {
	const pmp = "192.168.1.1:5351"
	hop := netip.AddrPortFrom(deviceFar4[0], 33434).String()
	dead := deviceAnswer{Nobody: true, RTT: 3 * time.Second}
	for name, test := range map[string]struct {
		says map[string]deviceAnswer
		dial error
		want string
	}{
		"NAT-PMP":            {map[string]deviceAnswer{pmp: {Data: []byte{0}}}, context.DeadlineExceeded, "ok"},
		"refuses":            {map[string]deviceAnswer{pmp: {Refused: true}}, context.DeadlineExceeded, "ok"},
		"forwards":           {map[string]deviceAnswer{hop: {Hop: netip.MustParseAddr("192.168.1.1"), Expired: true}}, context.DeadlineExceeded, "ok"},
		"by TCP":             {nil, errDeviceRefused, "ok"},
		"is not there":       {map[string]deviceAnswer{pmp: dead, hop: dead}, syscall.EHOSTUNREACH, "silent"},
		"says nothing":       {nil, context.DeadlineExceeded, "unclear"},
		"its firewall says":  {map[string]deviceAnswer{pmp: {Nobody: true, RTT: time.Millisecond}}, syscall.EHOSTUNREACH, "unclear"},
		"silent but forward": {map[string]deviceAnswer{pmp: dead, hop: {Hop: netip.MustParseAddr("192.168.1.1")}}, context.DeadlineExceeded, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			d := testDevice()
			d.ask = deviceAnswers(test.says)
			d.dial = func(context.Context, *Env, netip.AddrPort) error { return test.dial }
			deviceExpect(t, d.gatewayCheck(), deviceEnv(), test.want)
		})
	}
	synctest.Test(t, func(t *testing.T) { // it never answers itself, but what is beyond it does
		d, env := testDevice(), deviceEnv()
		env.STUN = []string{"11.0.0.2:3478"}
		d.ask = func(ctx context.Context, _ *Env, to netip.AddrPort, _ []byte, how deviceAsk) deviceAnswer {
			if to.Port() == 3478 {
				return deviceAnswer{Data: []byte{1}}
			}
			select {
			case <-ctx.Done():
			case <-time.After(how.wait):
			}
			return deviceAnswer{}
		}
		start := time.Now()
		deviceExpect(t, d.gatewayCheck(), env, "ok")
		if took := time.Since(start); took > 1500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
	// What the system finds out for others: a table of neighbours, and from when on it is one.
	type table struct {
		at    time.Duration
		lines string
	}
	const there, lost = "192.168.1.1 0x1 0x2 00:00:00:00:00:01 * eth0\n", "192.168.1.1 0x1 0x0 00:00:00:00:00:00 * eth0\n"
	for name, test := range map[string]struct {
		says []table
		wait time.Duration // of what is asked
		want string
		took time.Duration // at most
	}{
		"nobody":                   {[]table{{0, lost}}, 5 * time.Second, "silent", 5 * time.Second},
		"there, and says nothing":  {[]table{{0, there}}, 5 * time.Second, "unclear", 13 * time.Second},
		"it was there a while ago": {[]table{{0, there}, {8 * time.Second, lost}}, 5 * time.Second, "silent", 9 * time.Second},
		"on another interface":     {[]table{{0, lost + strings.ReplaceAll(there, "eth0", "wlan0")}}, 5 * time.Second, "unclear", 13 * time.Second},
		"a firewall says no":       {[]table{{0, there}, {8 * time.Second, lost}}, 0, "unclear", 2 * time.Second},
		"not known":                {nil, 5 * time.Second, "unclear", 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, start := testDevice(), time.Now()
				d.ask = func(ctx context.Context, _ *Env, _ netip.AddrPort, _ []byte, _ deviceAsk) deviceAnswer {
					select {
					case <-ctx.Done():
					case <-time.After(test.wait):
					}
					return deviceAnswer{}
				}
				d.read = func(string) ([]byte, error) {
					out, err := "", error(fs.ErrNotExist)
					for _, s := range test.says {
						if time.Since(start) >= s.at {
							out, err = s.lines, nil
						}
					}
					return []byte(out), err
				}
				deviceExpect(t, d.gatewayCheck(), deviceEnv(), test.want)
				if took := time.Since(start); took > test.took {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
	d := testDevice()
	d.gateway = func(bool) (netip.Addr, bool) { return netip.Addr{}, false }
	deviceExpect(t, d.gatewayCheck(), deviceEnv(), "nothing")
}
