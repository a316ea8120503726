//go:build !linux

package portmap

import "net/netip"

func defaultGateway() (netip.Addr, bool) { return netip.Addr{}, false }
