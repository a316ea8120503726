package hub

import (
	"net/netip"
	"runtime"
	"sync"

	"github.com/kithproject/kith/internal/train"
)

// A relay's cost is its system calls and what each packet passes through on the
// way. So packets are read many at a time (recvmmsg, and trains that the kernel
// has joined, UDP_GRO), and those that go on to one address leave together
// (sendmmsg, UDP_SEGMENT), where the system can do that: batch_linux.go. Nothing
// waits for more packets to come.

const (
	maxDatagram = 1600             // bytes; longer ones are not for a hub
	maxPackets  = train.MaxPackets // in one send
)

// message is a packet, or a train of packets of one size of which only the last
// may be shorter.
type message struct {
	data []byte
	size int // bytes of a packet
	src  netip.AddrPort
	to   netip.Addr // the address of ours that it came to
}

// next takes a packet off.
func (m *message) next() []byte {
	n := min(len(m.data), m.size)
	p := m.data[:n:n]
	m.data = m.data[n:]
	return p
}

// buffers are what reading and writing needs, only while there is something. A
// batch is large, so that there are not many: who finds none waits for one, which
// is not for long, as all that is done with one is to send its packets.
type buffers struct {
	in  chan *batch
	out sync.Pool
}

func newBuffers() *buffers {
	b := &buffers{in: make(chan *batch, 4*runtime.GOMAXPROCS(0))}
	for range cap(b.in) {
		b.in <- nil // made when it is needed
	}
	b.out.New = func() any { return newOutgoing() }
	return b
}

func (b *buffers) take() *batch {
	got := <-b.in
	if got == nil {
		got = newBatch()
	}
	return got
}
