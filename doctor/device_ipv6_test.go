package doctor

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

func TestDeviceIPv6(t *testing.T) {
	const four, six = "11.0.0.2:3478", "[2a0e:fade:1::2]:3478"
	gw6 := netip.MustParseAddr("fe80::1%eth0")
	answer := deviceAnswer{Data: []byte{1}}
	dead := deviceAnswer{Nobody: true, RTT: 3 * time.Second}
	gone := netip.AddrPortFrom(gw6, 5351).String()
	noWay := deviceAnswer{Hop: netip.MustParseAddr("fe80::1"), NoWay: true}
	const six2, hop6 = "[2a0e:fade:2::2]:3478", "[2a0e:fade:1::2]:33434"
	for name, test := range map[string]struct {
		self netip.Addr
		stun []string
		ntp  []string
		says map[string]deviceAnswer
		want string
	}{
		"there is none":                {netip.Addr{}, []string{four, six}, nil, map[string]deviceAnswer{four: answer}, "nothing"},
		"only private":                 {netip.MustParseAddr("fd00::1"), []string{four, six}, nil, map[string]deviceAnswer{four: answer}, "nothing"},
		"works":                        {testSelf6, []string{four, six}, nil, map[string]deviceAnswer{four: answer, six: answer}, "ok"},
		"one server is silent":         {testSelf6, []string{four, six}, nil, map[string]deviceAnswer{four: answer}, "unclear"},
		"two servers are silent":       {testSelf6, []string{four, six, six2}, nil, map[string]deviceAnswer{four: answer}, "broken"},
		"a server and the time":        {testSelf6, []string{four, six}, []string{"[2a0e:fade:9::2]:123"}, map[string]deviceAnswer{four: answer}, "broken"},
		"the server alone, by time":    {testSelf6, []string{four, six}, []string{"[2a0e:fade:9::2]:123"}, map[string]deviceAnswer{four: answer, "[2a0e:fade:9::2]:123": answer}, "ok"},
		"the time over IPv4":           {testSelf6, []string{four, six}, []string{"11.0.9.1"}, map[string]deviceAnswer{four: answer}, "unclear"},
		"no way on":                    {testSelf6, []string{four}, nil, map[string]deviceAnswer{four: answer, "[2001:7fd::1]:33434": noWay, "[2620:fe::fe]:33434": noWay}, "broken"},
		"no way on, nor IPv4":          {testSelf6, []string{four}, nil, map[string]deviceAnswer{"[2001:7fd::1]:33434": noWay, "[2620:fe::fe]:33434": noWay}, "unclear"},
		"nothing works":                {testSelf6, []string{four, six, six2}, nil, nil, "unclear"},
		"no server of IPv6":            {testSelf6, []string{four}, nil, map[string]deviceAnswer{four: answer}, "unclear"},
		"the router is gone":           {testSelf6, []string{four}, nil, map[string]deviceAnswer{four: answer, gone: dead}, "broken"},
		"the server's alone is broken": {testSelf6, []string{four, six, six2}, nil, map[string]deviceAnswer{four: answer, hop6: {Hop: gw6, Expired: true}}, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), deviceEnv()
			d.outbound, env.STUN, env.NTP, env.Strangers = deviceWays(testSelf4, test.self), test.stun, test.ntp, true
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				a := test.says[to.String()]
				if to.Port() == 123 && a.Data != nil {
					how.fits(ntpAnswer(packet, time.Now()))
				}
				return a
			}
			d.gateway = func(bool) (netip.Addr, bool) { return gw6, true }
			deviceExpect(t, d.ipv6Check(), env, test.want)
		})
	}
}
