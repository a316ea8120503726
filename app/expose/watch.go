package expose

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// heard is what a read of an agreed stream brought.
type heard struct {
	ping, pong bool
	ended      error // a status, the stream's end, or what is not understood
}

// listen reads an agreed stream until it ends. However fast the other side talks, one
// thing is told at a time.
func listen(ctx context.Context, conn net.Conn, told chan<- heard) {
	buf := make([]byte, 64)
	for {
		n, err := conn.Read(buf)
		h := parseTalk(buf[:n])
		switch {
		case h.ended != nil:
		case errors.Is(err, io.EOF):
			h.ended = ErrBroken
		case err != nil:
			h.ended = errors.Join(ErrBroken, err)
		}
		select {
		case told <- h:
		case <-ctx.Done():
			return
		}
		if h.ended != nil {
			return
		}
	}
}

// parseTalk understands bytes of an agreed stream.
func parseTalk(b []byte) (h heard) {
	for _, c := range b {
		switch {
		case h.ended != nil:
		case c == msgPing:
			h.ping = true
		case c == msgPong:
			h.pong = true
		case c == byte(statusOK):
			h.ended = errProtocol
		default:
			h.ended = status(c).err()
		}
	}
	return h
}

// watch keeps an agreed stream until ctx ends, check errs, the other side ends it, or
// the devices have not been connected for too long, and closes it. When their connection
// is another than before, the other side must say that it is still there: it may have
// restarted. changed is told when they lose their connection, and when all is well again.
// However the other side behaves, watch returns soon after ctx has ended.
func (s *Service) watch(ctx context.Context, peer string, conn net.Conn, check func() error, changed func(away bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	told := make(chan heard)
	done := make(chan struct{})
	go func() { defer close(done); listen(ctx, conn, told) }()
	defer func() { <-done }()
	defer conn.Close()
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(farewell, func() { conn.Close() }) })()

	last, _ := s.cfg.Up(peer)
	var downAt, answerBy time.Time
	asked := false // the other side waits for an answer
	tick := time.NewTicker(s.look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.last(conn, context.Cause(ctx), done)
		case h := <-told:
			if h.ended != nil {
				return h.ended
			}
			if h.pong && !answerBy.IsZero() {
				answerBy = time.Time{}
				changed(false)
			}
			asked = asked || h.ping
			continue
		case <-tick.C:
		}
		if err := check(); err != nil {
			cancel()
			return s.last(conn, err, done)
		}
		if asked { // one answer to all since the last look: a flood of pings fills no buffer
			asked = false
			if err := say(conn, msgPong); err != nil {
				return errors.Join(ErrBroken, err)
			}
		}
		now := time.Now()
		since, up := s.cfg.Up(peer)
		switch {
		case !up && downAt.IsZero():
			downAt = now
			changed(true)
		case !up && now.Sub(downAt) >= s.grace:
			return ErrAway
		case !up:
		case !since.Equal(last) || !downAt.IsZero():
			last, downAt, answerBy = since, time.Time{}, now.Add(s.answer)
			if err := say(conn, msgPing); err != nil {
				return errors.Join(ErrBroken, err)
			}
		case !answerBy.IsZero() && now.After(answerBy):
			return ErrBroken
		}
	}
}

// last tells the other side that this one ends it, and why if a byte can say it. The
// stream may be this device's last before its tunnel ends: it waits a moment until the
// other side has seen its end, and ended it, too. watch closes conn after farewell.
func (s *Service) last(conn net.Conn, err error, done <-chan struct{}) error {
	for _, st := range []status{statusDenied, statusFailed} {
		if errors.Is(err, st.err()) {
			_ = say(conn, byte(st)) // who does not listen to it need not know
		}
	}
	if h, ok := conn.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		<-done
	}
	return err
}

// farewell is how long the end of a stream waits for the other side.
const farewell = 300 * time.Millisecond
