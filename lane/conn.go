package lane

import (
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// recordSize is the most that one TLS record carries, in bytes (RFC 8446 section 5.1).
const recordSize = 16 << 10

// maxRecord is more than a whole record on the wire, in bytes: where so many wait below
// TLS, its next Read does not.
const maxRecord = recordSize + 1024

// A Conn is one lane: a TLS 1.3 connection over kernel TCP with a paired device. It
// is safe for concurrent use as every net.Conn is.
//
// Writes of 64 KiB and more are fastest; see BenchmarkThroughput. TCP_NODELAY is
// set: who writes little at a time should gather it.
type Conn struct {
	s    *Service
	t    *tls.Conn
	base *base
	peer identity.DeviceID
	kind string

	asked  bool // by this device
	dialed bool // by this device

	wmu sync.Mutex // one large write at a time
	rmu sync.Mutex // one read at a time
}

var _ net.Conn = (*Conn)(nil)

// Peer returns the device at the other end.
func (c *Conn) Peer() identity.DeviceID { return c.peer }

// Kind returns what the lane was opened for.
func (c *Conn) Kind() string { return c.kind }

// Dialed reports whether this device made the TCP connection, whoever asked for it.
func (c *Conn) Dialed() bool { return c.dialed }

// CipherSuite returns the name of the cipher in use, for a status: AES-GCM if both
// processors have instructions for it, else ChaCha20-Poly1305.
func (c *Conn) CipherSuite() string { return tls.CipherSuiteName(c.t.ConnectionState().CipherSuite) }

// LocalAddr returns this device's TCP endpoint.
func (c *Conn) LocalAddr() net.Addr { return c.base.LocalAddr() }

// RemoteAddr returns the other device's TCP endpoint, which says nothing about who
// it is: Peer does.
func (c *Conn) RemoteAddr() net.Addr { return c.base.RemoteAddr() }

// Read reads what the other side wrote. It returns io.EOF after the other side's
// CloseWrite or Close, and another error, io.ErrUnexpectedEOF included, if somebody
// else ended the connection: so a stream that was cut short is never taken for a
// whole one.
//
// A large p is filled with as much as is there: crypto/tls itself returns 16 KiB at most.
func (c *Conn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	n, err := c.t.Read(p)
	for err == nil && len(p)-n >= recordSize && c.base.buffered() >= maxRecord {
		var more int
		if more, err = c.t.Read(p[n:]); more == 0 {
			break
		}
		n += more
	}
	if n > 0 {
		err = nil // the next Read has it again
	}
	return n, err
}

// Write writes p. After an error, also that of a deadline, the lane cannot be
// written to any more, and how much has arrived is not known.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) <= recordSize {
		return c.t.Write(p)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.base.cork()
	n, err := c.t.Write(p)
	if flushed := c.base.uncork(); err == nil && flushed != nil {
		return 0, flushed
	}
	return n, err
}

// CloseWrite ends this side's stream; the other side reads io.EOF.
func (c *Conn) CloseWrite() error { return c.t.CloseWrite() }

// Close ends the lane. What was written before is still delivered. It may take 5 s
// if the other side does not read.
func (c *Conn) Close() error {
	c.s.forget(c)
	return c.t.Close()
}

// Abort ends the lane at once; what was written and has not arrived is lost.
func (c *Conn) Abort() {
	c.s.forget(c)
	c.base.abort()
}

// SetDeadline bounds reads and writes, as those of every net.Conn. It errs if the
// lane is closed.
func (c *Conn) SetDeadline(t time.Time) error { return c.base.SetDeadline(t) }

// SetReadDeadline bounds reads. It errs if the lane is closed.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.base.SetReadDeadline(t) }

// SetWriteDeadline bounds writes. It errs if the lane is closed.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.base.SetWriteDeadline(t) }
