package kith

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/room"
)

// JoinRoomConfig says how to join a room. The zero value looks for the host for a minute.
type JoinRoomConfig struct {
	// Password is the room's, or "": then an event asks for it if the room has one.
	Password string
	// Patience is how long to look for a host, without the time that the user takes for the
	// password. Default one minute.
	Patience time.Duration
	// Exchange is the only medium to use, in place of the node's; the caller closes it.
	Exchange rendezvous.Exchange
}

// A RoomError says why a device is not in a room.
type RoomError struct{ Reason room.Reason }

// Error says it in a few words.
func (e *RoomError) Error() string { return "kith: not in the room: " + e.Reason.String() }

// A RoomJoin is a device on its way into a room. Its methods are safe for concurrent use.
type RoomJoin struct {
	*topicLoop
	machine *room.Joiner // of the loop's goroutine
	steps   chan room.EventKind
	done    chan struct{} // closed when id or err is set

	once sync.Once // guards the outcome
	id   room.ID
	err  error
}

// JoinRoom asks to be let into the room that a code names. It ends with ctx. A hub that the
// code names is used from now on, too (UseHub). It errs if the code or the password cannot be
// used.
func (n *Node) JoinRoom(ctx context.Context, c code.Room, cfg JoinRoomConfig) (*RoomJoin, error) {
	if a, ok := hubaddr.FromHints(c.Hints()); ok {
		if err := n.alsoUseHub(a); err != nil {
			n.cfg.Logger.Warn("hub of the code not used", "err", err)
		}
	}
	keys, err := c.Keys()
	if err != nil {
		return nil, err
	}
	if cfg.Patience <= 0 {
		cfg.Patience = joinPatience
	}
	j := &RoomJoin{steps: make(chan room.EventKind, eventQueue), done: make(chan struct{})}
	j.machine, err = room.NewJoiner(room.JoinerConfig{
		Identity: n.id, Code: c, Password: cfg.Password, Info: n.roomInfo(), Lifetime: cfg.Patience, Rand: rand.Reader,
	}, time.Now())
	if err != nil {
		return nil, err
	}
	j.topicLoop, err = n.newTopicLoop(n.mediumOf(cfg.Exchange), rendezvous.Point{
		Topic: keys.Topic, Side: side(pairing.Joiner), Endpoints: hints(c.Endpoints()),
	})
	if err != nil {
		return nil, err
	}
	j.receive = func(now time.Time, _ int, frame []byte) pairing.Verdict { return j.machine.Receive(now, frame) }
	j.tick, j.next, j.drain = j.machine.Tick, j.machine.Next, j.carryOut
	stop := context.AfterFunc(ctx, j.cancel)
	err = n.start(func() {
		defer stop()
		defer close(j.steps)
		defer j.finish(room.ID{}, &RoomError{room.Expired})
		j.run()
	})
	if err != nil {
		stop()
		j.cancel()
		j.topicLoop.close()
		return nil, err
	}
	return j, nil
}

// Steps returns what happens on the way, for the person who waits; the channel is closed at
// the end.
func (j *RoomJoin) Steps() <-chan room.EventKind { return j.steps }

// Password gives the password that was asked for, or another after a wrong one. It errs
// for one that cannot be used, and after the end.
func (j *RoomJoin) Password(password string) error {
	var err error
	if !j.call(func() { err = j.machine.Password(time.Now(), password) }) {
		return fmt.Errorf("kith: join: %w", net.ErrClosed)
	}
	return err
}

// Wait returns the room when this device is in it. It errs with a *RoomError, or the
// error of ctx.
func (j *RoomJoin) Wait(ctx context.Context) (Room, error) {
	select {
	case <-j.done:
		if j.err != nil {
			return Room{}, j.err
		}
		return j.n.Room(j.id.String())
	case <-ctx.Done():
		return Room{}, ctx.Err()
	}
}

// Close gives up, unless the device is in the room by now, and waits.
func (j *RoomJoin) Close() {
	j.cancel()
	<-j.ended
}

func (j *RoomJoin) finish(id room.ID, err error) {
	j.once.Do(func() {
		j.id, j.err = id, err
		close(j.done)
	})
}

func (j *RoomJoin) carryOut() {
	for {
		s, ok := j.machine.Poll()
		if !ok {
			return
		}
		if s.Frame != nil {
			j.publish(0, s.Frame)
			continue
		}
		switch s.Event.Kind {
		case room.EventAdmitted:
			err := j.n.rooms.granted(s.Event.Grant)
			j.finish(s.Event.Grant.Room, err)
			j.cancel()
		case room.EventFailed:
			j.finish(room.ID{}, &RoomError{s.Event.Reason})
			j.cancel()
		}
		select {
		case j.steps <- s.Event.Kind:
		default: // who does not read loses steps, not the result
		}
	}
}

// granted makes durable that this device was let in, and begins to look for the host, who
// brings the roster.
func (r *rooms) granted(g room.Grant) error {
	r.change.Lock()
	defer r.change.Unlock()
	rec, had := r.store.Get(g.Room)
	if !had || !rec.Left.IsZero() {
		rec = room.Record{Room: g.Room}
	}
	rec.Grant = g
	if rec.Roster != nil && !slices.ContainsFunc(rec.Roster.Members, func(m room.Member) bool { return m.ID == r.n.ID() }) {
		rec.Roster = nil // of before it was out
	}
	host := room.Member{ID: g.Host, WireGuard: g.HostInfo.WireGuard, Name: g.HostInfo.Name}
	member := memberRecord(rec, host, g.Chain, g.PairID, true, methodJoin)
	member.Endpoints = g.HostInfo.Endpoints[:min(len(g.HostInfo.Endpoints), maxEndpoints)]
	if err := r.n.setMember(member); err != nil { // first: without it the room is one that nobody is met in
		return err
	}
	if err := r.store.Put(rec); err != nil {
		return fmt.Errorf("kith: %w", err)
	}
	if now, ok := r.n.known(g.Host); ok {
		r.n.startPeer(now)
		if r.n.device(now).Connected {
			r.mesh.Connected(g.Host)
		}
	}
	return nil
}
