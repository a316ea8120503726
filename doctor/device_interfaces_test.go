package doctor

import (
	"net/netip"
	"testing"

	"github.com/kithproject/kith/internal/netmon"
)

// TestDeviceOuter: what leads to a network is known by the address towards the internet and
// by its carrier, and only then by its name.
func TestDeviceOuter(t *testing.T) {
	unplugged := deviceIface("eth0", "192.168.1.20/24", "fe80::1/64")
	unplugged.NoCarrier = true
	docker := deviceIface("docker0", "172.17.0.1/16")
	at := netip.MustParseAddr
	for name, test := range map[string]struct {
		list                        []netmon.Interface
		way                         netip.Addr // our address towards the internet
		ifaces, address, containers string
	}{
		"at home":                   {[]netmon.Interface{deviceIface("eth0", "192.168.1.20/24")}, testSelf4, "ok", "ok", "nothing"},
		"Hyper-V's external switch": {[]netmon.Interface{deviceIface("vEthernet (External)", "192.168.1.20/24")}, testSelf4, "ok", "ok", "nothing"},
		"WSL without a network":     {[]netmon.Interface{deviceIface("vEthernet (WSL)", "172.20.0.1/20")}, netip.Addr{}, "none", "linklocal", "ok"},
		"OpenWrt":                   {[]netmon.Interface{deviceIface("br-lan", "192.168.1.1/24")}, netip.Addr{}, "ok", "ok", "nothing"},
		"a bridge of one's own":     {[]netmon.Interface{deviceIface("lxdbr0", "192.168.1.20/24"), docker}, testSelf4, "ok", "ok", "ok"},
		"a network of Docker's":     {[]netmon.Interface{deviceIface("br-0123456789ab", "172.18.0.1/16"), docker}, netip.Addr{}, "none", "linklocal", "ok"},
		"in a virtual machine":      {[]netmon.Interface{deviceIface("vmnet8", "172.16.3.2/24")}, at("172.16.3.2"), "ok", "ok", "nothing"},
		"cable out":                 {[]netmon.Interface{unplugged}, testSelf4, "none", "linklocal", "nothing"},
		"cable out, Docker runs":    {[]netmon.Interface{unplugged, docker}, netip.Addr{}, "none", "linklocal", "ok"},
		"cable out, Wi-Fi on":       {[]netmon.Interface{unplugged, deviceIface("wlan0", "192.168.7.3/24")}, netip.Addr{}, "ok", "ok", "nothing"},
		"Wi-Fi without DHCP":        {[]netmon.Interface{unplugged, deviceIface("wlan0", "169.254.3.4/16")}, netip.Addr{}, "ok", "linklocal", "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), deviceEnv(test.list...)
			d.outbound = deviceWays(test.way, netip.Addr{})
			deviceExpect(t, d.interfacesCheck(), env, test.ifaces)
			deviceExpect(t, d.addressesCheck(), env, test.address)
			deviceExpect(t, d.containersCheck(), env, test.containers)
		})
	}
}

// TestDeviceLoopback: loopback is an interface only where devices of this machine are met.
func TestDeviceLoopback(t *testing.T) {
	lo := deviceIface("lo", "127.0.0.1/8")
	lo.Loopback = true
	for loopback, want := range map[bool][2]string{false: {"none", "linklocal"}, true: {"ok", "ok"}} {
		d, env := testDevice(), deviceEnv(lo)
		d.outbound = deviceWays(netip.Addr{}, netip.Addr{})
		env.Loopback = loopback
		deviceExpect(t, d.interfacesCheck(), env, want[0])
		deviceExpect(t, d.addressesCheck(), env, want[1])
	}
}
