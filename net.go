package kith

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/registry"
)

// A NotConnectedError says that a device could not be reached in time, and what
// was being waited for.
type NotConnectedError struct {
	Device Device
	Err    error // the context's error
	// Cause is what the doctor found meanwhile that is most likely in the way, with its
	// Cause and its Fix; the zero Result if it knows of nothing.
	Cause doctor.Result
}

func (e *NotConnectedError) Error() string {
	what := e.Device.Looking
	if e.Device.State == NotFinished {
		what = "pairing is not finished"
	}
	return because(fmt.Sprintf("kith: %s is not connected: %s", e.Device.Name, what), e.Cause)
}

// Unwrap returns the context's error.
func (e *NotConnectedError) Unwrap() error { return e.Err }

// ErrNetwork reports a network other than tcp, and udp where one dials.
var ErrNetwork = errors.New("kith: only tcp and udp exist inside the tunnel")

// Dial connects to a port of a paired device, for example
// Dial(ctx, "tcp", "laptop:22"); the host is a device's name (with or without
// ".kith"), the start of its ID or its address. It waits for the device until
// ctx ends and then errs with a *NotConnectedError. A port that the device does
// not offer errs as refused, as TCP does everywhere. Of a "udp" connection each Read and
// Write is one datagram.
//
// A TCP connection that has carried some MiB goes on over a direct TLS connection, where
// that is possible, and back inside the tunnel when that ends or the network changes: it
// is as fast as the wire, and loses nothing. Config.NoLanes keeps it inside the tunnel.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !slices.Contains([]string{"tcp", "tcp6", "udp", "udp6"}, network) {
		return nil, fmt.Errorf("%w: %q", ErrNetwork, network)
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("kith: dial: %w", err)
	}
	port, err := parsePort(portText)
	if err != nil {
		return nil, err
	}
	rec, err := n.find(strings.TrimSuffix(host, ".kith"))
	if err != nil {
		return nil, err
	}
	if rec.Member() && !strings.HasPrefix(network, "udp") {
		if conn, err := n.dialByWay(ctx, rec, port); conn != nil || err != nil {
			return conn, err
		}
	}
	if _, err := n.await(ctx, rec); err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(rec.ID.Addr(), port)
	var conn net.Conn
	if strings.HasPrefix(network, "udp") {
		conn, err = n.tunnel.DialUDP(ctx, to)
	} else {
		conn, err = n.tunnel.DialContext(ctx, network, to)
	}
	if err != nil {
		return nil, fmt.Errorf("kith: dial %s: %w", address, err)
	}
	if !strings.HasPrefix(network, "udp") && n.mayCarry(port) {
		conn = n.carried(conn, rec.ID, true)
	}
	return conn, nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("kith: %q is not a port: a number from 1 to 65535 is", text)
	}
	return uint16(port), nil
}

// await waits until a device is connected, and returns a channel that is closed
// when it no longer is.
func (n *Node) await(ctx context.Context, rec registry.Device) (over <-chan struct{}, err error) {
	defer n.suspect()()
	for {
		p := n.startPeer(rec)
		if p == nil {
			return nil, n.noPeer(rec)
		}
		over, err = p.await(ctx)
		switch {
		case err == nil:
			return over, nil
		case errors.Is(err, net.ErrClosed) && rec.Member() && n.ctx.Err() == nil:
			continue // it was just let go of, as nothing needed it
		}
		return nil, n.notConnected(n.device(rec), err)
	}
}

// noPeer says why a pair is not at work.
func (n *Node) noPeer(rec registry.Device) error {
	now, ok := n.store.Get(rec.PairID)
	switch {
	case ok && now.Rights.Blocked:
		return &BlockedError{Device: n.device(now)}
	case !ok:
		return fmt.Errorf("kith: %w: %q", registry.ErrNotFound, rec.Name)
	}
	return fmt.Errorf("kith: %w", net.ErrClosed)
}

// Listen accepts connections from every paired device on a port of this
// device's tunnel address, for example Listen("tcp", ":80"). Use WhoIs on the
// remote address to know who called. It errs for another network than tcp, and
// if the port is taken.
func (n *Node) Listen(network, address string) (net.Listener, error) {
	if network != "tcp" && network != "tcp6" {
		return nil, fmt.Errorf("%w: %q", ErrNetwork, network)
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("kith: listen: %w", err)
	}
	if host != "" && host != n.Addr().String() {
		return nil, fmt.Errorf("kith: listen: %s is not this device's tunnel address: leave the host out", host)
	}
	port, err := parsePort(portText)
	if err != nil {
		return nil, err
	}
	ln, err := n.tunnel.Listen(network, port)
	if err != nil {
		return nil, err
	}
	if n.mayCarry(port) {
		ln = carriedListener{ln, n}
	}
	return ln, nil
}

// Ports returns the TCP ports of this device's tunnel address at which this program
// itself listens, sorted: its services. Ports of localhost that were allowed are not
// among them.
func (n *Node) Ports() []uint16 { return n.tunnel.Ports() }

// WhoIs returns the device behind a remote address of a connection that came
// through the tunnel. It errs with registry.ErrNotFound if there is none.
func (n *Node) WhoIs(addr net.Addr) (Device, error) {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return Device{}, fmt.Errorf("kith: %w: %s", registry.ErrNotFound, addr)
	}
	return n.Device(ap.Addr().String())
}

// caller returns the device behind a remote address of a connection that came through the
// tunnel.
func (n *Node) caller(addr net.Addr) (identity.DeviceID, bool) {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return identity.DeviceID{}, false
	}
	return n.tunnel.Peer(ap.Addr())
}

// A PingResult is one round trip through the tunnel.
type PingResult struct {
	Device string        `json:"device"`
	RTT    time.Duration `json:"rtt_ns"` // nanoseconds in JSON
	Path   *link.Path    `json:"path"`   // the one selected at the time
}

// Ping measures one round trip through the tunnel, over WireGuard. It waits for
// the device to be connected, and sends another echo request when one may be lost:
// after a tenth of a second or two round trips, then ever later, and when the device
// went and came back. It errs as Dial does, or with the context's error if no answer came.
func (n *Node) Ping(ctx context.Context, ref string) (PingResult, error) {
	rec, err := n.find(ref)
	if err != nil {
		return PingResult{}, err
	}
	for try := 0; ; try++ {
		over, err := n.await(ctx, rec)
		if err != nil {
			return PingResult{}, err
		}
		wait := firstPing
		if path := n.device(rec).Path; path != nil {
			wait = max(wait, min(2*path.RTT, time.Second))
		}
		wait <<= min(try/2, 6) // two of each length
		rtt, err := n.pingOnce(ctx, over, rec.ID.Addr(), wait)
		if err == nil {
			return PingResult{Device: rec.Name, RTT: rtt, Path: n.device(rec).Path}, nil
		}
		if ctx.Err() != nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			return PingResult{}, fmt.Errorf("kith: no answer from %s through the tunnel: %w", rec.Name, err)
		}
	}
}

// firstPing is how long the first echo request of a Ping waits for its reply.
const firstPing = 100 * time.Millisecond

// pingOnce sends one echo request and waits for the reply, no longer than the
// connection lasts.
func (n *Node) pingOnce(ctx context.Context, over <-chan struct{}, to netip.Addr, wait time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-over:
			cancel()
		case <-ctx.Done():
		}
	})
	return n.tunnel.Ping(ctx, to)
}

// maxReached is how many connections and UDP flows to ports of this machine's localhost
// one device may have at once.
const maxReached = 4096

// acceptForward decides on a connection to a port that no listener of this
// program holds: a port of localhost that was allowed is reached, any other is
// refused.
func (n *Node) acceptForward(from identity.DeviceID, port uint16, accept func() (net.Conn, error)) bool {
	if !n.allowed(from, forward.TCP, port) {
		if !ownPort(port) { // there a device looks what this one offers: it keeps no mail
			n.refused(from, forward.TCP, port)
		}
		return false
	}
	local, err := forward.DialLocal(n.ctx, port)
	if err != nil {
		n.cfg.Logger.Info("allowed port has no listener", "peer", from.Short(), "port", port, "err", err)
		return false
	}
	err = n.start(func() {
		defer local.Close()
		conn, err := accept()
		if err != nil {
			return
		}
		if n.mayCarry(port) {
			conn = n.carried(conn, from, false)
		}
		n.carry(from, forward.TCP, port, conn, func() { forward.Splice(n.ctx, conn, local) })
	})
	if err != nil {
		local.Close()
		return false
	}
	return true
}

// mayReachUDP decides on the first datagram of a flow to a UDP port.
func (n *Node) mayReachUDP(from identity.DeviceID, port uint16) bool {
	if _, ok := n.handled(port); ok {
		_, ok := n.mayUse(from)
		return ok
	}
	return n.allowed(from, forward.UDP, port)
}

// serveUDP carries a flow of datagrams to what handles the port, or a port of localhost.
func (n *Node) serveUDP(from identity.DeviceID, port uint16, conn net.Conn) {
	if serve, ok := n.handled(port); ok {
		if rec, ok := n.mayUse(from); ok {
			serve(n.device(rec), conn)
		}
		return
	}
	local, err := forward.DialLocalUDP(n.ctx, port)
	if err != nil {
		n.cfg.Logger.Info("allowed port not reached", "peer", from.Short(), "port", port, "err", err)
		return
	}
	defer local.Close()
	n.carry(from, forward.UDP, port, conn, func() { forward.SpliceUDP(n.ctx, conn, local, 0) })
}

// carry carries a connection for as long as the device may.
func (n *Node) carry(from identity.DeviceID, protocol forward.Protocol, port uint16, conn net.Conn, run func()) {
	key := forward.Key[identity.DeviceID]{Device: from, Protocol: protocol, Port: port}
	done, err := n.live.Add(key, conn, func() bool { return n.allowed(from, protocol, port) })
	if err != nil {
		n.cfg.Logger.Info("connection refused", "peer", from.Short(), "port", port, "err", err)
		conn.Close()
		return
	}
	defer done()
	run()
}

func (n *Node) allowed(id identity.DeviceID, protocol forward.Protocol, port uint16) bool {
	rec, ok := n.known(id)
	return ok && rec.State == registry.Active && !rec.Rights.Blocked &&
		(rec.Rights.Allows(string(protocol), port) || n.rooms.allows(id, protocol, port))
}

func (n *Node) refused(id identity.DeviceID, protocol forward.Protocol, port uint16) {
	if rec, ok := n.known(id); ok {
		what := strconv.Itoa(int(port))
		if protocol == forward.UDP {
			what += "/udp"
		}
		n.tell(EventRefused, n.device(rec), fmt.Sprintf("port %s is not allowed; to allow it: kith allow %s %s", what, rec.Name, what))
	}
}

// serveRights answers a connected device that asks whether it may reach a port,
// so that it can tell its user more than "refused".
func (n *Node) serveRights() error {
	ln, err := n.tunnel.Listen("tcp", forward.RightsPort)
	if err != nil {
		return err
	}
	n.wg.Go(func() {
		<-n.ctx.Done()
		ln.Close()
	})
	n.wg.Go(func() {
		forward.ServeRightsFor(n.ctx, ln, func(remote netip.Addr, protocol forward.Protocol, port uint16) bool {
			id, ok := n.tunnel.Peer(remote)
			return ok && n.allowed(id, protocol, port)
		})
	})
	return nil
}
