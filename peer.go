package kith

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/signaling"
	"github.com/kithproject/kith/tunnel"
)

// A peer is one pair at work: it announces this device on the pair's topics,
// finishes or ends the pair (Commit), keeps the link and the tunnel's peer, and
// knows whether the other device is connected.
//
// One goroutine, run, owns all fields but those under mu; callbacks post to its
// mailbox.
type peer struct {
	n       *Node
	pairID  registry.PairID
	id      identity.DeviceID
	box     *mailbox
	ctx     context.Context //nolint:containedctx // ends with the peer
	cancel  context.CancelFunc
	done    chan struct{} // closed when run has ended
	rec     registry.Device
	channel *signaling.Channel
	commit  *pairing.Commit
	link    *link.Link
	linkRun int // tells the events of this link from those of earlier ones

	boot     [8]byte // the other's run, from its last presence
	peerDay  int64   // the other's day, from its last presence
	attached bool    // the tunnel has this peer
	verify   context.CancelFunc
	toldDone chan struct{} // closed when the other has confirmed an unpair

	mu        sync.Mutex // guards the fields below
	connected bool
	since     time.Time
	path      *link.Path
	looking   string
	changed   chan struct{} // closed and replaced when the above change
}

// startPeer returns the running peer of a record, and starts it if there is
// none. It returns nil only if the node is closed.
func (n *Node) startPeer(rec registry.Device) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[rec.PairID]; p != nil {
		return p
	}
	if n.closed {
		return nil
	}
	p := &peer{
		n: n, pairID: rec.PairID, id: rec.ID, rec: rec, box: newMailbox(), done: make(chan struct{}),
		toldDone: make(chan struct{}), changed: make(chan struct{}), since: time.Now(), looking: "starting",
	}
	p.ctx, p.cancel = context.WithCancel(n.ctx)
	n.peers[rec.PairID] = p
	n.wg.Go(p.run)
	return p
}

func (p *peer) post(f func()) { p.box.post(f) }

// call runs f on the peer's goroutine and waits for it.
func (p *peer) call(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	p.post(func() { defer close(ran); f() })
	select {
	case <-ran:
		return nil
	case <-p.done:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *peer) run() {
	defer close(p.done)
	defer p.cancel()
	if err := p.open(); err != nil {
		p.n.cfg.Logger.Error("peer not started", "peer", p.id.Short(), "err", err)
		p.setLooking("not started: " + err.Error())
		<-p.ctx.Done()
		return
	}
	defer p.shut()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.box.wake:
			p.box.run()
		case now := <-timer.C:
			p.commit.Tick(now)
		}
		p.drainCommit()
		if next := p.commit.Next(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// role is this device's side of the pairing that made the record.
func (p *peer) role() pairing.Role {
	if p.rec.Joiner {
		return pairing.Joiner
	}
	return pairing.Offerer
}

func (p *peer) chain() pairing.Chain {
	return pairing.Chain{Key: p.rec.Chain, Day: p.rec.ChainDay}
}

func (p *peer) open() error {
	var err error
	p.commit, err = pairing.NewCommit(pairing.State(p.rec.State), p.rec.PairID, p.role(), p.rec.CommitJ, p.rec.CommitO, rand.Reader)
	if err != nil {
		return err
	}
	p.channel, err = signaling.Open(p.ctx, signaling.Config{
		Exchange: p.n.media, Self: p.n.ID(), Joiner: p.rec.Joiner, Chain: p.chain(), Skew: p.rec.Skew,
		BootID: p.n.bootID, Rand: rand.Reader, Logger: p.n.cfg.Logger, Now: time.Now,
		Events: func(ev signaling.Event) { p.post(func() { p.onSignal(ev) }) },
	})
	if err != nil {
		return err
	}
	if p.rec.State == registry.Active {
		return p.look()
	}
	return nil
}

// look starts to search for the other device: a fresh link, and announcements.
func (p *peer) look() error {
	p.linkRun++
	run := p.linkRun
	l, err := p.n.socket.NewLink(link.Config{
		Peer: p.id, Keys: probeKeys(p.chain(), p.role()), Logger: p.n.cfg.Logger,
		Events: func(ev link.Event) { p.post(func() { p.onLink(run, ev) }) },
	})
	if err != nil {
		return err
	}
	p.link = l
	p.link.SetRemote(candidates(p.rec.Endpoints))
	p.setLooking("looking for it on " + p.n.media.Name())
	p.channel.Announce(p.presence())
	return nil
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
		c, err := chain.At(day)
		if err != nil {
			return send, receive, err
		}
		return c.ProbeKey(role), c.ProbeKey(pairing.Joiner + pairing.Offerer - role), nil
	}
}

func (p *peer) presence() signaling.Presence {
	return signaling.Presence{
		Candidates: p.n.socket.Local(), BootID: p.n.bootID, Day: wire.Day(time.Now()),
		Name: p.n.cfg.Name, Version: Version,
	}
}

func (p *peer) networkChanged() {
	if p.rec.State != registry.Active {
		p.channel.Wake()
		return
	}
	p.channel.Announce(p.presence())
	p.link.Probe()
}

func (p *peer) onSignal(ev signaling.Event) {
	switch ev.Kind {
	case signaling.CommitEvent:
		p.commit.Receive(time.Now(), ev.Body)
	case signaling.GoodbyeEvent:
		p.disconnected("it said goodbye")
		p.boot = [8]byte{}
		p.restartLink()
	case signaling.PresenceEvent:
		p.onPresence(ev.Presence)
	}
}

func (p *peer) onPresence(pr signaling.Presence) {
	if p.rec.State == registry.Tomb {
		return // the commit machine answers with UNPAIR
	}
	p.seen(pr)
	if p.rec.State != registry.Active {
		return
	}
	if p.boot != pr.BootID && p.boot != [8]byte{} {
		// Another run of the same device: its old session and port are gone.
		p.disconnected("it restarted")
		p.restartLink()
	}
	p.boot, p.peerDay = pr.BootID, pr.Day
	p.updatePSK()
	p.link.SetRemote(pr.Candidates)
	p.link.Probe()
}

// lastSeenStep is how often "last seen" is written: it is for people, and each
// write is an fsync.
const lastSeenStep = 10 * time.Minute

func (p *peer) seen(pr signaling.Presence) {
	now := time.Now()
	skew := pr.Day - wire.Day(now)
	name := pairing.CleanName(pr.Name)
	if now.Sub(p.rec.LastSeen).Abs() < lastSeenStep && skew == p.rec.Skew && (name == "" || name == p.rec.PeerName) {
		return
	}
	p.update(func(d *registry.Device) {
		d.LastSeen, d.Skew = now, skew
		if name != "" {
			d.PeerName = name
		}
	})
}

// update changes the record durably and keeps the peer's copy in step.
func (p *peer) update(change func(*registry.Device)) {
	rec, err := p.n.store.Update(p.pairID, change)
	if err != nil {
		p.n.cfg.Logger.Error("record not written", "peer", p.id.Short(), "err", err)
		return
	}
	p.rec = rec
}

// restartLink begins anew with fresh paths and a fresh WireGuard session.
func (p *peer) restartLink() {
	if p.link == nil {
		return
	}
	p.detach()
	p.link.Close()
	if err := p.look(); err != nil {
		p.n.cfg.Logger.Error("link not restarted", "peer", p.id.Short(), "err", err)
	}
}

func (p *peer) onLink(run int, ev link.Event) {
	if run != p.linkRun || p.link == nil {
		return // of a link that was replaced
	}
	switch ev.Kind {
	case link.Up, link.Changed:
		p.setPath(ev.Path)
		p.attach()
	case link.Down:
		p.disconnected("no path answers")
		p.channel.Announce(p.presence())
	}
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
	if !p.attached {
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

// attach gives the tunnel this peer once a path is there, and sees to it that a
// handshake follows.
func (p *peer) attach() {
	if !p.attached {
		psk, err := p.psk()
		if err == nil {
			err = p.n.tunnel.AddPeer(tunnel.Peer{ID: p.id, WireGuard: p.rec.WireGuard, PSK: psk, Endpoint: p.link})
		}
		if err != nil {
			p.n.cfg.Logger.Error("tunnel refused the peer", "peer", p.id.Short(), "err", err)
			return
		}
		p.attached = true
	}
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

func (p *peer) detach() {
	if p.verify != nil {
		p.verify()
		p.verify = nil
	}
	if p.attached {
		p.n.tunnel.RemovePeer(p.id)
		p.attached = false
	}
}

// handshakeLead is how long the device with the greater ID leaves the first
// handshake to the other: two initiations that cross cancel each other out, and
// WireGuard tries again only after five seconds.
const handshakeLead = time.Second

// handshake makes sure that a WireGuard session stands, and says so.
func (p *peer) handshake(ctx context.Context) {
	self, peer := p.n.ID(), p.id
	lead := self.String() < peer.String()
	if !lead && !p.awaitHandshake(ctx, handshakeLead) {
		lead = true
	}
	for ctx.Err() == nil {
		if lead {
			if err := p.n.tunnel.Handshake(peer); err != nil {
				p.n.cfg.Logger.Debug("handshake not started", "peer", peer.Short(), "err", err)
			}
		}
		pctx, cancel := context.WithTimeout(ctx, 2*time.Second)
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

// awaitHandshake reports whether a session stood before limit had passed.
func (p *peer) awaitHandshake(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		if st, ok := p.n.tunnel.Stats(p.id); ok && !st.LastHandshake.IsZero() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

func (p *peer) nowConnected() {
	if p.verify != nil {
		p.verify()
		p.verify = nil
	}
	path, ok := p.link.Path()
	if !ok {
		return
	}
	p.mu.Lock()
	p.connected, p.since, p.path, p.looking = true, time.Now(), &path, ""
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

func (p *peer) disconnected(why string) {
	p.mu.Lock()
	was := p.connected
	p.connected, p.path = false, nil
	if was {
		p.since = time.Now()
	}
	p.looking = "looking for it: " + why
	p.signalLocked()
	p.mu.Unlock()
	if p.verify != nil {
		p.verify()
		p.verify = nil
	}
	if was {
		p.emit(EventDisconnected, why)
	}
}

func (p *peer) emit(kind EventKind, detail string) {
	p.n.cfg.Logger.Info("peer "+string(kind), "peer", p.id.Short(), "detail", detail)
	p.n.events.publish(Event{Time: time.Now(), Kind: kind, Device: p.n.device(p.rec), Detail: detail})
}

// drainCommit carries out what the commit machine wants.
func (p *peer) drainCommit() {
	for {
		act, ok := p.commit.Poll()
		if !ok {
			return
		}
		switch act.Kind {
		case pairing.CommitSend:
			p.channel.SendCommit(act.Body)
		case pairing.CommitStore:
			p.commit.Stored(time.Now(), act.State, p.store(registry.State(act.State)))
		case pairing.CommitDone:
			if p.rec.State == registry.Tomb {
				closeOnce(p.toldDone)
			}
		}
	}
}

func closeOnce(ch chan struct{}) {
	select {
	case <-ch:
	default:
		close(ch)
	}
}

// store writes the pair's new state and acts on it.
func (p *peer) store(state registry.State) error {
	rec, err := p.n.store.Update(p.pairID, func(d *registry.Device) {
		if d.State != registry.Tomb { // what is ended stays ended
			d.State = state
		}
	})
	if err != nil {
		return fmt.Errorf("kith: record of %s: %w", p.rec.Name, err)
	}
	p.adopt(rec)
	return nil
}

// adopt takes over a record whose state may have changed.
func (p *peer) adopt(rec registry.Device) {
	was := p.rec.State
	p.rec = rec
	if was == rec.State {
		return
	}
	switch rec.State {
	case registry.Active:
		if err := p.look(); err != nil {
			p.n.cfg.Logger.Error("link not started", "peer", rec.ID.Short(), "err", err)
		}
		p.emit(EventPaired, "")
		p.n.promoted(rec.PairID)
	case registry.Tomb:
		p.disconnected("unpaired")
		p.detach()
		if p.link != nil {
			p.link.Close()
			p.link = nil
		}
		p.emit(EventUnpaired, "")
	}
}

// reload takes over what another part of the node wrote to the record.
func (p *peer) reload() {
	rec, ok := p.n.store.Get(p.pairID)
	if !ok || p.commit == nil {
		return
	}
	if rec.State == p.rec.State {
		p.rec = rec
		return
	}
	commit, err := pairing.NewCommit(pairing.State(rec.State), rec.PairID, p.role(), rec.CommitJ, rec.CommitO, rand.Reader)
	if err != nil {
		p.n.cfg.Logger.Error("pair not followed", "peer", rec.ID.Short(), "err", err)
		return
	}
	p.commit = commit
	p.adopt(rec)
}

// unpair ends the pair and waits until the other side has confirmed or ctx ends.
func (p *peer) unpair(ctx context.Context) (told bool, err error) {
	var failed error
	err = p.call(context.WithoutCancel(ctx), func() {
		if p.commit == nil {
			failed = p.store(registry.Tomb)
			return
		}
		p.commit.Cancel(time.Now())
		p.drainCommit()
		if p.rec.State != registry.Tomb {
			failed = fmt.Errorf("kith: unpair %s: the record could not be written", p.rec.Name)
		}
	})
	if err = firstError(err, failed); err != nil {
		return false, err
	}
	select {
	case <-p.toldDone:
		return true, nil
	case <-p.done:
	case <-ctx.Done():
	}
	return false, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *peer) goodbye(ctx context.Context) {
	_ = p.call(ctx, func() {
		if p.channel != nil && p.rec.State == registry.Active && p.isConnected() {
			p.channel.Goodbye(ctx)
		}
	})
}

func (p *peer) shut() {
	p.detach()
	if p.link != nil {
		p.link.Close()
	}
	if err := p.channel.Close(); err != nil {
		p.n.cfg.Logger.Debug("signaling not closed", "peer", p.id.Short(), "err", err)
	}
}

func (p *peer) isConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

func (p *peer) setPath(path link.Path) {
	p.mu.Lock()
	moved := p.connected && (p.path == nil || p.path.Remote != path.Remote)
	if p.connected {
		p.path = &path
	}
	p.signalLocked()
	p.mu.Unlock()
	if moved {
		p.emit(EventPath, path.String())
	}
}

func (p *peer) setLooking(what string) {
	p.mu.Lock()
	p.looking = what
	p.signalLocked()
	p.mu.Unlock()
}

func (p *peer) signalLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// describe adds what is live to a device's record.
func (p *peer) describe(d *Device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.Connected, d.Since, d.Looking = p.connected, p.since, p.looking
	if p.path != nil {
		path := *p.path
		d.Path = &path
	}
}

// await returns when the device is connected, or with the context's error.
func (p *peer) await(ctx context.Context) error {
	for {
		p.mu.Lock()
		ok, changed := p.connected, p.changed
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-p.done:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
