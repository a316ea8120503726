package kith

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/app/mesh"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/room"
)

const (
	// methodJoin marks the record of a member with which this device has made keys: one of
	// the two let the other in.
	methodJoin = "join"
	// methodRoom marks one whose keys follow from the roster.
	methodRoom = "room"
	// fullMesh is up to how many members of a room all connect to each other at once. In a
	// larger room each connects to the hosts and some others, and to the rest when there is
	// something to carry.
	fullMesh = 16
)

// leftFor is how long a room that this device has left is remembered, as ended pairs are.
const leftFor = 90 * 24 * time.Hour

// rooms are those that this device is in.
type rooms struct {
	n     *Node
	mesh  *mesh.Service
	gates *gates
	store *room.Store
	turn  chan struct{} // holds a token when gates are to be looked after

	change sync.Mutex // one change of a room at a time; taken before mu

	mu      sync.Mutex // guards what follows; never held while calling out
	due     bool       // reconcile is to be called soon
	hosts   map[room.ID]*hosting
	behind  map[identity.DeviceID]room.ID // members that this host looks for with the keys of an epoch before
	leaving map[parting]bool              // who is being told that it is out; true: it has been long enough
	encoded map[room.ID]encoded           // as they were last given
	moved   map[identity.DeviceID]bool    // who came or went, and is to be looked after; true: it was gone in between
	pairs   bool                          // a pair has begun or ended
	near    map[identity.DeviceID]bool    // members that this device keeps a connection to
}

func newRooms(n *Node) *rooms {
	return &rooms{
		n: n, turn: make(chan struct{}, 1), hosts: make(map[room.ID]*hosting), behind: make(map[identity.DeviceID]room.ID),
		leaving: make(map[parting]bool),
		encoded: make(map[room.ID]encoded), moved: make(map[identity.DeviceID]bool),
	}
}

// openRooms takes up the rooms that this device is in, and their members.
func (n *Node) openRooms() error {
	store, err := room.OpenStore(n.cfg.Dir)
	if err != nil {
		return fmt.Errorf("kith: %w", err)
	}
	ln, err := n.tunnel.Listen("tcp", mesh.Port)
	if err != nil {
		return err
	}
	r := n.rooms
	r.store = store
	r.mesh = mesh.New(mesh.Config{
		Self: n.id, Listener: ln, Logger: n.cfg.Logger,
		Dial: func(ctx context.Context, peer identity.DeviceID) (net.Conn, error) {
			return n.tunnel.DialContext(ctx, "tcp", netip.AddrPortFrom(peer.Addr(), mesh.Port))
		},
		Who: n.caller, Rooms: r.common, State: r.state, Roster: r.rosterFor, TakeRoster: r.takeRoster,
		Removed: r.removed, TakeRemoved: r.takeRemoved, Together: r.together, Host: r.isHost, Reachable: r.look,
		Knock: r.knock, Accept: r.accept, Left: r.left,
	})
	r.gates = newGates(n.media, r.absent, func(msg string, err error) { n.cfg.Logger.Debug(msg, "err", err) })
	n.wg.Go(r.watch)
	for _, rec := range store.List() {
		if !rec.Left.IsZero() && time.Since(rec.Left) > leftFor {
			if err := store.Delete(rec.Room); err != nil {
				n.cfg.Logger.Warn("old room stays", "room", rec.Room.String(), "err", err)
			}
			continue
		}
		if err := r.startHosting(rec); err != nil {
			n.cfg.Logger.Error("room not hosted", "room", rec.Room.String(), "err", err)
		}
	}
	r.reconcile()
	return nil
}

// close ends what others have here.
func (r *rooms) close() error {
	if r.mesh == nil {
		return nil
	}
	return r.mesh.Close()
}

// look has the gates looked after.
func (r *rooms) look() {
	select {
	case r.turn <- struct{}{}:
	default:
	}
}

// happened has it looked after that a device came or went, or that a pair with it began or
// ended. It does not wait, and nothing is lost, however much happens at once.
func (r *rooms) happened(kind EventKind, id identity.DeviceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch kind {
	case EventConnected, EventDisconnected:
		r.moved[id] = r.moved[id] || kind == EventDisconnected
	case EventPaired, EventUnpaired:
		r.pairs = true // it may be a member, too
	default:
		return
	}
	r.look()
}

// watch looks after the gates, and after members that come and go.
func (r *rooms) watch() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	far := afar{r: r}
	for {
		select {
		case <-r.n.ctx.Done():
			return
		case <-r.turn:
		case <-timer.C:
		}
		r.mu.Lock()
		moved, pairs := r.moved, r.pairs
		r.moved, r.pairs = make(map[identity.DeviceID]bool), false
		r.mu.Unlock()
		for id, gone := range moved {
			if gone {
				r.mesh.Gone(id)
			}
			if rec, ok := r.n.party(id); ok && r.n.device(rec).Connected {
				r.met(id)
			}
		}
		if pairs {
			r.reconcile()
		}
		r.catchUp()
		now := time.Now()
		next := r.gates.update(now)
		if sweep := far.sweep(now); next.IsZero() || !sweep.IsZero() && sweep.Before(next) {
			next = sweep
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// met begins a session with a member that is connected, also with one that is to be told
// that it is none any more, which is dropped soon after.
func (r *rooms) met(id identity.DeviceID) {
	have, ok := r.n.store.MemberByID(id)
	owed := ok && r.owed(have)
	if owed || r.shares(id) {
		r.mesh.Connected(id)
	}
	if owed {
		r.part(id)
	}
}

// absent reports whether a member is looked for and not connected, and whether another one
// says that it can pass frames on.
func (r *rooms) absent(id identity.DeviceID) (absent, way bool) {
	if rec, ok := r.n.party(id); ok {
		r.n.mu.Lock()
		p := r.n.peers[rec.PairID]
		r.n.mu.Unlock()
		if p == nil || p.isConnected() {
			return false, false
		}
	}
	direct, by := r.mesh.Near(id)
	return !direct, len(by) > 0
}

// medium is where a member is met.
func (r *rooms) medium(rec registry.Device) *rendezvous.Racer {
	return rendezvous.Race(r.mesh.Exchange(rec.ID), r.gates.of(rec.ID, rec.Method == methodJoin))
}

// here are the rooms that this device is in.
func (r *rooms) here() []room.Record {
	return slices.DeleteFunc(r.store.List(), func(rec room.Record) bool { return !rec.Left.IsZero() })
}

func (r *rooms) get(id room.ID) (room.Record, bool) {
	rec, ok := r.store.Get(id)
	return rec, ok && rec.Left.IsZero()
}

// inRoom reports whether a device is in a room, as far as is known here.
func inRoom(rec room.Record, id identity.DeviceID) bool {
	if rec.Roster == nil {
		return id == rec.Grant.Host // who brings the roster
	}
	_, ok := rec.Roster.Member(id)
	return ok
}

// open reports whether a device is in a room that is not closed.
func open(rec room.Record, id identity.DeviceID) bool {
	return inRoom(rec, id) && (rec.Roster == nil || !rec.Roster.Closed)
}

// shares reports whether a device is in a room with this one.
func (r *rooms) shares(id identity.DeviceID) bool {
	return slices.ContainsFunc(r.here(), func(rec room.Record) bool { return open(rec, id) })
}

// together reports whether two devices are in one room of this device's.
func (r *rooms) together(a, b identity.DeviceID) bool {
	self := r.n.ID()
	return slices.ContainsFunc(r.here(), func(rec room.Record) bool {
		return (a == self || open(rec, a)) && (b == self || open(rec, b))
	})
}

// allows reports whether a port is open to a member of a room.
func (r *rooms) allows(id identity.DeviceID, protocol forward.Protocol, port uint16) bool {
	return slices.ContainsFunc(r.here(), func(rec room.Record) bool {
		return open(rec, id) && rec.Shares(string(protocol), port)
	})
}

// reconcile makes the members' records those that the rosters say, and starts to look for
// those that this device keeps a connection to.
func (r *rooms) reconcile() {
	r.change.Lock()
	defer r.change.Unlock()
	want := make(map[identity.DeviceID]registry.Device)
	near := make(map[identity.DeviceID]bool)
	for _, rec := range r.here() {
		r.wanted(rec, want, near)
	}
	for _, have := range r.n.store.Members() {
		if _, ok := want[have.ID]; ok {
			continue
		}
		if rec, ok := r.get(have.Room); ok && (r.brings(rec, have.ID) || r.owed(have)) {
			want[have.ID] = have // it let us in, or is to be told that it is out
			near[have.ID] = true
			continue
		}
		r.mesh.Forget(have.ID)
		if err := r.n.dropMember(have.ID); err != nil {
			r.n.cfg.Logger.Error("member not dropped", "peer", have.ID.Short(), "err", err)
		}
	}
	r.mu.Lock()
	r.near = near
	r.mu.Unlock()
	for id, rec := range want {
		if err := r.n.setMember(rec); err != nil {
			r.n.cfg.Logger.Error("member not stored", "peer", id.Short(), "err", err)
			continue
		}
		now, ok := r.n.party(id)
		if !ok {
			continue
		}
		if near[id] || !now.Member() {
			r.n.startPeer(now)
		}
		if r.n.device(now).Connected {
			r.met(id)
		}
	}
	r.look()
}

// brings reports whether a device let this one in, which has not been given a roster with
// itself in it yet: one of before may come first.
func (r *rooms) brings(rec room.Record, id identity.DeviceID) bool {
	if rec.Roster != nil {
		if _, in := rec.Roster.Member(r.n.ID()); in {
			return false
		}
	}
	return id == rec.Grant.Host
}

// wanted adds a room's members to those that there should be.
func (r *rooms) wanted(rec room.Record, want map[identity.DeviceID]registry.Device, near map[identity.DeviceID]bool) {
	self := r.n.ID()
	if rec.Roster == nil || rec.Roster.Closed {
		return
	}
	me := slices.IndexFunc(rec.Roster.Members, func(m room.Member) bool { return m.ID == self })
	if me < 0 {
		return
	}
	total := len(rec.Roster.Members)
	for i, m := range rec.Roster.Members {
		if m.ID == self {
			continue
		}
		if total <= fullMesh || rec.Roster.IsHost(m.ID) || rec.Roster.IsHost(self) || power(i-me) || power(me-i) {
			near[m.ID] = true
		}
		if _, ok := want[m.ID]; ok {
			continue // of a room with a lesser id
		}
		if have, ok := r.n.store.MemberByID(m.ID); ok && have.Method == methodJoin && have.WireGuard == m.WireGuard {
			have.Room, have.Name = rec.Room, memberName(rec, m)
			want[m.ID] = have
			continue
		}
		chain, pairID, joiner, err := room.PairChain(r.n.id, rec.Roster, m.ID)
		if err != nil {
			r.n.cfg.Logger.Warn("no keys for a member", "peer", m.ID.Short(), "err", err)
			continue
		}
		if have, ok := r.n.store.MemberByID(m.ID); ok && rec.Host && r.lags(rec, have, m, pairID) {
			have.Room, have.Name = rec.Room, memberName(rec, m)
			want[m.ID], near[m.ID] = have, true
			continue
		}
		want[m.ID] = memberRecord(rec, m, chain, pairID, joiner, methodRoom)
	}
}

// power reports whether a distance between members in the roster is one of those at which
// they keep a connection: so few steps lead from each to each, whoever is missing, and who
// joins changes nothing for the others.
func power(gap int) bool { return gap > 0 && gap&(gap-1) == 0 }

// memberName is what a member is called here.
func memberName(rec room.Record, m room.Member) string { return m.Name + "@" + roomName(rec) }

// memberRecord is a member as the registry knows it.
func memberRecord(rec room.Record, m room.Member, chain pairing.Chain, pairID [16]byte, joiner bool, method string) registry.Device {
	now := time.Now().UTC()
	return registry.Device{
		PairID: pairID, State: registry.Active, ID: m.ID, WireGuard: m.WireGuard, Name: memberName(rec, m), PeerName: m.Name,
		Joiner: joiner, Method: method, Chain: chain.Key, ChainDay: chain.Day, Created: now, Changed: now, Room: rec.Room,
	}
}
