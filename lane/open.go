package lane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	askTime    = 5 * time.Second // for a message inside the tunnel
	raceTime   = 4 * time.Second // from the answer to a connection that stands
	chooseTime = 2 * time.Second // for the answer to a choice
)

// Open opens a lane to a paired device for one kind of use. It waits for
// Config.Dial and then for 4 s at most.
//
// It errs with a *NoLaneError if no direct connection is possible, and then does so
// for a minute without trying (the first time, for five seconds), or until Forget; with ErrRefused if the other device
// does not allow the kind; with ErrBusy, ErrKind, the error of ctx, and net.ErrClosed
// after Close.
func (s *Service) Open(ctx context.Context, peer identity.DeviceID, kind string) (*Conn, error) {
	if !validKind(kind) {
		return nil, ErrKind
	}
	if err := s.remembered(peer, time.Now()); err != nil {
		return nil, err
	}
	ctx, m, err := s.begin(ctx, peer, kind, true)
	if err != nil {
		return nil, err
	}
	defer s.over(m)
	c, err := s.openAs(ctx, m)
	switch no := (*NoLaneError)(nil); {
	case err == nil:
		s.Forget(peer)
		s.cfg.Logger.Debug("lane opened", "peer", peer.Short(), "kind", kind, "to", c.RemoteAddr(), "dialed", c.dialed)
		return c, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("lane: open: %w", context.Cause(ctx))
	case errors.As(err, &no) && !no.Cached:
		s.cfg.Logger.Debug("no lane", "peer", peer.Short(), "err", err)
		s.remember(no, time.Now())
	}
	return nil, err
}

func (s *Service) openAs(ctx context.Context, m *making) (*Conn, error) {
	done, err := s.turn(ctx, m.peer)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := s.remembered(m.peer, time.Now()); err != nil { // by those who came before
		return nil, err
	}
	tun, err := s.cfg.Dial(ctx, m.peer)
	if err != nil {
		return nil, &NoLaneError{Peer: m.peer, Err: fmt.Errorf("lane: ask: %w", err)}
	}
	defer tun.Close()
	stop := context.AfterFunc(ctx, func() { tun.Close() })
	defer stop()

	inv, err := newInvite(time.Now())
	if err != nil {
		return nil, fmt.Errorf("lane: %w", err)
	}
	inv.gone = ctx.Done()
	came := make(chan *session)
	inv.welcome = func(sess *session) {
		if sess.check(inv.token, proofDialed) != nil || !s.ledger.spend(inv, time.Now()) {
			sess.close()
			return
		}
		select {
		case came <- sess:
		case <-ctx.Done():
			sess.close()
		}
	}
	mine := s.invite(ctx, inv)
	defer s.uninvite(inv)
	theirs, err := s.ask(tun, m, mine)
	if err != nil {
		return nil, err
	}
	inv.setPin(theirs.key)
	r := race{s: s, m: m, inv: inv, mine: mine, theirs: theirs, came: came}
	return r.run(ctx, tun)
}

// invite puts an invitation into the ledger and opens the door for it; without a
// door it names no endpoints, and is still good for dialing. uninvite must follow.
func (s *Service) invite(ctx context.Context, inv *invite) offered {
	s.ledger.add(inv)
	port, err := s.door.enter(ctx)
	if err != nil {
		s.cfg.Logger.Warn("no listener for lanes", "err", err)
		return inv.offer(nil)
	}
	inv.door = true
	return inv.offer(s.endpoints(port))
}

func (s *Service) uninvite(inv *invite) {
	s.ledger.remove(inv)
	if inv.door {
		s.door.exit()
	}
}

// ask speaks with the other device inside the tunnel.
func (s *Service) ask(tun net.Conn, m *making, mine offered) (offered, error) {
	tun.SetDeadline(time.Now().Add(askTime))
	a := ask{kind: m.kind, invite: mine}
	if err := writeMessage(tun, a.encode()); err != nil {
		return offered{}, &NoLaneError{Peer: m.peer, Err: fmt.Errorf("lane: ask: %w", err)}
	}
	raw, err := readMessage(tun)
	if err != nil {
		return offered{}, &NoLaneError{Peer: m.peer, Err: fmt.Errorf("lane: answer: %w", err)}
	}
	got, err := parseAnswer(raw)
	switch {
	case err != nil:
		return offered{}, &NoLaneError{Peer: m.peer, Err: err}
	case got.status == statusRefused:
		return offered{}, ErrRefused
	case got.status == statusBusy:
		return offered{}, ErrBusy
	case got.status != statusOK:
		return offered{}, &NoLaneError{Peer: m.peer, Err: errVersion}
	}
	return got.invite, nil
}

// A race is the asker's part after the answer: both sides dial, the first wins.
type race struct {
	s            *Service
	m            *making
	inv          *invite
	mine, theirs offered
	came         <-chan *session
	tries        []Try
}

func (r *race) run(ctx context.Context, tun net.Conn) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, raceTime)
	var wg sync.WaitGroup
	defer wg.Wait() // after cancel, so that nothing of the race outlives Open
	defer cancel()
	stop := context.AfterFunc(ctx, func() { tun.Close() })
	defer stop()

	dialed := make(chan attempt)
	allDialed := make(chan struct{})
	wg.Go(func() {
		defer close(allDialed)
		r.s.dialAll(ctx, r.theirs.to, clientConfig(r.inv, r.theirs), dialed)
	})
	reported := make(chan report, 1)
	wg.Go(func() {
		tun.SetDeadline(time.Time{})
		var rep report
		if raw, err := readMessage(tun); err == nil {
			rep, _ = parseReport(raw) // without a report we only know less
		}
		reported <- rep
	})
	for here, there := true, true; here || there; {
		select {
		case a := <-dialed:
			if a.s == nil {
				r.tries = append(r.tries, Try{To: r.theirs.to[a.index], Reason: a.reason})
				continue
			}
			if c := r.choose(ctx, a.s, true); c != nil {
				return c, nil
			}
			r.tries = append(r.tries, Try{To: r.theirs.to[a.index], Reason: ReasonOther})
		case sess := <-r.came:
			if c := r.choose(ctx, sess, false); c != nil {
				return c, nil
			}
		case <-allDialed:
			here, allDialed = false, nil
		case rep := <-reported:
			there, reported = false, nil
			for _, f := range rep {
				if int(f.index) < len(r.mine.to) {
					r.tries = append(r.tries, Try{To: r.mine.to[f.index], Theirs: true, Reason: f.reason})
				}
			}
		case <-ctx.Done():
			return nil, r.lost(here, there)
		}
	}
	return nil, r.lost(false, false)
}

// lost is the error of a race without a winner. What has neither failed nor stood
// did not answer.
func (r *race) lost(here, there bool) error {
	tried := make(map[Try]bool)
	for _, t := range r.tries {
		t.Reason = 0
		tried[t] = true
	}
	silent := func(t Try) {
		if !tried[t] {
			t.Reason = ReasonTimeout
			r.tries = append(r.tries, t)
		}
	}
	if here {
		for _, to := range r.theirs.to {
			silent(Try{To: to})
		}
	}
	if there {
		for _, to := range r.mine.to {
			silent(Try{To: to, Theirs: true})
		}
	}
	return &NoLaneError{Peer: r.m.peer, Tries: r.tries}
}

// choose makes a session the lane, or closes it.
func (r *race) choose(ctx context.Context, sess *session, dialed bool) *Conn {
	stop := context.AfterFunc(ctx, sess.close)
	sess.within(chooseTime)
	err := sess.prove(r.theirs.token, proofChosen)
	if err == nil {
		err = sess.check(r.theirs.token, proofAccepted)
	}
	if !stop() || err != nil {
		sess.close()
		return nil
	}
	sess.within(0)
	c, err := r.s.keep(r.m, sess, dialed)
	if err != nil {
		sess.close()
		return nil
	}
	return c
}
