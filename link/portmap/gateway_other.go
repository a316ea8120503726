//go:build !linux && !darwin && !freebsd && !windows

package portmap

import "net/netip"

func defaultGateway() (netip.Addr, bool) { return netip.Addr{}, false }
