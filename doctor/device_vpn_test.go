package doctor

import (
	"net/netip"
	"strings"
	"testing"
)

func TestDeviceVPN(t *testing.T) {
	through, through6 := netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("2a0e:8::2")
	all := deviceWays(through, netip.Addr{})
	one := func(to netip.Addr) func(netip.Addr) (netip.Addr, error) {
		return func(a netip.Addr) (netip.Addr, error) {
			if a == to {
				return through, nil
			}
			return testSelf4, nil
		}
	}
	const hub = "100.99.9.9"
	for name, test := range map[string]struct {
		ifi   string
		ways  func(netip.Addr) (netip.Addr, error)
		files map[string]string
		alone bool // there is no other router
		hub   string
		says  map[string]deviceAnswer
		want  string
		cause string
	}{
		"all, and nothing behind it": {ifi: "tun0", ways: all, hub: "11.0.0.2", want: "captures", cause: "The VPN on tun0 takes everything that this device sends to the internet, and nothing"},
		"all, and it works":          {ifi: "tun0", ways: all, hub: "11.0.0.2", says: map[string]deviceAnswer{"11.0.0.2:443": {Data: []byte{1}}}, want: "through", cause: "The VPN on tun0 takes"},
		"all, and the hub is down": {
			ifi: "tun0", ways: all, hub: "11.0.0.2", want: "through",
			says: map[string]deviceAnswer{"11.0.0.2:33434": {Hop: netip.MustParseAddr("10.8.0.1"), Expired: true}},
		},
		"all, and nobody to ask":     {ifi: "tun0", ways: all, want: "through"},
		"half":                       {ifi: "wg0", ways: one(deviceFar4[1]), hub: "11.0.0.2", want: "ok"},
		"a hub inside":               {ifi: "tailscale0", ways: one(netip.MustParseAddr(hub)), hub: hub, want: "ok"},
		"not the default route":      {ifi: "wg0", ways: deviceWays(testSelf4, netip.Addr{}), want: "ok"},
		"IPv6 alone by a tunnel":     {ifi: "tun6", ways: deviceWays(testSelf4, through6), hub: "11.0.0.2", want: "ok"},
		"IPv4 alone by a tunnel":     {ifi: "tun0", ways: deviceWays(through, testSelf6), hub: "11.0.0.2", want: "captures", cause: "sends over IPv4, and nothing answers"},
		"both by a tunnel":           {ifi: "tun0", ways: deviceWays(through, through6), hub: "11.0.0.2", want: "captures", cause: "sends to the internet"},
		"IPv6 is all, by a tunnel":   {ifi: "tun0", ways: deviceWays(netip.Addr{}, through6), hub: "2a0e:1::1", want: "captures", cause: "sends to the internet"},
		"clatd":                      {ifi: "clat", ways: deviceWays(through, testSelf6), files: map[string]string{"/sys/class/net/clat/tun_flags": "0x1\n"}, hub: "11.0.0.2", want: "ok"},
		"Android's clat":             {ifi: "v4-rmnet0", ways: deviceWays(through, testSelf6), files: map[string]string{"/sys/class/net/v4-rmnet0/tun_flags": "0x1\n"}, hub: "11.0.0.2", want: "ok"},
		"a clat of another name":     {ifi: "tun0", ways: deviceWays(netip.MustParseAddr("192.0.0.4"), testSelf6), hub: "11.0.0.2", want: "ok"},
		"wireguard by another name":  {ifi: "home", ways: all, files: map[string]string{"/sys/class/net/home/uevent": "DEVTYPE=wireguard\n"}, hub: "11.0.0.2", want: "captures"},
		"a tunnel by another name":   {ifi: "home", ways: all, files: map[string]string{"/sys/class/net/home/tun_flags": "0x1\n"}, hub: "11.0.0.2", want: "captures"},
		"a container":                {ifi: "tap0", ways: all, hub: "11.0.0.2", want: "nothing"},
		"a second card":              {ifi: "eth1", ways: all, hub: "11.0.0.2", want: "ok"},
		"a modem that is all":        {ifi: "ppp0", ways: all, alone: true, hub: "11.0.0.2", want: "ok"},
		"pptp beside another router": {ifi: "ppp0", ways: all, hub: "11.0.0.2", want: "captures"},
	} {
		t.Run(name, func(t *testing.T) {
			d := testDevice()
			d.outbound, d.read, d.ask = test.ways, deviceFiles(test.files), deviceAnswers(test.says)
			d.gateway = func(bool) (netip.Addr, bool) { return netip.MustParseAddr("192.168.1.1"), !test.alone }
			vpn := deviceIface(test.ifi, "10.8.0.2/24", "2a0e:8::2/64")
			if name == "a clat of another name" {
				vpn = deviceIface(test.ifi, "192.0.0.4/32")
			}
			env := deviceEnv(deviceIface("eth0", "192.168.1.20/24", "2001:db8::20/64"), vpn)
			if name == "a container" {
				env = deviceEnv(vpn)
			}
			if test.hub != "" {
				env.Hubs = literal(test.hub)
			}
			a := deviceExpect(t, d.vpnCheck(), env, test.want)
			taken := test.want == "captures" || test.want == "through"
			if ifi, ok := Fact[string](env, factVPN); ok != taken || ok && ifi != test.ifi || !strings.Contains(a.Cause, test.cause) {
				t.Errorf("remembered %q, cause %q", ifi, a.Cause)
			}
		})
	}
}
