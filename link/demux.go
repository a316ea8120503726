package link

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Stats counts what a Socket refused since it was made, in datagrams.
type Stats struct {
	UnknownSource uint64 // WireGuard packets from an address of no Link
	UnknownProbe  uint64 // probes with a tag of no Link
	ForgedProbe   uint64 // probes with the tag of a Link that do not open
	LostProbe     uint64 // probes that came faster than they could be handled
	Other         uint64 // datagrams that are neither WireGuard nor a probe
}

type counters struct{ unknownSource, unknownProbe, forged, lost, other atomic.Uint64 }

// Stats returns what was refused until now.
func (s *Socket) Stats() Stats {
	return Stats{
		UnknownSource: s.stats.unknownSource.Load(), UnknownProbe: s.stats.unknownProbe.Load(),
		ForgedProbe: s.stats.forged.Load(), LostProbe: s.stats.lost.Load(), Other: s.stats.other.Load(),
	}
}

// A datagram is a received probe on its way to its link.
type datagram struct {
	buf    [MaxDataSize]byte
	n      int
	at     time.Time
	from   place
	ep     conn.Endpoint // how it came in, if by the shared socket
	sealer *sealer
}

func (s *Socket) recycle(d *datagram) {
	d.ep, d.sealer = nil, nil
	s.pool.Put(d)
}

// A receiver is one of the ReceiveFuncs that Open returns. One goroutine calls it.
type receiver struct {
	socket *Socket
	epoch  *epoch
	index  int

	// The last source: nearly all packets of a batch come from one address.
	table *table
	last  conn.Endpoint
	addr  netip.AddrPort
	link  *Link
}

// receive is a conn.ReceiveFunc: WireGuard packets of known sources stay in the
// batch, with their Link as endpoint, all others are taken out of it.
func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		g := r.epoch.now.Load()
		if g == nil {
			return 0, net.ErrClosed
		}
		if r.index >= len(g.fns) {
			<-g.over
			continue
		}
		n, err := g.fns[r.index](bufs, sizes, eps)
		if err != nil {
			if r.epoch.now.Load() != g {
				continue
			}
			return 0, err
		}
		r.sort(bufs[:n], sizes, eps)
		return n, nil
	}
}

// sort goes through a received batch.
func (r *receiver) sort(bufs [][]byte, sizes []int, eps []conn.Endpoint) {
	t := r.socket.table.Load()
	if t != r.table {
		r.table, r.last, r.addr, r.link = t, nil, netip.AddrPort{}, nil
	}
	var heard *Link
	var got tally // of heard
	for i := range bufs {
		b := bufs[i][:sizes[i]]
		if !isWireGuard(b) {
			if len(b) > 0 {
				r.socket.divert(t, b, onSocket(sourceOf(eps[i])), eps[i])
			}
			sizes[i] = 0
			continue
		}
		if eps[i] != r.last {
			r.lookup(eps[i])
		}
		if r.link == nil {
			r.socket.stats.unknownSource.Add(1)
			sizes[i] = 0
			continue
		}
		eps[i] = r.link
		if r.link == heard && got.add(b) {
			continue
		}
		if heard != nil {
			heard.received(&got)
		}
		heard, got = r.link, tally{}
		got.add(b)
	}
	if heard != nil {
		heard.received(&got)
	}
}

func (r *receiver) lookup(ep conn.Endpoint) {
	r.last = ep
	addr := sourceOf(ep)
	if addr == r.addr {
		return
	}
	r.addr = addr
	r.link = r.table.sources[onSocket(addr)].link
}

// divert takes a datagram that is not WireGuard out of the batch.
func (s *Socket) divert(t *table, b []byte, from place, ep conn.Endpoint) {
	if (isSTUN(b) || isKRPC(b)) && from.carrier == 0 {
		if !s.stun.deliver(b, from.addr) {
			s.stats.other.Add(1)
		}
		return
	}
	if !isProbe(b) || len(b) > MaxDataSize {
		s.stats.other.Add(1)
		return
	}
	k, ok := t.tags[probeTag(b[4:4+tagSize])]
	if !ok {
		s.stats.unknownProbe.Add(1)
		return
	}
	d := s.pool.Get().(*datagram)
	d.n = copy(d.buf[:], b)
	d.at, d.from, d.ep, d.sealer = time.Now(), from, ep, k.sealer
	select {
	case k.link.inbox <- d:
	default:
		s.stats.lost.Add(1)
		s.recycle(d)
	}
}

// sourceOf returns the address a packet came from.
func sourceOf(ep conn.Endpoint) netip.AddrPort {
	switch ep := ep.(type) {
	case *udpEndpoint:
		return ep.remote
	case *conn.StdNetEndpoint:
		return ep.AddrPort
	default:
		addr, _ := netip.ParseAddrPort(ep.DstToString())
		return addr
	}
}
