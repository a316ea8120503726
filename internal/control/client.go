package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
)

// A Client makes requests to one node. It is safe for concurrent use.
type Client struct {
	dial func(ctx context.Context) (net.Conn, error)
}

// Connect returns a client of the daemon that serves dir. It errs with
// ErrNoDaemon if there is none.
func Connect(ctx context.Context, dir string) (*Client, error) {
	path, err := SocketPath(dir)
	if err != nil {
		return nil, errors.Join(ErrNoDaemon, err)
	}
	c := &Client{dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	conn, err := c.dial(ctx)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNoDaemon
	}
	if err != nil {
		return nil, fmt.Errorf("control: reach the daemon: %w", err)
	}
	return c, conn.Close()
}

// Local returns a client of a server in this process.
func Local(s *Server) *Client {
	return &Client{dial: func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		if !s.take(far) {
			near.Close()
			return nil, fmt.Errorf("control: %w", net.ErrClosed)
		}
		return near, nil
	}}
}

// A Call is one request under way.
type Call struct {
	s    *stream
	stop func() bool
}

// Call sends a request. The caller closes the Call; the end of ctx does, too.
// It errs if the node cannot be reached.
func (c *Client) Call(ctx context.Context, req Request) (*Call, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("control: reach the node: %w", err)
	}
	call := &Call{s: newStream(conn), stop: context.AfterFunc(ctx, func() { conn.Close() })}
	if err := call.s.send(req); err != nil {
		call.Close()
		return nil, fmt.Errorf("control: ask: %w", err)
	}
	return call, nil
}

// Next returns the next reply. It errs with an *Error that the node gave, with ErrEnded,
// or when the connection broke otherwise.
func (c *Call) Next() (Reply, error) {
	var r Reply
	switch err := c.s.receive(&r); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return Reply{}, ErrEnded
	case err != nil:
		return Reply{}, fmt.Errorf("control: the node's answer: %w", err)
	}
	if r.Error != nil {
		return r, r.Error
	}
	return r, nil
}

// Send says something to the running request. It errs if the connection broke.
func (c *Call) Send(in Input) error {
	if err := c.s.send(in); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// Close ends the request. It is idempotent.
func (c *Call) Close() {
	c.stop()
	c.s.conn.Close()
}

// Do makes a request that has one reply. It errs as Call and Next do.
func (c *Client) Do(ctx context.Context, req Request) (Reply, error) {
	call, err := c.Call(ctx, req)
	if err != nil {
		return Reply{}, err
	}
	defer call.Close()
	r, err := call.Next()
	if err != nil && ctx.Err() != nil {
		return Reply{}, ctx.Err()
	}
	return r, err
}

// Dial opens a connection to a TCP port of a device. ctx bounds the call and
// not the connection. It errs as Do does.
func (c *Client) Dial(ctx context.Context, req Request) (net.Conn, error) {
	req.Op = OpDial
	call, err := c.Call(ctx, req)
	if err != nil {
		return nil, err
	}
	if _, err := call.Next(); err != nil {
		call.Close()
		return nil, err
	}
	if !call.stop() {
		return nil, ctx.Err()
	}
	return call.s.raw(), nil
}
