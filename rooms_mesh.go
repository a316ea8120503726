package kith

import (
	"bytes"
	"net"
	"slices"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/app/mesh"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/room"
)

// encoded are a room's rosters as they are given to others.
type encoded struct {
	roster, base *room.Roster
	raw          [][]byte
}

// common are the rooms with another device.
func (r *rooms) common(peer identity.DeviceID) (out []mesh.State) {
	for _, rec := range r.here() {
		if inRoom(rec, peer) {
			out = append(out, rosterState(rec))
		}
	}
	return out
}

// rosterState orders rosters for the mesh: by epoch, then by version. Two hosts may have
// made different ones of one version; their signatures tell those apart.
func rosterState(rec room.Record) mesh.State {
	st := mesh.State{Room: rec.Room}
	if r := rec.Roster; r != nil {
		st.Version, st.Mark = uint64(r.Epoch)<<40|r.Version, [8]byte(r.Sig[:]) // neither is larger
	}
	return st
}

func (r *rooms) state(id [16]byte) (mesh.State, bool) {
	rec, ok := r.get(id)
	return rosterState(rec), ok
}

// isHost reports whether a device hosts a room of this device's.
func (r *rooms) isHost(id identity.DeviceID) bool {
	return slices.ContainsFunc(r.here(), func(rec room.Record) bool {
		return rec.Roster == nil && rec.Grant.Host == id || rec.Roster != nil && rec.Roster.IsHost(id)
	})
}

func (r *rooms) rosterFor(id [16]byte, to identity.DeviceID) ([][]byte, bool) {
	rec, ok := r.get(id)
	if !ok || rec.Roster == nil || !inRoom(rec, to) {
		return nil, false
	}
	out := r.encode(rec)
	return out, len(out) > 0
}

// encode returns a room's roster, which many may ask for, after the one that others may
// have to take first.
func (r *rooms) encode(rec room.Record) [][]byte {
	r.mu.Lock()
	have := r.encoded[rec.Room]
	r.mu.Unlock()
	if have.roster == rec.Roster && have.base == rec.Base {
		return have.raw
	}
	have = encoded{roster: rec.Roster, base: rec.Base}
	for _, roster := range []*room.Roster{rec.Base, rec.Roster} {
		if roster == nil {
			continue
		}
		if raw, err := roster.Encode(); err == nil {
			have.raw = append(have.raw, raw)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.encoded[rec.Room] = have
	return have.raw
}

// PassOn returns the members of a room that this device hosts to whom it should pass on at
// once what an author says to all: those who have no connection with the author, as it
// says, and in a large room everybody, since a few more copies are cheap there. Of several
// hosts that the author is connected to, the one with the least ID does.
func (n *Node) PassOn(in room.ID, author identity.DeviceID) (to []identity.DeviceID) {
	rec, ok := n.rooms.get(in)
	if !ok || rec.Roster == nil || !rec.Host || !open(rec, author) {
		return nil
	}
	near, ok := n.rooms.mesh.Neighbours(author)
	if !ok {
		return nil
	}
	self, members := n.ID(), rec.Roster.Members
	for _, m := range members {
		switch {
		case m.ID == self || m.ID == author:
		case near[m.ID] && rec.Roster.IsHost(m.ID) && bytes.Compare(m.ID[:], self[:]) < 0:
			return nil
		case !near[m.ID] || len(members) > fullMesh:
			to = append(to, m.ID)
		}
	}
	return to
}

// knock starts to look for a member that looks for this device.
func (r *rooms) knock(id identity.DeviceID) {
	if rec, ok := r.n.known(id); ok && rec.Member() {
		r.n.startPeer(rec)
	}
}

// accept opens a port to a member whose stream another one passes on.
func (r *rooms) accept(from identity.DeviceID, port uint16) (take func(net.Conn), ok bool) {
	if rec, known := r.n.known(from); !known || rec.Rights.Blocked {
		return nil, false
	}
	if slices.Contains(r.n.tunnel.Ports(), port) {
		if port == mesh.Port { // no stream within a stream
			return nil, false
		}
		return func(c net.Conn) {
			if !r.n.tunnel.Give(port, c) {
				c.Close()
			}
		}, true
	}
	if !r.n.allowed(from, forward.TCP, port) {
		r.n.refused(from, forward.TCP, port)
		return nil, false
	}
	local, err := forward.DialLocal(r.n.ctx, port)
	if err != nil {
		return nil, false
	}
	return func(c net.Conn) {
		err := r.n.start(func() {
			defer local.Close()
			r.n.carry(from, forward.TCP, port, c, func() { forward.Splice(r.n.ctx, c, local) })
		})
		if err != nil {
			local.Close()
			c.Close()
		}
	}, true
}
