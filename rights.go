package kith

import (
	"fmt"
	"time"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/registry"
)

// Rights are what a device may do here: nothing but ping, chat and offer files, unless
// it was given more. Withdrawing one ends what uses it.
type Rights = registry.Rights

// A Share is a folder that a device may get.
type Share = registry.Share

// AnyPort, in Rights.ListenTCP and ListenUDP, is every port number from FirstAnyPort.
const (
	AnyPort      = registry.AnyPort
	FirstAnyPort = registry.FirstAnyPort
)

// A BlockedError says that a device is blocked here.
type BlockedError struct{ Device Device }

func (e *BlockedError) Error() string {
	return fmt.Sprintf("kith: %s is blocked on this device; to end that: kith unblock %s", e.Device.Name, e.Device.Name)
}

// farewell is how long the resets of a blocked device's connections have to get out, so
// that its programs do not wait for an answer that never comes.
const farewell = 20 * time.Millisecond

// SetRights changes what a device may do here. The change is durable when SetRights
// returns, and what was withdrawn has ended then: open connections to a port, and for a
// device that is blocked every connection. It errs if the reference fits no device,
// change errs, or the record cannot be written.
func (n *Node) SetRights(ref string, change func(*Rights) error) (Device, error) {
	rec, err := n.find(ref)
	if err != nil {
		return Device{}, err
	}
	was := rec.Rights.Blocked
	var failed error
	rec, err = n.store.Update(rec.PairID, func(d *registry.Device) {
		was = d.Rights.Blocked
		rights := d.Rights
		if failed = change(&rights); failed == nil {
			d.Rights = rights
		}
	})
	if err = firstError(failed, err); err != nil {
		return Device{}, err
	}
	ended := n.live.CloseWhere(func(k forward.Key[identity.DeviceID]) bool {
		return k.Device == rec.ID && !rec.Rights.Allows(string(k.Protocol), k.Port)
	})
	switch {
	case rec.Rights.Blocked && !was:
		if ended > 0 { // let the device hear of it
			time.Sleep(farewell) //nolint:forbidigo // nothing tells when a packet has left
		}
		n.stopPeer(rec.PairID, "blocked")
		n.endLanes(rec.ID)
	case was && !rec.Rights.Blocked:
		n.startPeer(rec)
	}
	d := n.device(rec)
	n.tell(EventRights, d, "")
	return d, nil
}

// Allow lets a device reach a TCP port of this machine's localhost. It is
// durable when it returns. It errs if the reference fits no paired device or
// the record cannot be written.
func (n *Node) Allow(ref string, port uint16) error {
	_, err := n.SetRights(ref, func(r *Rights) error { r.Allow("tcp", port); return nil })
	return err
}

// Deny withdraws what Allow gave and ends the device's open connections to that
// port. It errs as Allow does.
func (n *Node) Deny(ref string, port uint16) error {
	_, err := n.SetRights(ref, func(r *Rights) error { r.Deny("tcp", port); return nil })
	return err
}

// stopPeer ends a pair's work until startPeer, and waits for it.
func (n *Node) stopPeer(id registry.PairID, why string) {
	n.mu.Lock()
	p := n.peers[id]
	delete(n.peers, id)
	n.mu.Unlock()
	if p == nil {
		return
	}
	if err := p.call(n.ctx, func() { p.disconnected(why) }); err != nil {
		return // the node is closing
	}
	p.cancel()
	<-p.done
}

// endWithdrawn ends the connections to ports that are not allowed any more.
func (n *Node) endWithdrawn() {
	n.live.CloseWhere(func(k forward.Key[identity.DeviceID]) bool { return !n.allowed(k.Device, k.Protocol, k.Port) })
}
