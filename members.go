package kith

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/app/mesh"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
)

// known is what there is about a device that may have to do with this one: the pair, or
// else that both are members of a room.
func (n *Node) known(id identity.DeviceID) (registry.Device, bool) {
	pair, ok := n.store.ByID(id)
	if ok && pair.State == registry.Active {
		return pair, true
	}
	if member, ok := n.store.MemberByID(id); ok && n.rooms.shares(id) {
		return member, true
	}
	return pair, ok
}

// party is the pair with a device, or its record as a member of a room, which may be one
// that is to be told that it is none any more.
func (n *Node) party(id identity.DeviceID) (registry.Device, bool) {
	if pair, ok := n.store.ByID(id); ok && pair.State == registry.Active {
		return pair, true
	}
	return n.store.MemberByID(id)
}

// setMember makes a device known as a member of a room, or gives it new keys. A device
// that is paired stays what it is.
func (n *Node) setMember(rec registry.Device) error {
	if pair, ok := n.store.ByID(rec.ID); ok && pair.State == registry.Active {
		return n.dropMember(rec.ID)
	}
	old, had := n.store.MemberByID(rec.ID)
	switch {
	case had && old.PairID == rec.PairID && old.WireGuard == rec.WireGuard:
		name := old.Name
		if byRoom(old.Name) && !isCalled(old.Name, rec.Name) {
			name = rec.Name
		}
		if name == old.Name && old.Room == rec.Room {
			return nil
		}
		_, err := n.store.Update(old.PairID, func(d *registry.Device) { d.Name, d.Room = name, rec.Room })
		n.reloadPeer(old.PairID)
		return err
	case had:
		rec.Rights, rec.Endpoints = old.Rights, old.Endpoints
		if rec.PairID != old.Next.PairID {
			rec.Next = old.Next
		}
		if !byRoom(old.Name) {
			rec.Name = old.Name
		}
		if err := n.dropMember(rec.ID); err != nil {
			return err
		}
	}
	_, err := n.store.Put(rec)
	return err
}

// byRoom reports whether a member has the name that its room gives it, MEMBER@ROOM, and
// not one that this device's user gave it.
func byRoom(name string) bool { return strings.Contains(name, "@") }

// isCalled reports whether a device's name is the wanted one, or that with the number that
// tells it from another's.
func isCalled(name, want string) bool {
	want = registry.UsableName(want)
	tail, ok := strings.CutPrefix(name, want)
	if !ok || tail == "" {
		return ok
	}
	number, ok := strings.CutPrefix(tail, "-")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// dropMember ends what a device has here as a member: its connections, and the record.
func (n *Node) dropMember(id identity.DeviceID) error {
	rec, ok := n.store.MemberByID(id)
	if !ok {
		return nil
	}
	err := n.store.Delete(rec.PairID) // first, so that nobody starts it again
	if _, stays := n.store.Get(rec.PairID); stays {
		return err
	}
	n.stopPeer(rec.PairID, "it is met with other keys, or no more")
	if pair, ok := n.store.ByID(id); !ok || pair.State != registry.Active {
		n.endReached(id)
		n.endLanes(id)
	}
	return err // it is gone; that it stays so after a power cut is not sure
}

// endReached ends every connection of a device to ports of this machine.
func (n *Node) endReached(id identity.DeviceID) {
	n.live.CloseWhere(func(k forward.Key[identity.DeviceID]) bool { return k.Device == id })
}

// medium is where a pair is met: on the node's media, or where a member of a room is.
func (p *peer) medium() rendezvous.Exchange {
	if p.rec.Member() {
		p.meet = p.n.rooms.medium(p.rec)
		return p.meet
	}
	return p.n.media
}

// where names that, for people.
func (p *peer) where() string {
	if p.rec.Member() {
		return "its room, and " + p.n.media.Name()
	}
	return p.n.media.Name()
}

// directPatience is how long a connection to a member waits for a path of the two's own
// when another member could pass it on.
const directPatience = 2 * time.Second

// dialByWay connects to a member by way of another one, if the two do not find a path of
// their own soon, and somebody is connected to both. Without any of that it returns
// neither a connection nor an error.
func (n *Node) dialByWay(ctx context.Context, rec registry.Device, port uint16) (net.Conn, error) {
	short, cancel := context.WithTimeout(ctx, directPatience)
	defer cancel()
	if _, by := n.rooms.mesh.Near(rec.ID); len(by) == 0 {
		return nil, nil //nolint:nilnil // as the comment says
	}
	if _, err := n.await(short, rec); err == nil {
		return nil, nil //nolint:nilnil // there is a path of their own
	}
	if ctx.Err() != nil {
		return nil, n.notConnected(n.device(rec), ctx.Err())
	}
	conn, err := n.rooms.mesh.Dial(ctx, rec.ID, port)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, mesh.ErrRefused):
		to := net.TCPAddrFromAddrPort(netip.AddrPortFrom(rec.ID.Addr(), port))
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: syscall.ECONNREFUSED}
	}
	return nil, nil //nolint:nilnil // nobody could pass it on after all
}
