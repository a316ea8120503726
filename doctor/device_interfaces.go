package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/kithproject/kith/internal/netmon"
)

const (
	manyDeviceInterfaces = 6 // besides the one that counts, a count
	// dataMTU is what a full datagram of the tunnel needs: 1432 bytes of data and the
	// headers of IPv4, in bytes; leastMTU is what IPv6 needs (RFC 8200 section 5).
	dataMTU  = 1432 + 28
	leastMTU = 1280
)

func (d *device) interfacesCheck() Check {
	return Check{
		Code: "device.interfaces", Asks: "Is a network interface connected?", Quick: true,
		Findings: []Finding{
			{ID: "none", Severity: Fault, Cause: "No network interface of this device is connected.", Fix: "Plug in the cable, or switch on Wi-Fi or mobile data and join a network.", Explains: cutOff},
		},
		Run: func(_ context.Context, env *Env, _ string) Answer {
			list, err := env.interfaces()
			if err != nil {
				return Unclear(err.Error())
			}
			outer, inner := d.split(env, list)
			if slices.ContainsFunc(outer, func(i netmon.Interface) bool { return !i.NoCarrier }) {
				return OK(deviceNames(list)...)
			}
			var evidence []string
			for _, i := range outer {
				evidence = append(evidence, i.Name+" is switched on, but no cable is plugged in, or no Wi-Fi joined")
			}
			for _, i := range inner {
				evidence = append(evidence, i.Name+" is of containers or virtual machines")
			}
			return Fails("none", evidence...)
		},
	}
}

// split parts the interfaces into those that lead to networks and those of containers and
// virtual machines on this device. What has the address towards the internet is none of the
// latter, whatever its name.
func (d *device) split(env *Env, list []netmon.Interface) (outer, inner []netmon.Interface) {
	var ways []netip.Addr
	for _, to := range slices.Concat(deviceFar4, deviceFar6, literals(env)) {
		if self, err := d.outbound(to); err == nil {
			ways = append(ways, self)
		}
	}
	for _, i := range list {
		out := slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return slices.Contains(ways, p.Addr()) })
		if out || !deviceContainer(i.Name) {
			outer = append(outer, i)
		} else {
			inner = append(inner, i)
		}
	}
	return outer, inner
}

func deviceNames(list []netmon.Interface) (out []string) {
	for _, i := range list {
		line := fmt.Sprintf("%s: %s", i.Name, deviceJoined(i.Addrs))
		if i.NoCarrier {
			line += ", not connected"
		}
		out = append(out, line)
	}
	return out
}

func deviceJoined[T fmt.Stringer](list []T) string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	if len(out) == 0 {
		return "no address"
	}
	return strings.Join(out, ", ")
}

func (d *device) addressesCheck() Check {
	return Check{
		Code: "device.addresses", Asks: "Does this device have an address?", Needs: []Code{"device.interfaces"}, Quick: true,
		Findings: []Finding{
			{
				ID: "linklocal", Severity: Fault, Cause: "The network has given this device no address: it has only those that it makes itself.",
				Fix:      "Connect to the network again, and if that does not help restart the router (its DHCP does not answer).",
				Explains: cutOff,
			},
		},
		Run: func(_ context.Context, env *Env, _ string) Answer {
			list, err := env.interfaces()
			if err != nil {
				return Unclear(err.Error())
			}
			outer, _ := d.split(env, list)
			for _, i := range outer {
				if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return i.Loopback || !linkOnly(p.Addr()) }) && !i.NoCarrier {
					return OK(deviceNames(list)...)
				}
			}
			return Fails("linklocal", deviceNames(list)...)
		},
	}
}

// deviceOwner is the interface that has an address.
func deviceOwner(list []netmon.Interface, a netip.Addr) (netmon.Interface, bool) {
	for _, i := range list {
		if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return i, true
		}
	}
	return netmon.Interface{}, false
}

// outward is the interface towards the internet and the address there, as
// device.routes found it.
func (e *Env) outward() (i netmon.Interface, a netip.Addr, ok bool) {
	list, err := e.interfaces()
	if err != nil {
		return i, a, false
	}
	own, _ := Fact[[]netip.Addr](e, factOutbound)
	for _, a := range own {
		if i, ok := deviceOwner(list, a); ok {
			return i, a, true
		}
	}
	return i, a, false
}

func (d *device) decoysCheck() Check {
	return Check{
		Code: "device.decoys", Asks: "Is it clear which of the interfaces counts?", Needs: []Code{"device.routes"},
		Findings: []Finding{
			{
				ID: "many", Severity: Note, Cause: "This device has addresses on many interfaces besides the one that counts, which is no fault.",
				Fix: "Nothing has to be done.",
			},
		},
		Run: func(_ context.Context, env *Env, _ string) Answer {
			list, err := env.interfaces()
			if err != nil {
				return Unclear(err.Error())
			}
			i, a, ok := env.outward()
			if !ok {
				return Unclear("no interface leads outwards")
			}
			others := slices.DeleteFunc(slices.Clone(list), func(x netmon.Interface) bool {
				return x.Name == i.Name || !slices.ContainsFunc(x.Addrs, func(p netip.Prefix) bool { return !linkOnly(p.Addr()) })
			})
			line := fmt.Sprintf("%s on %s is the address towards the internet", a, i.Name)
			if len(others) < manyDeviceInterfaces {
				return OK(line)
			}
			return Fails("many", append([]string{line}, deviceNames(others)...)...).With(
				fmt.Sprintf("Besides %s on %s, which is the address that counts, this device has addresses on %d other interfaces, which is no fault.", a, i.Name, len(others)), "")
		},
	}
}

// containerNames are how interfaces of containers and virtual machines begin.
var containerNames = []string{ //nolint:gochecknoglobals // a table
	"docker", "veth", "virbr", "vmnet", "vboxnet", "lxc", "lxd", "incusbr", "cni", "flannel", "cali", "cilium", "weave", "kube-", "podman",
	"vethernet (wsl", "vethernet (default switch", "vethernet (nat",
}

// deviceContainer reports whether an interface is of containers or virtual machines, by its
// name. A bridge of Docker's is one of 12 hexadecimal digits, others may be anything; a switch
// of Hyper-V's may be the real network.
func deviceContainer(name string) bool {
	name = strings.ToLower(name)
	if rest, ok := strings.CutPrefix(name, "br-"); ok {
		return len(rest) == 12 && strings.Trim(rest, "0123456789abcdef") == ""
	}
	return slices.ContainsFunc(containerNames, func(p string) bool {
		return strings.HasPrefix(name, p) && (p != "veth" || !strings.HasPrefix(name, "vethernet"))
	})
}

func (d *device) containersCheck() Check {
	return Check{
		Code: "device.containers", Asks: "Do networks of containers and virtual machines keep away from the real ones?", Needs: []Code{"device.addresses"},
		Findings: []Finding{
			{
				ID: "overlap", Severity: Limit, Cause: "A network of containers or virtual machines has the same addresses as a real one, so that devices there cannot be reached.",
				Fix: "Give the network of the containers another range of addresses.",
			},
		},
		Run: func(_ context.Context, env *Env, _ string) Answer {
			list, err := env.interfaces()
			if err != nil {
				return Unclear(err.Error())
			}
			outer, inner := d.split(env, list)
			for _, c := range inner {
				for _, r := range outer {
					if p, q, ok := deviceOverlap(c, r); ok {
						return Fails("overlap", fmt.Sprintf("%v on %s and %v on %s", p, c.Name, q, r.Name)).With(
							fmt.Sprintf("The network %v of %s has the same addresses as that of %s, so that devices there cannot be reached.", p.Masked(), c.Name, r.Name), "")
					}
				}
			}
			if len(inner) == 0 {
				return Nothing("there are none")
			}
			return OK(deviceNames(inner)...)
		},
	}
}

// deviceOverlap finds networks of two interfaces that have addresses in common.
func deviceOverlap(a, b netmon.Interface) (p, q netip.Prefix, ok bool) {
	for _, p := range a.Addrs {
		for _, q := range b.Addrs {
			if !linkOnly(p.Addr()) && !p.IsSingleIP() && !q.IsSingleIP() && p.Overlaps(q) {
				return p, q, true
			}
		}
	}
	return p, q, false
}

func (d *device) mtuCheck() Check {
	return Check{
		Code: "device.mtu", Asks: "Does the interface towards the internet take packets of full size?", Needs: []Code{"device.routes"},
		Findings: []Finding{
			{ID: "tiny", Severity: Limit, Cause: "The MTU of the interface is so small that packets are cut into pieces, and IPv6 does not work.", Fix: "Set the MTU of the interface to 1280 or more, as a rule 1500."},
			{ID: "small", Severity: Note, Cause: "The MTU of the interface is small, as is usual for a VPN, so that full packets are cut into pieces.", Fix: "Nothing has to be done."},
		},
		Run: func(_ context.Context, env *Env, _ string) Answer {
			i, _, ok := env.outward()
			if !ok {
				return Unclear("no interface leads outwards")
			}
			line := fmt.Sprintf("%s takes %d bytes", i.Name, i.MTU)
			switch {
			case i.MTU <= 0:
				return Unclear("the system does not tell the MTU")
			case i.MTU < leastMTU:
				return Fails("tiny", line).With("", fmt.Sprintf("Set the MTU of %s to 1280 or more, as a rule 1500.", i.Name))
			case i.MTU < dataMTU:
				return Fails("small", line)
			}
			return OK(line)
		},
	}
}
