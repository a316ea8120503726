package portmap

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/windows"
)

const maxAdapters = 1 << 20 // bytes

func defaultGateway() (gw netip.Addr, ok bool) {
	const flags = windows.GAA_FLAG_INCLUDE_GATEWAYS | windows.GAA_FLAG_SKIP_ANYCAST | windows.GAA_FLAG_SKIP_MULTICAST | windows.GAA_FLAG_SKIP_DNS_SERVER
	var first *windows.IpAdapterAddresses
	for size := uint32(15000); first == nil; { // what Microsoft says to begin with
		buf := make([]byte, size)
		a := (*windows.IpAdapterAddresses)(unsafe.Pointer(&buf[0])) //nolint:gosec // as the system call wants it
		switch err := windows.GetAdaptersAddresses(windows.AF_INET, flags, 0, a, &size); {
		case err == nil:
			first = a
		case err != windows.ERROR_BUFFER_OVERFLOW || size <= uint32(len(buf)) || size > maxAdapters: //nolint:errorlint // an errno
			return netip.Addr{}, false
		}
	}
	best := ^uint32(0)
	for a := first; a != nil; a = a.Next {
		if a.OperStatus != windows.IfOperStatusUp || a.Ipv4Metric >= best {
			continue
		}
		for g := a.FirstGatewayAddress; g != nil; g = g.Next {
			addr, fine := netip.AddrFromSlice(g.Address.IP())
			if fine && addr.Is4() && !addr.IsUnspecified() {
				gw, ok, best = addr, true, a.Ipv4Metric
				break
			}
		}
	}
	return gw, ok
}
