package kith

import (
	"context"
	"net/netip"
	"sync"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/lane/carry"
	"github.com/kithproject/kith/link/portmap"
)

// A laneMap has the router lead a TCP port to the listener of lanes, while there is one,
// and opens its firewall for IPv6. The zero value asks nobody.
type laneMap struct {
	mapper *portmap.Mapper
	ports  chan uint16 // the latest that is listened at, or 0

	mu     sync.Mutex // guards what follows
	port   uint16
	mapped netip.AddrPort // if valid
}

// openLaneMap begins to follow the listener of lanes.
func (n *Node) openLaneMap() {
	if n.cfg.NoPortMapping {
		return
	}
	secret := n.id.WireGuardPrivate()
	m := &n.laneMap
	m.ports = make(chan uint16, 1)
	m.mapper = portmap.New(portmap.Config{
		Transport: portmap.TCP, Gateway: portmap.DefaultGateway, Gateway6: portmap.DefaultGateway6, Logger: n.cfg.Logger,
		NonceKey: wire.Expand(secret[:], "port mapping"),
	})
	n.wg.Go(func() { m.follow(n) })
}

// listening is told where lanes are listened for.
func (m *laneMap) listening(port uint16) {
	if m.mapper == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.port, m.mapped = port, netip.AddrPort{}
	select { // the latest counts
	case <-m.ports:
	default:
	}
	m.ports <- port
}

// follow keeps the port mapped that is listened at.
func (m *laneMap) follow(n *Node) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-n.ctx.Done():
			return
		case port := <-m.ports:
			stop()
			wg.Wait() // the mapping of the last one is released
			if port == 0 {
				continue
			}
			ctx, cancel := context.WithCancel(n.ctx)
			stop = cancel
			wg.Go(func() {
				_ = m.mapper.Run(ctx, port, func(g portmap.Mapping, ok bool) { m.note(n, port, g, ok) }) // errs when ctx ends
			})
		}
	}
}

// note takes in what the router does.
func (m *laneMap) note(n *Node, port uint16, g portmap.Mapping, ok bool) {
	m.mu.Lock()
	if port != m.port {
		m.mu.Unlock()
		return
	}
	usable := ok && !g.DoubleNAT
	if g.External.Addr().Is4() { // for IPv6 a firewall lets our own address through, which is offered anyway
		m.mapped = netip.AddrPort{}
		if usable {
			m.mapped = g.External
		}
	}
	m.mu.Unlock()
	if !usable {
		return
	}
	// What was not possible a moment ago may be now.
	n.forgetLanes()
	n.carries.each(func(conn *carry.Conn, _ identity.DeviceID) { conn.Now() })
}

// endpoints are where a port can be reached from outside.
func (m *laneMap) endpoints(port uint16) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	if port != m.port || !m.mapped.IsValid() {
		return nil
	}
	return []netip.AddrPort{m.mapped}
}

// refresh asks anew: the network has changed.
func (m *laneMap) refresh() {
	if m.mapper != nil {
		m.mapper.Refresh()
	}
}
