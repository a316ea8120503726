package files

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// errLaneEnd is how a lane ends that was asked to.
var errLaneEnd = errors.New("files: the lane was ended")

// lane carries frames out on one connection until it is stopped, the queue ends or
// the connection dies; what was not acknowledged goes back to the queue. It closes
// the connection. An error is the connection's, or errLaneEnd.
func (s *source) lane(ctx context.Context, conn net.Conn, stopped <-chan struct{}, quiet time.Duration) error {
	l := &outLane{window: firstWindow}
	over := make(chan struct{})
	defer context.AfterFunc(ctx, func() { s.q.stopLane(l); conn.Close() })()
	s.meter.lanes(1)
	defer s.meter.lanes(-1)
	s.q.join(1)
	defer s.q.join(-1)
	var wg sync.WaitGroup
	var ackErr error
	wg.Go(func() {
		select {
		case <-stopped:
			s.q.stopLane(l)
		case <-over:
		}
	})
	wg.Go(func() {
		defer close(over)
		ackErr = s.acks(l, conn)
		s.q.stopLane(l)
		if !errors.Is(ackErr, errLaneEnd) {
			conn.Close()
		}
	})
	err := s.frames(l, conn, quiet)
	if err == nil && !errors.Is(s.stopErr(), context.Canceled) {
		// Told to stop: what is out is still acknowledged, unless that takes too long.
		_ = conn.SetReadDeadline(time.Now().Add(quiet))
	} else {
		conn.Close()
	}
	wg.Wait()
	conn.Close()
	s.q.back(s.q.takeBack(l))
	if err == nil {
		err = ackErr
	}
	return err
}

func (s *source) stopErr() error {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return s.q.err
}

// takeBack takes the frames that a lane leaves.
func (q *queue) takeBack(l *outLane) []*outFrame {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := l.out
	l.out = nil
	return out
}

// frames writes frames, and a last word when there are no more.
func (s *source) frames(l *outLane, conn net.Conn, quiet time.Duration) error {
	var scratch []byte
	cork := corkOf(conn)
	write := func(f *outFrame) error {
		if err := conn.SetWriteDeadline(time.Now().Add(quiet)); err != nil {
			return err
		}
		parts := putFrame(f, scratch)
		if f.buf == nil {
			scratch = parts[0]
		}
		cork.hold()
		for _, p := range parts {
			if len(p) == 0 {
				continue
			}
			if _, err := conn.Write(p); err != nil {
				return err
			}
		}
		return cork.flush()
	}
	for {
		f := s.q.next(l)
		if f == nil {
			return write(&outFrame{kind: frameBye})
		}
		if g := s.reload(f); g != f {
			s.q.swap(l, f, g)
			f = g
		}
		err := write(f)
		s.q.written(f)
		if err != nil {
			return err
		}
		s.sent.Add(int64(f.len))
		if !f.pinned {
			s.giveBack(f.buf)
			f.buf = nil
		}
	}
}

// swap puts another frame in the place of the one that the lane just took.
func (q *queue) swap(l *outLane, f, g *outFrame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range l.out {
		if l.out[i] == f {
			g.sentAt, g.writing, f.writing = f.sentAt, true, false
			l.out[i] = g
			l.bytes += g.weight() - f.weight()
		}
	}
}

// acks reads acknowledgements. It errs with the connection's error, and with
// errLaneEnd when the lane is over as it should.
func (s *source) acks(l *outLane, conn net.Conn) error {
	var b [ackSize]byte
	var done uint64
	for {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return err
		}
		n, stop := parseAck(b[:])
		if stop {
			s.q.stopLane(l)
		}
		s.q.mu.Lock()
		out := len(l.out)
		s.q.mu.Unlock()
		if n < done || n-done > uint64(out) {
			return fmt.Errorf("files: more acknowledged than was sent: %w", ErrProtocol)
		}
		for _, f := range s.q.acked(l, int(n-done), time.Now()) {
			s.settled(f)
		}
		done = n
		s.q.mu.Lock()
		over := l.stopping && len(l.out) == 0
		s.q.mu.Unlock()
		if over {
			return errLaneEnd
		}
	}
}

// settled lets go of what was kept for a frame.
func (s *source) settled(f *outFrame) {
	if f.size != 0 || f.files != 0 {
		s.meter.update(func(p *Progress) { p.Bytes += f.size; p.Files += f.files })
	}
	if f.pinned {
		s.giveBack(f.buf)
		f.buf = nil
	}
	if f.file != nil {
		f.file.release()
	}
}

// A rxFrame is a frame on its way in.
type rxFrame struct {
	h    header
	meta []byte
	buf  *buffer
}

// laneAhead is how many frames of one lane are read while one is written to disk.
const laneAhead = 1

// lane takes frames from one connection and acknowledges them when they are with
// the kernel and in the journal, until the connection ends. When stopped is closed
// it asks the sender to end the lane. It closes the connection. An error of sinkErr
// ends the transfer; all others the lane.
func (s *sink) lane(ctx context.Context, conn net.Conn, stopped <-chan struct{}, quiet time.Duration) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s.meter.lanes(1)
	defer s.meter.lanes(-1)
	in := make(chan rxFrame, laneAhead)
	var readErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(in)
		readErr = s.receive(ctx, conn, in)
	})
	err := s.work(conn, in, stopped, quiet)
	conn.Close()
	for f := range in {
		s.pool.Put(f.buf)
	}
	wg.Wait()
	if err == nil {
		err = readErr
	}
	return err
}

func (s *sink) receive(ctx context.Context, conn net.Conn, in chan<- rxFrame) error {
	scratch := make([]byte, headerSize)
	br := bufio.NewReaderSize(conn, 4096)
	for {
		h, meta, err := readFrame(br, scratch)
		if err != nil {
			return err
		}
		buf, ok := s.pool.Get().(*buffer)
		if !ok {
			buf = new(buffer)
		}
		if _, err := io.ReadFull(br, buf.data()[:h.data]); err != nil {
			return noEOF(err)
		}
		select {
		case in <- rxFrame{h, meta, buf}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if h.kind == frameBye {
			return nil
		}
	}
}

// sinkError is one that ends the transfer and not only its lane.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

// ackEvery is how many frames are acknowledged together if more wait already.
const ackEvery = 4

func (s *sink) work(conn net.Conn, in <-chan rxFrame, stopped <-chan struct{}, quiet time.Duration) error {
	d := dirs{tree: s.stage.tree}
	defer d.close()
	var done, told uint64
	stopping := false
	var b [ackSize]byte
	tell := func() error {
		if err := s.flush(); err != nil {
			return &sinkError{err}
		}
		told = done
		binary.BigEndian.PutUint64(b[:], done)
		if stopping {
			b[0] |= 0x80
		}
		if err := conn.SetWriteDeadline(time.Now().Add(quiet)); err != nil {
			return err
		}
		_, err := conn.Write(b[:])
		return err
	}
	for {
		var f rxFrame
		var ok bool
		select {
		case f, ok = <-in:
		case <-stopped:
			stopped, stopping = nil, true
			if err := tell(); err != nil {
				return err
			}
			continue
		}
		if !ok {
			return nil
		}
		err := s.frame(&d, &f.h, f.meta, f.buf.data()[:f.h.data])
		s.pool.Put(f.buf)
		if err != nil {
			return &sinkError{err}
		}
		if f.h.kind != frameBye {
			done++
		}
		if len(in) > 0 && done-told < ackEvery {
			continue
		}
		if err := tell(); err != nil {
			return err
		}
	}
}
