package netif

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// An Upstream asks DNS servers, one after the other.
type Upstream struct {
	Servers []netip.AddrPort
	// Wait is how long each is waited for; default 2 s.
	Wait time.Duration
}

// rounds is how often all servers are asked, in number.
const rounds = 2

var errNoServer = errors.New("netif: no DNS server answers")

// Ask returns the reply to a query, over TCP if stream is set. It errs if no server
// replies, and with the context's error.
func (u *Upstream) Ask(ctx context.Context, query []byte, stream bool) ([]byte, error) {
	if len(query) < 12 {
		return nil, errors.New("netif: not a DNS query")
	}
	wait := u.Wait
	if wait <= 0 {
		wait = 2 * time.Second
	}
	err := errNoServer
	for range rounds {
		for _, s := range u.Servers {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			reply, failed := u.ask(ctx, s, query, stream, wait)
			if failed == nil {
				return reply, nil
			}
			err = fmt.Errorf("%w: %s: %w", errNoServer, s, failed)
		}
	}
	return nil, err
}

func (u *Upstream) ask(ctx context.Context, server netip.AddrPort, query []byte, stream bool, wait time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	network := "udp"
	if stream {
		network = "tcp"
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server.String()) // each query has a port of its own
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if stream {
		return askStream(conn, query)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], query) {
			return buf[:n], nil
		}
	}
}

func askStream(conn net.Conn, query []byte) ([]byte, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, err
	}
	if !answers(reply, query) {
		return nil, errors.New("netif: not the reply to this query")
	}
	return reply, nil
}

// answers reports whether a reply has the query's ID and is one.
func answers(reply, query []byte) bool {
	return len(reply) >= 12 && reply[0] == query[0] && reply[1] == query[1] && reply[2]&0x80 != 0
}
