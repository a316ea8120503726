//go:build darwin || freebsd

package portmap

import (
	"net/netip"
	"runtime"
	"syscall"

	"golang.org/x/net/route"
)

// ifscope is macOS's RTF_IFSCOPE: the default route of an interface that is not
// the preferred one.
const ifscope = 0x1000000

func defaultGateway() (netip.Addr, bool) {
	rib, err := route.FetchRIB(syscall.AF_INET, route.RIBTypeRoute, 0)
	if err != nil {
		return netip.Addr{}, false
	}
	messages, err := route.ParseRIB(route.RIBTypeRoute, rib)
	if err != nil {
		return netip.Addr{}, false
	}
	const want = syscall.RTF_UP | syscall.RTF_GATEWAY
	for _, message := range messages {
		m, ok := message.(*route.RouteMessage)
		if !ok || m.Flags&want != want || runtime.GOOS == "darwin" && m.Flags&ifscope != 0 || len(m.Addrs) <= syscall.RTAX_NETMASK {
			continue
		}
		to, ok1 := m.Addrs[syscall.RTAX_DST].(*route.Inet4Addr)
		gw, ok2 := m.Addrs[syscall.RTAX_GATEWAY].(*route.Inet4Addr)
		mask, ok3 := m.Addrs[syscall.RTAX_NETMASK].(*route.Inet4Addr)
		if ok1 && ok2 && to.IP == [4]byte{} && gw.IP != [4]byte{} && (!ok3 || mask.IP == [4]byte{}) {
			return netip.AddrFrom4(gw.IP), true
		}
	}
	return netip.Addr{}, false
}
