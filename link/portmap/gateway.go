package portmap

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// DefaultGateway returns the IPv4 default gateway and our own address towards
// it, for Config.Gateway: from /proc/net/route on Linux, from the routing table on
// macOS and FreeBSD, from the adapters on Windows. Of several it is the one with
// the smallest metric. ok is false if there is none, and where it cannot be found
// (Android hides it from apps).
func DefaultGateway() (gw, self netip.Addr, ok bool) {
	gw, ok = defaultGateway()
	if !ok {
		return netip.Addr{}, netip.Addr{}, false
	}
	// Nothing is sent: connecting a UDP socket only looks up the way.
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(gw, serverPort)))
	if err != nil {
		return netip.Addr{}, netip.Addr{}, false
	}
	defer conn.Close()
	local, fine := conn.LocalAddr().(*net.UDPAddr)
	if !fine {
		return netip.Addr{}, netip.Addr{}, false
	}
	self = local.AddrPort().Addr().Unmap()
	return gw, self, self.Is4() && !self.IsUnspecified()
}

// parseRoutes returns the default gateway of a /proc/net/route: the one with the
// smallest metric.
func parseRoutes(b []byte) (gw netip.Addr, ok bool) {
	const up, gateway = 1, 2 // RTF_UP, RTF_GATEWAY
	best := uint64(1 << 63)
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask ...
		f := strings.Fields(sc.Text())
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err != nil || flags&(up|gateway) != up|gateway {
			continue
		}
		metric, err := strconv.ParseUint(f[6], 10, 32)
		raw, err2 := hex.DecodeString(f[2])
		if err != nil || err2 != nil || len(raw) != 4 || metric >= best {
			continue
		}
		// The kernel prints the address as a number in its own byte order.
		var ip [4]byte
		binary.NativeEndian.PutUint32(ip[:], binary.BigEndian.Uint32(raw))
		addr := netip.AddrFrom4(ip)
		if addr.IsUnspecified() || addr.IsMulticast() {
			continue
		}
		gw, ok, best = addr, true, metric
	}
	return gw, ok
}
