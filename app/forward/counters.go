package forward

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
)

// Counters count what a forward does, while it does it. The zero value is ready;
// all methods are safe for concurrent use, and a nil Counters counts nothing.
type Counters struct {
	open, total, failed, dropped, sent, received atomic.Int64
}

// Traffic is what Counters have counted so far.
type Traffic struct {
	Open   int64 `json:"open"`   // how many connections, or flows of UDP, there are
	Total  int64 `json:"total"`  // how many there were, open ones among them
	Failed int64 `json:"failed"` // how many found the far side closed to them
	// Sent is what came from the side that connects, in bytes.
	Sent int64 `json:"sent"`
	// Received is what went back to it, in bytes.
	Received int64 `json:"received"`
	Dropped  int64 `json:"dropped"` // datagrams that found no room
}

// Traffic returns what was counted until now.
func (c *Counters) Traffic() Traffic {
	if c == nil {
		return Traffic{}
	}
	return Traffic{
		Open: c.open.Load(), Total: c.total.Load(), Failed: c.failed.Load(), Dropped: c.dropped.Load(),
		Sent: c.sent.Load(), Received: c.received.Load(),
	}
}

// began counts a connection, and returns what counts its end.
func (c *Counters) began() (ended func()) {
	if c == nil {
		return func() {}
	}
	c.open.Add(1)
	c.total.Add(1)
	return func() { c.open.Add(-1) }
}

func (c *Counters) fail() {
	if c != nil {
		c.failed.Add(1)
	}
}

// drop counts a datagram that was lost here.
func (c *Counters) drop() {
	if c != nil {
		c.dropped.Add(1)
	}
}

func (c *Counters) send(bytes int) {
	if c != nil {
		c.sent.Add(int64(bytes))
	}
}

func (c *Counters) receive(bytes int) {
	if c != nil {
		c.received.Add(int64(bytes))
	}
}

// Carry is Splice, and counts the connection itself, too.
func (c *Counters) Carry(ctx context.Context, a, b net.Conn) {
	defer c.began()()
	c.Splice(ctx, a, b)
}

// Conn returns conn, dialed for somebody who connected, as one that is counted until
// it is closed.
func (c *Counters) Conn(conn net.Conn) net.Conn {
	if c == nil {
		return conn
	}
	return &countedConn{Conn: conn, counters: c, ended: sync.OnceFunc(c.began())}
}

type countedConn struct {
	net.Conn
	counters *Counters
	ended    func()
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.counters.receive(n)
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.counters.send(n)
	return n, err
}

func (c *countedConn) Close() error {
	c.ended()
	return c.Conn.Close()
}
