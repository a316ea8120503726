// Package measure finds out what the tunnel between two devices carries: loss, latency and
// jitter by numbered datagrams, and throughput by streams, in both directions.
//
//	service := measure.NewService(measure.Config{Listener: ln, Who: who, Force: force})
//	node.HandleUDP(measure.Port, service.Datagrams)   // one side
//	result, err := measure.Run(ctx, dial, "")         // the other side
//
// # Protocol
//
// All on port 27489 of the tunnel. Numbers are big-endian. A TCP connection begins with a
// hello of 11 bytes: version 1, what it is, and the measurement's random id of 8 bytes, and
// one byte more.
//
//	what           the last byte    and then
//	1 control      the force        a status: 0 go on, 1 busy, 2 too much, 3 no such path.
//	                                Then the caller sends 1, and is answered the count of
//	                                datagrams that have come (4 bytes). When a stream of
//	                                the caller has ended: its bytes (8) and its time in
//	                                nanoseconds (8).
//	2 stream       1 to, 2 from     bytes of no meaning, until the receiver closes: 1.5 s
//	               the service      after the first came, or after 64 MiB; the sender stops
//	                                2 s after the first
//
// The force is 0 none, 1 relay, 2 direct, 3 lan: the service keeps to such a path until
// the control connection ends. A datagram has 200 bytes: id 8, number u32 from 0 to 99,
// time u64, and is echoed once, with the time set to the nanoseconds since the first one
// came, by which each direction's share of the jitter is known. One measurement runs at a time; each device has 20 s in a
// minute for all of them, and is sent 256 MiB in an hour at most.
package measure

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Port is the tunnel port, TCP and UDP, as a port number.
const Port = 27489

const (
	version  = 1
	helloLen = 11

	kindControl = 1
	kindStream  = 2
	toService   = 1
	fromService = 2
	askCount    = 1

	trainCount = 100                   // datagrams
	trainGap   = 10 * time.Millisecond // between two of them
	trainSize  = 200                   // bytes of a datagram
	trainWait  = 5 * time.Second       // longest wait for echoes after the last was sent

	streamTime  = 1500 * time.Millisecond
	streamBytes = 64 << 20
	streamSetup = 6 * time.Second // until the first byte has come
	// pourTime is how long a sender goes on, whether the receiver closes or not: there are
	// buffers and a way between the two.
	pourTime = streamTime + 500*time.Millisecond
)

type status byte

const (
	statusOK     status = 0
	statusBusy   status = 1
	statusSpent  status = 2
	statusNoPath status = 3
)

// The reasons of another device not to take part.
var (
	ErrBusy   = errors.New("measure: another measurement is under way")
	ErrSpent  = errors.New("measure: it has measured for as long or as much as it may: 20 seconds in a minute, 256 MiB in an hour")
	ErrNoPath = errors.New("measure: there is no such path")
	ErrTalk   = errors.New("measure: it does not answer as it should")
)

// A Result is what a path carries. The zero value says nothing.
type Result struct {
	RTT time.Duration // median round trip
	// Latency is the median of one direction, if the quickest datagrams took as long out as
	// back: two clocks do not tell how long a way is, only by how much it changes.
	LatencyOut, LatencyIn time.Duration
	// Jitter is the mean change of one direction from a datagram to the next (RFC 3550
	// section 6.4.1, without its smoothing).
	JitterOut, JitterIn time.Duration
	LossOut, LossIn     float64       // shares of 1, a count of lost datagrams to one of all
	RateOut, RateIn     float64       // bytes a second
	BytesOut, BytesIn   uint64        // bytes of the streams
	Duration            time.Duration // of all
}

// forces are the words for the byte in a hello.
func forces() []string { return []string{"", "relay", "direct", "lan"} }

// A Dial calls the service of the other device over "tcp" or "udp".
type Dial func(ctx context.Context, network string) (net.Conn, error)

// Run measures. force asks the other side for a sort of path; "" is any. It errs with one
// of this package's errors, as dial does, and with the context's error; what was found out
// before stands in the Result.
func Run(ctx context.Context, dial Dial, force string) (res Result, err error) {
	start := time.Now()
	defer func() { res.Duration = time.Since(start) }()
	word := slices.Index(forces(), force)
	if word < 0 {
		return res, fmt.Errorf("measure: %q is no sort of path", force)
	}
	c := &caller{dial: dial}
	_, _ = rand.Read(c.id[:]) // it never fails
	if c.control, err = c.call(ctx, kindControl, byte(word)); err != nil {
		return res, err
	}
	defer c.control.Close()
	stop := context.AfterFunc(ctx, func() { c.control.Close() })
	defer stop()
	var answer [1]byte
	if _, err := io.ReadFull(c.control, answer[:]); err != nil {
		return res, c.why(ctx, err)
	}
	switch status(answer[0]) {
	case statusOK:
	case statusBusy:
		return res, ErrBusy
	case statusSpent:
		return res, ErrSpent
	case statusNoPath:
		return res, ErrNoPath
	default:
		return res, ErrTalk
	}
	if err := c.train(ctx, &res); err != nil {
		return res, c.why(ctx, err)
	}
	if err := c.out(ctx, &res); err != nil {
		return res, c.why(ctx, err)
	}
	return res, c.why(ctx, c.in(ctx, &res))
}

// A caller is the side that measures.
type caller struct {
	dial    Dial
	id      [8]byte
	control net.Conn
}

// why is the error to show: the context's, if that is why a connection ended.
func (c *caller) why(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrTalk
	}
	return fmt.Errorf("measure: %w", err)
}

func (c *caller) call(ctx context.Context, kind, last byte) (net.Conn, error) {
	conn, err := c.dial(ctx, "tcp")
	if err != nil {
		return nil, err
	}
	hello := append(append([]byte{version, kind}, c.id[:]...), last)
	if _, err := conn.Write(hello); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// out sends a stream, and has the other side say what came.
func (c *caller) out(ctx context.Context, res *Result) error {
	conn, err := c.call(ctx, kindStream, toService)
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	defer conn.Close()
	sending.Go(func() { pour(conn, streamBytes) })
	if err := c.control.SetReadDeadline(time.Now().Add(streamSetup + streamTime)); err != nil {
		return err
	}
	var raw [16]byte
	if _, err := io.ReadFull(c.control, raw[:]); err != nil {
		return err
	}
	res.BytesOut = binary.BigEndian.Uint64(raw[:])
	res.RateOut = rate(res.BytesOut, time.Duration(binary.BigEndian.Uint64(raw[8:]))) //nolint:gosec // rate minds
	return nil
}

// in receives a stream.
func (c *caller) in(ctx context.Context, res *Result) error {
	conn, err := c.call(ctx, kindStream, fromService)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	bytes, took := drink(conn)
	res.BytesIn, res.RateIn = bytes, rate(bytes, took)
	return nil
}

// rate is what bytes in a time come to, in bytes a second.
func rate(bytes uint64, took time.Duration) float64 {
	if took <= 0 {
		return 0
	}
	return float64(bytes) / took.Seconds()
}

// pour writes for pourTime, or until the other side has enough, and returns how many bytes
// it wrote.
func pour(conn net.Conn, most int) (sent int) {
	_ = conn.SetWriteDeadline(time.Now().Add(pourTime)) // of the tunnel: it never errs
	chunk := make([]byte, 32<<10)
	_, _ = rand.Read(chunk) // it never fails
	for most = min(most, streamBytes); sent < most; {
		n, err := conn.Write(chunk[:min(len(chunk), most-sent)])
		sent += n
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			break
		}
		if err != nil {
			return sent
		}
	}
	// What is under way counts: the receiver closes.
	_ = conn.SetReadDeadline(time.Now().Add(streamSetup + streamTime))
	_, _ = conn.Read(chunk[:1])
	return sent
}

// drink reads for streamTime from the first byte on, and returns what came after that one
// read, and in which time.
func drink(conn net.Conn) (bytes uint64, took time.Duration) {
	_ = conn.SetReadDeadline(time.Now().Add(streamSetup))
	buf := make([]byte, 64<<10)
	first, err := conn.Read(buf)
	if err != nil {
		return 0, 0
	}
	start, last := time.Now(), time.Now()
	_ = conn.SetReadDeadline(start.Add(streamTime))
	for bytes+uint64(first) < streamBytes { //nolint:gosec // a length
		n, err := conn.Read(buf)
		if n > 0 {
			bytes, last = bytes+uint64(n), time.Now() //nolint:gosec // a length
		}
		if err != nil {
			break
		}
	}
	return bytes, last.Sub(start)
}
