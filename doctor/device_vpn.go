package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/kithproject/kith/internal/netmon"
)

// tunnelNames are how interfaces of VPNs begin.
var tunnelNames = []string{ //nolint:gochecknoglobals // a table
	"tun", "tap", "wg", "utun", "tailscale", "zt", "nebula", "ham", "ipsec", "vpn", "nordlynx", "proton", "mullvad", "cscotun", "gpd", "vti", "xfrm",
}

// vpn reports whether an interface is a VPN's: by its name, by what the system says of
// it, or as a line over a modem beside which there is another way out.
func (d *device) vpn(i netmon.Interface) bool {
	name := strings.ToLower(i.Name)
	if translates(i) {
		return false
	}
	if slices.ContainsFunc(tunnelNames, func(p string) bool { return strings.HasPrefix(name, p) }) {
		return true
	}
	if strings.ContainsAny(i.Name, "/.") {
		return false // no name of a file
	}
	if _, err := d.read("/sys/class/net/" + i.Name + "/tun_flags"); err == nil {
		return true
	}
	if raw, err := d.read("/sys/class/net/" + i.Name + "/uevent"); err == nil && strings.Contains(string(raw), "DEVTYPE=wireguard") {
		return true
	}
	_, another := d.gateway(false)
	return strings.HasPrefix(name, "ppp") && another
}

// translates reports whether an interface is that of a translator (464XLAT), which lets programs use
// IPv4 in a network of IPv6 alone: by its name, or by its address (RFC 7335).
func translates(i netmon.Interface) bool {
	own := netip.MustParsePrefix("192.0.0.0/29")
	return strings.HasPrefix(i.Name, "clat") || strings.HasPrefix(i.Name, "v4-") ||
		slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return own.Contains(p.Addr()) })
}

func (d *device) vpnCheck() Check {
	return Check{
		Code: "device.vpn", Asks: "Does what this device sends to the internet get there, if a VPN takes it?", Needs: []Code{"device.routes"}, Limit: beyondLimit,
		Findings: []Finding{
			{
				ID: "captures", Severity: Limit, Cause: "A VPN takes everything that this device sends to the internet, and nothing answers behind it.",
				Fix:      "Leave kith out of the VPN (split tunnelling), or switch the VPN off.",
				Explains: andCutOff("device.outside/nothing", "device.gateway/silent", "device.dns/silent", "device.dns/partly", "device.dns/idle", "device.pmtu/hole", "device.mtu/small"),
			},
			{
				ID: "through", Severity: Note, Cause: "A VPN takes everything that this device sends to the internet.",
				Fix:      "Nothing has to be done, though connections may be faster if kith is left out of the VPN (split tunnelling).",
				Explains: []string{"device.mtu/small"},
			},
		},
		Run: d.runVPN,
	}
}

func (d *device) runVPN(ctx context.Context, env *Env, _ string) Answer {
	list, err := env.interfaces()
	if err != nil {
		return Unclear(err.Error())
	}
	if !slices.ContainsFunc(list, func(i netmon.Interface) bool {
		return !d.vpn(i) && !deviceContainer(i.Name) && slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return !linkOnly(p.Addr()) })
	}) {
		return Nothing("there is no other way but one") // as in a container without root, whose network is a tap
	}
	var evidence []string
	// takes says by which VPN a family goes, "" for none, and whether a part of it goes another way.
	takes := func(halves ...netip.Addr) (name string, direct bool) {
		for _, to := range halves {
			self, err := d.outbound(to)
			if err != nil || linkOnly(self) || self.Is6() && self.IsPrivate() {
				continue
			}
			i, ok := deviceOwner(list, self)
			if !ok || !d.vpn(i) {
				direct = true
				continue
			}
			name = i.Name
			evidence = append(evidence, fmt.Sprintf("%s is reached through %s, from %s", to, i.Name, self))
		}
		return name, direct
	}
	name, direct4 := takes(deviceFar4...)
	name6, direct6 := takes(deviceFar6...)
	takes(literals(env)...) // what goes to some addresses alone is as it should be
	what := "everything that this device sends to the internet"
	switch {
	case direct4 || name == "" && (direct6 || name6 == ""):
		return OK(append(evidence, "no VPN takes all")...)
	case name == "":
		name = name6
	case direct6:
		what = "everything that this device sends over IPv4"
	}
	env.Remember(factVPN, name)
	b := d.beyond(ctx, env)
	evidence = append(evidence, b.lines...)
	cause := fmt.Sprintf("The VPN on %s takes %s", name, what)
	if b.how == "" && b.asked() > 0 || direct6 && len(b.four.silent) > 0 && !b.four.alive {
		return Fails("captures", evidence...).With(cause+", and nothing answers behind it.", "")
	}
	return Fails("through", evidence...).With(cause+".", "")
}
