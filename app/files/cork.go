package files

import (
	"bufio"
	"net"
	"sync"
)

// coalesceSize is the buffer of each direction of a Coalesced connection, in bytes.
const coalesceSize = 128 << 10

// A Coalesced connection joins small writes into large ones while it is corked, and
// reads ahead. Put it between crypto/tls and a TCP connection:
//
//	tls.Client(files.Coalesce(tcp), config)
//
// crypto/tls makes one system call for each record of 16 KiB in either direction;
// with this it is one for eight. The engine finds it below the tls.Conn and corks it
// around each frame; otherwise every write goes out at once.
type Coalesced struct {
	net.Conn
	r *bufio.Reader

	mu     sync.Mutex // guards all below
	w      *bufio.Writer
	corked bool
}

// Coalesce returns a Coalesced connection over conn.
func Coalesce(conn net.Conn) *Coalesced {
	return &Coalesced{
		Conn: conn, r: bufio.NewReaderSize(conn, coalesceSize), w: bufio.NewWriterSize(conn, coalesceSize),
	}
}

// Read reads from what was read ahead, or from the connection.
func (c *Coalesced) Read(p []byte) (int, error) { return c.r.Read(p) }

// Write writes at once, or later while corked.
func (c *Coalesced) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.w.Write(p)
	if err == nil && !c.corked {
		err = c.w.Flush()
	}
	return n, err
}

// CloseWrite ends the sending side. It errs if the connection below cannot.
func (c *Coalesced) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Conn.Close()
}

// hold joins writes until flush.
func (c *Coalesced) hold() {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// flush writes what was held, and holds no more.
func (c *Coalesced) flush() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.w.Flush()
}

// corkOf returns the Coalesced connection that conn is or stands on, or nil.
func corkOf(conn net.Conn) *Coalesced {
	for range 4 {
		if c, ok := conn.(*Coalesced); ok {
			return c
		}
		below, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = below.NetConn()
	}
	return nil
}
