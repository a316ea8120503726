package link

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/link/punch"
)

// A hole is one socket of an attempt that the peer has reached: a Carrier of its
// link. It sends through the attempt's pool, and when it was proven through a
// socket of its own.
type hole struct {
	index int
	pool  *punch.Pool
	port  *Port
	by    txid // the ping that made it
	own   atomic.Pointer[udpConn]
	keeps sync.RWMutex  // held for writing while own takes over from the pool
	done  chan struct{} // closed when own is read no more
}

// Send sends datagrams to an address. It errs if the system refuses them.
func (h *hole) Send(bufs [][]byte, to netip.AddrPort) error {
	if u := h.own.Load(); u != nil {
		return u.send(bufs, newEndpoint(to, netip.Addr{}))
	}
	h.keeps.RLock()
	defer h.keeps.RUnlock()
	if u := h.own.Load(); u != nil {
		return u.send(bufs, newEndpoint(to, netip.Addr{}))
	}
	return h.pool.SendFrom(h.index, bufs, to)
}

// read hands up what comes to a hole's own socket, until it is closed.
func (h *hole) read(u *udpConn) {
	defer close(h.done)
	bufs, sizes, eps := make([][]byte, udpBatch), make([]int, udpBatch), make([]conn.Endpoint, udpBatch)
	for i := range bufs {
		bufs[i] = make([]byte, asideSize)
	}
	for {
		n, err := u.receive(bufs, sizes, eps)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		for i := range n { // after another error, such as a refused packet's, n is 0
			h.port.Deliver(sourceOf(eps[i]), bufs[i][:sizes[i]])
		}
	}
}

func (h *hole) close() {
	h.port.Detach()
	if u := h.own.Load(); u != nil {
		_ = u.conn.Close() // nothing was to be written
		<-h.done
	}
}

var _ Carrier = (*hole)(nil)
