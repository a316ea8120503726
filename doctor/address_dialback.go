package doctor

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/doctor/dialback"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/portmap"
)

// A dialBackLine is what came of one dial-back.
type dialBackLine struct {
	outcome dialback.Outcome
	inside  bool // not from the internet
	known   bool // whether there is an outcome
	text    string
}

const (
	onlyAnswers  = "only answers come in from outside, as usual behind a router or firewall"
	onlyInside   = "from the internet nobody could try"
	noneCouldTry = "no other machine could be asked to connect to this one"
)

// checkDialBack has hubs and paired devices connect to this device: the only proof of an
// address.
func checkDialBack(ctx context.Context, env *Env, _ string) Answer {
	l, err := listenForDialBack(ctx, env.Port)
	if err != nil {
		return Unclear("this device cannot listen: " + err.Error())
	}
	defer l.Close()
	at, line, end := openPort(ctx, env, l.Port())
	defer end()
	type way struct {
		hub     hubaddr.Address
		network string
	}
	var ways []way
	for _, h := range env.Hubs {
		for _, network := range []string{"tcp4", "tcp6"} {
			ways = append(ways, way{h, network})
		}
	}
	results := make(chan dialBackLine, len(ways))
	for _, w := range ways {
		go func() { results <- askHub(ctx, env, w.hub, w.network, l, at) }()
	}
	devices := make(chan []dialBackLine, 1)
	go func() { devices <- askPeers(ctx, env, l, at) }()
	var all []dialBackLine
	for range ways {
		if r := <-results; r.text != "" {
			all = append(all, r.proved(ctx, env, l))
		}
	}
	for _, r := range <-devices {
		all = append(all, r.proved(ctx, env, l))
	}
	if line != "" {
		all = append([]dialBackLine{{text: line}}, all...)
	}
	return judgeDialBack(all)
}

// listenForDialBack listens at kith's own port, which a router may forward, or at any if
// that is taken.
func listenForDialBack(ctx context.Context, port uint16) (*dialback.Listener, error) {
	if l, err := dialback.Listen(ctx, netip.AddrPortFrom(netip.Addr{}, port)); err == nil {
		return l, nil
	}
	return dialback.Listen(ctx, netip.AddrPort{})
}

// proofPatience is how long a connection is waited for that the other side says was made.
const proofPatience = time.Second

// proved is the line if the listener, too, has seen the connection: the word of the other
// side proves nothing.
func (r dialBackLine) proved(ctx context.Context, env *Env, l *dialback.Listener) dialBackLine {
	if !r.known || r.outcome != dialback.OK {
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, proofPatience)
	defer cancel()
	from, err := l.Wait(ctx)
	if err != nil {
		r.known, r.text = false, r.text+", but nothing has come here"
		return r
	}
	if !r.inside && near(env, from.Addr()) {
		r.inside, r.text = true, r.text+", from inside this network"
	}
	return r
}

// near reports whether an address is of a network that this device is in.
func near(env *Env, a netip.Addr) bool {
	if scope(a) != scopePublic {
		return true
	}
	all, err := env.interfaces()
	return err != nil || slices.ContainsFunc(all, func(i netmon.Interface) bool {
		return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// mapPatience is how long the router has to open a port.
const mapPatience = 2500 * time.Millisecond

// openPort has the router open a TCP port for ours, as the node does for its own, and
// returns the one that others dial over IPv4. end closes it again.
func openPort(ctx context.Context, env *Env, port uint16) (at uint16, line string, end func()) {
	if env.NoPortMapping || !behindNAT(env) || len(env.Hubs) == 0 && len(dialers(env)) == 0 || env.Pacer.Wait(ctx, 6) != nil {
		return port, "", func() {}
	}
	mapped := make(chan portmap.Mapping, 1)
	running, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		m := portmap.New(portmap.Config{Transport: portmap.TCP, Gateway: env.gateway, Logger: env.Logger})
		_ = m.Run(running, port, func(m portmap.Mapping, ok bool) {
			select {
			case mapped <- m: // the first report is one of success
			default:
			}
		}) // with the end of running
	})
	timer := time.NewTimer(mapPatience)
	defer timer.Stop()
	end = func() {
		cancel()
		wg.Wait()
	}
	select {
	case m := <-mapped:
		return m.External.Port(), fmt.Sprintf("the router %s has opened %s over TCP for it", m.Gateway, m.External), end
	case <-timer.C:
	case <-ctx.Done():
	}
	return port, "", end
}

// judgeDialBack makes an answer of all results.
func judgeDialBack(all []dialBackLine) Answer {
	var lines []string
	var open, inside, closed bool
	for _, r := range all {
		lines = append(lines, r.text)
		if !r.known {
			continue
		}
		switch {
		case r.outcome == dialback.OK && r.inside:
			inside = true
		case r.outcome == dialback.OK:
			open = true
		case r.outcome == dialback.Refused, r.outcome == dialback.Silent, r.outcome == dialback.Unreachable, r.outcome == dialback.Other:
			closed = true
		}
	}
	switch {
	case open:
		return OK(lines...)
	case closed:
		return OK(append(lines, onlyAnswers)...)
	case inside:
		return OK(append(lines, onlyInside)...)
	}
	return Unclear(append(lines, noneCouldTry)...)
}

// askHub asks one hub over one family.
func askHub(ctx context.Context, env *Env, hub hubaddr.Address, network string, l *dialback.Listener, port uint16) dialBackLine {
	if network == "tcp6" {
		port = l.Port() // nothing is translated
	}
	if env.Pacer.Wait(ctx, 12) != nil {
		return dialBackLine{}
	}
	answer, err := askHubFor(ctx, hub, network, dialback.Request{Port: port, Code: l.Code(), Pin: l.Pin()})
	if err != nil {
		if answer.Client.IsValid() {
			return dialBackLine{text: fmt.Sprintf("the hub %s was not asked over %s: %v", hub.Host, network, err)}
		}
		return dialBackLine{} // not reached over this family: other checks tell
	}
	at := netip.AddrPortFrom(answer.Client.Addr(), port)
	r := dialBackLine{known: true, outcome: answer.Outcome, inside: scope(answer.Client.Addr()) != scopePublic}
	r.text = fmt.Sprintf("the hub %s was asked to connect to %s: %s, after %d ms", hub.Host, at, answer.Outcome, answer.Took.Milliseconds())
	if answer.Outcome == dialback.OK {
		r.text = fmt.Sprintf("the hub %s says that it has connected to %s and said the code, after %d ms", hub.Host, at, answer.Took.Milliseconds())
	}
	if r.inside {
		r.text += " (it is in this network)"
	}
	return r
}

// askHubFor sends a request to a hub over a family. It errs if the hub cannot be reached or
// does not answer; the answer's Client is valid if it was reached.
func askHubFor(ctx context.Context, hub hubaddr.Address, network string, r dialback.Request) (dialback.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	d := tls.Dialer{Config: hub.TLSConfig()}
	conn, err := d.DialContext(ctx, network, net.JoinHostPort(hub.Host, fmt.Sprint(hub.Port)))
	if err != nil {
		return dialback.Answer{}, err
	}
	defer conn.Close()
	answer, err := dialback.Ask(ctx, conn, hub.DialBackLogin(), r)
	if err != nil {
		answer.Client = tcpAddr(conn.LocalAddr())
	}
	return answer, err
}

func tcpAddr(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(t.AddrPort().Addr().Unmap(), t.AddrPort().Port())
}

// maxAsked is how many paired devices are asked to dial back, a count.
const maxAsked = 2

// dialers are the paired devices that may be asked: none if others are to know this
// device by relays alone, and so not its address.
func dialers(env *Env) (out []Peer) {
	for _, p := range env.Peers {
		if p.Ask != nil && p.Connected && len(out) < maxAsked && env.Relay != "always" {
			out = append(out, p)
		}
	}
	return out
}

// askPeers asks paired devices to connect to the addresses that servers see.
func askPeers(ctx context.Context, env *Env, l *dialback.Listener, port uint16) (out []dialBackLine) {
	var at []netip.AddrPort
	for _, is4 := range []bool{true, false} {
		if seen := seenBy(env, is4); len(seen) > 0 {
			if !is4 {
				port = l.Port()
			}
			at = append(at, netip.AddrPortFrom(seen[0].Mapped.Addr(), port))
		}
	}
	for _, p := range dialers(env) {
		for _, a := range at {
			out = append(out, askPeer(ctx, p, l, a))
		}
	}
	return out
}

// askPeer asks a paired device to connect to an address.
func askPeer(ctx context.Context, p Peer, l *dialback.Listener, at netip.AddrPort) dialBackLine {
	reply, err := p.Ask(ctx, Question{DialBack: at, Secret: l.Code(), Pin: l.Pin()})
	outcome, known := dialback.ParseOutcome(reply.DialBack)
	switch {
	case err != nil:
		return dialBackLine{text: fmt.Sprintf("%s was asked to connect to %s, and did not answer", p.Name, at)}
	case !known:
		return dialBackLine{text: p.Name + " does not dial back"}
	}
	r := dialBackLine{outcome: outcome, known: true, inside: scope(at.Addr()) != scopePublic}
	r.text = fmt.Sprintf("%s was asked to connect to %s: %s", p.Name, at, outcome)
	if outcome == dialback.OK {
		r.text = fmt.Sprintf("%s says that it has connected to %s and said the code", p.Name, at)
	}
	return r
}
