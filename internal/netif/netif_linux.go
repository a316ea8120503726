//go:build linux && !android

package netif

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const clonePath = "/dev/net/tun"

// Check errs with an *Error if this process cannot make an interface, as far as can be
// told without trying.
func Check() error {
	var caps [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &caps[0]); err == nil && caps[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return &Error{Text: "a network interface needs root, or the capability CAP_NET_ADMIN",
			Hint: "run it as root; without it, kith proxy and kith forward reach the same ports"}
	}
	f, err := os.OpenFile(clonePath, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		return &Error{Text: "this user may not make network interfaces", Err: err, Hint: "run it as root"}
	}
	if err != nil {
		return &Error{Text: "this system offers no network interfaces to programs", Err: err,
			Hint: "modprobe tun may help; a container needs the device " + clonePath}
	}
	return f.Close()
}

// Open makes an interface. It errs with an *Error where something can be done about it.
func Open(cfg Config) (_ *Interface, err error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if err := free(cfg.Prefix); err != nil {
		return nil, err
	}
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("netif: %s: %w", clonePath, err)
	}
	req, err := unix.NewIfreq(cfg.Name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, &Error{Text: "the system makes no network interface", Err: err, Hint: "it needs root, or CAP_NET_ADMIN"}
	}
	i := &Interface{Name: req.Name(), file: os.NewFile(uintptr(fd), clonePath)}
	if err := i.configure(cfg); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

// free errs if another interface leads to the prefix: another kith has one.
func free(prefix netip.Prefix) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Dst: ipNet(prefix)}, netlink.RT_FILTER_DST)
	if err != nil || len(routes) == 0 {
		return nil //nolint:nilerr // adding ours will tell
	}
	name := "another interface"
	if ifi, err := net.InterfaceByIndex(routes[0].LinkIndex); err == nil {
		name = ifi.Name
	}
	return &Error{Text: fmt.Sprintf("%s leads to %s already", name, prefix), Hint: "another kith up --tun runs on this machine: stop it with kith down"}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)}
}

func (i *Interface) configure(cfg Config) error {
	// A system without IPv6 elsewhere can have it here; where there is none at all, the
	// address says so.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+i.Name+"/disable_ipv6", []byte("0"), 0)
	link, err := netlink.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("netif: %s: %w", i.Name, err)
	}
	own := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(cfg.Addr, 128)), Flags: unix.IFA_F_NODAD}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"set its MTU", func() error { return netlink.LinkSetMTU(link, MTU) }},
		// Nobody else is there to be found by multicast, or by an address of the link.
		{"turn multicast off", func() error { return netlink.LinkSetMulticastOff(link) }},
		{"turn link addresses off", func() error { return netlink.LinkSetIP6AddrGenMode(link, genModeNone) }},
		{"set its address (has this system IPv6?)", func() error { return netlink.AddrAdd(link, own) }},
		{"bring it up", func() error { return netlink.LinkSetUp(link) }},
		{"set its route", func() error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(cfg.Prefix), Scope: netlink.SCOPE_LINK})
		}},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("netif: interface %s: %s: %w", i.Name, step.what, err)
		}
	}
	return nil
}

// genModeNone is IN6_ADDR_GEN_MODE_NONE.
const genModeNone = 1
