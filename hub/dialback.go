package hub

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/doctor/dialback"
	"github.com/kithproject/kith/hub/hubaddr"
)

const (
	dialRate  = 0.5 // dial-backs for one address a second
	dialBurst = 20.0
	maxDials  = 64 // at a time, in all
	dialsEach = 8  // at a time, for one address (IPv6: /64)
)

// dialer connects to clients that want to know whether they can be reached. It is the
// one part of a hub that makes connections because a client says so, and therefore
// knows one address for each: the one that the question came from, which TCP has proved.
// Others may be behind that address, too, so that it leaves the ports of well-known services alone.
type dialer struct {
	private bool                  // private addresses are dialed, too
	own     func(netip.Addr) bool // an address of the hub itself
	login   [sha256.Size]byte     // hash of what clients say first
	limit   *sources

	mu   sync.Mutex // guards the fields below
	all  int        // dial-backs that are under way
	each map[netip.Addr]int
}

func newDialer(cfg Config, addr hubaddr.Address, own func(netip.Addr) bool) *dialer {
	return &dialer{
		private: cfg.AllowPrivate, own: own, login: sha256.Sum256(addr.DialBackLogin()),
		limit: newSources(dialRate, dialBurst), each: make(map[netip.Addr]int),
	}
}

// begin takes a place for a dial-back to an address, and reports whether there is one.
func (d *dialer) begin(ip netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ip = ipKey(ip); d.all >= maxDials || d.each[ip] >= dialsEach {
		return false
	}
	d.all++
	d.each[ip]++
	return true
}

// end gives the place back.
func (d *dialer) end(ip netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if ip = ipKey(ip); d.each[ip] > 1 {
		d.each[ip]--
	} else {
		delete(d.each, ip)
	}
}

// may reports whether a port of a client is one that is dialed at all.
func (d *dialer) may(client netip.Addr, port uint16) bool {
	if port < lowestResponse || !mayRelay(client, d.private) {
		return false
	}
	return d.private || !d.own(client)
}

// serveDialBack reads a client's question, inside TLS only, as with mail, and answers.
func (x *mux) serveDialBack(c *stream) {
	defer c.Close()
	if _, ok := c.Conn.(*tls.Conn); !ok {
		x.m.drop("dialback_plain")
		return
	}
	var login [hubaddr.DialBackLoginSize]byte
	if _, err := io.ReadFull(c, login[:]); err != nil {
		x.m.drop("timeout")
		return
	}
	got := sha256.Sum256(login[:])
	if subtle.ConstantTimeCompare(got[:], x.dialer.login[:]) != 1 {
		x.m.drop("dialback_password")
		return
	}
	request, err := dialback.ReadRequest(c)
	if err != nil {
		x.m.drop("timeout")
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	x.wg.Go(func() { // handle runs, so that nobody waits for the group yet
		select {
		case <-x.stopped:
			cancel()
		case <-ctx.Done():
		}
	})
	answer := x.dialer.dial(ctx, addrOf(c.RemoteAddr()), request)
	_ = dialback.WriteAnswer(c, answer) // or it is gone
}

// dial does what a client asks for.
func (d *dialer) dial(ctx context.Context, client netip.AddrPort, r dialback.Request) dialback.Answer {
	start := time.Now()
	a := dialback.Answer{Client: client}
	switch {
	case r.Port == 0:
		a.Outcome = dialback.Seen
	case !d.may(client.Addr(), r.Port):
		a.Outcome = dialback.Forbidden
	case !d.limit.allow(start, client.Addr()), !d.begin(client.Addr()):
		a.Outcome = dialback.Busy
	default:
		defer d.end(client.Addr())
		a.Outcome, _ = dialback.Dial(ctx, netip.AddrPortFrom(client.Addr(), r.Port), r.Code, r.Pin)
	}
	a.Took = time.Since(start)
	return a
}
