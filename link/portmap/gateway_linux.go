package portmap

import (
	"io"
	"net/netip"
	"os"
)

const maxRoutes = 256 << 10 // bytes of /proc/net/route

func defaultGateway() (netip.Addr, bool) {
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return netip.Addr{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRoutes))
	if err != nil {
		return netip.Addr{}, false
	}
	return parseRoutes(b)
}
