package kith

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/lane"
	"github.com/kithproject/kith/lane/carry"
)

// CarryPort is the tunnel port, as a TCP port number, on which the two ends of a
// connection agree to carry it over a lane.
const CarryPort = 27496

// kindPort is the kind of lanes that carry a connection to a port.
const kindPort = "port"

// The ports of kith's own services, whose connections stay in the tunnel: files has lanes
// of its own, and the others carry little.
const (
	firstOwnPort = 27489
	lastOwnPort  = 27499
)

const (
	// maxCarried is how many connections of one device are on lanes at once, those that
	// it opened and those that were opened to it counted apart. Each may hold 4 MiB.
	maxCarried = 32
	// maxControls is how many connections that one device dialed may have been on lanes.
	maxControls = 256
	// carryTime bounds each step of opening a lane for a connection.
	carryTime = 15 * time.Second
	helloTime = 5 * time.Second
	// carryAgain and carryNever are after how many times 4 MiB a lane is tried again that
	// was not to be had: perhaps later, and perhaps with another version of kith there.
	carryAgain = 16
	carryNever = 256
)

// carries are the connections to ports of other devices, and of theirs to ports of this
// one, which go over lanes when they carry much.
type carries struct {
	claims sync.Mutex // one claim, or attach, at a time

	mu    sync.Mutex // guards what follows; never held while calling out
	conns map[*carry.Conn]carried
	names map[carryName]*carry.Conn // those that other devices dialed
	older map[identity.DeviceID]<-chan struct{}
	bytes map[identity.DeviceID]*laneBytes
}

type carried struct {
	peer   identity.DeviceID
	dialed bool // by this device
	moving bool // a lane is being opened for it
}

type carryName struct {
	peer  identity.DeviceID
	ports carry.Ports
}

// laneBytes are what lanes of connections carried.
type laneBytes struct{ sent, received atomic.Uint64 }

// mayCarry reports whether connections to a port may leave the tunnel.
func (n *Node) mayCarry(port uint16) bool {
	return n.lanes.service != nil && !ownPort(port)
}

func ownPort(port uint16) bool { return port >= firstOwnPort && port <= lastOwnPort }

// carried returns a connection inside the tunnel as one that goes over a lane when there
// is much to carry.
func (n *Node) carried(t net.Conn, peer identity.DeviceID, dialed bool) net.Conn {
	c := &n.carries
	c.mu.Lock()
	count := c.bytes[peer]
	if count == nil {
		count = new(laneBytes)
		c.bytes[peer] = count
	}
	c.mu.Unlock()
	cfg := carry.Config{
		Tunnel: t, Dialer: dialed, Go: n.start, Logger: n.cfg.Logger, Sent: &count.sent, Received: &count.received,
	}
	var conn *carry.Conn
	if dialed {
		cfg.Wanted = func() { _ = n.start(func() { n.move(conn, peer) }) } // errs when the node is closed
	}
	cfg.Over = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.conns, conn)
		if name := (carryName{peer, conn.Ports()}); !dialed && c.names[name] == conn {
			delete(c.names, name)
		}
	}
	conn = carry.New(cfg)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns[conn] = carried{peer: peer, dialed: dialed}
	if !dialed {
		c.names[carryName{peer, conn.Ports()}] = conn
	}
	return conn
}

// same counts the connections of a device, dialed by the same side, for which is holds.
func (c *carries) same(peer identity.DeviceID, dialed bool, is func(*carry.Conn, carried) bool) (n int) {
	c.mu.Lock()
	all := maps.Clone(c.conns)
	c.mu.Unlock()
	for conn, of := range all {
		if of.peer == peer && of.dialed == dialed && is(conn, of) {
			n++
		}
	}
	return n
}

func attached(conn *carry.Conn, _ carried) bool { return conn.Attached() }

// onLane also counts those that are just moving.
func onLane(conn *carry.Conn, of carried) bool { return of.moving || conn.OnLane() }

// claim notes that a lane is being opened for a connection, if there are few enough.
// moved must follow then.
func (c *carries) claim(conn *carry.Conn, peer identity.DeviceID, dialed bool) bool {
	c.claims.Lock()
	defer c.claims.Unlock()
	if c.same(peer, dialed, onLane) >= maxCarried {
		return false
	}
	c.moving(conn, true)
	return true
}

// moved says that a lane has been opened, or will not be.
func (c *carries) moved(conn *carry.Conn) { c.moving(conn, false) }

func (c *carries) moving(conn *carry.Conn, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if me, ok := c.conns[conn]; ok {
		me.moving = is
		c.conns[conn] = me
	}
}

// move brings a connection that this device dialed onto a lane.
func (n *Node) move(conn *carry.Conn, peer identity.DeviceID) {
	factor, err := n.tryMove(conn, peer)
	if err != nil {
		n.cfg.Logger.Debug("connection stays in the tunnel", "peer", peer.Short(), "err", err)
		conn.Later(factor)
	}
}

func (n *Node) tryMove(conn *carry.Conn, peer identity.DeviceID) (again int64, err error) {
	if !n.carries.claim(conn, peer, true) {
		return carryAgain, lane.ErrBusy
	}
	defer n.carries.moved(conn)
	ctx, cancel := context.WithTimeout(n.ctx, carryTime)
	defer cancel()
	if !conn.Attached() {
		if again, err := n.attach(ctx, conn, peer); err != nil {
			return again, err
		}
	}
	to, err := n.lanes.service.Open(ctx, peer, kindPort)
	if err != nil {
		return carryAgain, err
	}
	return 1, conn.Join(ctx, to)
}

var errOlder = errors.New("kith: the other device carries no connections over lanes")

// attach opens the control connection of a connection.
func (n *Node) attach(ctx context.Context, conn *carry.Conn, peer identity.DeviceID) (again int64, err error) {
	c := &n.carries
	c.mu.Lock()
	older := c.older[peer]
	c.mu.Unlock()
	if older != nil {
		select {
		case <-older:
		default:
			return carryNever, errOlder
		}
	}
	rec, ok := n.known(peer)
	if !ok {
		return carryNever, net.ErrClosed
	}
	connected, err := n.await(ctx, rec)
	if err != nil {
		return 1, err
	}
	control, err := n.tunnel.DialContext(ctx, "tcp", netip.AddrPortFrom(peer.Addr(), CarryPort))
	if errors.Is(err, syscall.ECONNREFUSED) {
		c.mu.Lock()
		c.older[peer] = connected
		c.mu.Unlock()
		return carryNever, errOlder
	}
	if err != nil {
		return 1, err
	}
	stop := context.AfterFunc(ctx, func() { control.Close() }) // the node is closed, perhaps
	defer stop()
	if err := control.SetDeadline(time.Now().Add(helloTime)); err != nil {
		control.Close()
		return 1, err
	}
	var status carry.Status
	if err = carry.Hello(control, conn.Ports()); err == nil {
		status, err = carry.ReadAnswer(control)
	}
	if err == nil && status != carry.Taken {
		err = lane.ErrBusy
	}
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		control.Close()
		return carryAgain, err
	}
	return 1, conn.Attach(control)
}

// serveCarries answers devices that bring control connections.
func (n *Node) serveCarries() error {
	ln, err := n.tunnel.Listen("tcp", CarryPort)
	if err != nil {
		return err
	}
	n.wg.Go(func() {
		<-n.ctx.Done()
		ln.Close()
		n.carries.each(func(conn *carry.Conn, _ identity.DeviceID) { conn.Abort() })
	})
	n.wg.Go(func() {
		for {
			control, err := ln.Accept()
			if err != nil {
				return
			}
			if n.start(func() { n.takeControl(control) }) != nil {
				control.Close()
			}
		}
	})
	n.HandleLane(kindPort, n.takeLane)
	return nil
}

func (n *Node) takeControl(control net.Conn) {
	defer context.AfterFunc(n.ctx, func() { control.Close() })()
	peer, ok := n.caller(control.RemoteAddr())
	if !ok || control.SetDeadline(time.Now().Add(helloTime)) != nil {
		control.Close()
		return
	}
	ports, err := carry.ReadHello(control)
	if err != nil {
		control.Close()
		return
	}
	status, err := n.carries.attach(peer, ports, control)
	if err != nil {
		return
	}
	if err := carry.Answer(control, status); err != nil || status != carry.Taken {
		control.Close()
	}
}

// attach gives a connection its control connection, before that is answered: the lane may
// come right after the answer. It errs, and has closed control, if the connection has just
// ended.
func (c *carries) attach(peer identity.DeviceID, ports carry.Ports, control net.Conn) (carry.Status, error) {
	c.claims.Lock()
	defer c.claims.Unlock()
	conn := c.find(peer, ports)
	switch {
	case conn == nil:
		return carry.Unknown, nil
	case conn.Attached() || c.same(peer, false, attached) >= maxControls:
		return carry.Busy, nil
	}
	return carry.Taken, conn.Attach(control)
}

// takeLane brings a lane to the connection that it is for.
func (n *Node) takeLane(from Device, l net.Conn) {
	if l.SetDeadline(time.Now().Add(helloTime)) != nil {
		l.Close()
		return
	}
	ports, epoch, err := carry.ReadLane(l)
	conn := n.carries.find(from.ID, ports)
	if err != nil || conn == nil || !n.carries.claim(conn, from.ID, false) {
		l.Close()
		return
	}
	defer n.carries.moved(conn)
	if err := conn.Take(epoch, l); err != nil {
		n.cfg.Logger.Debug("lane not taken", "peer", from.ID.Short(), "err", err)
	}
}

// expects reports whether a device may bring a lane: one of its connections waits for it.
func (c *carries) expects(peer identity.DeviceID) bool { return c.same(peer, false, attached) > 0 }

func (c *carries) find(peer identity.DeviceID, ports carry.Ports) *carry.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names[carryName{peer, ports}]
}

func (c *carries) each(f func(conn *carry.Conn, peer identity.DeviceID)) {
	c.mu.Lock()
	all := make(map[*carry.Conn]identity.DeviceID, len(c.conns))
	for conn, of := range c.conns {
		all[conn] = of.peer
	}
	c.mu.Unlock()
	for conn, peer := range all {
		f(conn, peer)
	}
}

// leaveLanes has the connections with a device, or with all if that is nil, go on inside
// the tunnel, which finds its way in another network.
func (n *Node) leaveLanes(of *identity.DeviceID) {
	n.carries.each(func(conn *carry.Conn, peer identity.DeviceID) {
		if of == nil || *of == peer {
			conn.Leave()
		}
	})
}

// laneTraffic returns how many bytes of a device's connections went over lanes.
func (n *Node) laneTraffic(peer identity.DeviceID) (sent, received uint64) {
	n.carries.mu.Lock()
	defer n.carries.mu.Unlock()
	if b := n.carries.bytes[peer]; b != nil {
		return b.sent.Load(), b.received.Load()
	}
	return 0, 0
}

// carriedListener is a listener of the program.
type carriedListener struct {
	net.Listener
	n *Node
}

func (l carriedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if peer, ok := l.n.caller(conn.RemoteAddr()); ok {
		return l.n.carried(conn, peer, false), nil
	}
	return conn, nil
}
