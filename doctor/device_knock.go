package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

const (
	// deviceKnockWait is how long a server has to answer, also behind a path of 2 s each way.
	deviceKnockWait = 4500 * time.Millisecond
)

// A deviceKnock is what came of trying one address of a server.
type deviceKnock struct {
	target server
	addr   netip.Addr
	alive  bool
	how    string
	// resolver says that it is a DNS server of the system.
	resolver bool
}

// silence is a line of evidence for one that is not alive.
func (k deviceKnock) silence() string {
	return netip.AddrPortFrom(k.addr, k.target.Port).String() + " is silent"
}

// deviceAlive says how the first answered, "" if none did.
func deviceAlive(list []deviceKnock) string {
	for _, k := range list {
		if k.alive {
			return k.how
		}
	}
	return ""
}

// knockAll tries the first wanted address of each family of servers, all at once, and returns
// when one is alive or all have been tried.
func (d *device) knockAll(ctx context.Context, env *Env, list []server, want func(netip.Addr) bool) (out []deviceKnock) {
	ctx, cancel := context.WithTimeout(ctx, deviceKnockWait+lookupWait)
	defer cancel()
	found := make(chan []deviceKnock, len(list))
	for _, t := range list {
		go func() {
			addrs, _ := resolve(ctx, env, t.Host)
			addrs = deviceEach(addrs, want)
			mine := make([]deviceKnock, len(addrs))
			var wg sync.WaitGroup
			for i, a := range addrs {
				wg.Go(func() { mine[i] = d.knock(ctx, env, t, a) })
			}
			wg.Wait()
			found <- mine
		}()
	}
	for range list {
		more := <-found
		out = append(out, more...)
		if deviceAlive(more) != "" {
			cancel()
		}
	}
	return out
}

// deviceEach returns the first address of IPv4 and the first of IPv6 that are wanted.
func deviceEach(all []netip.Addr, want func(netip.Addr) bool) (out []netip.Addr) {
	for _, is := range []func(netip.Addr) bool{netip.Addr.Is4, netip.Addr.Is6} {
		if i := slices.IndexFunc(all, func(a netip.Addr) bool { return is(a) && want(a) }); i >= 0 {
			out = append(out, all[i])
		}
	}
	return out
}

// routed reports whether there is a way to an address, so that silence there means something.
func (d *device) routed(a netip.Addr) bool {
	_, err := d.outbound(a)
	return err == nil
}

// knock tries one address by UDP and TCP.
func (d *device) knock(ctx context.Context, env *Env, t server, a netip.Addr) deviceKnock {
	ctx, cancel := context.WithTimeout(ctx, deviceKnockWait)
	defer cancel()
	to := netip.AddrPortFrom(a, t.Port)
	out := deviceKnock{target: t, addr: a}
	ways := make(chan string, 2)
	go func() {
		if !t.TCP {
			ways <- ""
			return
		}
		switch err := d.dial(ctx, env, to); {
		case err == nil:
			ways <- fmt.Sprintf("%s answers over TCP", to)
		case deviceRefused(err):
			ways <- fmt.Sprintf("%s refuses TCP, and so is there", to)
		default:
			ways <- ""
		}
	}()
	go func() {
		req, fits := deviceBinding(0)
		switch {
		case t.DHT:
			req, fits = devicePing()
		case !t.UDP:
			ways <- ""
			return
		}
		if r := d.ask(ctx, env, to, req, deviceAsk{tries: 5, wait: deviceKnockWait / 5, fits: fits}); r.alive() {
			ways <- fmt.Sprintf("%s answers over UDP after %v", to, r.RTT.Round(10*time.Microsecond))
			return
		}
		ways <- ""
	}()
	for range 2 {
		if how := <-ways; how != "" && !out.alive {
			out.alive, out.how = true, how
			cancel()
		}
	}
	return out
}

// devicePing makes a ping to a node of the distributed hash table (BEP 5), and what tells
// its answer. It says that no questions are taken here (BEP 43).
func devicePing() (raw []byte, fits func([]byte) bool) {
	var id [20]byte
	_, _ = rand.Read(id[:]) // never fails
	tx := id[:4]
	raw = slices.Concat([]byte("d1:ad2:id20:"), id[:], []byte("e1:q4:ping2:roi1e1:t4:"), tx, []byte("1:y1:qe"))
	return raw, func(b []byte) bool {
		return len(b) <= 1500 && bytes.HasPrefix(b, []byte("d")) && bytes.Contains(b, append([]byte("1:t4:"), tx...)) &&
			(bytes.Contains(b, []byte("1:y1:r")) || bytes.Contains(b, []byte("1:y1:e")))
	}
}

// deviceBinding makes a STUN request (RFC 8489 section 6.1) of a size in bytes, 0: the
// least, and what tells its answer. A larger one has PADDING (RFC 5780 section 7.6),
// which the answer then has, too. It is for device.ask in place of a stunSocket where the
// system's error queue tells more than silence: that a port is shut, or how much a hop takes.
func deviceBinding(size int) (raw []byte, fits func([]byte) bool) {
	const headers = 20 + 4
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest)
	if err != nil {
		return nil, nil // only without random numbers
	}
	if size > headers {
		m.Add(stun.AttrPadding, make([]byte, (size-headers)&^3))
	}
	id := m.TransactionID
	return m.Raw, func(b []byte) bool {
		if len(b) < 20 || len(b) > 4096 {
			return false
		}
		r := &stun.Message{Raw: append([]byte(nil), b...)}
		return r.Decode() == nil && r.TransactionID == id && (r.Type.Class == stun.ClassSuccessResponse || r.Type.Class == stun.ClassErrorResponse)
	}
}
