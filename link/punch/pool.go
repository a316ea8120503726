package punch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// MinSockets is the least count of sockets a [Pool] works with.
	MinSockets = 32

	// spareFiles is how many sockets are given back when a limit of the system is
	// reached: the rest of the program needs files too.
	spareFiles = 16
	// maxPacket is the largest datagram taken, in bytes: nobody punches with more.
	maxPacket = 2048
	// receiveBuffer bounds what a flood can make 256 sockets hold.
	receiveBuffer = 16 << 10
	// defaultTTL is that of Linux and macOS, in hops.
	defaultTTL = 64
)

// ErrClosed is returned by the methods of a [Pool] after Close or Keep. It is
// [net.ErrClosed].
var ErrClosed = net.ErrClosed

// A PoolConfig says what a [Pool] is made of.
type PoolConfig struct {
	// Sockets is how many sockets to open; 0 means 256.
	Sockets int
	// Receive is called with each datagram that comes in (up to 2048 bytes), the
	// index of its socket, and its sender; needed. The packet is valid during the
	// call only.
	// Calls may come at once for different sockets, and before OpenPool has
	// returned; each should be short. It may call SendFrom and Keep, not Close.
	Receive func(socket int, from netip.AddrPort, packet []byte)
	// Control is called for each socket before it is bound, as by
	// [net.ListenConfig]: for a mark, an interface, or Android's protect. An
	// error stops Open. nil: nothing.
	Control func(network, address string, c syscall.RawConn) error
	// Logger gets what went wrong; nil discards.
	Logger *slog.Logger
}

// A Pool is many unconnected IPv4 UDP sockets, each on a port of its own, for
// the side that opens. On Linux and Android one goroutine waits for all of them;
// elsewhere each has its own. Safe for concurrent use.
type Pool struct {
	set    sockets
	limit  error
	closed atomic.Bool
}

// sockets is what the systems do in their own way. Indices are valid.
type sockets interface {
	// len returns how many there are.
	len() int
	// local returns the address of one.
	local(i int) netip.AddrPort
	// send sends datagrams to an IPv4 address; ttl 0 leaves it to the system.
	send(i int, packets [][]byte, to netip.AddrPort, ttl int) error
	// drop closes the last n.
	drop(n int)
	// start begins to deliver what comes in.
	start(receive func(int, netip.AddrPort, []byte))
	// keep closes all but one, and hands that one out.
	keep(i int) (*net.UDPConn, error)
	// close closes all, and waits until nothing is delivered any more.
	close()
	// wait waits for that.
	wait()
}

type control func(network, address string, c syscall.RawConn) error

// OpenPool opens the sockets and begins to receive. When the system has no more
// (see ulimit -n), it makes do with what it got, leaves some files to others and
// says so in the log and in [Pool.Limit]. It returns an error if that is less
// than [MinSockets] (or the number asked for, if smaller), or Control failed.
func OpenPool(cfg PoolConfig) (*Pool, error) { return openPool(cfg, openSockets) }

func openPool(cfg PoolConfig, open func(n int, c control) (sockets, error)) (*Pool, error) {
	if cfg.Receive == nil {
		return nil, errors.New("punch: a pool needs a Receive function")
	}
	n := cfg.Sockets
	if n <= 0 {
		n = fullSockets
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	set, err := open(n, cfg.Control)
	p := &Pool{set: set}
	if err != nil && set != nil && scarce(err) {
		if got := set.len(); got > MinSockets {
			set.drop(min(spareFiles, got-MinSockets))
		}
		if set.len() >= min(n, MinSockets) {
			p.limit = fmt.Errorf("punch: only %d of %d sockets, raise the limit of open files: %w", set.len(), n, err)
			log.Warn("fewer sockets than wanted, raise the limit of open files", "wanted", n, "opened", set.len(), "err", err)
			err = nil
		}
	}
	if err != nil {
		got := 0
		if set != nil {
			got = set.len()
			set.close()
		}
		return nil, fmt.Errorf("punch: open socket %d of %d: %w", got+1, n, err)
	}
	set.start(cfg.Receive)
	return p, nil
}

// Len returns how many sockets there are.
func (p *Pool) Len() int { return p.set.len() }

// Limit returns an error that says why there are fewer sockets than asked for,
// or nil.
func (p *Pool) Limit() error { return p.limit }

// LocalAddr returns the address of a socket: the unspecified one, with the
// socket's port. It panics if there is no such socket.
func (p *Pool) LocalAddr(socket int) netip.AddrPort { return p.set.local(socket) }

// SendFrom sends datagrams from one socket. It returns an error if there is no
// such socket, the target is not IPv4, the system refuses one of them, or the
// pool is closed. A full send queue counts as refusal: nothing waits.
func (p *Pool) SendFrom(socket int, packets [][]byte, to netip.AddrPort) error {
	return p.send(socket, packets, to, 0)
}

// SendTTL is SendFrom with a TTL in hops, for the first packet of a socket: 3 to
// 5 get it past our own NAT, not to the peer's. Where the system cannot set it,
// the packet goes with the usual one. It returns the errors of SendFrom.
func (p *Pool) SendTTL(socket int, packets [][]byte, to netip.AddrPort, ttl int) error {
	return p.send(socket, packets, to, ttl)
}

func (p *Pool) send(socket int, packets [][]byte, to netip.AddrPort, ttl int) error {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	switch {
	case socket < 0 || socket >= p.set.len():
		return fmt.Errorf("punch: no socket %d among %d", socket, p.set.len())
	case !to.Addr().Is4():
		return fmt.Errorf("punch: %s is not an IPv4 address", to)
	case p.closed.Load():
		return ErrClosed
	}
	if err := p.set.send(socket, packets, to, ttl); err != nil {
		if errors.Is(err, net.ErrClosed) {
			return ErrClosed
		}
		return fmt.Errorf("punch: send from socket %d to %s: %w", socket, to, err)
	}
	return nil
}

// Run carries out an attempt of an Opener or of RoleBoth with one payload: see
// [Run], whose errors it returns. An opener's first packet from each socket goes
// out with a TTL of so many hops; 0 leaves it to the system. If the pool has
// fewer sockets than planned, set [Plan.Sockets] to [Pool.Len] first.
func (p *Pool) Run(ctx context.Context, a *Attempt, pacer *Pacer, payload []byte, ttl int) error {
	packets := [][]byte{payload}
	return Run(ctx, a, pacer, func(s Shot) error {
		if s.Opening {
			return p.send(s.Socket, packets, s.To, ttl)
		}
		return p.send(s.Socket, packets, s.To, 0)
	})
}

// Keep hands out one socket, the one that the peer has hit, and closes all
// others, and with them the pool. Packets that came in before may still be in
// it; a packet is never lost in between. Its receive buffer is small: set one
// fit for data. It returns an error if there is no such socket, the pool is
// closed, or the system refuses; then all are closed. It does not wait for a
// Receive under way, so Receive may call it.
func (p *Pool) Keep(socket int) (*net.UDPConn, error) {
	if socket < 0 || socket >= p.set.len() {
		return nil, fmt.Errorf("punch: no socket %d among %d", socket, p.set.len())
	}
	if p.closed.Swap(true) {
		return nil, ErrClosed
	}
	c, err := p.set.keep(socket)
	if err != nil {
		return nil, fmt.Errorf("punch: keep socket %d: %w", socket, err)
	}
	return c, nil
}

// Close closes all sockets, but for one that Keep has handed out, and waits until
// Receive is not called any more. It always returns nil.
func (p *Pool) Close() error {
	if p.closed.Swap(true) {
		p.set.wait()
		return nil
	}
	p.set.close()
	return nil
}

// past makes a blocked read return.
var past = time.Unix(1, 0) //nolint:gochecknoglobals // never changed
