package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Ping sends one ICMPv6 echo request (RFC 4443 section 4.1) through the tunnel and
// returns the time until its reply. It errs with ErrPeer if the address is no
// peer's, with net.ErrClosed, and with the context's error if no reply came.
func (t *Tunnel) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	if _, ok := t.Peer(to); !ok {
		return 0, fmt.Errorf("tunnel: ping %s: %w", to, ErrPeer)
	}
	var q waiter.Queue
	ep, terr := t.nic.stack.NewEndpoint(icmp.ProtocolNumber6, ipv6.ProtocolNumber, &q)
	if terr != nil {
		return 0, fmt.Errorf("tunnel: ping: %s", terr)
	}
	defer ep.Close()
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	q.EventRegister(&entry)
	defer q.EventUnregister(&entry)
	if terr := ep.Connect(fullAddress(netip.AddrPortFrom(to, 0))); terr != nil {
		return 0, fmt.Errorf("tunnel: ping: %s", terr)
	}
	request := make([]byte, header.ICMPv6EchoMinimumSize+8)
	request[0] = byte(header.ICMPv6EchoRequest)
	if _, err := rand.Read(request[header.ICMPv6EchoMinimumSize:]); err != nil {
		return 0, fmt.Errorf("tunnel: ping: %w", err)
	}
	start := time.Now()
	if _, terr := ep.Write(bytes.NewReader(request), tcpip.WriteOptions{}); terr != nil {
		return 0, fmt.Errorf("tunnel: ping: %s", terr)
	}
	for {
		select {
		case <-readable:
		case <-t.nic.closed:
			return 0, fmt.Errorf("tunnel: ping %s: %w", to, net.ErrClosed)
		case <-ctx.Done():
			return 0, fmt.Errorf("tunnel: ping %s: %w", to, ctx.Err())
		}
		var reply bytes.Buffer
		if _, terr := ep.Read(&reply, tcpip.ReadOptions{}); terr != nil {
			continue // nothing to read after all
		}
		if b := reply.Bytes(); len(b) == len(request) && b[0] == byte(header.ICMPv6EchoReply) &&
			bytes.Equal(b[header.ICMPv6EchoMinimumSize:], request[header.ICMPv6EchoMinimumSize:]) {
			return time.Since(start), nil
		}
	}
}
