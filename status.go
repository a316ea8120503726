package kith

import (
	"fmt"
	"net/netip"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/rendezvous"
)

// A Status is what a node can say about itself and its devices.
type Status struct {
	ID         identity.DeviceID  `json:"id"`
	Name       string             `json:"name"`
	Version    string             `json:"version"`
	Addr       netip.Addr         `json:"addr"`      // inside every tunnel
	Port       uint16             `json:"port"`      // UDP port of the tunnel
	Endpoints  []netip.AddrPort   `json:"endpoints"` // where others may reach it
	Rendezvous []RendezvousStatus `json:"rendezvous"`
	Devices    []Device           `json:"devices"`
	// NAT says how this device looks from outside, for people; "" if no server told.
	NAT           string `json:"nat,omitempty"`
	RelaySent     uint64 `json:"relay_sent_bytes,omitempty"`     // bytes through relays since the start
	RelayReceived uint64 `json:"relay_received_bytes,omitempty"` // bytes through relays since the start
	// Mappings are the ports that the router keeps open for this device.
	Mappings []PortMapping `json:"mappings,omitempty"`
	Problems []string      `json:"problems,omitempty"`
}

// A PortMapping is a UDP port that a router lets in to this device.
type PortMapping struct {
	Protocol  string         `json:"protocol"` // "pcp", "nat-pmp" or "upnp"
	External  netip.AddrPort `json:"external"` // where others send to
	Pinhole   bool           `json:"pinhole"`  // it is our own address, which a firewall lets through
	DoubleNAT bool           `json:"double_nat"`
}

// String returns the mapping for people.
func (m PortMapping) String() string {
	what := "forwarded"
	if m.Pinhole {
		what = "let in"
	}
	text := fmt.Sprintf("%s %s (%s)", m.External, what, m.Protocol)
	if m.DoubleNAT {
		text += ", but the router is behind another NAT itself"
	}
	return text
}

// A RendezvousStatus is the state of one medium.
type RendezvousStatus struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Detail string `json:"detail"`
	Error  string `json:"error,omitempty"`
	// Frames says what it carried: in a Status since the node was opened, for a
	// Pairing since its begin.
	Frames rendezvous.Stats `json:"frames"`
}

// rendezvousStatus puts together what media say of themselves, and what they did.
func rendezvousStatus(health []rendezvous.Health, stats []rendezvous.Stats) []RendezvousStatus {
	out := make([]RendezvousStatus, len(health))
	for i, h := range health {
		out[i] = RendezvousStatus{Name: h.Name, Ready: h.Ready, Detail: h.Detail}
		if h.Err != nil {
			out[i].Error = h.Err.Error()
		}
		if i < len(stats) { // a medium may have come or gone meanwhile
			out[i].Frames = stats[i]
		}
	}
	return out
}

// describeNAT says in words how a NAT behaves (RFC 4787), and else what is known of the
// addresses at which servers see this device.
func describeNAT(b punch.Behaviour, seen []netip.AddrPort) string {
	at := b.Public.String()
	switch {
	case !b.Public.IsValid() && len(seen) == 0:
		return ""
	case !b.Public.IsValid():
		return seen[0].Addr().String()
	case b.Mapping == punch.Unknown:
		return at + ", a NAT"
	case b.Mapping == punch.None:
		return at + ", no NAT"
	case !b.Hard():
		return at + ", a NAT that keeps one port for all (easy)"
	case b.Delta != 0:
		return at + ", a NAT with a port per destination, one after another (hard)"
	default:
		return at + ", a NAT with a random port per destination (hard)"
	}
}

// Status returns the node's state at this moment. It does not block.
func (n *Node) Status() Status {
	s := Status{
		ID: n.ID(), Name: n.cfg.Name, Version: Version, Addr: n.Addr(), Port: n.socket.Port(), Devices: n.Devices(),
	}
	for _, c := range n.socket.Local() {
		s.Endpoints = append(s.Endpoints, c.Addr)
	}
	seen, _ := n.socket.Outside()
	s.NAT = describeNAT(n.socket.NAT(), seen)
	s.Mappings = n.reach.mappings()
	s.RelaySent, s.RelayReceived = n.relayedBytes()
	s.Rendezvous = rendezvousStatus(n.media.Each(), n.media.Stats())
	for _, p := range n.Problems() {
		s.Problems = append(s.Problems, p.String())
	}
	return s
}
