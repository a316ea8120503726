package relay

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/kithproject/kith/internal/train"
)

const (
	// socketBuffer is the size asked of the system for both directions of a UDP
	// socket, in bytes: 7 MiB is the most that macOS grants by default. TCP keeps
	// the system's own sizing: a fixed one would switch that off, and a large one
	// would be seconds of queue on a slow uplink.
	socketBuffer = 7 << 20
	// streamQueue is how much data waits for a TCP connection, in bytes.
	streamQueue = 256 << 10
	// maxUnsent is how much the system takes of it before it has sent what it has,
	// in bytes, where it can be told (Linux, macOS).
	maxUnsent = 64 << 10
	// urgentQueue is how much of our own requests may wait besides, in bytes.
	urgentQueue = 64 << 10
	// maxRefusals is after how many errors in a row a UDP socket is given up.
	// Each refused packet may cause one, so a server that is started again within
	// fewer packets is survived by the socket (the allocation is not).
	maxRefusals = 64
)

// errNoTURN: what the stream carries has no frames.
var errNoTURN = errors.New("what answers there is no TURN server")

// A carrier takes frames to the server and back. All but read are safe for
// concurrent use.
type carrier interface {
	// packets sends packets, all to one peer: by its channel, or, if that is 0,
	// by indications.
	packets(bufs [][]byte, to *peer, channel uint16) error
	// request sends a message of ours.
	request(frame []byte) error
	// read returns the next frame, valid until the next read. temporary: the error
	// says something of the server, but the next read may succeed.
	read() (frame []byte, temporary bool, err error)
	// run writes until the carrier is closed, if that needs a goroutine.
	run() error
	close()
}

// frames builds frames of packets in a buffer that is used again.
type frames struct{ buf []byte }

// packet appends what one packet looks like on the wire.
func (f *frames) packet(packet []byte, to *peer, channel uint16, pad bool) {
	if channel != 0 {
		f.buf = appendChannel(f.buf, channel, packet, pad)
		return
	}
	f.buf = appendIndication(f.buf, to.addr, packet, to.indication())
}

// A datagrams is a carrier over connected UDP: the system delivers what comes
// from the server only.
type datagrams struct {
	conn     net.Conn
	many     *segments
	pool     sync.Pool // of *frames
	buf      []byte    // of read
	refusals int       // in a row, of read
}

func newDatagrams(c net.Conn) *datagrams {
	if u, ok := c.(*net.UDPConn); ok {
		_ = u.SetReadBuffer(socketBuffer) // as much as the system allows
		_ = u.SetWriteBuffer(socketBuffer)
		forceBuffers(u, socketBuffer)
	}
	return &datagrams{
		conn: c, many: newSegments(c), buf: make([]byte, maxFrame),
		pool: sync.Pool{New: func() any { return &frames{buf: make([]byte, 0, 2048)} }},
	}
}

func (d *datagrams) packets(bufs [][]byte, to *peer, channel uint16) error {
	f := d.pool.Get().(*frames)
	defer d.pool.Put(f)
	var first error
	for len(bufs) > 0 {
		n := 1
		if channel != 0 && d.many.possible() {
			n = train.Length(bufs, dataHeader)
		}
		f.buf = f.buf[:0]
		for _, packet := range bufs[:n] {
			f.packet(packet, to, channel, false)
		}
		var err error
		if n == 1 {
			_, err = d.conn.Write(f.buf)
		} else {
			err = d.many.write(f.buf, dataHeader+len(bufs[0]))
		}
		if err != nil && first == nil {
			first = err
		}
		bufs = bufs[n:]
	}
	return first
}

func (d *datagrams) request(frame []byte) error {
	_, err := d.conn.Write(frame)
	return err
}

func (d *datagrams) read() ([]byte, bool, error) {
	frame, err := d.many.read(d.buf)
	if err != nil {
		d.refusals++
		return nil, !errors.Is(err, net.ErrClosed) && d.refusals < maxRefusals, err
	}
	d.refusals = 0
	return frame, false, nil
}

func (d *datagrams) run() error { return nil }

func (d *datagrams) close() { _ = d.conn.Close() }

// A stream is a carrier over TCP, or TLS over it. Whoever sends never waits for
// the connection: one goroutine writes, all that has gathered in one call, so
// that many packets share a system call and a TLS record.
type stream struct {
	conn net.Conn
	raw  net.Conn // conn, or what is below TLS
	r    *bufio.Reader
	last int // bytes of the frame that was read last

	mu     sync.Mutex    // guards the fields below
	data   frames        // packets, at most streamQueue
	urgent []byte        // requests, which go first
	wake   chan struct{} // capacity 1
	closed bool
}

func newStream(c net.Conn) *stream {
	s := &stream{conn: c, raw: c, r: bufio.NewReaderSize(c, maxFrame), wake: make(chan struct{}, 1)}
	if t, ok := c.(*tls.Conn); ok {
		s.raw = t.NetConn()
	}
	if t, ok := s.raw.(*net.TCPConn); ok {
		limitUnsent(t, maxUnsent)
	}
	return s
}

func (s *stream) packets(bufs [][]byte, to *peer, channel uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	for _, packet := range bufs {
		if len(s.data.buf)+len(packet) > streamQueue {
			to.dropped.Add(1)
			continue
		}
		s.data.packet(packet, to, channel, true)
	}
	s.wakeLocked()
	return nil
}

func (s *stream) request(frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if len(s.urgent)+len(frame) <= urgentQueue { // otherwise it is lost, and asked again
		s.urgent = append(s.urgent, frame...)
		s.wakeLocked()
	}
	return nil
}

func (s *stream) wakeLocked() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes what waits. It errs when the connection does.
func (s *stream) run() error {
	var data, urgent []byte
	for range s.wake {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil
		}
		data, s.data.buf = s.data.buf, data[:0]
		urgent, s.urgent = s.urgent, urgent[:0]
		s.mu.Unlock()
		for _, b := range [][]byte{urgent, data} {
			if len(b) == 0 {
				continue
			}
			if _, err := s.conn.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// read cuts frames out of the stream: STUN messages and padded ChannelData. It
// errs at anything else, as there is no way to find the next frame then.
func (s *stream) read() ([]byte, bool, error) {
	if _, err := s.r.Discard(s.last); err != nil {
		return nil, false, err
	}
	s.last = 0
	head, err := s.r.Peek(dataHeader)
	if err != nil {
		return nil, false, err
	}
	n, ok := frameLength(head)
	if !ok {
		return nil, false, errNoTURN
	}
	frame, err := s.r.Peek(n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, false, err
	}
	s.last = n
	return frame, false, nil
}

// frameLength says how long the frame is that begins so, with its padding.
func frameLength(head []byte) (n int, ok bool) {
	n = int(binary.BigEndian.Uint16(head[2:]))
	switch {
	case head[0]>>6 == 0: // STUN: its length is a multiple of 4 (RFC 8489 section 5)
		return stunHeader + n, n%4 == 0
	case head[0]>>4 == firstNumber>>12: // a number that we may have given
		return dataHeader + n + (-n & 3), true
	}
	return 0, false
}

func (s *stream) close() {
	s.mu.Lock()
	s.closed = true
	s.wakeLocked()
	s.mu.Unlock()
	_ = s.raw.Close() // TLS would wait to say goodbye to one who may be gone
}
