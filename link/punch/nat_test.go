package punch

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"time"
)

// A nat is a model of one side: its router, with a mapping table and a filter.
type nat struct {
	mapping, filtering Rule
	public             netip.Addr
	allocate           func() uint16
	table              map[flowKey]uint16
	owner              map[uint16]flowKey
	sent               map[sentKey]bool
}

type flowKey struct {
	local  uint16
	remote uint64 // as much of it as the mapping depends on
}

type sentKey struct {
	public uint16
	remote uint64
}

func number(a netip.AddrPort) uint64 {
	b := a.Addr().As4()
	return uint64(binary.BigEndian.Uint32(b[:]))<<16 | uint64(a.Port())
}

func host(a netip.AddrPort) uint64 { return number(a) &^ 0xffff }

const stunPort = 3478

var (
	stun1   = netip.MustParseAddr("192.0.2.1")
	stun2   = netip.MustParseAddr("192.0.2.2")
	publicA = netip.MustParseAddr("198.51.100.7")
	publicB = netip.MustParseAddr("203.0.113.9")
	epoch   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func newNAT(public netip.Addr, mapping, filtering Rule, allocate func() uint16) *nat {
	return &nat{
		mapping: mapping, filtering: filtering, public: public, allocate: allocate,
		table: map[flowKey]uint16{}, owner: map[uint16]flowKey{}, sent: map[sentKey]bool{},
	}
}

// out sends a packet from a local port and returns its public port. It panics if
// there is none left: an attempt must not do that to people.
func (n *nat) out(local uint16, to netip.AddrPort) uint16 {
	key := flowKey{local: local}
	switch n.mapping {
	case AddressDependent:
		key.remote = host(to)
	case AddressAndPortDependent:
		key.remote = number(to)
	}
	port, ok := n.table[key]
	switch {
	case ok:
	case n.mapping == None:
		port = local
	default:
		port = n.allocate()
		for tries := 0; n.owner[port].local != 0; tries++ {
			if port = n.allocate(); tries == 5000 {
				panic("punch: an attempt has used up all ports of a subscriber")
			}
		}
	}
	if !ok {
		n.table[key], n.owner[port] = port, key
	}
	n.sent[sentKey{port, number(to)}] = true
	n.sent[sentKey{port, host(to)}] = true
	return port
}

// in reports whether a packet gets to a local port.
func (n *nat) in(port uint16, from netip.AddrPort) bool {
	_, ok := n.owner[port]
	switch n.filtering {
	case AddressDependent:
		ok = ok && n.sent[sentKey{port, host(from)}]
	case AddressAndPortDependent:
		ok = ok && n.sent[sentKey{port, number(from)}]
	}
	return ok
}

const mainLocal = 41641

// sample does what a good set of STUN requests does: the main socket asks two
// ports of one server and another server, then for an answer from elsewhere; six
// more sockets ask one server.
func (n *nat) sample() []Sample {
	var out []Sample
	at := epoch
	ask := func(local uint16, server netip.AddrPort) netip.AddrPort {
		at = at.Add(30 * time.Millisecond)
		addr := netip.MustParseAddr("192.168.1.2")
		if n.mapping == None {
			addr = n.public
		}
		mapped := netip.AddrPortFrom(n.public, n.out(local, server))
		out = append(out, Sample{Local: netip.AddrPortFrom(addr, local), Server: server, Mapped: mapped, At: at})
		return mapped
	}
	server := netip.AddrPortFrom(stun1, stunPort)
	mapped := ask(mainLocal, server)
	for _, from := range []netip.AddrPort{netip.AddrPortFrom(stun1, stunPort+1), netip.AddrPortFrom(stun2, stunPort+1)} {
		if n.in(mapped.Port(), from) {
			ask(mainLocal, server)
			out[len(out)-1].From = from
		}
	}
	ask(mainLocal, netip.AddrPortFrom(stun1, stunPort+1))
	ask(mainLocal, netip.AddrPortFrom(stun2, stunPort))
	for i := range uint16(6) {
		ask(50001+13*i, server)
	}
	return out
}

// The kinds of router in the tests.
var natKinds = []string{"none", "firewalled", "full cone", "restricted", "easy", "random", "random adm", "sequential", "down by two", "sequential adm", "block 512", "block 1024"}

// natOf makes a router of a kind.
func natOf(kind string, public netip.Addr, rng *rand.Rand) *nat {
	random := func(low, n int) func() uint16 { return func() uint16 { return uint16(low + rng.IntN(n)) } }
	anywhere := random(lowestPort, anyPorts)
	sequential := func(step int) func() uint16 {
		port := int(anywhere())
		return func() uint16 {
			port = lowestPort + (port-lowestPort+step+anyPorts)%anyPorts
			return uint16(port)
		}
	}
	switch kind {
	case "none":
		return newNAT(public, None, None, nil)
	case "firewalled":
		return newNAT(public, None, AddressAndPortDependent, nil)
	case "full cone":
		return newNAT(public, EndpointIndependent, EndpointIndependent, anywhere)
	case "restricted":
		return newNAT(public, EndpointIndependent, AddressDependent, anywhere)
	case "easy":
		return newNAT(public, EndpointIndependent, AddressAndPortDependent, anywhere)
	case "random":
		return newNAT(public, AddressAndPortDependent, AddressAndPortDependent, anywhere)
	case "random adm":
		return newNAT(public, AddressDependent, AddressAndPortDependent, anywhere)
	case "sequential":
		return newNAT(public, AddressAndPortDependent, AddressAndPortDependent, sequential(1))
	case "down by two":
		return newNAT(public, AddressAndPortDependent, AddressAndPortDependent, sequential(-2))
	case "sequential adm":
		return newNAT(public, AddressDependent, AddressAndPortDependent, sequential(1))
	case "block 512":
		return newNAT(public, AddressAndPortDependent, AddressAndPortDependent, random(lowestPort+512*rng.IntN(126), 512))
	case "block 1024":
		return newNAT(public, AddressAndPortDependent, AddressAndPortDependent, random(lowestPort+1024*rng.IntN(63), 1024))
	}
	panic(kind)
}

// A side is one of two in a simulation.
type side struct {
	*nat
	plan    Plan
	attempt *Attempt
	pacer   Pacer
}

// A flight is a packet under way.
type flight struct {
	at       time.Duration
	from, to netip.AddrPort
}

// simulate runs both sides' attempts, the second one late, and returns when the
// first packet got through, one way; false if none did.
func simulate(a, b *side, late, latency time.Duration, lost func() bool) (time.Duration, bool) {
	sides := [2]*side{a, b}
	wake := [2]time.Duration{0, late}
	var queue []flight
	for {
		turn := 0
		if wake[1] < wake[0] {
			turn = 1
		}
		if now := wake[turn]; len(queue) > 0 && queue[0].at <= now || now == never {
			if len(queue) == 0 {
				return 0, false
			}
			f := queue[0]
			queue = queue[1:]
			for _, s := range sides {
				if s.public == f.to.Addr() {
					if s.in(f.to.Port(), f.from) {
						return f.at, true
					}
				}
			}
			continue
		}
		s, now := sides[turn], wake[turn]
		shot, at, ok := s.attempt.Next(epoch.Add(now), &s.pacer)
		if !ok {
			if wake[turn] = at.Sub(epoch); at.IsZero() {
				wake[turn] = never
			}
			continue
		}
		local := uint16(mainLocal)
		if shot.Socket != MainSocket {
			local = uint16(10000 + shot.Socket)
		}
		from := netip.AddrPortFrom(s.public, s.out(local, shot.To))
		if !shot.Opening && !lost() {
			queue = append(queue, flight{at: now + latency, from: from, to: shot.To})
		}
	}
}

const never = time.Duration(1 << 62)

func noLoss() bool { return false }

// meet classifies, decides and simulates for two routers.
func meet(a, b *nat, seed uint64, late, latency time.Duration, lost func() bool) (x, y *side, took time.Duration, ok bool) {
	ba, bb := Classify(a.sample()), Classify(b.sample())
	x, y = &side{nat: a, plan: Decide(ba, bb)}, &side{nat: b, plan: Decide(bb, ba)}
	var err error
	if x.attempt, err = NewAttempt(x.plan, NewPorts(bb, seed), seed, epoch); err != nil {
		return x, y, 0, false
	}
	if y.attempt, err = NewAttempt(y.plan, NewPorts(ba, seed+1), seed+1, epoch.Add(late)); err != nil {
		return x, y, 0, false
	}
	took, ok = simulate(x, y, late, latency, lost)
	return x, y, took, ok
}

// plain simulates plain punching: both send twice to where the other was seen.
func plain(a, b *nat) bool {
	sa, sb := Classify(a.sample()), Classify(b.sample())
	toA, toB := netip.AddrPortFrom(a.public, sa.LastPort), netip.AddrPortFrom(b.public, sb.LastPort)
	if a.mapping >= AddressDependent {
		toA = a.sample()[0].Mapped
	}
	if b.mapping >= AddressDependent {
		toB = b.sample()[0].Mapped
	}
	for range 2 {
		from := netip.AddrPortFrom(a.public, a.out(mainLocal, toB))
		if b.in(toB.Port(), from) {
			return true
		}
		from = netip.AddrPortFrom(b.public, b.out(mainLocal, toA))
		if a.in(toA.Port(), from) {
			return true
		}
	}
	return false
}
