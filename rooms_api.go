package kith

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/room"
)

// A Room is what this device knows of a room that it is in.
type Room struct {
	ID      room.ID      `json:"id"`
	Name    string       `json:"name"`
	Mode    string       `json:"mode"` // whom the host admits: approve, password, list or open
	Created time.Time    `json:"created,omitzero"`
	Host    bool         `json:"host"`              // this device lets others in
	Founder bool         `json:"founder"`           // this device founded it
	Closed  bool         `json:"closed,omitempty"`  // nobody is let in any more, and members are apart
	Members []RoomMember `json:"members"`           // by number, this device included; at first the host alone
	Waiting []RoomGuest  `json:"waiting,omitempty"` // who asks to be let in, on a host
	Banned  []string     `json:"banned,omitempty"`  // devices that are refused
	TCP     []uint16     `json:"tcp,omitempty"`     // ports of this machine that every member may reach
	UDP     []uint16     `json:"udp,omitempty"`     // the same of UDP
}

// A RoomMember is a device in a room.
type RoomMember struct {
	ID     identity.DeviceID `json:"id"`
	Name   string            `json:"name"`   // unique in the room
	Number uint32            `json:"number"` // index in the room, from 1; never given to another
	Addr   netip.Addr        `json:"addr"`   // inside the tunnel, derived from its ID: always its own
	Host   bool              `json:"host"`   // it lets others in
	Self   bool              `json:"self"`   // it is this device
	Paired bool              `json:"paired"` // it is a paired device, too
	Online bool              `json:"online"` // this device is connected to it, or a member that is
	Direct bool              `json:"direct"` // this device is connected to it
	Added  time.Time         `json:"added,omitzero"`
}

// A RoomGuest is a device that asks to be let in.
type RoomGuest struct {
	ID       identity.DeviceID `json:"id"`
	Name     string            `json:"name"`
	OS       string            `json:"os,omitempty"`
	Password bool              `json:"password"` // it knew the room's password
}

// CreateRoomConfig says what a room is to be. The zero value asks this device's user about
// each who wants to join.
type CreateRoomConfig struct {
	Name string // default: "room"
	// Mode says who is admitted. Default: room.Password if there is a password, else
	// room.Approve.
	Mode     room.Mode
	Password string
	List     []identity.DeviceID // whom room.List admits
	Short    bool                // a code of 7 digits beside the long one; needs a password
}

// CreateRoom founds a room with this device in it, which hosts it from now on. It errs for
// a password that cannot be used, and if the room cannot be made durable.
func (n *Node) CreateRoom(cfg CreateRoomConfig) (Room, error) {
	if cfg.Mode == 0 {
		cfg.Mode = room.Approve
		if cfg.Password != "" {
			cfg.Mode = room.Password
		}
	}
	roster, err := room.Found(n.id, cfg.Name, n.cfg.Name, cfg.Mode, time.Now(), nil)
	if err != nil {
		return Room{}, fmt.Errorf("kith: %w", err)
	}
	rec := room.Record{Room: roster.Room, Roster: roster, Host: true, Password: cfg.Password, List: cfg.List}
	if cfg.Short {
		if rec.Short, err = code.NewRoomShort(nil); err != nil {
			return Room{}, err
		}
	}
	r := n.rooms
	r.change.Lock()
	defer r.change.Unlock()
	if err := errors.Join(canAdmit(cfg.Mode, cfg.Password), r.check(rec)); err != nil {
		return Room{}, err
	}
	if err := r.store.Put(rec); err != nil {
		return Room{}, fmt.Errorf("kith: %w", err)
	}
	if err := r.startHosting(rec); err != nil {
		return Room{}, err
	}
	return n.room(rec), nil
}

// check errs if a record cannot be hosted.
func (r *rooms) check(rec room.Record) error {
	_, err := room.NewHost(room.HostConfig{
		Identity: r.n.id, Roster: rec.Roster, Password: rec.Password, Short: rec.Short, List: rec.List, Info: r.n.roomInfo(),
	})
	if err != nil {
		return fmt.Errorf("kith: %w", err)
	}
	return nil
}

// canAdmit errs for password mode without a password.
func canAdmit(mode room.Mode, password string) error {
	if mode == room.Password && password == "" {
		return fmt.Errorf("kith: %w: password mode needs a password, which is given when a room is created", room.ErrConfig)
	}
	return nil
}

// RoomCode returns the code of a room that this device is in; short is the zero Room if
// there is none. It errs if there is no such room.
func (n *Node) RoomCode(ref string) (long, short code.Room, err error) {
	rec, err := n.findRoom(ref)
	if err != nil {
		return long, short, err
	}
	opts := code.RoomOptions{Hints: n.hintHubs()}
	if rec.Host {
		opts.Endpoints = n.mediaEndpoints()
	}
	long, err = code.NewRoom(rec.Room, opts)
	if err != nil && len(opts.Hints) > 0 { // no room: the LAN is worth more
		opts.Hints = nil
		long, err = code.NewRoom(rec.Room, opts)
	}
	if rec.Host && !rec.Guard.Void {
		short = rec.Short
	}
	return long, short, err
}

// Rooms returns the rooms that this device is in, by name.
func (n *Node) Rooms() []Room {
	var out []Room
	for _, rec := range n.rooms.here() {
		out = append(out, n.room(rec))
	}
	slices.SortFunc(out, func(a, b Room) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Room returns the room with a name or the start of an id. It errs with room.ErrNotFound,
// also if several fit.
func (n *Node) Room(ref string) (Room, error) {
	rec, err := n.findRoom(ref)
	if err != nil {
		return Room{}, err
	}
	return n.room(rec), nil
}

func roomName(rec room.Record) string {
	if rec.Roster != nil {
		return rec.Roster.Name
	}
	return rec.Grant.RoomName
}

// minRoomRef is how much of an id must be given, in characters.
const minRoomRef = 4

// choose returns what a reference fits: that with this id, or else those with this name or
// this start of their id. Who gives itself a name that looks like the start of another's id
// makes it fit two.
func choose[T any](all []T, ref string, id, name func(T) string) (fit []T) {
	low := strings.ToLower(ref)
	for _, x := range all {
		switch {
		case id(x) == low:
			return []T{x}
		case strings.EqualFold(name(x), ref) || len(low) >= minRoomRef && strings.HasPrefix(id(x), low):
			fit = append(fit, x)
		}
	}
	return fit
}

func (n *Node) findRoom(ref string) (room.Record, error) {
	fit := choose(n.rooms.here(), ref, func(rec room.Record) string { return rec.Room.String() }, roomName)
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return room.Record{}, fmt.Errorf("kith: %w: %q", room.ErrNotFound, ref)
	}
	return room.Record{}, fmt.Errorf("kith: %w that %q names alone: several are called so, give the start of an id", room.ErrNotFound, ref)
}

func (n *Node) room(rec room.Record) Room {
	out := Room{ID: rec.Room, Name: roomName(rec), Host: rec.Host, TCP: rec.TCP, UDP: rec.UDP}
	self := n.ID()
	if rec.Roster == nil {
		g := rec.Grant
		out.Members = []RoomMember{
			n.roomMember(room.Member{ID: g.Host, Name: g.HostInfo.Name, Number: 1}, true),
			n.roomMember(room.Member{ID: self, Name: g.Name, Number: g.Number}, false),
		}
		return out
	}
	r := rec.Roster
	out.Mode, out.Created, out.Founder, out.Closed = r.Mode.String(), r.Created, r.Founder() == self, r.Closed
	for _, m := range r.Members {
		out.Members = append(out.Members, n.roomMember(m, r.IsHost(m.ID)))
	}
	if !rec.Host {
		return out
	}
	for _, q := range rec.Waiting {
		out.Waiting = append(out.Waiting, RoomGuest{ID: q.ID, Name: q.Info.Name, OS: q.Info.OS, Password: q.Password})
	}
	for _, id := range r.Bans {
		out.Banned = append(out.Banned, id.String())
	}
	return out
}

func (n *Node) roomMember(m room.Member, host bool) RoomMember {
	out := RoomMember{ID: m.ID, Name: m.Name, Number: m.Number, Addr: m.ID.Addr(), Host: host, Self: m.ID == n.ID(), Added: m.Added}
	if out.Self {
		out.Online = true
		return out
	}
	if rec, ok := n.known(m.ID); ok {
		d := n.device(rec)
		out.Direct, out.Paired = d.Connected, d.State == Paired
	}
	_, by := n.rooms.mesh.Near(m.ID)
	out.Online = out.Direct || len(by) > 0
	return out
}

// findMember returns a member of a room by its number, as in "#2", its id, or its name in
// the room or the start of its id, if that fits no other.
func findMember(roster *room.Roster, ref string) (room.Member, error) {
	if roster == nil {
		return room.Member{}, room.ErrNoMember
	}
	for _, m := range roster.Members {
		if fmt.Sprint("#", m.Number) == ref {
			return m, nil
		}
	}
	fit := choose(roster.Members, ref, func(m room.Member) string { return m.ID.String() }, func(m room.Member) string { return m.Name })
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return room.Member{}, fmt.Errorf("%w: %q", room.ErrNoMember, ref)
	}
	return room.Member{}, fmt.Errorf("%w that %q names alone: give its number, as in #%d", room.ErrNoMember, ref, fit[0].Number)
}

// edit changes a room's roster as its host, and tells all. It errs with room.ErrNotHost on
// another device, and with what change says.
func (n *Node) edit(ref string, change func(*room.Roster) (*room.Roster, error)) (Room, error) {
	rec, err := n.findRoom(ref)
	if err != nil {
		return Room{}, err
	}
	r := n.rooms
	r.change.Lock()
	var next *room.Roster
	rekeyed := false
	err = r.store.Update(rec.Room, func(now *room.Record) error {
		if !now.Host || now.Roster == nil {
			return room.ErrNotHost
		}
		if !now.Roster.MaySign(n.ID(), wire.Day(time.Now())) {
			return fmt.Errorf("%w any more: the time for which the founder named it is over", room.ErrNotHost)
		}
		var err error
		if next, err = change(now.Roster); err != nil || next == now.Roster {
			return err
		}
		if now.Roster.Mode != next.Mode {
			if err := canAdmit(next.Mode, now.Password); err != nil {
				return err
			}
		}
		if now.Roster.Founder() == n.ID() && slices.ContainsFunc(now.Roster.Hosts, func(h room.HostEntry) bool { return !next.IsHost(h.ID) }) {
			next.Outrun()
		}
		if err = next.Sign(n.id); err != nil {
			return err
		}
		rekeyed = next.Epoch != now.Roster.Epoch
		r.follow(now, next)
		return nil
	})
	r.change.Unlock()
	if err != nil {
		return Room{}, fmt.Errorf("kith: %w", err)
	}
	r.tellHost(rec.Room, next)
	r.spread(rec.Room, rekeyed)
	return n.Room(rec.Room.String())
}

// RenameRoom gives a room another name. Of this and what follows: it errs if there is no
// such room, this device is no host of it, or the change cannot be made durable.
func (n *Node) RenameRoom(ref, name string) (Room, error) {
	return n.edit(ref, func(r *room.Roster) (*room.Roster, error) { return r.Rename(name), nil })
}

// SetRoomMode says whom a room admits from now on. It errs as RenameRoom does.
func (n *Node) SetRoomMode(ref string, mode room.Mode) (Room, error) {
	return n.edit(ref, func(r *room.Roster) (*room.Roster, error) { return r.SetMode(mode) })
}

// KickMember puts a member out of a room, which gets a new secret; with ban the device is
// refused from now on. A room that was open to whoever has the code asks its host about
// each from now on, since the one who is out has the code. It errs as RenameRoom does, and
// with room.ErrNoMember.
func (n *Node) KickMember(ref, member string, ban bool) (Room, error) {
	return n.edit(ref, func(r *room.Roster) (*room.Roster, error) {
		m, err := findMember(r, member)
		if err != nil {
			return nil, err
		}
		next, err := r.Remove(m.ID, ban, nil)
		if err == nil && next.Mode == room.Open {
			next.Mode = room.Approve
		}
		return next, err
	})
}

// UnbanMember lets a device that was banned ask again, by the start of its id. It errs as
// RenameRoom does.
func (n *Node) UnbanMember(ref, device string) (Room, error) {
	return n.edit(ref, func(r *room.Roster) (*room.Roster, error) {
		fit := choose(r.Bans, device, identity.DeviceID.String, identity.DeviceID.String)
		if len(fit) != 1 {
			return nil, room.ErrNoMember
		}
		return r.Unban(fit[0])
	})
}

// hostDays is for how long another host is named, in days.
const hostDays = room.MaxHostDays

// AddRoomHost makes a member a host, too: it lets others in, and puts members out, also
// while this device is away. Only the founder names hosts, for 90 days at a time. It errs
// as RenameRoom does.
func (n *Node) AddRoomHost(ref, member string) (Room, error) {
	return n.edit(ref, func(r *room.Roster) (*room.Roster, error) {
		m, err := findMember(r, member)
		if err != nil {
			return nil, err
		}
		today := time.Now().Unix() / 86400
		return r.AddHost(n.id, m.ID, today, today+hostDays)
	})
}

// DropRoomHost takes that back. It errs as RenameRoom does.
func (n *Node) DropRoomHost(ref, member string) (Room, error) {
	return n.edit(ref, func(r *room.Roster) (*room.Roster, error) {
		m, err := findMember(r, member)
		if err != nil {
			return nil, err
		}
		return r.DropHost(m.ID)
	})
}

// CloseRoom ends a room for all its members. It errs as RenameRoom does.
func (n *Node) CloseRoom(ref string) (Room, error) {
	return n.edit(ref, func(r *room.Roster) (*room.Roster, error) { return r.Close(nil) })
}

// DecideRoom lets a device in that asks to be let into a room, or not; it is named by its
// name or the start of its id. It errs as RenameRoom does, and with room.ErrNoRequest.
func (n *Node) DecideRoom(ref, guest string, admit bool) (Room, error) {
	rec, err := n.findRoom(ref)
	if err != nil {
		return Room{}, err
	}
	h := n.rooms.hosting(rec.Room)
	if h == nil {
		return Room{}, fmt.Errorf("kith: %w", room.ErrNotHost)
	}
	err = room.ErrNoRequest
	h.call(func() {
		fit := choose(h.machine.Waiting(), guest, func(q room.Request) string { return q.ID.String() }, func(q room.Request) string { return q.Info.Name })
		if len(fit) == 1 {
			err = h.machine.Decide(time.Now(), fit[0].ID, admit)
			h.keepWaiting()
		}
	})
	if err != nil {
		return Room{}, fmt.Errorf("kith: %w: %q", err, guest)
	}
	return n.Room(rec.Room.String())
}

// ShareRoomPort lets every member of a room reach a port of this machine's localhost, of
// the network "tcp" or "udp", or no longer. It errs if there is no such room, or the change
// cannot be made durable.
func (n *Node) ShareRoomPort(ref, network string, port uint16, yes bool) (Room, error) {
	rec, err := n.findRoom(ref)
	if err != nil {
		return Room{}, err
	}
	r := n.rooms
	r.change.Lock()
	err = r.store.Update(rec.Room, func(now *room.Record) error { return now.Share(network, port, yes) })
	r.change.Unlock()
	if err != nil {
		return Room{}, fmt.Errorf("kith: %w", err)
	}
	n.endWithdrawn()
	return n.Room(rec.Room.String())
}

// LeaveRoom takes this device out of a room, and tells a host that is connected, before ctx
// ends, so that the others do not look for it any more; told says whether one knows. Where
// none does, this device stays on the roster until a host puts it out. The founder cannot
// leave; it can close the room, after which LeaveRoom forgets it. It errs with
// room.ErrNotFound, and if that cannot be made durable.
func (n *Node) LeaveRoom(ctx context.Context, ref string) (told bool, err error) {
	rec, err := n.findRoom(ref)
	if err != nil {
		return false, err
	}
	switch {
	case rec.Roster == nil || rec.Roster.Closed:
		told = true // nobody counts on this device there
	case rec.Roster.Founder() == n.ID():
		return false, errors.New("kith: the founder does not leave a room: close it")
	default:
		told = n.rooms.tellLeave(ctx, rec)
	}
	if err := n.rooms.leave(rec.Room); err != nil {
		return told, err
	}
	n.rooms.tell(rec.Room, EventRoomLeft, "left")
	return told, nil
}
