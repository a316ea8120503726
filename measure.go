package kith

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/kithproject/kith/app/measure"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link"
)

const (
	// forceWait is how long a path of the sort that is measured is waited for.
	forceWait = 6 * time.Second
	// forceTime is how long the link keeps to it at most.
	forceTime = 30 * time.Second
)

// openMeasure lets paired devices measure what the tunnel to them carries.
func (n *Node) openMeasure() error {
	ln, err := n.tunnel.Listen("tcp", measure.Port)
	if err != nil {
		return err
	}
	n.measure = measure.NewService(measure.Config{
		Listener: ln, Logger: n.cfg.Logger,
		Who: func(addr net.Addr) (string, bool) {
			id, ok := n.pairedCaller(addr)
			return id.String(), ok
		},
		Force: func(ctx context.Context, device, force string) (func(), error) {
			id, err := identity.ParseDeviceID(device)
			if err != nil {
				return nil, err
			}
			return n.force(ctx, id, force)
		},
	})
	n.HandleUDP(measure.Port, func(from Device, conn net.Conn) {
		if from.State == Paired {
			n.measure.Datagrams(from.ID.String(), conn)
		}
	})
	return nil
}

// Measure finds out what the tunnel to a device carries, in about five seconds and with as
// much data as it takes. force, if not "", is the kind of path that both sides keep to
// meanwhile: "relay", "direct" or "lan". path is the one that was selected at the end. It
// errs as Dial does, with the errors of package measure, and if there is no such path
// within some seconds.
func (n *Node) Measure(ctx context.Context, ref, force string) (res measure.Result, path string, err error) {
	rec, err := n.find(ref)
	if err != nil {
		return res, "", err
	}
	if err := notMember(rec); err != nil {
		return res, "", err
	}
	if _, err := n.await(ctx, rec); err != nil {
		return res, "", err
	}
	release, err := n.force(ctx, rec.ID, force)
	if err != nil {
		return res, "", err
	}
	defer release()
	to := netip.AddrPortFrom(rec.ID.Addr(), measure.Port)
	res, err = measure.Run(ctx, func(ctx context.Context, network string) (net.Conn, error) {
		if network == "udp" {
			return n.tunnel.DialUDP(ctx, to)
		}
		return n.tunnel.DialContext(ctx, network, to) // never over a lane
	}, force)
	if p := n.device(rec).Path; p != nil {
		path = p.String()
	}
	return res, path, err
}

// force has this side's data to a device take one kind of path until release is called. It
// errs if there is none soon, or the relay policy forbids it, and with measure.ErrBusy
// while it is forced already.
func (n *Node) force(ctx context.Context, id identity.DeviceID, force string) (release func(), err error) {
	want, ok := link.ParseForce(force)
	switch {
	case !ok:
		return nil, fmt.Errorf("kith: %q is no kind of path: relay, direct and lan are", force)
	case want == link.ForceNone:
		return func() {}, nil
	case want == link.ForceRelay && n.cfg.Relay == RelayNever, want != link.ForceRelay && n.cfg.Relay == RelayAlways:
		return nil, fmt.Errorf("kith: no %s path is allowed here (kith config relay is %s): %w", force, n.cfg.Relay, measure.ErrNoPath)
	}
	p := n.peerOf(id)
	if p == nil {
		return nil, fmt.Errorf("kith: %w", net.ErrClosed)
	}
	if !p.force(want) {
		return nil, fmt.Errorf("kith: %w", measure.ErrBusy)
	}
	ctx, cancel := context.WithTimeout(ctx, forceWait)
	defer cancel()
	for {
		p.mu.Lock()
		here := p.path != nil && want.Allows(p.path.Kind)
		changed := p.changed
		p.mu.Unlock()
		if here {
			return p.unforce, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			p.unforce()
			return nil, fmt.Errorf("kith: no %s path within %s: %w", force, forceWait, measure.ErrNoPath)
		}
	}
}

// force has the peer keep to one kind of path until unforce. It reports false while that
// is so already: this device's user and the other one may both want it.
func (p *peer) force(want link.Force) bool {
	p.mu.Lock()
	if p.forced != link.ForceNone {
		p.mu.Unlock()
		return false
	}
	p.forced = want
	p.mu.Unlock()
	p.postForce(want)
	return true
}

// unforce lets the peer take any path again.
func (p *peer) unforce() {
	p.mu.Lock()
	p.forced = link.ForceNone
	p.mu.Unlock()
	p.postForce(link.ForceNone)
}

func (p *peer) postForce(f link.Force) {
	p.post(func() {
		if p.link != nil {
			p.link.Force(f, forceTime)
			p.needRelay()
		}
	})
}

// peerOf returns the peer of the active pair with a device, or nil.
func (n *Node) peerOf(id identity.DeviceID) *peer {
	rec, ok := n.store.ByID(id)
	if !ok {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[rec.PairID]
}
