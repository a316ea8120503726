//go:build !linux

package portmap

import "net/netip"

func defaultGateway6() (gw netip.Addr, self []netip.Addr, ok bool) { return netip.Addr{}, nil, false }
