package link

import (
	"net"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// asideSize is the largest packet that a Carrier may bring, in bytes.
	asideSize = 2048
	// asideLength is how many packets wait for WireGuard; more are lost, as in a
	// socket's buffer.
	asideLength = 2048
)

// An aside is the queue of WireGuard packets that came by other ways than the
// shared socket. It is safe for concurrent use, with one reader.
type aside struct {
	pool  sync.Pool
	ready chan struct{} // holds one token while there are packets

	mu      sync.Mutex // guards waiting
	waiting []waitingPacket
}

type waitingPacket struct {
	buf  *[asideSize]byte
	n    int
	link *Link
}

func newAside() *aside {
	return &aside{
		ready: make(chan struct{}, 1),
		pool:  sync.Pool{New: func() any { return new([asideSize]byte) }},
	}
}

// push copies a packet into the queue. It reports false if there is no room.
func (a *aside) push(packet []byte, l *Link) bool {
	if len(packet) > asideSize {
		return false
	}
	buf := a.pool.Get().(*[asideSize]byte)
	w := waitingPacket{buf: buf, n: copy(buf[:], packet), link: l}
	a.mu.Lock()
	if len(a.waiting) >= asideLength {
		a.mu.Unlock()
		a.pool.Put(buf)
		return false
	}
	a.waiting = append(a.waiting, w)
	a.mu.Unlock()
	select {
	case a.ready <- struct{}{}:
	default:
	}
	return true
}

// receive is a conn.ReceiveFunc until over is closed.
func (a *aside) receive(over <-chan struct{}, bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		select {
		case <-over:
			return 0, net.ErrClosed
		case <-a.ready:
		}
		if n := a.take(bufs, sizes, eps); n > 0 {
			return n, nil
		}
	}
}

func (a *aside) take(bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	a.mu.Lock()
	n := min(len(a.waiting), len(bufs))
	for i, w := range a.waiting[:n] {
		sizes[i], eps[i] = copy(bufs[i], w.buf[:w.n]), w.link
		a.pool.Put(w.buf)
	}
	rest := copy(a.waiting, a.waiting[n:])
	clear(a.waiting[rest:])
	a.waiting = a.waiting[:rest]
	a.mu.Unlock()
	if rest > 0 {
		select {
		case a.ready <- struct{}{}:
		default:
		}
	}
	return n
}
