package tunnel

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Offsets in an IPv6 packet without extension headers that carries TCP (RFC 8200
// section 3, RFC 9293 section 3.1), in bytes.
const (
	ipLength  = 4 // payload length
	ipNext    = 6 // next header; hop limit follows
	ipSource  = 8
	ipTarget  = 24
	ipHeader  = header.IPv6MinimumSize
	tcpPorts  = ipHeader
	tcpSeq    = ipHeader + 4
	tcpAck    = ipHeader + 8
	tcpOffset = ipHeader + 12
	tcpFlags  = ipHeader + 13
	tcpWindow = ipHeader + 14
	tcpUrgent = ipHeader + 18
	tcpRest   = ipHeader + header.TCPMinimumSize // options
)

// maxMerged is the largest packet that merging makes, in bytes with its headers:
// the size of the stack's largest pooled buffer. Its payload length, 40 less, fits
// the 16 bits that IPv6 has for it.
const maxMerged = 1 << 16

// A run is packets of one flow that continue each other: they become one packet.
// A packet that cannot be merged is a run of its own.
type run struct {
	first, last int    // packets, as indexes into the batch
	size        int    // of all together: one header and the payloads, in bytes
	headers     int    // length of IPv6 and TCP header, in bytes; 0: not TCP
	ports       uint32 // both ports of the flow
	seq         uint32 // that continues the run
	open        bool   // may be continued
}

// A merger finds the runs in a batch of received packets. It does what generic
// receive offload does in a kernel. It is not safe for concurrent use.
type merger struct {
	runs []run
	next []int // for a packet the one after it in its run
}

// plan finds the runs of a batch, in the order of their first packets. Packets of
// a flow stay in order: only the last run of a flow is continued. What is no
// IPv6 packet is left out. The runs are valid until the next call.
func (m *merger) plan(packets [][]byte) []run {
	m.runs = m.runs[:0]
	if cap(m.next) < len(packets) {
		m.next = make([]int, len(packets))
	}
	m.next = m.next[:len(packets)]
	for i, p := range packets {
		if len(p) < ipHeader || p[0]>>4 != header.IPv6Version {
			continue // only IPv6 lives here
		}
		r := newRun(p, i)
		if r.headers != 0 {
			if before := m.flow(packets, r.ports, p); before != nil && before.take(packets[before.first], p, r) {
				m.next[before.last], before.last = i, i
				continue
			}
		}
		m.runs = append(m.runs, r)
	}
	return m.runs
}

// newRun returns the run of packet p alone.
func newRun(p []byte, index int) run {
	r := run{first: index, last: index, size: len(p)}
	if len(p) < tcpRest || p[ipNext] != byte(header.TCPProtocolNumber) ||
		int(binary.BigEndian.Uint16(p[ipLength:])) != len(p)-ipHeader {
		return r
	}
	headers := ipHeader + int(p[tcpOffset]>>4)*4
	if headers < tcpRest || headers > len(p) {
		return r
	}
	r.headers = headers
	r.ports = binary.BigEndian.Uint32(p[tcpPorts:])
	r.seq = binary.BigEndian.Uint32(p[tcpSeq:]) + uint32(len(p)-headers)
	// Only data that nothing else hangs on: an empty packet may be one of several
	// equal acknowledgements, which count, and other flags change the state.
	flags := header.TCPFlags(p[tcpFlags])
	r.open = flags&^header.TCPFlagPsh == header.TCPFlagAck && len(p) > headers
	return r
}

// flow returns the last run of the flow of p.
func (m *merger) flow(packets [][]byte, ports uint32, p []byte) *run {
	for i := len(m.runs) - 1; i >= 0; i-- {
		r := &m.runs[i]
		if r.ports == ports && r.headers != 0 && bytes.Equal(packets[r.first][ipNext+2:ipHeader], p[ipNext+2:ipHeader]) {
			return r
		}
	}
	return nil
}

// take continues r, whose first packet is head, by packet p, which alone would be
// the run of. It reports false, and ends r, if they do not fit together.
func (r *run) take(head, p []byte, of run) bool {
	r.open = r.open && of.open && of.headers == r.headers &&
		binary.BigEndian.Uint32(p[tcpSeq:]) == r.seq &&
		r.size+len(p)-r.headers <= maxMerged &&
		bytes.Equal(head[:ipLength], p[:ipLength]) && head[ipNext+1] == p[ipNext+1] && // class, flow label, hop limit
		bytes.Equal(head[tcpAck:tcpFlags], p[tcpAck:tcpFlags]) &&
		bytes.Equal(head[tcpUrgent:r.headers], p[tcpUrgent:r.headers]) // options, above all timestamps
	if r.open {
		r.size += len(p) - r.headers
		r.seq = of.seq
	}
	return r.open
}

// join appends the packet that a run makes to dst, which must have room for
// run.size bytes: the first header with the length of all, the flags of all and
// the newest window.
func (m *merger) join(dst []byte, packets [][]byte, r run) []byte {
	start := len(dst)
	dst = append(dst, packets[r.first]...)
	if r.first == r.last {
		return dst
	}
	out := dst[start:]
	binary.BigEndian.PutUint16(out[ipLength:], uint16(r.size-ipHeader))
	copy(out[tcpWindow:], packets[r.last][tcpWindow:tcpWindow+2])
	for i := r.first; i != r.last; {
		i = m.next[i]
		out[tcpFlags] |= packets[i][tcpFlags]
		dst = append(dst, packets[i][r.headers:]...)
	}
	return dst
}
