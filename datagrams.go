package kith

import (
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/registry"
)

// datagrams are the services of this program at UDP ports of the tunnel address.
type datagrams struct {
	mu    sync.Mutex
	serve map[uint16]func(from Device, conn net.Conn)
}

// HandleUDP takes what paired devices send to a UDP port of this device's tunnel
// address; nil ends that. serve is called on a goroutine of its own for each association,
// of which each Read and Write is one datagram, and must return when it is closed; it is
// closed then. It decides what the device may do there.
func (n *Node) HandleUDP(port uint16, serve func(from Device, conn net.Conn)) {
	n.datagrams.mu.Lock()
	defer n.datagrams.mu.Unlock()
	if serve == nil {
		delete(n.datagrams.serve, port)
		return
	}
	if n.datagrams.serve == nil {
		n.datagrams.serve = make(map[uint16]func(Device, net.Conn))
	}
	n.datagrams.serve[port] = serve
}

// UDPPorts returns the UDP ports that HandleUDP holds, sorted. Ports of localhost that
// were allowed are not among them.
func (n *Node) UDPPorts() []uint16 {
	n.datagrams.mu.Lock()
	defer n.datagrams.mu.Unlock()
	return slices.Sorted(maps.Keys(n.datagrams.serve))
}

// handled returns what serves a UDP port, and whether anything does.
func (n *Node) handled(port uint16) (serve func(Device, net.Conn), ok bool) {
	n.datagrams.mu.Lock()
	defer n.datagrams.mu.Unlock()
	serve, ok = n.datagrams.serve[port]
	return serve, ok
}

// mayUse reports whether a device may use services of this program at all.
func (n *Node) mayUse(id identity.DeviceID) (registry.Device, bool) {
	rec, ok := n.known(id)
	return rec, ok && rec.State == registry.Active && !rec.Rights.Blocked
}
