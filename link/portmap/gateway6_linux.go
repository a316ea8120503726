package portmap

import (
	"io"
	"net/netip"
	"os"
)

func defaultGateway6() (gw netip.Addr, self []netip.Addr, ok bool) {
	routes, err := readBounded("/proc/net/ipv6_route")
	if err != nil {
		return netip.Addr{}, nil, false
	}
	gw, ifi, ok := parseRoutes6(routes)
	if !ok {
		return netip.Addr{}, nil, false
	}
	addrs, err := readBounded("/proc/net/if_inet6")
	if err != nil {
		return netip.Addr{}, nil, false
	}
	self = parseAddrs6(addrs, ifi)
	return gw, self, len(self) > 0
}

// readBounded reads a file of the system, no more than maxRoutes. It errs if it
// cannot be read.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRoutes))
}
