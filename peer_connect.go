package kith

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/signaling"
	"github.com/kithproject/kith/tunnel"
)

// look makes the link to the other device, which stays as long as the pair does.
// search is what follows.
func (p *peer) look() error {
	l, err := p.n.socket.NewLink(link.Config{
		Peer: p.id, Keys: probeKeys(p.chain(), p.role()), Logger: p.n.cfg.Logger,
		Events: func(ev link.Event) { p.post(func() { p.onLink(ev) }) },
	})
	if err != nil {
		return err
	}
	p.link, p.round = l, 0
	p.mu.Lock()
	p.meter = l
	p.mu.Unlock()
	l.SetRelayOnly(p.n.cfg.Relay == RelayAlways)
	l.SetNoRelay(p.n.cfg.Relay == RelayNever)
	l.SetLazy(p.n.cfg.Lazy)
	p.stirred = time.Now()
	return p.attach()
}

// search tries the addresses that worked before and announces ours.
func (p *peer) search() {
	if p.link == nil { // the pair has ended meanwhile
		return
	}
	p.link.SetRemote(candidates(p.rec.Endpoints))
	p.setLooking("looking for it on " + p.where())
	p.channel.Announce(p.presence())
}

func candidates(addrs []netip.AddrPort) []signaling.Candidate {
	out := make([]signaling.Candidate, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, signaling.Candidate{Kind: signaling.Host, Addr: a})
	}
	return out
}

// probeKeys gives the keys that seal a pair's path probes on a day.
func probeKeys(chain pairing.Chain, role pairing.Role) func(int64) (send, receive [32]byte, err error) {
	return func(day int64) (send, receive [32]byte, err error) {
		c, err := chain.At(max(day, chain.Day)) // our clock may be behind the pairing's day
		if err != nil {
			return send, receive, err
		}
		return c.ProbeKey(role), c.ProbeKey(pairing.Joiner + pairing.Offerer - role), nil
	}
}

// resetLink begins anew with fresh paths, since the other device's old sockets are
// gone. WireGuard keeps what it knows of it: the session that its next run makes
// may be there already, and a peer that forgot the last handshake's time would
// take a replay for a new one. It also keeps the Link, which packets on their way
// up name as their source.
func (p *peer) resetLink(why string) {
	p.disconnected(why)
	p.round++
	p.link.Reset()
	p.search()
}

func (p *peer) onLink(ev link.Event) {
	if p.link == nil || ev.Link != p.link || ev.Round != p.round {
		return // of a link that was closed, or of before a reset
	}
	p.needRelay()
	switch ev.Kind {
	case link.Up, link.Changed:
		p.setPath(ev.Path)
		p.n.tunnel.Revive(p.id)
		p.connect()
	case link.Silent:
		p.n.reach.doubt()
	case link.Waking:
		p.rouse()
	case link.Down:
		p.disconnected("no path answers")
		p.n.reach.doubt()
		p.channel.Announce(p.presence())
	}
}

// rouseAgain is how long a device that is wanted is not called anew.
const rouseAgain = 5 * time.Second

// rouse calls for the device, because somebody wants it now: everything that was
// given time, since nothing needed it, is tried at once.
func (p *peer) rouse() {
	if p.link == nil || time.Since(p.stirred) < rouseAgain && !p.link.Dormant() {
		return
	}
	p.stirred = time.Now()
	p.link.Probe()
	p.needRelay()
	p.n.reach.doubt()
	p.channel.Announce(p.presence())
}

// psk is the pair's WireGuard preshared key of the earlier of both days, so
// that two devices around midnight use the same one.
func (p *peer) psk() ([32]byte, error) {
	day := wire.Day(time.Now())
	if p.peerDay != 0 && p.peerDay < day {
		day = p.peerDay
	}
	c, err := p.chain().At(max(day, p.rec.ChainDay))
	if err != nil {
		return [32]byte{}, err
	}
	return c.WireGuardPSK(), nil
}

func (p *peer) updatePSK() {
	p.n.attaching.Lock()
	defer p.n.attaching.Unlock()
	if p.n.attached[p.id] != p {
		return
	}
	psk, err := p.psk()
	if err == nil {
		err = p.n.tunnel.SetPSK(p.id, psk)
	}
	if err != nil {
		p.n.cfg.Logger.Error("preshared key not set", "peer", p.id.Short(), "err", err)
	}
}

// attach gives the tunnel this peer, before any path is there: the other side's
// first handshake message may come with the first probe.
func (p *peer) attach() error {
	psk, err := p.psk()
	if err != nil {
		return err
	}
	p.n.attaching.Lock()
	defer p.n.attaching.Unlock()
	if has := p.n.attached[p.id]; p.member && has != nil && !has.member {
		return errPaired
	}
	if err := p.n.tunnel.AddPeer(tunnel.Peer{ID: p.id, WireGuard: p.rec.WireGuard, PSK: psk, Endpoint: p.link}); err != nil {
		return err
	}
	p.n.attached[p.id] = p
	return nil
}

// errPaired reports a member of a room that has been paired meanwhile.
var errPaired = errors.New("it is a paired device by now")

// connect sees to it that a handshake follows once a path is there.
func (p *peer) connect() {
	if p.isConnected() || p.verify != nil {
		return
	}
	p.setLooking("waiting for its WireGuard handshake")
	ctx, cancel := context.WithCancel(p.ctx)
	p.verify = cancel
	if p.n.start(func() { p.handshake(ctx) }) != nil {
		cancel()
	}
}

func (p *peer) stopVerify() {
	if p.verify != nil {
		p.verify()
		p.verify = nil
	}
}

func (p *peer) detach() {
	p.stopVerify()
	p.n.attaching.Lock()
	defer p.n.attaching.Unlock()
	if p.n.attached[p.id] == p { // and not what the device is by now
		p.n.tunnel.RemovePeer(p.id)
		delete(p.n.attached, p.id)
	}
}

const (
	// handshakeLead is how long the device with the greater ID leaves the first
	// handshake to the other, which saves one of two.
	handshakeLead = 150 * time.Millisecond
	// firstVerify and lastVerify bound the wait for one echo; it doubles between.
	firstVerify = 250 * time.Millisecond
	lastVerify  = 2 * time.Second
)

// handshake makes sure that a WireGuard session with the device's present run
// stands, and says so.
func (p *peer) handshake(ctx context.Context) {
	self, peer := p.n.ID(), p.id
	start := time.Now()
	if self.String() > peer.String() {
		p.awaitHandshake(ctx, start, handshakeLead)
	}
	begin := p.n.tunnel.Handshake
	for wait := firstVerify; ctx.Err() == nil; wait = min(2*wait, lastVerify) {
		if !p.sessionSince(start) {
			if err := begin(peer); err != nil {
				p.n.cfg.Logger.Debug("handshake not started", "peer", peer.Short(), "err", err)
			}
		}
		if wait > firstVerify { // the first two were in vain
			begin = p.n.tunnel.HandshakeNow
		}
		pctx, cancel := context.WithTimeout(ctx, max(wait, 2*p.roundTrip()))
		_, err := p.n.tunnel.Ping(pctx, peer.Addr())
		cancel()
		if err == nil {
			p.post(func() {
				if ctx.Err() == nil {
					p.nowConnected()
				}
			})
			return
		}
	}
}

// roundTrip is that of the path that is selected; 0: there is none.
func (p *peer) roundTrip() time.Duration {
	p.mu.Lock()
	l := p.meter
	p.mu.Unlock()
	path, _ := l.Path() // a link that was closed has none
	return path.RTT
}

// sessionSince reports whether a handshake was completed after a moment.
func (p *peer) sessionSince(start time.Time) bool {
	st, ok := p.n.tunnel.Stats(p.id)
	return ok && st.LastHandshake.After(start)
}

// awaitHandshake waits for a new session, no longer than limit.
func (p *peer) awaitHandshake(ctx context.Context, start time.Time, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !p.sessionSince(start) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (p *peer) nowConnected() {
	p.stopVerify()
	path, ok := p.link.Path()
	if !ok {
		return
	}
	p.mu.Lock()
	p.connected, p.since, p.path, p.looking = true, time.Now(), &path, ""
	p.over = make(chan struct{})
	p.signalLocked()
	p.mu.Unlock()
	if !hasEndpoint(p.rec.Endpoints, path.Remote) {
		p.update(func(d *registry.Device) { d.Endpoints = remember(d.Endpoints, path.Remote) })
	}
	p.emit(EventConnected, path.String())
}

// maxEndpoints is how many addresses that worked are remembered per device.
const maxEndpoints = 8

func hasEndpoint(all []netip.AddrPort, one netip.AddrPort) bool {
	return len(all) > 0 && all[0] == one
}

// remember puts the newest address first and drops the oldest.
func remember(all []netip.AddrPort, one netip.AddrPort) []netip.AddrPort {
	out := []netip.AddrPort{one}
	for _, a := range all {
		if a != one && len(out) < maxEndpoints {
			out = append(out, a)
		}
	}
	return out
}
