package kith

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
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
	member  bool // it is known as a member of a room alone
	box     *mailbox
	ctx     context.Context //nolint:containedctx // ends with the peer
	cancel  context.CancelFunc
	done    chan struct{} // closed when run has ended
	before  *peer         // of the same pair, which ends first; or nil
	stopped string        // why stopPeer ended it; set before cancel
	rec     registry.Device
	channel *signaling.Channel
	commit  *pairing.Commit
	heir    *signaling.Channel // on rec.Next, to listen; nil if there is none
	heirOf  registry.NextKeys  // those on which it listens
	link    *link.Link
	meet    *rendezvous.Racer // of a member of a room: where it is met; else nil
	round   int               // number of the link's resets

	boot     [8]byte // the other's run, from its last presence
	peerDay  int64   // the other's day, from its last presence
	peerNAT  punch.Behaviour
	heard    time.Time // when its last presence came; zero after a goodbye
	stirred  time.Time // when a lazy link was last of use
	verify   context.CancelFunc
	toldDone chan struct{} // closed when the other has confirmed an unpair
	saw      time.Time     // when "last seen" was written
	learned  time.Time     // when nodes of the DHT that it named were taken

	news    atomic.Pointer[signaling.Presence] // that run has not looked at: the last one
	commits atomic.Int32                       // commit bodies that run has not looked at
	answer  chan struct{}                      // holds one token while a question is answered
	wanted  atomic.Int32                       // callers that wait for the device

	mu        sync.Mutex // guards the fields below
	connected bool
	was       bool          // it was connected before
	over      chan struct{} // closed when the present connection ends
	since     time.Time
	path      *link.Path
	meter     *link.Link // whose traffic is shown
	looking   string
	said      said
	speaks    *signaling.Channel // once it is open
	forced    link.Force         // what is measured
	changed   chan struct{}      // closed and replaced when the above change
}

// startPeer returns the running peer of a record, and starts it if there is
// none. It returns nil if the node is closed, or the device is blocked.
func (n *Node) startPeer(rec registry.Device) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[rec.PairID]; p != nil {
		return p
	}
	if now, ok := n.store.Get(rec.PairID); ok {
		rec = now
	} else if rec.Member() { // it has just been dropped
		return nil
	}
	if n.closed || rec.State == registry.Active && rec.Rights.Blocked {
		return nil
	}
	p := &peer{
		n: n, pairID: rec.PairID, id: rec.ID, member: rec.Member(), rec: rec, box: newMailbox(), done: make(chan struct{}),
		answer: make(chan struct{}, 1), toldDone: make(chan struct{}), changed: make(chan struct{}), since: time.Now(), looking: "starting",
		before: n.ending[rec.PairID],
	}
	p.ctx, p.cancel = context.WithCancel(n.ctx)
	n.peers[rec.PairID] = p
	n.wg.Go(p.run)
	if p.member {
		n.rooms.look()
	}
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
	if p.before != nil { // the tunnel has one of each device
		<-p.before.done
		p.before = nil
	}
	defer p.shut()
	if err := p.open(); err != nil {
		p.n.cfg.Logger.Error("peer not started", "peer", p.id.Short(), "err", err)
		p.setLooking("not started: " + err.Error())
		<-p.ctx.Done()
		return
	}
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
		Exchange: p.medium(), Self: p.n.ID(), Joiner: p.rec.Joiner, Chain: p.chain(), Skew: p.rec.Skew,
		BootID: p.n.bootID, Rand: rand.Reader, Logger: p.n.cfg.Logger, Now: time.Now,
		Events: p.signalled, Notes: p.n.noteMedium(), TakeNote: p.takeNote, TakeQuestion: p.takeQuestion(),
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.speaks = p.channel
	p.mu.Unlock()
	if p.rec.State != registry.Active {
		return nil
	}
	if err := p.look(); err != nil {
		return err
	}
	p.listenForHeir()
	p.search()
	return nil
}

// listenForHeir listens for the member with the keys that it may have by now.
func (p *peer) listenForHeir() {
	next := p.rec.Next
	if next == p.heirOf {
		return
	}
	p.closeHeir()
	if p.heirOf = next; next == (registry.NextKeys{}) {
		return
	}
	var boot signaling.BootID
	_, _ = rand.Read(boot[:]) // never fails
	heir, err := signaling.Open(p.ctx, signaling.Config{
		Exchange: p.n.media, Self: p.n.ID(), Chain: pairing.Chain{Key: next.Chain, Day: next.Day}, Skew: p.rec.Skew,
		BootID: boot, Logger: p.n.cfg.Logger, Events: func(signaling.Event) {},
		Heard: sync.OnceFunc(func() { _ = p.n.start(func() { p.n.rooms.inherit(p.id, next) }) }), // errs when the node is closed
	})
	if err != nil {
		p.n.cfg.Logger.Error("member's new keys not listened for", "peer", p.id.Short(), "err", err)
		return
	}
	p.heir = heir
}

func (p *peer) closeHeir() {
	if p.heir != nil {
		_ = p.heir.Close() // it is open
		p.heir = nil
	}
}

func (p *peer) presence() signaling.Presence {
	nat, err := p.n.socket.NAT().MarshalBinary()
	if err != nil {
		p.n.cfg.Logger.Error("nat not described", "err", err)
	}
	if p.n.cfg.Relay == RelayAlways {
		nat = nil // it holds our public address
	}
	return signaling.Presence{
		NAT: nat, Nodes: p.n.dhtNodes(), Candidates: p.candidates(), BootID: p.n.bootID, Day: wire.Day(time.Now()),
		Name: p.n.cfg.Name, Version: Version, Capabilities: p.capabilities(),
	}
}

func (p *peer) networkChanged() {
	if p.rec.State != registry.Active || p.link == nil {
		p.channel.Wake()
		return
	}
	p.channel.Announce(p.presence())
	p.link.Probe()
}

// candidates are the addresses to announce.
func (p *peer) candidates() []signaling.Candidate { return p.n.candidates() }

// candidates are the addresses that other devices may learn.
func (n *Node) candidates() []signaling.Candidate {
	all := n.socket.Local()
	if n.cfg.Relay == RelayAuto {
		return all
	}
	return slices.DeleteFunc(all, func(c signaling.Candidate) bool {
		return (c.Kind == signaling.Relayed) != (n.cfg.Relay == RelayAlways)
	})
}

// addressesChanged tells the peer where this device can be reached by now.
func (p *peer) addressesChanged() {
	if p.rec.State != registry.Active || p.link == nil {
		return
	}
	p.link.SetNAT(p.n.socket.NAT(), p.peerNAT)
	p.channel.Announce(p.presence())
	if path, up := p.link.Path(); up && path.Kind == link.Relay && !p.link.Dormant() {
		p.link.Probe() // the other device does the same when it hears of it
	}
}

// needRelay says whether a relay is of use to this peer: it is there, and no
// straight path leads to it.
func (p *peer) needRelay() {
	path, up := link.Path{}, false
	if p.link != nil {
		path, up = p.link.Path()
	}
	here := p.rec.State == registry.Active && (p.isConnected() || time.Since(p.heard) < recoverFor)
	if p.link != nil && p.link.Dormant() && time.Since(p.stirred) > relayLinger {
		here = false
	}
	p.mu.Lock()
	forced := p.forced == link.ForceRelay
	p.mu.Unlock()
	p.n.reach.relays.want(p, here && (!up || path.Kind == link.Relay || forced) || here && p.n.cfg.Relay == RelayAlways)
}

// maxCommits is how many commit bodies wait at most; the other side repeats them.
const maxCommits = 16

// signalled takes an event of the channel. However fast the other device talks,
// one presence waits, the last, and few commit bodies.
func (p *peer) signalled(ev signaling.Event) {
	switch ev.Kind {
	case signaling.CommitEvent:
		if p.member { // there is no pair to finish or end
			return
		}
		if p.commits.Add(1) > maxCommits {
			p.commits.Add(-1)
			return
		}
		p.post(func() {
			p.commits.Add(-1)
			if ev.Stored {
				p.commit.ReceiveStored(time.Now(), ev.Body)
			} else {
				p.commit.Receive(time.Now(), ev.Body)
			}
		})
	case signaling.GoodbyeEvent:
		p.news.Store(nil) // that run is over
		p.post(p.onGoodbye)
	case signaling.PresenceEvent:
		if p.news.Swap(&ev.Presence) == nil {
			p.post(func() {
				if pr := p.news.Swap(nil); pr != nil {
					p.onPresence(*pr)
				}
			})
		}
	}
}

func (p *peer) onGoodbye() {
	p.hearGoodbye()
	if p.n.rooms.isFar(p) && !p.n.uses(p) {
		_ = p.n.start(func() { p.n.rooms.letGo(p) }) // errs when the node is closed
		return
	}
	if p.link != nil {
		p.resetLink("it said goodbye")
	}
	p.boot, p.heard = [8]byte{}, time.Time{}
	p.needRelay()
}

func (p *peer) onPresence(pr signaling.Presence) {
	if p.rec.State == registry.Tomb {
		return // the commit machine answers with UNPAIR
	}
	defer p.seen(pr) // which waits for the disk: after what connects
	if p.rec.State != registry.Active || p.link == nil {
		return
	}
	if p.boot != pr.BootID && p.boot != [8]byte{} {
		// Another run of the same device: its old session and port are gone.
		p.resetLink("it restarted")
	}
	p.boot, p.peerDay, p.heard = pr.BootID, pr.Day, time.Now()
	p.stirred = p.heard
	p.forgetOldKeys()
	p.updatePSK()
	p.link.SetPeerDay(pr.Day)
	p.peerNAT = punch.Behaviour{}
	if err := p.peerNAT.UnmarshalBinary(pr.NAT); err != nil && len(pr.NAT) > 0 {
		p.n.cfg.Logger.Debug("nat of the peer not understood", "peer", p.id.Short(), "err", err)
	}
	p.hear(pr)
	p.link.SetNAT(p.n.socket.NAT(), p.peerNAT)
	p.learnNodes(pr.Nodes)
	p.link.SetRemote(pr.Candidates)
	p.n.socket.Fresh()
	p.needRelay()
	p.link.Probe()
}

const (
	// lastSeenStep is how often "last seen" is written: it is for people, and each
	// write is an fsync.
	lastSeenStep = 10 * time.Minute
	// seenPause is the least time between two writes, whatever the other device says
	// of itself.
	seenPause = 5 * time.Second
)

func (p *peer) seen(pr signaling.Presence) {
	now := time.Now()
	skew := pr.Day - wire.Day(now)
	name := pairing.CleanName(pr.Name)
	if now.Sub(p.rec.LastSeen).Abs() < lastSeenStep && skew == p.rec.Skew && (name == "" || name == p.rec.PeerName) {
		return
	}
	if now.Sub(p.saw).Abs() < seenPause {
		return
	}
	p.saw = now
	p.update(func(d *registry.Device) {
		d.LastSeen, d.Skew = now, skew
		if name != "" {
			d.PeerName = name
		}
	})
}

// forgetOldKeys moves the pair's chain forward on disk, as far as both clocks
// allow: who reads the disk later cannot open what was sent before that day, but for
// letters that may still wait for this device.
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
	mail := keepMailKeys(p.rec, next.Day)
	p.update(func(d *registry.Device) { d.Chain, d.ChainDay, d.MailKeys = next.Key, next.Day, mail })
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

// goodbye tells the device that this one stops, if it was heard in this run and has not left:
// it may know of a connection that this one does not know of yet.
func (p *peer) goodbye(ctx context.Context) {
	_ = p.call(ctx, func() {
		if p.channel != nil && p.rec.State == registry.Active && (p.isConnected() || !p.heard.IsZero()) {
			p.channel.Goodbye(ctx)
		}
	})
}

// shut ends what open began, as far as that came.
func (p *peer) shut() {
	if p.n.ctx.Err() == nil {
		p.disconnected(p.stopped)
	}
	p.closeHeir()
	p.detach()
	p.n.reach.relays.want(p, false)
	if p.link != nil {
		p.link.Close()
	}
	if p.channel != nil {
		if err := p.channel.Close(); err != nil {
			p.n.cfg.Logger.Debug("signaling not closed", "peer", p.id.Short(), "err", err)
		}
	}
	if p.meet != nil {
		_ = p.meet.Close() // the node's media stay open
	}
}
