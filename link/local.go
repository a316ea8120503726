package link

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/signaling"
)

// networks are this device's interfaces, as far as paths depend on them.
type networks []netmon.Interface

// kind says which sort of path leads to remote. local is our address on it, or
// the zero Addr if it is not known.
func (n networks) kind(remote, local netip.Addr) PathKind {
	if remote.IsLoopback() || n.own(remote) {
		return Loopback
	}
	if zone := remote.Zone(); zone != "" {
		for _, i := range n {
			if i.Name == zone && i.Virtual {
				return Virtual
			}
		}
		return LAN
	}
	kind := Direct
	for _, i := range n {
		for _, p := range i.Addrs {
			if p.Addr().WithZone("") == local.WithZone("") && i.Virtual {
				return Virtual
			}
			if p.Bits() == 0 || !p.Masked().Contains(remote) {
				continue
			}
			switch {
			case !i.Virtual:
				kind = LAN
			case kind != LAN:
				kind = Virtual
			}
		}
	}
	return kind
}

// own reports whether addr is one of our own addresses.
func (n networks) own(addr netip.Addr) bool {
	for _, i := range n {
		for _, p := range i.Addrs {
			if p.Addr() == addr {
				return true
			}
		}
	}
	return false
}

// home are the addresses by which real interfaces reach others, in order: they
// differ when this device is elsewhere.
func (n networks) home() []netip.Prefix {
	var out []netip.Prefix
	for _, i := range n {
		if !i.Up || i.Loopback || i.Virtual {
			continue
		}
		for _, p := range i.Addrs {
			if !p.Addr().IsLinkLocalUnicast() {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out)
}

// zones are the names of the interfaces on which a link-local peer may be.
func (n networks) zones() []string {
	var out []string
	for _, i := range n {
		if i.Up && !i.Loopback && !i.Virtual && slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool {
			return p.Addr().Is6() && p.Addr().IsLinkLocalUnicast()
		}) {
			out = append(out, i.Name)
		}
	}
	return out
}

// Priorities of candidates: greater is tried first.
const (
	priorityMapped    = 450
	priorityReflexive = 440
	priorityRelayed   = 430
	priorityGlobal    = 400
	priorityLinkLocal = 300
	priorityVirtual   = 200
	priorityLoopback  = 100
)

// candidates are the addresses of interfaces at which the peer may find us:
// loopback only if it is asked for.
func (n networks) candidates(port uint16, loopback bool) []signaling.Candidate {
	var out, own []signaling.Candidate
	seen := make(map[netip.Addr]bool)
	for _, i := range n {
		if !i.Up {
			continue
		}
		for _, p := range i.Addrs {
			addr := p.Addr().Unmap().WithZone("")
			if seen[addr] || addr.IsUnspecified() || addr.IsMulticast() || identity.Prefix().Contains(addr) {
				continue
			}
			seen[addr] = true
			c := signaling.Candidate{Kind: signaling.Host, Addr: netip.AddrPortFrom(addr, port), Priority: priorityGlobal}
			switch {
			case i.Loopback || addr.IsLoopback():
				c.Priority = priorityLoopback
				own = append(own, c)
				continue
			case i.Virtual:
				c.Priority = priorityVirtual
			case addr.IsLinkLocalUnicast():
				c.Priority = priorityLinkLocal
			}
			out = append(out, c)
		}
	}
	if loopback {
		out = append(out, own...)
	}
	slices.SortStableFunc(out, func(a, b signaling.Candidate) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.Addr.Compare(b.Addr))
	})
	return out[:min(len(out), maxHosts)]
}

// maxHosts is how many addresses of interfaces are offered, in number: the rest
// of a list that the peer tries is for how others see us.
const maxHosts = 12

// localAddr joins our address and port; the zero AddrPort if the address is not known.
func localAddr(addr netip.Addr, port uint16) netip.AddrPort {
	if !addr.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), port)
}
