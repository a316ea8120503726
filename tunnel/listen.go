package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/kithproject/kith/identity"
)

const (
	// backlog is how many connections wait for Accept.
	backlog = 1024
	// maxInFlight is how many connections to unclaimed ports are decided on at once.
	maxInFlight = 256
	// maxPerPeer is how many of them may be of one peer.
	maxPerPeer = 64
	// fallbackPatience is how long a Fallback may take from its yes to accept; the
	// caller is refused then.
	fallbackPatience = 30 * time.Second
)

// A Fallback decides on a TCP connection to a port that nobody listens on. It
// returns false to refuse it (the caller gets a reset at once), or true to take it
// by calling accept, then or within 30 seconds. Only the first call of accept
// counts; it errs if the caller has gone, was refused or the Tunnel is closed. A
// Fallback runs on a goroutine of its own, for which Close waits.
type Fallback func(from identity.DeviceID, port uint16, accept func() (net.Conn, error)) bool

// SetFallback sets what decides on connections to ports that nobody listens on.
// Without one they are refused.
func (t *Tunnel) SetFallback(f Fallback) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fallback = f
}

// A request is a connection to an unclaimed port. The stack's request must be
// completed exactly once, whatever a Fallback does.
type request struct {
	*tcp.ForwarderRequest
	t      *Tunnel
	from   identity.DeviceID
	queue  waiter.Queue  // of the connection that it becomes
	shaken chan struct{} // closed when its handshake is over

	mu    sync.Mutex
	done  bool
	timer *time.Timer
}

// claim reports whether the caller is the one to complete the request.
func (r *request) claim() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := !r.done
	r.done = true
	if r.timer != nil {
		r.timer.Stop()
	}
	return first
}

// refuse resets the connection, unless it was taken.
func (r *request) refuse() {
	if r.claim() {
		r.Complete(true)
		r.forget()
	}
}

// end refuses the connection, or ends its handshake if it was taken: without that, the
// handshake with a peer that has gone would go on for a minute.
func (r *request) end() {
	r.refuse()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		// What waits for the handshake looks how it stands, and gives up one that is not
		// complete; unless it does not wait yet.
		r.queue.Notify(waiter.WritableEvents)
		select {
		case <-r.shaken:
			return
		case <-ticker.C:
		}
	}
}

func (r *request) forget() {
	close(r.shaken)
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	delete(r.t.requests, r)
}

// expire refuses the request unless it is taken in time.
func (r *request) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.done {
		r.timer = time.AfterFunc(fallbackPatience, r.refuse)
	}
}

func (r *request) accept() (net.Conn, error) {
	if !r.claim() {
		return nil, fmt.Errorf("tunnel: accept: %w", net.ErrClosed)
	}
	id := r.ID() // Complete forgets it
	ep, terr := r.CreateEndpoint(&r.queue)
	r.Complete(terr != nil)
	r.forget()
	if terr != nil {
		return nil, fmt.Errorf("tunnel: accept: %w", plain(errors.New(terr.String())))
	}
	c, err := r.t.track(&r.queue, ep, r.from, addrPort(id.LocalAddress, id.LocalPort), addrPort(id.RemoteAddress, id.RemotePort))
	if err != nil {
		return nil, fmt.Errorf("tunnel: accept: %w", err)
	}
	return c, nil
}

// incoming is called by the stack, on a goroutine, for a connection to an
// unclaimed port.
func (t *Tunnel) incoming(fr *tcp.ForwarderRequest) {
	id := fr.ID()
	from, known := t.Peer(netip.AddrFrom16(id.RemoteAddress.As16()))
	r := &request{ForwarderRequest: fr, t: t, from: from, shaken: make(chan struct{})}
	fallback := t.admit(r, known)
	if fallback == nil {
		r.refuse()
		return
	}
	defer t.asked.Done()
	if !fallback(from, id.LocalPort, r.accept) {
		r.refuse()
		return
	}
	r.expire()
}

// admit returns what decides on a request, or nil to refuse it. One peer alone
// cannot take all the places for requests.
func (t *Tunnel) admit(r *request, known bool) Fallback {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, stays := t.peers[r.from]; t.closed || !known || !stays || t.fallback == nil {
		return nil
	}
	same := 0
	for other := range t.requests {
		if other.from == r.from {
			same++
		}
	}
	if same >= maxPerPeer {
		return nil
	}
	t.requests[r] = struct{}{}
	t.asked.Add(1)
	return t.fallback
}

// Listen accepts TCP connections on a port of this device's address; port 0 is any
// that is free. It errs if the port is taken, and with net.ErrClosed.
func (t *Tunnel) Listen(network string, port uint16) (net.Listener, error) {
	if network != "tcp" && network != "tcp6" {
		return nil, fmt.Errorf("tunnel: listen: %w", net.UnknownNetworkError(network))
	}
	l := &listener{t: t, done: make(chan struct{}), given: make(chan net.Conn, backlog)}
	var terr tcpip.Error
	if l.ep, terr = t.nic.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, &l.queue); terr != nil {
		return nil, fmt.Errorf("tunnel: listen: %w", errors.New(terr.String()))
	}
	if terr = l.ep.Bind(fullAddress(netip.AddrPortFrom(t.id.ID().Addr(), port))); terr == nil {
		terr = l.ep.Listen(backlog)
	}
	if terr != nil {
		l.ep.Close()
		return nil, fmt.Errorf("tunnel: listen on port %d: %w", port, plain(errors.New(terr.String())))
	}
	local, terr := l.ep.GetLocalAddress()
	if terr != nil {
		l.ep.Close()
		return nil, fmt.Errorf("tunnel: listen on port %d: %w", port, errors.New(terr.String()))
	}
	l.addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.id.ID().Addr(), local.Port))
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.listeners[l] = struct{}{}
	}
	t.mu.Unlock()
	if closed {
		l.ep.Close()
		return nil, fmt.Errorf("tunnel: listen: %w", net.ErrClosed)
	}
	return l, nil
}

// Ports returns the TCP ports that Listen holds, sorted.
func (t *Tunnel) Ports() []uint16 {
	t.mu.Lock()
	all := keys(t.listeners)
	t.mu.Unlock()
	ports := make([]uint16, 0, len(all))
	for _, l := range all {
		ports = append(ports, uint16(l.addr.(*net.TCPAddr).Port))
	}
	slices.Sort(ports)
	return ports
}

// Give has the listener of a port accept a connection that came another way. It reports
// false, and leaves the connection alone, if nobody listens there or too many wait.
func (t *Tunnel) Give(port uint16, conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.listeners {
		if l.addr.(*net.TCPAddr).Port != int(port) {
			continue
		}
		select {
		case l.given <- conn:
			return true
		default:
			return false
		}
	}
	return false
}

type listener struct {
	t     *Tunnel
	ep    tcpip.Endpoint
	queue waiter.Queue
	addr  net.Addr
	once  sync.Once
	done  chan struct{}
	given chan net.Conn // by Give
}

// Accept returns the next connection of a peer.
func (l *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.queue.EventRegister(&entry)
	defer l.queue.EventUnregister(&entry)
	for {
		select {
		case <-l.done:
			return nil, l.closed()
		default:
		}
		var remote tcpip.FullAddress
		ep, q, terr := l.ep.Accept(&remote)
		if _, wait := terr.(*tcpip.ErrWouldBlock); wait {
			select {
			case <-ready:
			case c := <-l.given:
				return c, nil
			case <-l.done:
			}
			continue
		}
		if terr != nil {
			return nil, l.closed()
		}
		peer, ok := l.t.Peer(netip.AddrFrom16(remote.Addr.As16()))
		if !ok { // removed in the meantime
			ep.Abort()
			continue
		}
		c, err := l.t.track(q, ep, peer, l.addr.(*net.TCPAddr).AddrPort(), addrPort(remote.Addr, remote.Port))
		if err != nil {
			continue
		}
		return c, nil
	}
}

func (l *listener) closed() error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
}

// Close stops listening; connections that nobody has accepted are reset.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.t.mu.Lock()
		delete(l.t.listeners, l)
		l.t.mu.Unlock()
		l.ep.Close()
		for {
			select {
			case c := <-l.given:
				c.Close()
				continue
			default:
			}
			break
		}
	})
	return nil
}

// Addr returns this device's address in the tunnel and the port.
func (l *listener) Addr() net.Addr { return l.addr }
