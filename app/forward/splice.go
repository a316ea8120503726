package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Buffers have two sizes. A connection that waits, or carries small requests,
// holds the small one in each direction, so that thousands of idle connections
// cost little; a read that fills its buffer gets the large one for the next, which
// has room for a full batch of the tunnel's 64 KiB segments.
const (
	smallBuffer = 8 << 10
	largeBuffer = 256 << 10
)

// bulkAfter is what a direction has carried, in bytes, before the kernel is asked
// to carry the rest of it from socket to socket, or a connection that can to read by
// itself; bulkStep is how much at a time, so that what is counted stays fresh.
const (
	bulkAfter = 1 << 20
	bulkStep  = 8 << 20
)

// drainTime is how long a connection that takes nothing more may still bring what
// its other end had said before.
const drainTime = 5 * time.Second

//nolint:gochecknoglobals // pools hold no state, only memory
var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// A buffer is one of the two sizes.
type buffer struct {
	small *[smallBuffer]byte
	large *[largeBuffer]byte
}

func (b *buffer) bytes() []byte {
	if b.large != nil {
		return b.large[:]
	}
	if b.small == nil {
		b.small = smallBuffers.Get().(*[smallBuffer]byte)
	}
	return b.small[:]
}

// fit chooses the buffer of the next read by what the last one, of n bytes, filled.
func (b *buffer) fit(n int) {
	switch {
	case b.large == nil && n == smallBuffer:
		b.release()
		b.large = largeBuffers.Get().(*[largeBuffer]byte)
	case b.large != nil && n < smallBuffer:
		b.release()
	}
}

func (b *buffer) release() {
	if b.small != nil {
		smallBuffers.Put(b.small)
	}
	if b.large != nil {
		largeBuffers.Put(b.large)
	}
	b.small, b.large = nil, nil
}

// Splice carries bytes both ways until both directions have ended or ctx ends,
// keeps half-closed connections half-closed, and closes both. A connection that
// breaks is no end of its stream: the other one is then reset, where it can be.
func Splice(ctx context.Context, a, b net.Conn) { (*Counters)(nil).Splice(ctx, a, b) }

// Splice is the function Splice, and counts a's bytes as sent and b's as received
// while they are carried. A nil Counters counts nothing.
func (c *Counters) Splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { Abort(a); Abort(b) })
	defer stop()
	var sent, received *atomic.Int64
	if c != nil {
		sent, received = &c.sent, &c.received
	}
	var wg sync.WaitGroup
	wg.Go(func() { carry(b, a, sent) })
	carry(a, b, received)
	wg.Wait()
	a.Close()
	b.Close()
}

// Abort ends a connection at once: what waits to be sent is dropped, and the other
// end sees a reset rather than an end, where the connection offers Abort() or, as
// TCP of the kernel does, SetLinger. Any other is closed.
func Abort(c io.Closer) {
	switch c := c.(type) {
	case interface{ Abort() }:
		c.Abort()
	case interface{ SetLinger(seconds int) error }:
		_ = c.SetLinger(0)
	}
	c.Close()
}

// halfCloser is a connection whose sending side can end alone.
type halfCloser interface{ CloseWrite() error }

// errTaker is an error of the side that was written to.
type errTaker struct{ error }

// carry is one direction.
func carry(dst, src net.Conn, count *atomic.Int64) {
	err := pump(dst, src, count)
	var taker errTaker
	switch {
	case err == nil:
		if h, ok := dst.(halfCloser); ok {
			_ = h.CloseWrite()
			return
		}
		dst.Close()
	case errors.As(err, &taker):
		// dst takes nothing more, but what it said before may still be on its way:
		// a server that refuses an upload answers and then resets.
		_ = dst.SetReadDeadline(time.Now().Add(drainTime))
	default:
		Abort(dst)
		Abort(src)
	}
}

// pump copies until src ends. It errs with an errTaker if dst fails, and with
// src's error.
func pump(dst, src net.Conn, count *atomic.Int64) error {
	var buf buffer
	defer buf.release()
	bulk := bulkPair(dst, src)
	for total := 0; ; {
		if bulk != nil && total >= bulkAfter {
			buf.release()
			return pumpBulk(bulk, src, count)
		}
		n, err := src.Read(buf.bytes())
		if n > 0 {
			if count != nil {
				count.Add(int64(n)) // before its answer is counted
			}
			if _, err := dst.Write(buf.bytes()[:n]); err != nil {
				return errTaker{err}
			}
			total += n
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		buf.fit(n)
	}
}

// bulkPair returns dst if it can read from src better than through our buffer. The
// kernel can, without this process seeing the bytes, from one of its streams to one of
// its TCP connections, on Linux; elsewhere it copies through a smaller buffer. A
// connection that is not the kernel's, and is an io.ReaderFrom, knows what to do.
func bulkPair(dst, src net.Conn) io.ReaderFrom {
	to, ok := dst.(io.ReaderFrom)
	if !ok {
		return nil
	}
	switch dst.(type) {
	case *net.UnixConn:
		return nil
	case *net.TCPConn:
		switch src.(type) {
		case *net.TCPConn, *net.UnixConn:
			if runtime.GOOS == "linux" {
				return to
			}
		}
		return nil
	}
	return to
}

// pumpBulk is pump with dst's help.
func pumpBulk(dst io.ReaderFrom, src net.Conn, count *atomic.Int64) error {
	for {
		step := io.LimitedReader{R: src, N: bulkStep}
		n, err := dst.ReadFrom(&step)
		if count != nil {
			count.Add(n)
		}
		if err != nil {
			var op *net.OpError
			if errors.Is(err, syscall.EPIPE) || errors.As(err, &op) && op.Op == "write" {
				return errTaker{err}
			}
			return err
		}
		if step.N > 0 {
			return nil
		}
	}
}
