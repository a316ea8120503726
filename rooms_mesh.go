package kith

import (
	"net"
	"slices"
	"time"

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

// knockTime is how long a member is looked for that looks for this device, as somebody
// says.
const knockTime = 2 * time.Minute

// knock starts to look for a member that looks for this device, and gives that up when it
// is not found and nobody here wants it either.
func (r *rooms) knock(id identity.DeviceID) {
	rec, ok := r.n.known(id)
	if !ok || !rec.Member() {
		return
	}
	r.n.mu.Lock()
	had := r.n.peers[rec.PairID] != nil
	r.n.mu.Unlock()
	p := r.n.startPeer(rec)
	if had || p == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, had := r.knocked[id]; had {
		return
	}
	r.knocked[id] = struct{}{}
	if r.n.start(func() { r.giveUp(id, p, knockTime) }) != nil { // the node is closed
		delete(r.knocked, id)
	}
}

// giveUp ends the search for a member when it has not come and nothing here has called for
// it for a while.
func (r *rooms) giveUp(id identity.DeviceID, p *peer, while time.Duration) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.knocked, id)
	}()
	for idle := time.Duration(0); idle < while && !p.isConnected(); {
		select {
		case <-p.done:
			return
		case <-time.After(while - idle):
		}
		if p.call(r.n.ctx, func() { idle = time.Since(p.stirred) }) != nil {
			return
		}
	}
	if !p.isConnected() {
		r.n.stopPeer(p.pairID, "not found")
		r.reconcile() // it may have become one that this device keeps connected to
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
