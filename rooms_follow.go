package kith

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/room"
)

// takeRoster judges a roster that another member has.
func (r *rooms) takeRoster(_ identity.DeviceID, id [16]byte, raw []byte) {
	rec, ok := r.get(id)
	if !ok || slices.ContainsFunc(r.encode(rec), func(have []byte) bool { return bytes.Equal(have, raw) }) {
		return
	}
	next, err := room.DecodeRoster(raw)
	if err != nil {
		return
	}
	changed, rekeyed, err := r.adopt(rec, next)
	if err != nil {
		if !errors.Is(err, room.ErrOlder) {
			r.n.cfg.Logger.Warn("roster not taken", "room", room.ID(id).String(), "err", err)
		}
		return
	}
	if changed {
		r.spread(id, rekeyed)
	}
}

// adopt makes a roster that somebody else has signed this device's. The many signatures in
// it are judged while others may change the room; if they did, once more.
func (r *rooms) adopt(rec room.Record, next *room.Roster) (changed, rekeyed bool, err error) {
	for {
		both, err := r.judge(rec, next)
		r.change.Lock()
		now, ok := r.get(rec.Room)
		if ok && (now.Roster != rec.Roster || now.Base != rec.Base) {
			r.change.Unlock()
			rec = now
			continue
		}
		defer r.change.Unlock()
		switch {
		case !ok:
			return false, false, room.ErrNoMember
		case err != nil:
			return false, false, err
		}
		err = r.store.Update(rec.Room, func(rec *room.Record) error {
			if rec.Host && rec.Roster != nil {
				rec.Took(next)
			}
			if both != rec.Roster {
				r.follow(rec, both)
			}
			return nil
		})
		if err != nil || both == rec.Roster {
			return false, false, err
		}
		r.tellHost(rec.Room, both)
		return true, rec.Roster != nil && rec.Roster.Epoch != both.Epoch, nil
	}
}

// judge returns what a device with a record follows from now on when it is given a roster:
// that, the one it has, or as a host what it signs itself of both.
func (r *rooms) judge(rec room.Record, next *room.Roster) (*room.Roster, error) {
	self, today := r.n.ID(), wire.Day(time.Now())
	if err := next.Within(rec.Founders(), self, today); err != nil {
		return nil, err
	}
	host := rec.Host && rec.Roster != nil && rec.Roster.MaySign(self, today)
	switch err := next.Verify(rec.Roster, rec.Room); {
	case err == nil:
	case next.Signer == self || rec.HasTaken(next):
		return nil, room.ErrOlder // what it says was taken before, and may be undone since
	case host && (errors.Is(err, room.ErrOlder) || errors.Is(err, room.ErrBack)):
		if err := next.Authentic(rec.Roster, rec.Room); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	if !host {
		return next, nil
	}
	both, err := room.Merge(rec.Roster, next, nil)
	switch {
	case err != nil || both == rec.Roster:
		return both, err
	case both == next && next.MaySign(next.Signer, today), !both.IsHost(self):
		return next, nil
	case both == next: // its signer's time is over: only the founder gets here
		both = next.Rename(next.Name)
	}
	return both, both.Sign(r.n.id)
}

// follow makes a record that of a newer roster.
func (r *rooms) follow(rec *room.Record, next *room.Roster) {
	switch {
	case next.Signer == next.Founder():
		rec.Base = nil
	case rec.Roster != nil && rec.Roster.Signer == rec.Roster.Founder():
		rec.Base = rec.Roster // who has not heard of the host that signed next takes this first
	}
	rec.Roster, rec.Host = next, next.IsHost(r.n.ID())
}

// spread follows a change of a room: word to all, and then links to who is new.
func (r *rooms) spread(id room.ID, rekeyed bool) {
	r.n.endWithdrawn()
	r.mesh.Changed()
	r.tell(id, EventRoom, "")
	r.reconcileSoon(id, rekeyed)
}

// settleRoom is how long a large room may take to follow a change: when many join at
// once, each would change whom all others connect to. It is, too, how long word of a
// change of keys has to get out over the connections that the old keys made.
const settleRoom = time.Second

// reconcileSoon is reconcile, now for a small room, and a moment later for a large one and
// for new keys.
func (r *rooms) reconcileSoon(id room.ID, rekeyed bool) {
	rec, ok := r.get(id)
	r.mu.Lock()
	if r.due {
		r.mu.Unlock()
		return
	}
	if !rekeyed && (!ok || rec.Roster == nil || len(rec.Roster.Members) <= fullMesh) {
		r.mu.Unlock()
		r.reconcile()
		return
	}
	defer r.mu.Unlock()
	err := r.n.start(func() {
		select {
		case <-r.n.ctx.Done():
			return
		case <-time.After(settleRoom):
		}
		r.mu.Lock()
		r.due = false
		r.mu.Unlock()
		r.reconcile()
	})
	r.due = err == nil
}

// tell publishes an event of a room.
func (r *rooms) tell(id room.ID, kind EventKind, detail string) { r.tellOf(id, kind, "", detail) }

// tellOf is tell with a subject.
func (r *rooms) tellOf(id room.ID, kind EventKind, subject, detail string) {
	info, err := r.n.Room(id.String())
	if err != nil {
		info = Room{ID: id} // one that this device is not in any more
		if rec, ok := r.store.Get(id); ok && rec.Roster != nil {
			info.Name = rec.Roster.Name
		}
	}
	r.n.events.publish(Event{Time: time.Now(), Kind: kind, Room: &info, Subject: subject, Detail: detail})
}

// lags reports whether a member that is away has to be met with the keys of an epoch before,
// since it cannot know those of this one: its host is who tells it.
func (r *rooms) lags(rec room.Record, have registry.Device, m room.Member, pairID registry.PairID) bool {
	lags := have.Method == methodRoom && have.WireGuard == m.WireGuard && have.PairID != pairID && !r.reached(have)
	r.mu.Lock()
	defer r.mu.Unlock()
	if lags {
		r.behind[m.ID] = rec.Room
	} else {
		delete(r.behind, m.ID)
	}
	return lags
}

// reached reports whether a member is connected to this device or to one that is: it hears
// of the newest roster then.
func (r *rooms) reached(have registry.Device) bool {
	direct, by := r.mesh.Near(have.ID)
	return direct || len(by) > 0 || r.n.device(have).Connected
}

// catchUp takes up the new keys with members that have come back, when they have heard.
func (r *rooms) catchUp() {
	r.mu.Lock()
	behind := maps.Clone(r.behind)
	r.mu.Unlock()
	for id, in := range behind {
		if have, ok := r.n.store.MemberByID(id); !ok {
			r.mu.Lock()
			delete(r.behind, id)
			r.mu.Unlock()
		} else if r.reached(have) {
			r.reconcileSoon(in, true)
		}
	}
}
