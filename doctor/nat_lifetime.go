package doctor

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"
)

const (
	// silence is for how long nothing is sent in an ordinary run, which takes hardly longer:
	// just long enough to tell a router that forgets after ten seconds.
	silence = 10500 * time.Millisecond
	// knockWait is how long a packet is waited for that should come through a mapping.
	knockWait = 3 * time.Second
)

// timeouts are the silences of a slow run.
var timeouts = []time.Duration{20 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute} //nolint:gochecknoglobals // a table

// A knocker has a server send to other sockets of this device, through the mappings that
// they have: a question with RESPONSE-PORT is answered there (RFC 5780 section 4.6). What it
// sends itself keeps no mapping but its own alive.
type knocker struct {
	sock   *stunSocket
	server netip.AddrPort
	own    netip.AddrPort // of sock, as the server sees it
	other  *asleep        // by which it is known that the server does so
}

// newKnocker looks for a server that does so. It errs if there is none.
func newKnocker(ctx context.Context, env *Env, seen []sighting) (*knocker, error) {
	for _, s := range seen {
		sock, err := openSTUN(env, networkOf(s.Server.Addr))
		if err != nil {
			return nil, err
		}
		a, err := sock.ask(ctx, s.Server.Addr, stunMore)
		if err == nil && a.Code == 0 {
			k := &knocker{sock: sock, server: s.Server.Addr, own: a.Mapped}
			if k.other, err = k.sleeper(ctx, env); err == nil {
				return k, nil
			}
		}
		sock.close()
	}
	return nil, fmt.Errorf("no server can send to another port (RFC 5780 RESPONSE-PORT), as hubs of this version do")
}

func networkOf(server netip.AddrPort) string {
	if server.Addr().Is4() {
		return "udp4"
	}
	return "udp6"
}

func (k *knocker) close() {
	k.other.sock.close()
	k.sock.close()
}

// works reports whether the server still does so, now.
func (k *knocker) works(ctx context.Context) bool {
	return k.knock(ctx, k.other.sock, k.other.mapped.Port(), stunMore) && ctx.Err() == nil
}

// knock has the server send to a public port until a socket hears it.
func (k *knocker) knock(ctx context.Context, to *stunSocket, port uint16, patience time.Duration) bool {
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest,
		stun.RawAttribute{Type: stun.AttrResponsePort, Length: 4, Value: binary.BigEndian.AppendUint32(nil, uint32(port)<<16)})
	if err != nil {
		return false
	}
	a, err := k.sock.repeat(ctx, m.Raw, k.server, patience, to.hear(m.TransactionID))
	return err == nil && a.Code == 0
}

// asleep is a socket with a mapping that is left alone.
type asleep struct {
	sock   *stunSocket
	mapped netip.AddrPort
}

// sleeper opens a socket with a mapping towards the knocker's server, and makes sure that
// what the server sends comes in now.
func (k *knocker) sleeper(ctx context.Context, env *Env) (*asleep, error) {
	sock, err := openSTUN(env, networkOf(k.server))
	if err != nil {
		return nil, err
	}
	a, err := sock.ask(ctx, k.server, stunMore)
	switch {
	case err != nil || a.Code != 0:
		err = fmt.Errorf("%s does not answer any more", k.server)
	case a.Mapped.Addr() != k.own.Addr():
		err = fmt.Errorf("two sockets have two public addresses")
	case !k.knock(ctx, sock, a.Mapped.Port(), stunMore):
		err = fmt.Errorf("%s cannot send to another socket", k.server)
	}
	if err != nil {
		sock.close()
		return nil, err
	}
	return &asleep{sock, a.Mapped}, nil
}

// survives reports whether something still comes in after a silence, and whether that could
// be found out.
func (k *knocker) survives(ctx context.Context, s *asleep, pause time.Duration) (alive, known bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false, false
	}
	if k.knock(ctx, s.sock, s.mapped.Port(), knockWait) {
		return true, true
	}
	// Perhaps it is the server that is gone, or the knocker's own address that changed.
	a, err := k.sock.ask(ctx, k.server, stunMore)
	return false, err == nil && a.Code == 0 && a.Mapped.Addr() == k.own.Addr() && ctx.Err() == nil
}

// candidatesForSilence returns what an answer depends on: a NAT is of IPv4, a firewall of either.
func candidatesForSilence(env *Env) []sighting {
	if seen := seenBy(env, true); len(seen) > 0 {
		return seen
	}
	return seenBy(env, false)
}

func checkLifetime(ctx context.Context, env *Env, _ string) Answer {
	k, err := newKnocker(ctx, env, candidatesForSilence(env))
	if err != nil {
		return Unclear(err.Error())
	}
	defer k.close()
	s, err := k.sleeper(ctx, env)
	if err != nil {
		return Unclear(err.Error())
	}
	defer s.sock.close()
	alive, known := k.survives(ctx, s, silence)
	switch {
	case alive:
		return OK(fmt.Sprintf("what %s sends comes in after %v of silence", k.server, silence))
	case !known:
		return Unclear("the server does not answer any more, or the public address has changed")
	}
	return Fails("short", fmt.Sprintf("what %s sends to %s came in at once, and not after %v of silence", k.server, s.mapped, silence))
}

// checkTimeout leaves several sockets alone, each for another time.
func checkTimeout(ctx context.Context, env *Env, _ string) Answer {
	k, err := newKnocker(ctx, env, candidatesForSilence(env))
	if err != nil {
		return Unclear(err.Error())
	}
	defer k.close()
	type result struct {
		i            int
		alive, known bool
	}
	results := make(chan result, len(timeouts))
	for i, pause := range timeouts {
		go func() {
			s, err := k.sleeper(ctx, env)
			if err != nil {
				results <- result{i: i}
				return
			}
			defer s.sock.close()
			alive, known := k.survives(ctx, s, pause)
			results <- result{i, alive, known}
		}()
	}
	states := make([]result, len(timeouts))
	for range timeouts {
		r := <-results
		states[r.i] = r
	}
	var lines []string
	known := false
	for i, r := range states {
		known = known || r.known
		switch {
		case r.alive:
			lines = append(lines, fmt.Sprintf("after %d s of silence: remembered", timeouts[i]/time.Second))
		case r.known:
			lines = append(lines, fmt.Sprintf("after %d s of silence: forgotten", timeouts[i]/time.Second))
		}
	}
	switch {
	case !known:
		return Unclear("the server does not answer any more")
	case states[0].known && !states[0].alive:
		return Fails("short", lines...)
	}
	return OK(lines...)
}
