package portmap

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxPinholes is how many of our IPv6 addresses get a pinhole, in number.
const maxPinholes = 4

// DefaultGateway6 returns the IPv6 default gateway and our own addresses on the
// network that it is in, for Config.Gateway6: from /proc/net on Linux. Addresses
// are global ones that stay (RFC 8981 calls the others temporary); only where
// there are none, the temporary ones. ok is false if there is no gateway or no
// such address, and on systems other than Linux, where it is not known.
func DefaultGateway6() (gw netip.Addr, self []netip.Addr, ok bool) { return defaultGateway6() }

// parseRoutes6 returns the default gateway of a /proc/net/ipv6_route, and its
// interface: the one with the smallest metric. A link-local gateway has its zone.
func parseRoutes6(b []byte) (gw netip.Addr, ifi string, ok bool) {
	const up, gateway, reject = 1, 2, 0x200 // RTF_UP, RTF_GATEWAY, RTF_REJECT
	best := uint64(1 << 63)
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		// destination, its prefix length, source, its prefix length, next hop,
		// metric, references, uses, flags, interface; all numbers in hexadecimal
		f := strings.Fields(sc.Text())
		if len(f) != 10 || f[1] != "00" || f[3] != "00" || strings.Trim(f[0], "0") != "" {
			continue
		}
		flags, err := strconv.ParseUint(f[8], 16, 32)
		if err != nil || flags&(up|gateway|reject) != up|gateway {
			continue
		}
		metric, err := strconv.ParseUint(f[5], 16, 32)
		addr, fine := hexAddr(f[4])
		if err != nil || !fine || metric >= best || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() || addr.Is4In6() {
			continue
		}
		if addr.IsLinkLocalUnicast() {
			addr = addr.WithZone(f[9])
		}
		gw, ifi, ok, best = addr, f[9], true, metric
	}
	return gw, ifi, ok
}

func hexAddr(s string) (netip.Addr, bool) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(raw)), true
}

// parseAddrs6 returns the addresses of an interface that a /proc/net/if_inet6 has
// and that are worth a pinhole, in order: those of the internet that stay, or if
// there are none the temporary ones.
func parseAddrs6(b []byte, ifi string) []netip.Addr {
	const temporary, dadFailed, deprecated, tentative = 0x01, 0x08, 0x20, 0x40 // IFA_F_*
	var stay, change []netip.Addr
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		// address, interface's number, prefix length, scope, flags, interface
		f := strings.Fields(sc.Text())
		if len(f) != 6 || f[5] != ifi {
			continue
		}
		addr, fine := hexAddr(f[0])
		flags, err := strconv.ParseUint(f[4], 16, 32)
		if err != nil || !fine || flags&(dadFailed|deprecated|tentative) != 0 || natted(addr) {
			continue
		}
		if flags&temporary != 0 {
			change = append(change, addr)
		} else {
			stay = append(stay, addr)
		}
	}
	if len(stay) == 0 {
		stay = change
	}
	slices.SortFunc(stay, netip.Addr.Compare)
	stay = slices.Compact(stay)
	return stay[:min(len(stay), maxPinholes)]
}
