package punch

import (
	"math/bits"
	"slices"
)

const (
	lowestPort = 1024
	// anyPorts is how many ports a NAT that chooses at random chooses from.
	anyPorts = 65536 - lowestPort
	// predictions is how many steps a prediction goes in each direction.
	predictions = 128
	// blockQuota is how many ports of a block come before the ports outside it:
	// the estimate of the block may be wrong.
	blockQuota = 1024
)

const (
	stagePredicted = iota
	stageBlock
	stageRest
	stageBlockRest
	stages
)

// Ports gives out the port numbers at which to look for a peer behind a hard
// NAT, each once, the likely ones first: those that follow the last one seen,
// alternating outwards; the port block; everything from 1024 to 65535 in random
// order. It takes a few hundred bytes, however many ports there are.
//
// Keep it between attempts and call [Ports.Resume]: likely ports come again, the
// random ones go on where they stopped. Not safe for concurrent use.
type Ports struct {
	predicted []uint16 // in the order of their likelihood
	sorted    []uint16 // the same, to look one up
	low, high int      // the block; high 0: none
	block     ring
	rest      ring
	stage     int
	given     int // of the predicted
}

// NewPorts returns the ports of a peer. Two with the same seed give the same
// order; the seed is best random, so that two attempts differ.
func NewPorts(peer Behaviour, seed uint64) *Ports {
	p := &Ports{rest: newRing(anyPorts, seed)}
	p.setBlock(peer, seed+1)
	p.Resume(peer)
	return p
}

// setBlock starts with a new block.
func (p *Ports) setBlock(peer Behaviour, seed uint64) {
	p.low, p.high = int(peer.BlockLow), int(peer.BlockHigh)
	p.block = newRing(uint32(peer.block()), seed)
}

// Resume begins the next attempt, with what is known of the peer by now. No port
// comes twice between two calls.
func (p *Ports) Resume(peer Behaviour) {
	if p.low != int(peer.BlockLow) || p.high != int(peer.BlockHigh) {
		p.setBlock(peer, uint64(p.rest.keys[0])<<32|uint64(p.rest.at))
	}
	p.block.left, p.rest.left = p.block.n, p.rest.n
	p.stage, p.given = 0, 0
	p.predicted = p.predicted[:0]
	if peer.predictable() {
		for k := 1; k <= predictions; k++ {
			p.predict(peer.step(k))
			p.predict(peer.step(-k))
		}
	}
	p.sorted = slices.Sorted(slices.Values(p.predicted))
}

func (p *Ports) predict(port uint16) {
	if !slices.Contains(p.predicted, port) {
		p.predicted = append(p.predicted, port)
	}
}

// step returns the port of the k-th mapping after the last one seen. Past the
// end of the block, or of all ports, a NAT goes on at the other end.
func (b Behaviour) step(k int) uint16 {
	low, size := lowestPort, anyPorts
	if n := b.block(); n != 0 {
		low, size = int(b.BlockLow), n
	}
	i := (int(b.LastPort) - low + k*b.Delta) % size
	if i < 0 {
		i += size
	}
	return uint16(low + i)
}

// Next returns the next port, and false when every one has been given out.
func (p *Ports) Next() (port uint16, ok bool) {
	for ; p.stage < stages; p.stage++ {
		switch p.stage {
		case stagePredicted:
			if p.given < len(p.predicted) {
				p.given++
				return p.predicted[p.given-1], true
			}
		case stageBlock:
			for p.block.n-p.block.left < blockQuota {
				i, ok := p.block.next()
				if !ok {
					break
				}
				if port = uint16(p.low + int(i)); !p.isPredicted(port) {
					return port, true
				}
			}
		case stageRest:
			for i, ok := p.rest.next(); ok; i, ok = p.rest.next() {
				port = uint16(lowestPort + i)
				inBlock := int(port) >= p.low && int(port) <= p.high
				if !inBlock && !p.isPredicted(port) {
					return port, true
				}
			}
		case stageBlockRest:
			for i, ok := p.block.next(); ok; i, ok = p.block.next() {
				if port = uint16(p.low + int(i)); !p.isPredicted(port) {
					return port, true
				}
			}
		}
	}
	return 0, false
}

func (p *Ports) isPredicted(port uint16) bool {
	_, found := slices.BinarySearch(p.sorted, port)
	return found
}

// A ring is a random permutation of the numbers below n that can be entered
// anywhere: a Feistel network of four rounds over the next even number of bits,
// walked until it gives a number below n.
type ring struct {
	n, at, left uint32
	half        uint
	keys        [4]uint32
}

func newRing(n uint32, seed uint64) ring {
	r := ring{n: n, left: n, half: max(1, uint(bits.Len32(max(n, 1)-1)+1)/2)}
	for i := range r.keys {
		seed += 0x9e3779b97f4a7c15 // splitmix64
		z := (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		r.keys[i] = uint32(z >> 32)
	}
	return r
}

// next returns the number at the ring's place and moves on; false after a whole
// turn.
func (r *ring) next() (uint32, bool) {
	if r.left == 0 {
		return 0, false
	}
	v := r.value(r.at)
	r.left--
	if r.at++; r.at == r.n {
		r.at = 0
	}
	return v, true
}

// value returns the i-th number.
func (r *ring) value(i uint32) uint32 {
	mask := uint32(1)<<r.half - 1
	for {
		left, right := i>>r.half, i&mask
		for _, k := range r.keys {
			h := (right ^ k) * 0x9e3779b1
			h ^= h >> 15
			h *= 0x85ebca77
			left, right = right, left^(h>>13)&mask
		}
		if i = left<<r.half | right; i < r.n {
			return i
		}
	}
}
