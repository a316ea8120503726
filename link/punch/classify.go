package punch

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

const (
	// sampleWindow is how old a sample may be, compared with the newest one.
	sampleWindow = 2 * time.Minute
	// maxSamples bounds the work: the newest ones count.
	maxSamples = 64
	// maxGap is how many ports two new mappings of ours may be apart on average
	// while the NAT is still called sequential: other devices take ports too.
	maxGap = 32
	// maxBlock is the largest port block worth telling from "anywhere", in ports.
	// Carriers hand out 64 to 2048 (RFC 7422 has 2016 in its example).
	maxBlock = 2048
	// blockDoubt is the most likely a NAT with random ports may be to look as if
	// it had a block.
	blockDoubt = 1e-3
)

// A Sample is one answer of a STUN server (RFC 8489): with which public address
// it saw one of our sockets.
type Sample struct {
	// Local is the socket's own address and port number. The address may be the
	// unspecified one; then a socket with a public address is not recognised.
	Local netip.AddrPort
	// Server is where the request was sent.
	Server netip.AddrPort
	// From is where the answer came from, if that is not Server (RFC 5780,
	// CHANGE-REQUEST): it shows what the filter lets in.
	From netip.AddrPort
	// Mapped is the address and port the server saw.
	Mapped netip.AddrPort
	// At is when the request was first sent, not when the answer came: the order
	// of the requests is the order of the mappings.
	At time.Time
}

// Classify concludes from samples how our NAT behaves. Good samples are: one
// socket to two or more server addresses and to two ports of one of them, which
// shows the mapping; and three or more further sockets to one server, one after
// another, which shows the order of the ports and their block. What they do not
// show stays Unknown or zero. Samples in IPv6, without time order, or more than
// two minutes older than the newest do no harm and count for nothing.
func Classify(samples []Sample) Behaviour {
	s := usable(samples)
	if len(s) == 0 {
		return Behaviour{}
	}
	b := Behaviour{
		Mapping:   mapping(s),
		Filtering: filtering(s),
		Pooled:    pooled(s),
		Preserves: !slices.ContainsFunc(s, func(x Sample) bool { return x.Local.Port() != x.Mapped.Port() }),
	}
	last := s[len(s)-1]
	if !b.Hard() {
		last = mainSample(s)
	}
	b.Public, b.LastPort = last.Mapped.Addr(), last.Mapped.Port()
	ports := newPortsOf(s)
	b.SampledPorts = uint8(len(ports))
	if b.Mapping == None || b.Preserves {
		return b
	}
	if b.Hard() {
		if delta, newest := sequence(ports); delta != 0 {
			b.Delta, b.LastPort = delta, newest
		}
	}
	b.BlockLow, b.BlockHigh = block(ports, b.Delta != 0)
	return b
}

// usable returns the samples that can be compared, in the order of their time.
// When one and the same question got a new answer, the NAT has forgotten the
// mapping in between, and what that socket learned before is void.
func usable(samples []Sample) []Sample {
	var s []Sample
	for _, x := range samples {
		x.Mapped = netip.AddrPortFrom(x.Mapped.Addr().Unmap(), x.Mapped.Port())
		x.Local = netip.AddrPortFrom(x.Local.Addr().Unmap(), x.Local.Port())
		x.Server = netip.AddrPortFrom(x.Server.Addr().Unmap(), x.Server.Port())
		if probeable(x.Mapped.Addr()) && x.Mapped.Port() != 0 && x.Server.Addr().Is4() {
			s = append(s, x)
		}
	}
	slices.SortStableFunc(s, func(a, b Sample) int { return a.At.Compare(b.At) })
	if len(s) == 0 {
		return nil
	}
	newest := s[len(s)-1].At
	s = slices.DeleteFunc(s, func(x Sample) bool { return newest.Sub(x.At) > sampleWindow })
	s = s[max(0, len(s)-maxSamples):]
	var out []Sample
	for _, x := range s {
		moved := slices.ContainsFunc(out, func(o Sample) bool {
			return o.Local == x.Local && o.Server == x.Server && o.Mapped != x.Mapped
		})
		if moved {
			out = slices.DeleteFunc(out, func(o Sample) bool { return o.Local == x.Local })
		}
		out = append(out, x)
	}
	return out
}

// mapping compares what different servers saw of one socket.
func mapping(s []Sample) Rule {
	if !slices.ContainsFunc(s, func(x Sample) bool { return x.Mapped != x.Local }) {
		return None
	}
	var byPort, byAddr struct{ same, differ bool }
	for i, a := range s {
		for _, b := range s[:i] {
			if a.Local != b.Local || a.Server == b.Server {
				continue
			}
			kind := &byAddr
			if a.Server.Addr() == b.Server.Addr() {
				kind = &byPort
			}
			if a.Mapped == b.Mapped {
				kind.same = true
			} else {
				kind.differ = true
			}
		}
	}
	switch {
	case byPort.differ, byAddr.differ && !byPort.same:
		return AddressAndPortDependent
	case byAddr.differ:
		return AddressDependent
	case byAddr.same:
		return EndpointIndependent
	}
	return Unknown
}

// filtering looks for answers from where the socket had not sent anything to.
func filtering(s []Sample) Rule {
	out := Unknown
	for i, x := range s {
		if !x.From.IsValid() || x.From == x.Server {
			continue
		}
		from := netip.AddrPortFrom(x.From.Addr().Unmap(), x.From.Port())
		asked := func(same func(netip.AddrPort) bool) bool {
			return slices.ContainsFunc(s[:i+1], func(o Sample) bool { return o.Local == x.Local && same(o.Server) })
		}
		switch {
		case !asked(func(a netip.AddrPort) bool { return a.Addr() == from.Addr() }):
			return EndpointIndependent
		case !asked(func(a netip.AddrPort) bool { return a == from }):
			out = AddressDependent // at most
		}
	}
	return out
}

// pooled reports whether one socket had several public addresses.
func pooled(s []Sample) bool {
	for i, a := range s {
		for _, b := range s[:i] {
			if a.Local == b.Local && a.Mapped.Addr() != b.Mapped.Addr() {
				return true
			}
		}
	}
	return false
}

// mainSample returns the newest sample of the socket that asked the most servers.
func mainSample(s []Sample) Sample {
	count := map[netip.AddrPort]int{}
	best := s[len(s)-1]
	for _, x := range s {
		count[x.Local]++
	}
	for _, x := range s {
		if count[x.Local] >= count[best.Local] {
			best = x
		}
	}
	return best
}

// newPortsOf returns each public port once, in the order in which they appeared.
func newPortsOf(s []Sample) []uint16 {
	var out []uint16
	for _, x := range s {
		if !slices.Contains(out, x.Mapped.Port()) {
			out = append(out, x.Mapped.Port())
		}
	}
	return out
}

// sequence returns the step of ports that go one after another, and the one the
// next will follow; 0 if they do not. Three quarters of them have to agree about
// the direction, since answers and questions overtake each other.
func sequence(ports []uint16) (delta int, newest uint16) {
	if len(ports) < 3 {
		return 0, 0
	}
	steps, up := len(ports)-1, 0
	for i, p := range ports[1:] {
		if p > ports[i] {
			up++
		}
	}
	sorted := slices.Sorted(slices.Values(ports))
	low, high := sorted[0], sorted[steps]
	if int(high-low) > maxGap*steps || 4*max(up, steps-up) < 3*steps {
		return 0, 0
	}
	for i, p := range sorted[1:] {
		delta = gcd(delta, int(p-sorted[i]))
	}
	if 2*up < steps {
		return -delta, low
	}
	return delta, high
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// block estimates the port block from the ports seen in it: blocks start at a
// multiple of their size where that fits, else some room is left on both sides.
// A sequence fills only a corner of its block: it says nothing about the rest.
func block(ports []uint16, sequential bool) (low, high uint16) {
	n := len(ports)
	if n < 3 || sequential {
		return 0, 0
	}
	lo, hi := int(slices.Min(ports)), int(slices.Max(ports))
	span := hi - lo + 1
	// The edges of a block are, on average, as far from the outermost of n ports
	// as these are from each other; half as much again for bad luck.
	pad := 3 * span / (2 * (n - 1))
	lo, hi = max(1, lo-pad), min(65535, hi+pad)
	for size := 64; size <= maxBlock; size *= 2 {
		start := int(slices.Min(ports)) / size * size
		fits := int(slices.Max(ports)) < start+size
		if fits && size*(n-1) >= span*(n+1) && 2*size <= 3*(hi-lo+1) {
			lo, hi = max(1, start), min(65535, start+size-1)
			break
		}
	}
	size := hi - lo + 1
	// How likely n random ports are to lie so close together.
	doubt := float64(n) * math.Pow(float64(size)/anyPorts, float64(n-1))
	if size > maxBlock || doubt > blockDoubt {
		return 0, 0
	}
	return uint16(lo), uint16(hi)
}
