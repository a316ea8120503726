package control

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/room"
)

// A RoomRequest is what is asked about rooms. Secrets in it are never in a log.
type RoomRequest struct {
	Verb     string   `json:"verb,omitempty"` // of OpRoom
	Room     string   `json:"room,omitempty"` // its name, or the start of its id
	Name     string   `json:"name,omitempty"` // of a new room, or another for one
	Member   string   `json:"member,omitempty"`
	Mode     string   `json:"mode,omitempty"` // approve, password, list or open
	Password string   `json:"password,omitempty"`
	Devices  []string `json:"devices,omitempty"` // whom list admits
	Short    bool     `json:"short,omitempty"`
	Off      bool     `json:"off,omitempty"` // takes back what the verb gives
	Port     Port     `json:"port,omitzero"`
}

// The verbs of OpRoom.
const (
	RoomShow    = "show"
	RoomCode    = "code"
	RoomApprove = "approve"
	RoomDecline = "decline"
	RoomKick    = "kick"
	RoomBan     = "ban" // Off: the device may ask again
	RoomLeave   = "leave"
	RoomClose   = "close"
	RoomRename  = "rename"
	RoomAdmit   = "admit" // whom, by Mode
	RoomHost    = "host"
	RoomShare   = "share"
)

// A RoomInvite is a room's code to show.
type RoomInvite struct {
	Words string `json:"words"`
	URI   string `json:"uri"`
	Short string `json:"short,omitempty"` // digits, for those who know the password
}

func (s *Server) rooms(ctx context.Context, req Request) (Reply, error) {
	q := req.Room
	if q == nil {
		q = &RoomRequest{}
	}
	switch req.Op {
	case OpRooms:
		return Reply{Rooms: append([]kith.Room{}, s.node.Rooms()...)}, nil
	case OpRoomMake:
		return s.makeRoom(q)
	}
	if q.Verb == RoomLeave {
		return s.leaveRoom(ctx, q)
	}
	r, err := s.changeRoom(q)
	if err != nil {
		return Reply{}, err
	}
	out := Reply{Room: r}
	if q.Verb == RoomCode {
		out.Invite, err = s.invite(r.ID.String())
	}
	return out, err
}

func (s *Server) makeRoom(q *RoomRequest) (Reply, error) {
	cfg := kith.CreateRoomConfig{Name: q.Name, Password: q.Password, Short: q.Short}
	if q.Mode != "" {
		var err error
		if cfg.Mode, err = room.ParseMode(q.Mode); err != nil {
			return Reply{}, usageError(err)
		}
	}
	for _, ref := range q.Devices {
		id, err := s.deviceID(ref)
		if err != nil {
			return Reply{}, err
		}
		cfg.List = append(cfg.List, id)
	}
	r, err := s.node.CreateRoom(cfg)
	if err != nil {
		return Reply{}, err
	}
	invite, err := s.invite(r.ID.String())
	return Reply{Room: &r, Invite: invite}, err
}

// deviceID is that of a paired device, or an ID written out.
func (s *Server) deviceID(ref string) (identity.DeviceID, error) {
	if id, err := identity.ParseDeviceID(ref); err == nil {
		return id, nil
	}
	d, err := s.node.Device(ref)
	return d.ID, err
}

func (s *Server) invite(ref string) (*RoomInvite, error) {
	long, short, err := s.node.RoomCode(ref)
	if err != nil {
		return nil, err
	}
	return &RoomInvite{Words: long.Words(), URI: long.URI(), Short: short.Short()}, nil
}

// leaveRoom leaves a room; the reply says whether a host knows.
func (s *Server) leaveRoom(ctx context.Context, q *RoomRequest) (Reply, error) {
	r, err := s.node.Room(q.Room)
	if err != nil {
		return Reply{}, err
	}
	told, err := s.node.LeaveRoom(ctx, r.ID.String())
	return Reply{Room: &r, Told: told}, err
}

func (s *Server) changeRoom(q *RoomRequest) (*kith.Room, error) {
	var r kith.Room
	var err error
	switch q.Verb {
	case RoomShow, RoomCode:
		r, err = s.node.Room(q.Room)
	case RoomApprove, RoomDecline:
		r, err = s.node.DecideRoom(q.Room, q.Member, q.Verb == RoomApprove)
	case RoomKick:
		r, err = s.node.KickMember(q.Room, q.Member, false)
	case RoomBan:
		if q.Off {
			r, err = s.node.UnbanMember(q.Room, q.Member)
		} else {
			r, err = s.node.KickMember(q.Room, q.Member, true)
		}
	case RoomClose:
		r, err = s.node.CloseRoom(q.Room)
	case RoomRename:
		r, err = s.node.RenameRoom(q.Room, q.Name)
	case RoomAdmit:
		var mode room.Mode
		if mode, err = room.ParseMode(q.Mode); err != nil {
			return nil, usageError(err)
		}
		r, err = s.node.SetRoomMode(q.Room, mode)
	case RoomHost:
		if q.Off {
			r, err = s.node.DropRoomHost(q.Room, q.Member)
		} else {
			r, err = s.node.AddRoomHost(q.Room, q.Member)
		}
	case RoomShare:
		r, err = s.node.ShareRoomPort(q.Room, q.Port.Network, q.Port.Number, !q.Off)
	default:
		err = &Error{Kind: KindUsage, Text: fmt.Sprintf("rooms have no %q", q.Verb)}
	}
	return &r, err
}

// joinRoom asks to be let into a room; the client gives the password when it is asked for,
// and cancels by going away.
func (s *Server) joinRoom(st *stream, req Request) (Reply, error) {
	c, err := code.ParseRoom(req.Code)
	if err != nil {
		return Reply{}, err
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	in := inputs(ctx, st)
	cfg := kith.JoinRoomConfig{Patience: req.Wait}
	if req.Room != nil {
		cfg.Password = req.Room.Password
	}
	j, err := s.node.JoinRoom(ctx, c, cfg)
	if err != nil {
		return Reply{}, err
	}
	defer j.Close()
	steps := j.Steps()
	for {
		select {
		case kind, ok := <-steps:
			if !ok {
				r, err := j.Wait(ctx)
				if err != nil {
					return Reply{}, err
				}
				r = s.settleRoom(ctx, r)
				return Reply{Room: &r}, nil
			}
			if st.send(Reply{Step: kind.String()}) != nil {
				return Reply{}, errTaken
			}
		case i, ok := <-in:
			if !ok || i.Cancel {
				return Reply{}, errTaken
			}
			if err := j.Password(i.Text); err != nil {
				return Reply{}, err
			}
		case <-s.ctx.Done():
			return Reply{}, &Error{Kind: KindOther, Text: "the daemon is stopping"}
		}
	}
}

// settleRoom waits a moment until this device is connected to the host that let it in, and
// knows who is in the room. It goes on by itself later.
func (s *Server) settleRoom(ctx context.Context, r kith.Room) kith.Room {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	events, stop := s.node.Events()
	defer stop()
	for {
		now, err := s.node.Room(r.ID.String())
		if err != nil {
			return r
		}
		r = now
		if r.Mode != "" && slices.ContainsFunc(r.Members, func(m kith.RoomMember) bool { return m.Host && m.Direct }) {
			return r // the roster is there
		}
		select {
		case <-ctx.Done():
			return r
		case _, ok := <-events:
			if !ok {
				return r
			}
		}
	}
}

func usageError(err error) *Error { return &Error{Kind: KindUsage, Text: plain(err)} }

// explainRoom turns what may go wrong with rooms into what a person can act on; nil: it is
// nothing of these.
func explainRoom(err error) *Error {
	var out *kith.RoomError
	if errors.As(err, &out) {
		return explainJoin(out.Reason)
	}
	for _, c := range []struct {
		err  error
		kind Kind
		hint string
	}{
		{room.ErrNotFound, KindNotFound, "kith room lists those that this device is in"},
		{room.ErrNoMember, KindNotFound, "kith room show ROOM lists its members"},
		{room.ErrNoRequest, KindNotFound, "kith room show ROOM lists who asks to be let in"},
		{room.ErrNotHost, KindDenied, "only a host of the room can do that"},
		{room.ErrPassword, KindUsage, ""},
		{room.ErrConfig, KindUsage, ""},
		{room.ErrFull, KindRefused, ""},
		{room.ErrClosed, KindRefused, ""},
	} {
		if errors.Is(err, c.err) {
			return &Error{Kind: c.kind, Text: plain(err), Hint: c.hint}
		}
	}
	return nil
}

func explainJoin(why room.Reason) *Error {
	e := &Error{Kind: KindRefused, Text: why.String()}
	switch why {
	case room.Expired: // a host was met
		e.Kind = KindNotFound
		e.Hint = "kith room join again; --wait 5m leaves more time, also to type the password"
	case room.NobodyThere:
		e.Kind = KindNotFound
		e.Hint = "is kith up running on the room's host, on the same network or a common broker, and is this its code?"
	case room.WrongPassword:
		e.Hint = "ask for the password again; a few wrong ones void a short code"
	case room.WrongHost, room.TooManyHosts:
		e.Hint = "somebody may be playing the host: ask for the 12 words by another way"
	case room.NotListed:
		e.Hint = "ask the host to add this device: kith status shows its ID"
	case room.Self:
		e.Kind = KindUsage
	case room.Banned, room.Closed, room.Full, room.Declined, room.Busy, room.CodeVoid, room.Again:
	}
	return e
}
