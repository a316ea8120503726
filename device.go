package kith

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/registry"
)

// A State says how far two devices are with each other.
type State string

// The states of a device.
const (
	Paired      State = "paired"       // both sides hold a durable record
	NotFinished State = "not finished" // the other side may or may not hold one; no rights yet
	Member      State = "member"       // it is a member of a room with this device, and not paired
)

// A Device is what this node knows about another one.
type Device struct {
	ID       identity.DeviceID `json:"id"`
	Name     string            `json:"name"`         // ours for it; unique on this node
	PeerName string            `json:"calls_itself"` // its own
	OS       string            `json:"os,omitempty"` // as it said when pairing
	State    State             `json:"state"`
	Addr     netip.Addr        `json:"addr"`          // inside the tunnel
	Verified bool              `json:"verified"`      // the check number was compared, or a QR code pinned its key
	Own      bool              `json:"own,omitempty"` // this user's own (SetOwn)
	// IntroducedBy is what this node calls the device that introduced it; "" for one that
	// was paired by a code. VouchedBy is that device's ID.
	IntroducedBy string            `json:"introduced_by,omitempty"`
	VouchedBy    identity.DeviceID `json:"introduced_by_id,omitzero"`
	Paired       time.Time         `json:"paired"`
	LastSeen     time.Time         `json:"last_seen,omitzero"`
	Rights       Rights            `json:"rights"` // what it may do here

	Connected bool       `json:"connected"`
	Since     time.Time  `json:"since,omitzero"`    // of the connection, or of being without one
	Path      *link.Path `json:"path,omitempty"`    // the selected one while connected
	Looking   string     `json:"looking,omitempty"` // what is being waited for while not connected
	Better    string     `json:"better,omitempty"`  // while relayed: why the path is not straight
	// Traffic is what went through the tunnel, with its overhead, since this node
	// was opened; nil before there was any.
	Traffic *link.Traffic `json:"traffic,omitempty"`
	// LaneSent and LaneReceived are what of connections to ports went beside the
	// tunnel, in bytes, since this node was opened.
	LaneSent     uint64 `json:"lane_sent,omitempty"`     // bytes
	LaneReceived uint64 `json:"lane_received,omitempty"` // bytes
	pairID       registry.PairID
}

func (n *Node) device(rec registry.Device) Device {
	d := Device{
		ID: rec.ID, Name: rec.Name, PeerName: rec.PeerName, OS: rec.OS, State: NotFinished,
		Addr: rec.ID.Addr(), Verified: rec.Verified, Paired: rec.Created, LastSeen: rec.LastSeen,
		Rights: rec.Rights, pairID: rec.PairID, Own: rec.Own, IntroducedBy: n.introducer(rec), VouchedBy: rec.VouchedBy,
	}
	switch {
	case rec.Member():
		d.State = Member
	case rec.State == registry.Active:
		d.State = Paired
	}
	n.mu.Lock()
	p := n.peers[rec.PairID]
	n.mu.Unlock()
	d.LaneSent, d.LaneReceived = n.laneTraffic(rec.ID)
	if p != nil {
		p.describe(&d)
	}
	return d
}

// Devices returns every device that is paired or not finished, by name.
func (n *Node) Devices() []Device {
	recs := n.store.List()
	out := make([]Device, 0, len(recs))
	for _, rec := range recs {
		out = append(out, n.device(rec))
	}
	return out
}

// Device finds one by name, by the start of its ID (four characters or more),
// or by its address. It errs with registry.ErrNotFound or a
// *registry.AmbiguousError.
func (n *Node) Device(ref string) (Device, error) {
	rec, err := n.find(ref)
	if err != nil {
		return Device{}, err
	}
	return n.device(rec), nil
}

func (n *Node) find(ref string) (registry.Device, error) {
	if addr, err := netip.ParseAddr(ref); err == nil {
		for _, rec := range append(n.store.List(), n.store.Members()...) {
			if rec.ID.Addr() == addr {
				return n.current(rec, ref)
			}
		}
	}
	rec, err := n.store.Find(ref)
	if err != nil {
		return registry.Device{}, fmt.Errorf("kith: %w", err)
	}
	return n.current(rec, ref)
}

// current errs for a member of a room that is only kept to be told that it is none any more.
func (n *Node) current(rec registry.Device, ref string) (registry.Device, error) {
	if rec.Member() && !n.rooms.shares(rec.ID) {
		return registry.Device{}, fmt.Errorf("kith: %w: %q", registry.ErrNotFound, ref)
	}
	return rec, nil
}

// notMember errs for a device that is known as a member of a room alone, which is no pair.
func notMember(rec registry.Device) error {
	if rec.Member() {
		return fmt.Errorf("kith: %s is a member of a room and not paired with this device: kith room kick and kith room leave end that", rec.Name)
	}
	return nil
}

// Rename changes what this node calls a device. It errs if the reference fits
// no device, or the name is taken or not usable.
func (n *Node) Rename(ref, name string) error {
	rec, err := n.find(ref)
	if err != nil {
		return err
	}
	return n.store.Rename(rec.PairID, name)
}

// Unpair ends the pair with a device for both sides. Its rights and connections
// end at once; the other device is told now if it can be reached, and otherwise
// whenever it next appears within 90 days. told says whether it has confirmed
// before ctx ended. The device does not come back by an introduction; pairing with it by
// a code, or Forget, makes that possible again. It errs if the reference fits no paired device or the
// record cannot be written.
func (n *Node) Unpair(ctx context.Context, ref string) (told bool, err error) {
	rec, err := n.find(ref)
	if err != nil {
		return false, err
	}
	if err := notMember(rec); err != nil {
		return false, err
	}
	if rec.Rights.Blocked { // it has to be heard to be told
		if _, err := n.SetRights(rec.ID.String(), func(r *Rights) error { *r = Rights{}; return nil }); err != nil {
			return false, err
		}
	}
	if err := n.kin.removed.set(rec.ID, true); err != nil {
		return false, err
	}
	p := n.startPeer(rec)
	if p == nil {
		return false, fmt.Errorf("kith: unpair %s: the node is closing", rec.Name)
	}
	return p.unpair(ctx)
}
