package kith

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/signaling"
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
	round   int // number of the link's resets

	boot     [8]byte // the other's run, from its last presence
	peerDay  int64   // the other's day, from its last presence
	attached bool    // the tunnel has this peer
	verify   context.CancelFunc
	toldDone chan struct{} // closed when the other has confirmed an unpair

	mu        sync.Mutex // guards the fields below
	connected bool
	over      chan struct{} // closed when the present connection ends
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
		if p.link != nil {
			p.resetLink("it said goodbye")
		}
		p.boot = [8]byte{}
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
		p.resetLink("it restarted")
	}
	p.boot, p.peerDay = pr.BootID, pr.Day
	p.forgetOldKeys()
	p.updatePSK()
	p.link.SetPeerDay(pr.Day)
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

// forgetOldKeys moves the pair's chain forward on disk, as far as both clocks
// allow: who reads the disk later cannot open what was sent before that day.
func (p *peer) forgetOldKeys() {
	day, ok := p.channel.SafeDay()
	if !ok || day <= p.rec.ChainDay {
		return
	}
	next, err := p.chain().At(day)
	if err != nil {
		p.n.cfg.Logger.Warn("key chain not moved forward", "peer", p.id.Short(), "err", err)
		return
	}
	p.update(func(d *registry.Device) { d.Chain, d.ChainDay = next.Key, next.Day })
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
