package kith

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/lane"
	"github.com/kithproject/kith/signaling"
)

// lanes are the direct TLS connections beside the tunnel, by what they are for.
type lanes struct {
	service *lane.Service // nil where there are none

	mu     sync.Mutex // guards accept
	accept map[string]func(from Device, conn net.Conn)
}

// openLanes answers devices that want a lane. There are none where relays alone are
// allowed: a lane tells the other device this one's address.
func (n *Node) openLanes() error {
	n.lanes.accept = make(map[string]func(Device, net.Conn))
	if n.cfg.NoLanes || n.cfg.Relay == RelayAlways {
		return nil
	}
	ln, err := n.tunnel.Listen("tcp", lane.Port)
	if err != nil {
		return err
	}
	n.openLaneMap()
	n.lanes.service = lane.New(lane.Config{
		Listener: ln,
		Dial: func(ctx context.Context, peer identity.DeviceID) (net.Conn, error) {
			return n.tunnel.DialContext(ctx, "tcp", netip.AddrPortFrom(peer.Addr(), lane.Port))
		},
		Who: n.caller,
		Allow: func(peer identity.DeviceID, kind string) bool {
			_, _, ok := n.mayLane(peer, kind)
			return ok && (kind != kindPort || n.carries.expects(peer))
		},
		Accept: n.serveLane,
		Addrs:  n.laneAddrs,
		Mapped: n.laneMap.endpoints, Listening: n.laneMap.listening,
		Loopback: n.cfg.Loopback, Logger: n.cfg.Logger,
	})
	return n.serveCarries()
}

// laneAddrs are the addresses of this device's interfaces.
func (n *Node) laneAddrs() (out []netip.Addr) {
	for _, c := range n.socket.Local() {
		if c.Kind == signaling.Host {
			out = append(out, c.Addr.Addr())
		}
	}
	return out
}

// mayLane says whether a device may have a lane of a kind, and what serves it.
func (n *Node) mayLane(peer identity.DeviceID, kind string) (Device, func(Device, net.Conn), bool) {
	rec, ok := n.mayUse(peer)
	if !ok {
		return Device{}, nil, false
	}
	n.lanes.mu.Lock()
	serve := n.lanes.accept[kind]
	n.lanes.mu.Unlock()
	return n.device(rec), serve, serve != nil
}

func (n *Node) serveLane(c *lane.Conn) {
	d, serve, ok := n.mayLane(c.Peer(), c.Kind())
	if !ok {
		c.Close()
		return
	}
	serve(d, c)
}

// HandleLane takes lanes of a kind, 1 to 64 printable characters, that paired devices
// open. serve is called on a goroutine of its own for each, and closes the connection; it
// must return when the connection is closed. It decides what the device may do there.
func (n *Node) HandleLane(kind string, serve func(from Device, conn net.Conn)) {
	n.lanes.mu.Lock()
	defer n.lanes.mu.Unlock()
	n.lanes.accept[kind] = serve
}

// OpenLane opens a direct TLS 1.3 connection to a paired device over the system's own
// TCP, for what is large: it is faster than the tunnel and costs less. The other device
// must handle lanes of that kind. It errs with lane.ErrNoLane where there is no direct way
// (use Dial then), with lane.ErrRefused, and as Dial does.
func (n *Node) OpenLane(ctx context.Context, ref, kind string) (net.Conn, error) {
	rec, err := n.find(ref)
	if err != nil {
		return nil, err
	}
	if n.lanes.service == nil {
		return nil, fmt.Errorf("kith: %w: lanes are turned off here", lane.ErrNoLane)
	}
	if _, err := n.await(ctx, rec); err != nil {
		return nil, err
	}
	conn, err := n.lanes.service.Open(ctx, rec.ID, kind)
	if err != nil {
		if errors.Is(err, lane.ErrNoLane) {
			n.cfg.Logger.Debug("no lane", "peer", rec.ID.Short(), "err", err)
		}
		return nil, fmt.Errorf("kith: %w", err)
	}
	return conn, nil
}

// forgetLanes tries anew what was not possible on another network.
func (n *Node) forgetLanes() {
	if n.lanes.service != nil {
		n.lanes.service.ForgetAll()
	}
}

// endLanes closes a device's lanes.
func (n *Node) endLanes(peer identity.DeviceID) {
	if n.lanes.service != nil {
		n.lanes.service.CloseOf(peer)
	}
}
