package kith

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/room"
)

// A hosting lets devices into one room.
type hosting struct {
	*topicLoop
	r       *rooms
	id      room.ID
	machine *room.Host // of the loop's goroutine
}

// roomInfo is what hosts and members learn of this device when one of them joins.
func (n *Node) roomInfo() pairing.Info {
	return pairing.Info{
		Name: n.cfg.Name, OS: runtime.GOOS, WireGuard: n.id.WireGuardPublic(), Version: Version, Day: wire.Day(time.Now()),
		Endpoints: addresses(n.candidates()),
	}
}

// startHosting begins to admit devices to a room of which this one is a host, unless it does
// so. r.change is held.
func (r *rooms) startHosting(rec room.Record) error {
	if !rec.Host || rec.Roster == nil || rec.Roster.Closed || !rec.Left.IsZero() {
		return nil
	}
	if r.hosting(rec.Room) != nil {
		return nil // another restart was first
	}
	h := &hosting{r: r, id: rec.Room}
	var err error
	h.machine, err = room.NewHost(room.HostConfig{
		Identity: r.n.id, Roster: rec.Roster, Password: rec.Password, Short: rec.Short, Guard: rec.Guard, Info: r.n.roomInfo(),
		List: rec.List, Waiting: rec.Waiting, Rand: rand.Reader,
	})
	if err != nil {
		return err
	}
	codes := []func() (code.Keys, error){func() (code.Keys, error) { return longKeys(rec.Room) }}
	if !rec.Short.IsZero() {
		codes = append(codes, rec.Short.Keys)
	}
	var points []rendezvous.Point
	for _, keys := range codes {
		k, err := keys()
		if err != nil {
			return err
		}
		points = append(points, rendezvous.Point{Topic: k.Topic, Side: side(pairing.Offerer), Announce: true})
	}
	if h.topicLoop, err = r.n.newTopicLoop(r.n.media, points...); err != nil {
		return err
	}
	h.receive, h.drain = h.machine.Receive, h.carryOut
	h.tick, h.next = func(time.Time) {}, func() time.Time { return time.Time{} }
	r.mu.Lock()
	r.hosts[rec.Room] = h
	r.mu.Unlock()
	if err := r.n.start(h.run); err != nil {
		h.cancel()
		h.close()
		close(h.ended)
		return err
	}
	return nil
}

func longKeys(id room.ID) (code.Keys, error) {
	c, err := code.NewRoom(id, code.RoomOptions{})
	if err != nil {
		return code.Keys{}, err
	}
	return c.Keys()
}

// stopHosting ends it, and waits.
func (r *rooms) stopHosting(id room.ID) {
	r.mu.Lock()
	h := r.hosts[id]
	delete(r.hosts, id)
	r.mu.Unlock()
	if h != nil {
		h.cancel()
		<-h.ended
	}
}

func (r *rooms) hosting(id room.ID) *hosting {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hosts[id]
}

// tellHost gives the machine a roster that is durable. If there is none yet, or it cannot
// take it, it begins anew with what is stored.
func (r *rooms) tellHost(id room.ID, roster *room.Roster) {
	h := r.hosting(id)
	if h == nil {
		if roster.IsHost(r.n.ID()) && !roster.Closed {
			_ = r.n.start(func() { r.restart(id) }) // errs when the node is closed
		}
		return
	}
	h.box.post(func() {
		if err := h.machine.SetRoster(time.Now(), roster); err != nil && !errors.Is(err, room.ErrOlder) {
			r.n.cfg.Logger.Debug("host begins anew", "room", id.String(), "err", err)
			_ = r.n.start(func() { r.restart(id) }) // errs when the node is closed
		}
	})
}

func (r *rooms) restart(id room.ID) {
	r.stopHosting(id) // before the lock, which it may wait for itself
	r.change.Lock()
	defer r.change.Unlock()
	if rec, ok := r.get(id); ok {
		if err := r.startHosting(rec); err != nil {
			r.n.cfg.Logger.Error("room not hosted", "room", id.String(), "err", err)
		}
	}
}

// carryOut does what the machine wants, in order.
func (h *hosting) carryOut() {
	for {
		a, ok := h.machine.Poll()
		if !ok {
			return
		}
		switch a.Kind {
		case room.ActionSend:
			h.publish(a.Topic, a.Frame)
		case room.ActionAdmit:
			err := h.admit(a.Admission)
			if err != nil {
				h.n.cfg.Logger.Error("member not admitted", "room", h.id.String(), "err", err)
			}
			h.machine.Admitted(time.Now(), a.Admission.Member.ID, err)
		case room.ActionAsk:
			h.keepWaiting()
			h.r.tellOf(h.id, EventRoomAsked, a.Request.ID.String(), a.Request.Info.Name)
		case room.ActionTold:
			h.guard(a)
		}
	}
}

// admit makes an admission durable.
func (h *hosting) admit(a room.Admission) error {
	if err := h.takeIn(a); err != nil {
		return err
	}
	h.machine.SetInfo(h.n.roomInfo())
	if a.New {
		return h.n.start(func() { h.r.spread(h.id, false) })
	}
	return nil
}

func (h *hosting) takeIn(a room.Admission) error {
	h.r.change.Lock()
	defer h.r.change.Unlock()
	var rec room.Record
	err := h.r.store.Update(h.id, func(now *room.Record) error {
		if !now.Left.IsZero() || now.Roster == nil {
			return room.ErrNoMember
		}
		if a.New {
			if now.Roster != a.Base {
				return room.ErrBusy // another change came in between: the joiner asks again
			}
			h.r.follow(now, a.Roster)
		} else if m, in := now.Roster.Member(a.Member.ID); !in || m.WireGuard != a.Member.WireGuard || now.Roster.Closed {
			return room.ErrBusy // it is out meanwhile
		}
		now.Waiting = slices.DeleteFunc(now.Waiting, func(q room.Request) bool { return q.ID == a.Member.ID })
		rec = *now
		return nil
	})
	if errors.Is(err, room.ErrBusy) {
		if now, ok := h.r.get(h.id); ok {
			h.r.tellHost(h.id, now.Roster)
		}
	}
	if err != nil || !a.HasChain {
		return err
	}
	have, ok := h.n.store.MemberByID(a.Member.ID)
	if was, in := h.r.get(have.Room); ok && in && have.WireGuard == a.Member.WireGuard && (was.Room == h.id && !a.New || was.Room != h.id && open(was, have.ID)) {
		next := registry.NextKeys{PairID: a.PairID, Chain: a.Chain.Key, Day: a.Chain.Day}
		_, err := h.n.store.Update(have.PairID, func(d *registry.Device) { d.Next = next })
		h.n.reloadPeer(have.PairID)
		return err // the answer may be lost: it keeps the keys that it has
	}
	member := memberRecord(rec, a.Member, a.Chain, a.PairID, false, methodJoin)
	member.OS, member.Endpoints = a.Info.OS, a.Info.Endpoints[:min(len(a.Info.Endpoints), maxEndpoints)]
	if err := h.n.setMember(member); err != nil {
		h.r.tellHost(h.id, rec.Roster) // in which it is
		return err
	}
	if now, ok := h.n.store.MemberByID(a.Member.ID); ok {
		h.n.startPeer(now)
	}
	return nil
}

// inherit gives a member the keys that it was let in with again, since it was heard to use
// them.
func (r *rooms) inherit(id identity.DeviceID, next registry.NextKeys) {
	r.change.Lock()
	defer r.change.Unlock()
	rec, ok := r.n.store.MemberByID(id)
	if !ok || rec.Next != next {
		return
	}
	rec.PairID, rec.Chain, rec.ChainDay, rec.Next = next.PairID, next.Chain, next.Day, registry.NextKeys{}
	rec.Joiner, rec.Method = false, methodJoin
	if err := r.n.setMember(rec); err != nil {
		r.n.cfg.Logger.Error("member's new keys not stored", "peer", id.Short(), "err", err)
		return
	}
	if now, ok := r.n.store.MemberByID(id); ok {
		r.n.startPeer(now)
	}
}

// keepWaiting remembers who waits for the user.
func (h *hosting) keepWaiting() {
	waiting := h.machine.Waiting()
	err := h.r.store.Update(h.id, func(rec *room.Record) error { rec.Waiting = waiting; return nil })
	if err != nil {
		h.n.cfg.Logger.Warn("requests not stored", "room", h.id.String(), "err", err)
	}
}

func (h *hosting) guard(a room.Action) {
	err := h.r.store.Update(h.id, func(rec *room.Record) error { rec.Guard = a.Guard; return nil })
	if err != nil {
		h.n.cfg.Logger.Error("wrong passwords not counted", "room", h.id.String(), "err", err)
	}
	text := "somebody tried a wrong password"
	switch a.Notice {
	case room.Throttled:
		text = "many wrong passwords were tried: until that ends you are asked about everybody who joins"
	case room.ShortVoid:
		text = fmt.Sprintf("%d wrong passwords were tried: the short code is void; the long one still works", room.ShortGuesses)
	case room.WrongGuess:
	}
	h.r.tell(h.id, EventRoomGuess, text)
}

// A parting is a device's end in a room: it may come again, under another number.
type parting struct {
	room room.ID
	gone room.Gone
}

// parted returns a device's last end in a room that this one hosts.
func (r *rooms) parted(rec room.Record, id identity.DeviceID) (parting, bool) {
	if !rec.Host || rec.Roster == nil {
		return parting{}, false
	}
	if m, in := rec.Roster.Member(id); in {
		return parting{rec.Room, room.Gone{ID: id, Number: m.Number}}, rec.Roster.Closed
	}
	for _, g := range slices.Backward(rec.Roster.Gone) {
		if g.ID == id {
			return parting{rec.Room, g}, true
		}
	}
	return parting{}, false
}

// owed reports whether a device is still to be told that it is out of a room, or that the
// room is closed.
func (r *rooms) owed(have registry.Device) bool {
	rec, ok := r.get(have.Room)
	if !ok {
		return false
	}
	end, ok := r.parted(rec, have.ID)
	r.mu.Lock()
	defer r.mu.Unlock()
	return ok && !r.leaving[end]
}

// partTime is how long a device that is out of a room stays connected to be told so.
const partTime = 2 * time.Second

// removed are the notices for a device that is no member any more.
func (r *rooms) removed(peer identity.DeviceID) (out [][]byte) {
	for _, rec := range r.here() {
		if _, ok := r.parted(rec, peer); !ok || inRoom(rec, peer) {
			continue
		}
		if notice, err := rec.Roster.SignRemoval(r.n.id, peer); err == nil {
			out = append(out, notice)
		}
	}
	r.part(peer)
	return out
}

// part drops a device soon from the rooms of this one's that it is out of, or that are
// closed.
func (r *rooms) part(peer identity.DeviceID) {
	for _, rec := range r.here() {
		if end, ok := r.parted(rec, peer); ok {
			r.partFrom(end)
		}
	}
}

func (r *rooms) partFrom(end parting) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, begun := r.leaving[end]; begun {
		return
	}
	r.leaving[end] = false
	_ = r.n.start(func() { // errs when the node is closed
		select {
		case <-r.n.ctx.Done():
			return
		case <-time.After(partTime):
		}
		r.mu.Lock()
		r.leaving[end] = true
		r.mu.Unlock()
		r.reconcile()
	})
}

// takeRemoved judges the word of a host that this device is no member any more.
func (r *rooms) takeRemoved(_ identity.DeviceID, notice []byte) {
	id, err := room.RemovalRoom(notice)
	if err != nil {
		return
	}
	rec, ok := r.get(id)
	if !ok || rec.Roster == nil {
		return
	}
	banned, err := rec.Roster.CheckRemoval(r.n.ID(), notice)
	if err != nil {
		r.n.cfg.Logger.Debug("removal not taken", "room", id.String(), "err", err)
		return
	}
	if err := r.leave(id); err != nil {
		r.n.cfg.Logger.Error("room not left", "room", id.String(), "err", err)
		return
	}
	why := "a host removed this device"
	if banned {
		why = "a host banned this device"
	}
	r.tell(id, EventRoomLeft, why)
}

// leave makes this device no member of a room any more.
func (r *rooms) leave(id room.ID) error {
	r.change.Lock()
	err := r.store.Update(id, func(rec *room.Record) error {
		rec.Left = time.Now().UTC()
		return nil
	})
	r.change.Unlock()
	if err != nil {
		return err
	}
	r.stopHosting(id) // not under the lock, which it may wait for
	r.n.endWithdrawn()
	r.reconcile()
	r.mesh.Changed()
	return nil
}

// leaveTime is how long a host may take to let a member go.
const leaveTime = 3 * time.Second

// tellLeave tells a host that this device leaves a room, so that no member looks for it any
// more. It reports whether one has taken it off the roster.
func (r *rooms) tellLeave(ctx context.Context, rec room.Record) bool {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	for _, h := range rec.Roster.Hosts {
		dev, ok := r.n.party(h.ID)
		if h.ID == r.n.ID() || !ok || !r.n.device(dev).Connected {
			continue
		}
		if err := r.mesh.Leave(ctx, h.ID, rec.Room); err == nil {
			return true
		}
	}
	return false
}

// left takes a member off the roster that says itself that it leaves.
func (r *rooms) left(from identity.DeviceID, id [16]byte) bool {
	_, err := r.n.edit(room.ID(id).String(), func(now *room.Roster) (*room.Roster, error) { return now.Remove(from, false, nil) })
	return err == nil
}
