package kith

import (
	"net/netip"

	"github.com/kithproject/kith/identity"
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
	Problems   []string           `json:"problems,omitempty"`
}

// A RendezvousStatus is the state of one medium.
type RendezvousStatus struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Detail string `json:"detail"`
	Error  string `json:"error,omitempty"`
}

func rendezvousStatus(h rendezvous.Health) RendezvousStatus {
	s := RendezvousStatus{Name: h.Name, Ready: h.Ready, Detail: h.Detail}
	if h.Err != nil {
		s.Error = h.Err.Error()
	}
	return s
}

// Status returns the node's state at this moment. It does not block.
func (n *Node) Status() Status {
	s := Status{
		ID: n.ID(), Name: n.cfg.Name, Version: Version, Addr: n.Addr(), Port: n.socket.Port(), Devices: n.Devices(),
	}
	for _, c := range n.socket.Local() {
		s.Endpoints = append(s.Endpoints, c.Addr)
	}
	for _, h := range n.media.Each() {
		s.Rendezvous = append(s.Rendezvous, rendezvousStatus(h))
	}
	for _, p := range n.store.Problems() {
		s.Problems = append(s.Problems, p.String())
	}
	return s
}
