package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/app/tun"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/netif"
)

// An Interface is the network interface of kith up --tun.
type Interface struct {
	Name     string     `json:"name"`
	Addr     netip.Addr `json:"addr"`            // this device's
	Resolver netip.Addr `json:"resolver"`        // where names in .kith are answered
	Names    string     `json:"names,omitempty"` // who asks there for this machine's programs; empty: nobody
	Problem  string     `json:"problem,omitempty"`
}

// An openInterface is one that works.
type openInterface struct {
	Interface
	tun   *tun.Tun
	names *netif.Names // nil: this machine's programs do not ask
	ended chan error   // of Run
}

// resolver is the address in the devices' prefix at which names are answered: no
// device's, as theirs are hashes of 88 bits.
func resolver() netip.Addr {
	a := identity.Prefix().Addr().As16()
	a[15] = 0x53
	return netip.AddrFrom16(a)
}

// CheckInterface errs with an *Error if this process cannot make a network interface.
func CheckInterface() error { return explainInterface(netif.Check()) }

// explainInterface says what a person can do.
func explainInterface(err error) error {
	var told *netif.Error
	if !errors.As(err, &told) {
		return err
	}
	text := told.Text
	if told.Err != nil && !errors.Is(told.Err, netif.ErrSystem) {
		text += ": " + told.Err.Error()
	}
	return &Error{Kind: KindSystem, Text: text, Hint: told.Hint}
}

// OpenInterface makes a network interface through which any program of this machine
// reaches the paired devices, until Close. guard is a command that brings back
// /etc/resolv.conf when this process is killed: it calls netif.Guard. If names cannot be
// had, the Interface says why. It errs with an *Error if there can be no interface.
func (s *Server) OpenInterface(ctx context.Context, guard []string) (Interface, error) {
	prefix := identity.Prefix()
	dev, err := netif.Open(netif.Config{Name: "kith%d", Addr: s.node.Addr(), Prefix: prefix})
	if err != nil {
		return Interface{}, explainInterface(err)
	}
	o := &openInterface{Interface: Interface{Name: dev.Name, Addr: s.node.Addr(), Resolver: resolver()}, ended: make(chan error, 1)}
	// Names are set before the Tun exists, and a query before it runs only waits.
	names, err := netif.SetNames(ctx, netif.NamesConfig{
		Interface: dev.Name, Server: o.Resolver, Domains: []string{"kith", tun.ReverseZone(prefix)}, Guard: guard, Logger: s.log,
	})
	if err != nil {
		o.Problem = strings.TrimPrefix(err.Error(), "netif: ")
	} else {
		o.names, o.Names = names, names.How()
	}
	cfg := tun.Config{
		Device: dev, Addr: s.node.Addr(), Prefix: prefix, Resolver: o.Resolver, Logger: s.log,
		Peer: s.peerAt, Dial: s.dialPeer, Ping: s.pingPeer, Lookup: s.lookup, Name: s.nameAt,
	}
	if o.names != nil && o.names.Forwards() {
		cfg.Forward = o.names.Ask
	}
	if o.tun, err = tun.New(cfg); err != nil {
		return Interface{}, errors.Join(err, o.closeNames(), dev.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.inter != nil {
		return Interface{}, errors.Join(net.ErrClosed, o.closeNames(), o.tun.Close())
	}
	s.inter = o
	s.wg.Go(func() {
		if err := o.tun.Run(); err != nil {
			s.log.Error("the network interface has failed", "err", err)
			o.ended <- &Error{Kind: KindOther, Text: o.Name + " does not work any more: " + err.Error(),
				Hint: "if somebody has removed it, start kith up --tun again"}
		}
	})
	return o.Interface, nil
}

func (o *openInterface) closeNames() error {
	if o.names == nil {
		return nil
	}
	return o.names.Close()
}

// InterfaceFailed receives an error if the interface fails; nil before OpenInterface.
func (s *Server) InterfaceFailed() <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inter == nil {
		return nil
	}
	return s.inter.ended
}

// theInterface is what a status says of it; nil if there is none.
func (s *Server) theInterface() *Interface {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inter == nil {
		return nil
	}
	return &s.inter.Interface
}

// closeInterface removes it; programs' connections are reset.
func (s *Server) closeInterface() error {
	s.mu.Lock()
	o := s.inter
	s.mu.Unlock()
	if o == nil {
		return nil
	}
	return errors.Join(o.closeNames(), o.tun.Close())
}

func (s *Server) peerAt(addr netip.Addr) (string, bool) {
	d, err := s.node.Device(addr.String())
	return d.ID.String(), err == nil && d.State == kith.Paired && d.Addr == addr
}

func (s *Server) dialPeer(ctx context.Context, protocol forward.Protocol, peer string, port uint16) (net.Conn, error) {
	conn, err := s.node.Dial(ctx, string(protocol), net.JoinHostPort(peer, strconv.Itoa(int(port))))
	return conn, interfaceError(err)
}

func (s *Server) pingPeer(ctx context.Context, peer string) error {
	_, err := s.node.Ping(ctx, peer)
	return interfaceError(err)
}

// interfaceError wraps what package tun tells apart.
func interfaceError(err error) error {
	var away *kith.NotConnectedError
	var blocked *kith.BlockedError
	switch {
	case errors.As(err, &away):
		return fmt.Errorf("%w: %w", tun.ErrNotConnected, err)
	case errors.As(err, &blocked):
		return fmt.Errorf("%w: %w", tun.ErrBlocked, err)
	}
	return err
}

// lookup finds a name as every other command does; a device's goes before this one's.
func (s *Server) lookup(name string) (netip.Addr, bool) {
	if d, err := s.node.Device(name); err == nil && d.State == kith.Paired {
		return d.Addr, true
	}
	return s.node.Addr(), strings.EqualFold(name, s.node.Name())
}

func (s *Server) nameAt(addr netip.Addr) (string, bool) {
	if addr == s.node.Addr() {
		return s.node.Name(), true
	}
	d, err := s.node.Device(addr.String())
	return d.Name, err == nil && d.State == kith.Paired && d.Addr == addr
}
