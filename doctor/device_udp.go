package doctor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// A deviceAsk says how a datagram is sent.
type deviceAsk struct {
	tries int           // how often; default once
	wait  time.Duration // after each; default a second
	ttl   int           // hop limit; 0: the system's
	whole bool          // not to be cut into fragments on the way
	// fits reports whether an answer is one to this question. Nil: any is.
	fits func([]byte) bool
}

// A deviceAnswer is what came of it. The zero value, but for Err, is silence.
type deviceAnswer struct {
	Data    []byte        // the answer
	RTT     time.Duration // of the answer or of the message that stands for it
	Refused bool          // the host said that nobody listens at the port
	Nobody  bool          // nobody on the link has the address
	Hop     netip.Addr    // a router that said that it got no further, if one did
	Expired bool          // it did because of the hop limit
	NoWay   bool          // it did because it knows no way on, or nobody where the way leads
	MTU     int           // bytes: the packet was larger than this hop takes, as it said
	Err     error         // it could not be sent; errors.ErrUnsupported: not in this way, by this system
}

// alive reports whether the host answered in any way.
func (a deviceAnswer) alive() bool { return a.Data != nil || a.Refused }

// deviceAskUDP sends a datagram until there is an answer, or a message that there will
// be none.
func deviceAskUDP(ctx context.Context, env *Env, to netip.AddrPort, packet []byte, how deviceAsk) (a deviceAnswer) {
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { return deviceOptions(c, to.Addr().Is4(), how) }}
	raw, err := dialer.DialContext(ctx, "udp", to.String())
	if err != nil {
		return deviceAnswer{Err: err}
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	wait := how.wait
	if wait == 0 {
		wait = time.Second
	}
	buf := make([]byte, 4096)
	for range max(how.tries, 1) {
		if a.Err = env.Pacer.Wait(ctx, 1); a.Err != nil {
			return a
		}
		sent := time.Now()
		if err := raw.SetDeadline(sent.Add(wait)); err != nil || ctx.Err() != nil {
			a.Err = errors.Join(err, ctx.Err())
			return a
		}
		if _, err := raw.Write(packet); err != nil {
			a.RTT = time.Since(sent)
			a.failed(raw, err)
			return a
		}
		for {
			n, err := raw.Read(buf)
			a.RTT = time.Since(sent)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				a.failed(raw, err)
				return a
			}
			if how.fits == nil || how.fits(buf[:n]) {
				a.Data = append([]byte(nil), buf[:n]...)
				return a
			}
		}
	}
	return a
}

// failed takes note of what the system said instead of sending or receiving.
func (a *deviceAnswer) failed(conn net.Conn, err error) {
	told := deviceTold(conn)
	switch {
	case told.mtu > 0:
		a.MTU = told.mtu
	case told.expired:
		a.Hop, a.Expired = told.by, true
	case deviceRefused(err) && told.by.IsValid() && told.by != deviceRemote(conn): // a firewall on the way
		a.Hop = told.by
	case deviceRefused(err):
		a.Refused = true
	case errors.Is(err, errDeviceTooLarge):
		a.MTU = 1
	case told.remote: // a router does not pass it on
		a.Hop, a.NoWay = told.by, told.noway
	case deviceUnreachable(err): // the system itself says so
		a.Nobody = true
	default:
		a.Err = err
	}
}

// A deviceMessage is what an ICMP message said, as far as the system hands it on.
type deviceMessage struct {
	by      netip.Addr
	remote  bool // it came from another host
	expired bool
	noway   bool // there is no route, or nobody has the address
	mtu     int  // bytes
}

func deviceRemote(conn net.Conn) netip.Addr { return udpAddr(conn.RemoteAddr()).Addr().WithZone("") }
