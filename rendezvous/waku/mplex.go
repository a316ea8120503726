package waku

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// Mplex (libp2p specification mplex, version 6.7.0) is what Waku's JavaScript
// client multiplexes with. It has no flow control; a stream whose buffer is full
// is reset. A node takes it; kith's own client does not offer it.
const (
	mplexID       = "/mplex/6.7.0"
	mplexBuffer   = windowSize // bytes of a stream that are not read yet
	mplexMessage  = 1 << 20    // bytes of one message, by the specification
	mplexChunk    = 64 << 10   // bytes of one that is sent here
	mplexBacklog  = nodeStreams
	mplexWriteMax = 10 * time.Second
)

// Flags of a message. That of the stream's initiator is one more than that of its
// receiver.
const (
	mplexNew   = 0
	mplexData  = 1
	mplexClose = 3
	mplexReset = 5
)

var errStreamReset = errors.New("stream was reset")

type mplex struct{}

// NewConn runs mplex over a connection; it errs never.
func (mplex) NewConn(nc net.Conn, _ bool, scope network.PeerScope) (network.MuxedConn, error) {
	c := &mplexConn{
		nc: nc, scope: scope, streams: make(map[mplexKey]*mplexStream),
		backlog: make(chan *mplexStream, mplexBacklog), done: make(chan struct{}), read: make(chan struct{}),
	}
	go c.readLoop()
	return c, nil
}

// A mplexKey names a stream: each side counts its own.
type mplexKey struct {
	id   uint64
	ours bool
}

type mplexConn struct {
	nc      net.Conn
	scope   network.PeerScope
	backlog chan *mplexStream
	done    chan struct{} // closed by Close
	read    chan struct{} // closed when the reading goroutine has ended
	once    sync.Once

	writing sync.Mutex // held while a message is written

	mu      sync.Mutex // guards the fields below
	streams map[mplexKey]*mplexStream
	next    uint64
	theirs  int // streams that the other side has opened
}

var _ network.MuxedConn = (*mplexConn)(nil)

func (c *mplexConn) As(any) bool { return false }

func (c *mplexConn) IsClosed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *mplexConn) Close() error {
	c.shut()
	<-c.read
	return nil
}

func (c *mplexConn) CloseWithError(network.ConnErrorCode) error { return c.Close() }

// shut ends the connection and all of its streams.
func (c *mplexConn) shut() {
	c.once.Do(func() {
		close(c.done)
		c.nc.Close()
		c.mu.Lock()
		var all []*mplexStream
		for _, s := range c.streams {
			all = append(all, s)
		}
		c.mu.Unlock()
		for _, s := range all {
			s.end(net.ErrClosed)
		}
	})
}

// add makes a stream, or errs when the connection is closed or the memory is used
// up.
func (c *mplexConn) add(k mplexKey) (*mplexStream, error) {
	span, err := c.scope.BeginSpan()
	if err != nil {
		return nil, err
	}
	if err := span.ReserveMemory(mplexBuffer, network.ReservationPriorityAlways); err != nil {
		return nil, err
	}
	s := &mplexStream{c: c, key: k, span: span, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.IsClosed() || c.streams[k] != nil {
		span.Done()
		return nil, net.ErrClosed
	}
	if !k.ours {
		c.theirs++
	}
	c.streams[k] = s
	return s, nil
}

func (c *mplexConn) remove(s *mplexStream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[s.key] != s {
		return
	}
	delete(c.streams, s.key)
	if !s.key.ours {
		c.theirs--
	}
	s.span.Done()
}

func (c *mplexConn) OpenStream(context.Context) (network.MuxedStream, error) {
	c.mu.Lock()
	k := mplexKey{id: c.next, ours: true}
	c.next++
	c.mu.Unlock()
	s, err := c.add(k)
	if err != nil {
		return nil, err
	}
	if err := c.write(k.id<<3|mplexNew, nil); err != nil {
		return nil, err
	}
	return s, nil
}

func (c *mplexConn) AcceptStream() (network.MuxedStream, error) {
	select {
	case s := <-c.backlog:
		return s, nil
	case <-c.done:
		return nil, net.ErrClosed
	}
}

// write sends one message.
func (c *mplexConn) write(header uint64, data []byte) error {
	b := binary.AppendUvarint(make([]byte, 0, 20+len(data)), header)
	b = append(binary.AppendUvarint(b, uint64(len(data))), data...)
	c.writing.Lock()
	defer c.writing.Unlock()
	c.nc.SetWriteDeadline(time.Now().Add(mplexWriteMax))
	if _, err := c.nc.Write(b); err != nil {
		c.nc.Close() // the reading goroutine does the rest
		return err
	}
	return nil
}

func (c *mplexConn) readLoop() {
	defer close(c.read)
	defer c.shut()
	r := bufio.NewReader(c.nc)
	for {
		if err := c.take(r); err != nil {
			return
		}
	}
}

// take reads one message. It errs when the connection is of no use any more.
func (c *mplexConn) take(r *bufio.Reader) error {
	header, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	flag := header & 7
	if size > mplexMessage || flag > mplexReset+1 {
		return errMalformed
	}
	if flag == mplexNew {
		if _, err := io.CopyN(io.Discard, r, int64(size)); err != nil { // a name, of no use
			return err
		}
		c.opened(header >> 3)
		return nil
	}
	c.mu.Lock()
	s := c.streams[mplexKey{id: header >> 3, ours: flag&1 == 1}]
	c.mu.Unlock()
	if s == nil || flag > mplexData+1 {
		if _, err := io.CopyN(io.Discard, r, int64(size)); err != nil || s == nil {
			return err
		}
		if flag <= mplexClose+1 {
			s.finish()
		} else {
			s.end(errStreamReset)
		}
		return nil
	}
	return s.receive(r, int(size))
}

// opened takes a stream that the other side opens, unless it has too many.
func (c *mplexConn) opened(id uint64) {
	c.mu.Lock()
	full := c.theirs >= nodeStreams
	c.mu.Unlock()
	if !full {
		if s, err := c.add(mplexKey{id: id}); err == nil {
			select {
			case c.backlog <- s:
				return
			default:
				c.remove(s)
			}
		}
	}
	_ = c.write(id<<3|mplexReset, nil) // an error is seen by the next read
}

// A mplexStream is one stream.
type mplexStream struct {
	c    *mplexConn
	key  mplexKey
	span network.ResourceScopeSpan
	wake chan struct{} // holds a token when something changed for a reader

	mu            sync.Mutex // guards the fields below
	data          []byte     // not read yet
	eof           bool       // no more comes
	err           error      // why the stream is of no use any more
	closedWrite   bool
	closedRead    bool
	readDeadline  time.Time
	writeDeadline time.Time
}

var _ network.MuxedStream = (*mplexStream)(nil)

// header is that of a message of this stream.
func (s *mplexStream) header(flag uint64) uint64 {
	if s.key.ours {
		flag++ // of the initiator
	}
	return s.key.id<<3 | flag
}

func (s *mplexStream) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// receive takes data from the connection.
func (s *mplexStream) receive(r *bufio.Reader, size int) error {
	s.mu.Lock()
	room := s.err == nil && !s.closedRead && len(s.data)+size <= mplexBuffer
	drop := s.err != nil || s.closedRead
	s.mu.Unlock()
	if !room {
		if _, err := io.CopyN(io.Discard, r, int64(size)); err != nil {
			return err
		}
		if !drop {
			s.Reset() // there is no other way to have it wait
		}
		return nil
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	s.mu.Lock()
	s.data = append(s.data, b...)
	s.mu.Unlock()
	s.nudge()
	return nil
}

// finish says that no more comes.
func (s *mplexStream) finish() {
	s.mu.Lock()
	s.eof = true
	over := s.closedWrite && s.closedRead
	s.mu.Unlock()
	s.nudge()
	if over {
		s.c.remove(s)
	}
}

// end makes the stream useless.
func (s *mplexStream) end(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.nudge()
	s.c.remove(s)
}

func (s *mplexStream) Read(b []byte) (int, error) {
	for {
		s.mu.Lock()
		n := copy(b, s.data)
		s.data = s.data[n:]
		if len(s.data) == 0 {
			s.data = nil
		}
		eof, err, deadline := s.eof, s.err, s.readDeadline
		if s.closedRead && err == nil {
			err = net.ErrClosed
		}
		s.mu.Unlock()
		switch {
		case n > 0 || len(b) == 0:
			return n, nil
		case err != nil:
			s.nudge() // for another reader
			return 0, err
		case eof:
			s.nudge()
			return 0, io.EOF
		}
		if err := s.wait(deadline); err != nil {
			return 0, err
		}
	}
}

// wait waits until something changes, or errs at the deadline.
func (s *mplexStream) wait(deadline time.Time) error {
	if deadline.IsZero() {
		<-s.wake
		return nil
	}
	left := time.Until(deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-s.wake:
	case <-t.C:
	}
	return nil
}

func (s *mplexStream) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		s.mu.Lock()
		err := s.err
		if err == nil && s.closedWrite {
			err = net.ErrClosed
		}
		if err == nil && !s.writeDeadline.IsZero() && time.Now().After(s.writeDeadline) {
			err = os.ErrDeadlineExceeded
		}
		s.mu.Unlock()
		if err != nil {
			return n, err
		}
		part := b[:min(len(b), mplexChunk)]
		if err := s.c.write(s.header(mplexData), part); err != nil {
			return n, err
		}
		n, b = n+len(part), b[len(part):]
	}
	return n, nil
}

func (s *mplexStream) CloseWrite() error {
	s.mu.Lock()
	done := s.closedWrite || s.err != nil
	s.closedWrite = true
	over := s.closedRead && s.eof
	s.mu.Unlock()
	var err error
	if !done {
		err = s.c.write(s.header(mplexClose), nil)
	}
	if over {
		s.c.remove(s)
	}
	return err
}

func (s *mplexStream) CloseRead() error {
	s.mu.Lock()
	s.closedRead, s.data = true, nil
	over := s.closedWrite && s.eof
	s.mu.Unlock()
	s.nudge()
	if over {
		s.c.remove(s)
	}
	return nil
}

// Close frees the stream. What the other side still sends is dropped with it.
func (s *mplexStream) Close() error {
	err := errors.Join(s.CloseWrite(), s.CloseRead())
	s.c.remove(s)
	return err
}

func (s *mplexStream) Reset() error {
	s.mu.Lock()
	gone := s.err != nil
	s.mu.Unlock()
	s.end(errStreamReset)
	if gone {
		return nil
	}
	return s.c.write(s.header(mplexReset), nil)
}

func (s *mplexStream) ResetWithError(network.StreamErrorCode) error { return s.Reset() }

func (s *mplexStream) SetDeadline(t time.Time) error {
	s.mu.Lock()
	s.readDeadline, s.writeDeadline = t, t
	s.mu.Unlock()
	s.nudge()
	return nil
}

func (s *mplexStream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	s.readDeadline = t
	s.mu.Unlock()
	s.nudge()
	return nil
}

func (s *mplexStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeDeadline = t
	return nil
}
