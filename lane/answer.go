package lane

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// dialBack is how long the asked side waits before it dials: where the asker gets
// through, it need not.
const dialBack = 50 * time.Millisecond

// answerAll accepts inside the tunnel until the listener is closed.
func (s *Service) answerAll() {
	for {
		tun, err := s.cfg.Listener.Accept()
		if err != nil {
			return
		}
		if err := s.start(func() { s.answer(tun) }); err != nil {
			tun.Close()
			return
		}
	}
}

// answer serves one device that asks for a lane.
func (s *Service) answer(tun net.Conn) {
	defer tun.Close()
	peer, ok := s.cfg.Who(tun.RemoteAddr())
	if !ok {
		return
	}
	tun.SetDeadline(time.Now().Add(askTime))
	defer context.AfterFunc(s.ctx, func() { tun.Close() })()
	say := func(status byte) { _ = writeMessage(tun, (&answer{status: status}).encode()) } // nobody may be left to hear it
	ctx, m, err := s.begin(s.ctx, peer, "", false)
	if err != nil {
		if s.crowd(1) <= maxMakingOne {
			_, _ = readMessage(tun) // what is left unread would take the answer with it, in TCP
			say(statusBusy)
		}
		s.crowd(-1)
		return
	}
	defer s.over(m)
	stop := context.AfterFunc(ctx, func() { tun.Close() })
	defer stop()
	raw, err := readMessage(tun)
	if err != nil {
		return
	}
	got, err := parseAsk(raw)
	if errors.Is(err, errVersion) {
		say(statusVersion)
	}
	if err != nil {
		return
	}
	s.mu.Lock()
	m.kind = got.kind
	s.mu.Unlock()
	if !s.cfg.Allow(peer, got.kind) {
		say(statusRefused)
		return
	}
	if err := s.host(ctx, m, tun, got.invite); err != nil {
		s.cfg.Logger.Debug("lane not given", "peer", peer.Short(), "kind", got.kind, "err", err)
	}
}

// crowd counts those who are about to be told that this device is busy.
func (s *Service) crowd(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy += n
	return s.busy
}

// host invites the asker, and dials it, until there is a lane or nobody waits for it.
func (s *Service) host(ctx context.Context, m *making, tun net.Conn, theirs offered) error {
	ctx, cancel := context.WithTimeout(ctx, inviteLife)
	defer cancel()
	inv, err := newInvite(time.Now())
	if err != nil {
		return err
	}
	inv.gone = ctx.Done()
	inv.setPin(theirs.key)
	given := make(chan struct{})
	var once sync.Once
	inv.welcome = func(sess *session) {
		if s.give(ctx, m, inv, sess, false) == nil {
			once.Do(func() { close(given) })
		}
	}
	mine := s.invite(ctx, inv)
	defer s.uninvite(inv)
	if err := writeMessage(tun, (&answer{status: statusOK, invite: mine}).encode()); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if rep, lane := s.dialAsker(ctx, m, inv, theirs); lane {
			once.Do(func() { close(given) })
		} else if ctx.Err() == nil {
			_ = writeMessage(tun, rep.encode()) // the asker may have a lane by now
		}
	})
	left := make(chan struct{})
	wg.Go(func() {
		defer close(left)
		tun.SetDeadline(time.Time{})
		_, _ = io.ReadFull(tun, make([]byte, 1)) // the asker says nothing more: this is its end
	})
	select {
	case <-given:
		tun.Close()
		return nil
	case <-left:
		return errLate
	case <-ctx.Done():
		tun.Close()
		return context.Cause(ctx)
	}
}

// dialAsker dials what the asker offers, and reports whether it chose a connection
// that came of it, and if not why.
func (s *Service) dialAsker(ctx context.Context, m *making, inv *invite, theirs offered) (report, bool) {
	t := time.NewTimer(dialBack)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	dialed := make(chan attempt)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(dialed)
		s.dialAll(ctx, theirs.to, clientConfig(inv, theirs), dialed)
	})
	var rep report
	for a := range dialed {
		if a.s != nil {
			if s.offer(ctx, m, inv, theirs, a.s) {
				return nil, true
			}
			a.reason = ReasonOther
		}
		rep = append(rep, failure{uint8(a.index), a.reason})
	}
	return rep, false
}

// offer shows the asker a connection that this side dialed, and waits for its choice.
func (s *Service) offer(ctx context.Context, m *making, inv *invite, theirs offered, sess *session) bool {
	sess.within(inviteLife)
	if sess.prove(theirs.token, proofDialed) != nil {
		sess.close()
		return false
	}
	return s.give(ctx, m, inv, sess, true) == nil
}

// give makes a lane of a session that the asker has chosen, and hands it to
// Config.Accept. It closes the session if there is any error.
func (s *Service) give(ctx context.Context, m *making, inv *invite, sess *session, dialed bool) (err error) {
	stop := context.AfterFunc(ctx, sess.close)
	defer func() {
		if err != nil {
			sess.close()
		}
	}()
	if err := sess.check(inv.token, proofChosen); err != nil {
		return err
	}
	if !s.ledger.spend(inv, time.Now()) {
		return errLate
	}
	if !s.cfg.Allow(m.peer, m.kind) {
		return ErrRefused
	}
	sess.within(chooseTime)
	if err := sess.prove(inv.token, proofAccepted); err != nil {
		return err
	}
	if !stop() {
		return context.Cause(ctx)
	}
	sess.within(0)
	c, err := s.keep(m, sess, dialed)
	if err != nil {
		return err
	}
	if err := s.start(func() { s.cfg.Accept(c) }); err != nil {
		s.forget(c)
		return err
	}
	return nil
}
