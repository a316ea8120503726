package kith

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/signaling"
)

// OfferConfig says how to offer a pairing. The zero value shows twelve words
// and a QR code for ten minutes and asks for the check number.
type OfferConfig struct {
	// Method is MethodWords (default; the same code also has a QR form),
	// MethodQR or MethodNumber.
	Method code.Method
	// Lifetime of the code. Default 10 minutes; 1 to 60, for a number at most 15.
	Lifetime time.Duration
	// AutoAccept pairs with the first device that proves the code, without a
	// check number: only for words and QR codes, and only where nobody else can
	// have seen them.
	AutoAccept bool
	// Exchange is the only medium to use, in place of the node's; the caller closes
	// it after the Pairing. Default: all of the node's media at once.
	Exchange rendezvous.Exchange
	// Endpoints are where the other device may take LAN frames, such as a
	// NearbyDevice's Addrs: hints, at most 16 together with the code's.
	Endpoints []netip.AddrPort
	// Hidden leaves this pairing out of what others see nearby. One with its own
	// Exchange is always left out.
	Hidden bool
}

// JoinConfig says how to use a code from the other device.
type JoinConfig struct {
	// AutoAccept pairs without asking this side's user.
	AutoAccept bool
	// Patience is how long to look for the device that shows the code. Default
	// one minute.
	Patience time.Duration
	// Lifetime is how long to wait for the other side's user. Default 10 minutes.
	Lifetime time.Duration
	// Exchange, Endpoints and Hidden are as in OfferConfig.
	Exchange  rendezvous.Exchange
	Endpoints []netip.AddrPort
	Hidden    bool
}

// A PairEvent is one step of a pairing, for the person who waits.
type PairEvent struct {
	Kind    pairing.EventKind
	Check   string   // the six digits, with EventCheck
	Choices []string // four check numbers to pick from, with EventCheck on the offering side
	Ask     bool     // Accept must be called, with EventCheck
	Peer    identity.DeviceID
	Name    string         // what the other device calls itself
	OS      string         // its operating system
	Reason  pairing.Reason // with EventFailed
}

// A PairError says why a pairing ended without a pair.
type PairError struct {
	Reason pairing.Reason
	Err    error // what lies beneath, if anything does
	// Cause is what the doctor found meanwhile that is most likely in the way where
	// nobody was found; the zero Result if it knows of nothing.
	Cause doctor.Result
}

func (e *PairError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("kith: pairing failed: %s: %v", e.Reason, e.Err)
	}
	return because(fmt.Sprintf("kith: pairing failed: %s", e.Reason), e.Cause)
}

// Unwrap returns the cause, which may be nil.
func (e *PairError) Unwrap() error { return e.Err }

// ErrCheck reports check digits that are not those of the other device.
var ErrCheck = pairing.ErrCheck

// A Pairing is one pairing under way. Its methods are safe for concurrent use.
type Pairing struct {
	n       *Node
	code    code.Code
	how     findHow
	role    pairing.Role
	machine *pairing.Machine
	box     *mailbox
	ctx     context.Context //nolint:containedctx // ends with the pairing
	cancel  context.CancelFunc
	events  chan PairEvent
	done    chan struct{} // closed when device or err is set
	settled chan struct{} // closed when the other side is known to be paired too
	ended   chan struct{} // closed when the goroutine is gone

	sessions []rendezvous.Session
	pairID   registry.PairID // zero until a record exists

	once   sync.Once // guards the outcome
	device registry.Device
	err    error
}

// Offer makes a code and waits for the device that gets it. The pairing ends
// with ctx. It errs if the code cannot be made as asked.
func (n *Node) Offer(ctx context.Context, cfg OfferConfig) (*Pairing, error) {
	now := time.Now()
	method := cfg.Method
	if method == 0 {
		method = code.MethodWords
	}
	opts := code.Options{
		Rand: rand.Reader, Now: now, Lifetime: cfg.Lifetime, Commit: n.ID().Commitment(), Endpoints: n.mediaEndpoints(),
		Hints: n.hintHubs(),
	}
	c, err := code.New(method, opts)
	if err != nil && len(opts.Hints) > 0 { // no room: the LAN is worth more
		opts.Hints = nil
		c, err = code.New(method, opts)
	}
	if err != nil {
		return nil, err
	}
	keys, err := c.OfferKeys(now)
	if err != nil {
		return nil, err
	}
	return n.pair(ctx, c, n.mediumOf(cfg.Exchange), pairing.Config{
		Role: pairing.Offerer, Keys: keys, Method: method, Lifetime: c.Expiry().Sub(now), AutoAccept: cfg.AutoAccept,
	}, findHow{hidden: cfg.Hidden || cfg.Exchange != nil, endpoints: cfg.Endpoints})
}

// Join uses a code that another device shows. The pairing ends with ctx or when
// the code expires. A hub that the code names is used from now on, too (UseHub). It errs
// if the code has expired.
func (n *Node) Join(ctx context.Context, c code.Code, cfg JoinConfig) (*Pairing, error) {
	now := time.Now()
	if c.Expired(now) {
		return nil, &PairError{Reason: pairing.Expired}
	}
	if a, ok := hubaddr.FromHints(c.Hints()); ok {
		if err := n.alsoUseHub(a); err != nil {
			n.cfg.Logger.Warn("hub of the code not used", "err", err)
		}
	}
	keys, err := c.Keys(now)
	if err != nil {
		return nil, err
	}
	pc := pairing.Config{
		Role: pairing.Joiner, Keys: []code.Keys{keys}, Method: c.Method(), Lifetime: cfg.Lifetime, Patience: cfg.Patience, AutoAccept: cfg.AutoAccept,
	}
	if pc.Lifetime <= 0 {
		pc.Lifetime = joinLifetime
	}
	if pc.Patience <= 0 {
		pc.Patience = joinPatience
	}
	if commit, ok := c.Commit(); ok {
		pc.Commit = &commit
	}
	return n.pair(ctx, c, n.mediumOf(cfg.Exchange), pc, findHow{hidden: cfg.Hidden || cfg.Exchange != nil, endpoints: cfg.Endpoints})
}

const (
	// joinLifetime is how long a joiner waits for the other side's user.
	joinLifetime = 10 * time.Minute
	// joinPatience is how long it looks for anybody: the code is on a screen, so
	// that somebody should be there.
	joinPatience = time.Minute
)

// mediaEndpoints are the addresses that a QR code carries.
func (n *Node) mediaEndpoints() []netip.AddrPort { return n.media.Endpoints() }

func (n *Node) pair(ctx context.Context, c code.Code, medium rendezvous.Exchange, cfg pairing.Config, how findHow) (*Pairing, error) {
	now := time.Now()
	cfg.Identity, cfg.Rand = n.id, rand.Reader
	cfg.Info = pairing.Info{
		Name: n.cfg.Name, OS: runtime.GOOS, WireGuard: n.id.WireGuardPublic(), Version: Version, Day: wire.Day(now),
		Endpoints: addresses(n.candidates()),
	}
	m, err := pairing.New(cfg, now)
	if err != nil {
		return nil, err
	}
	p := &Pairing{
		n: n, code: c, how: how, role: cfg.Role, machine: m, box: newMailbox(), events: make(chan PairEvent, eventQueue),
		done: make(chan struct{}), settled: make(chan struct{}), ended: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(n.ctx)
	stop := context.AfterFunc(ctx, func() { p.Cancel() })
	for _, k := range cfg.Keys {
		s, err := medium.Join(p.ctx, rendezvous.Point{
			Topic: k.Topic, Side: side(cfg.Role), Endpoints: hints(c.Endpoints(), how.endpoints), Announce: cfg.Role == pairing.Offerer,
		})
		if err != nil {
			p.cancel()
			p.closeSessions()
			return nil, fmt.Errorf("kith: pair: %w", err)
		}
		p.sessions = append(p.sessions, s)
	}
	if err := n.start(func() { defer stop(); p.run() }); err != nil {
		p.cancel()
		p.closeSessions()
		return nil, err
	}
	return p, nil
}

// Code returns the code of this pairing.
func (p *Pairing) Code() code.Code { return p.code }

// Events returns the pairing's steps; the channel is closed when it has ended.
func (p *Pairing) Events() <-chan PairEvent { return p.events }

// Accept confirms the other device. The side that shows the code passes the six
// digits that the other side shows; the joining side passes "". It errs with
// ErrCheck for other digits (the third time ends the pairing), and if there is
// nobody to accept.
func (p *Pairing) Accept(check string) error {
	result := make(chan error, 1)
	p.box.post(func() { result <- p.machine.Accept(time.Now(), check) })
	select {
	case err := <-result:
		return err
	case <-p.ended:
		return fmt.Errorf("kith: accept: the pairing has ended: %w", net.ErrClosed)
	}
}

// Cancel ends the pairing and tells the other side. After the record has become
// durable on both sides it changes nothing: use Unpair.
func (p *Pairing) Cancel() {
	p.box.post(func() { p.machine.Reject(time.Now()) })
}

// Wait returns the paired device. It errs with a *PairError if the pairing
// failed, or with the context's error.
func (p *Pairing) Wait(ctx context.Context) (Device, error) {
	select {
	case <-p.done:
		if p.err != nil {
			return Device{}, p.err
		}
		return p.n.device(p.device), nil
	case <-ctx.Done():
		return Device{}, ctx.Err()
	}
}

// Settle waits until the other device has confirmed that it is paired too, or
// until ctx ends. A program that ends right after Wait should call it.
func (p *Pairing) Settle(ctx context.Context) {
	select {
	case <-p.settled:
	case <-p.ended:
	case <-ctx.Done():
	}
}

// Close cancels the pairing if it has no result yet. A pair that is durable here
// and not yet confirmed stays "not finished" and goes on by itself; and one that
// is made goes on answering for a while, so that a lost last message or a late
// device gets its answer. The Node's Close ends all of it.
func (p *Pairing) Close() { p.Cancel() }

// An arrival is one frame on one of the code's topics.
type arrival struct {
	topic int
	msg   rendezvous.Message
}

// linger is how long a finished pairing goes on answering on the code's topic:
// the other side may have lost the last message. The side that shows the code
// stays until it expires, to tell a device that comes late.
const linger = 15 * time.Second

// lingers returns how long to go on from now.
func (p *Pairing) lingers() time.Duration {
	if p.role == pairing.Offerer && p.err == nil {
		return max(linger, time.Until(p.code.Expiry()))
	}
	return linger
}

func (p *Pairing) run() {
	defer close(p.ended)
	defer close(p.events)
	defer p.finish(&PairError{Reason: pairing.Cancelled})
	defer p.n.forget(p)
	p.n.track(p)
	defer p.n.suspect()()

	var wg sync.WaitGroup
	defer wg.Wait()
	defer p.closeSessions()
	defer p.cancel()
	in := make(chan arrival)
	for i, s := range p.sessions {
		wg.Go(func() { p.receive(i, s, in) })
	}
	wg.Go(p.announce)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var lingering <-chan time.Time
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-lingering:
			return
		case a := <-in:
			p.judge(a, p.machine.Receive(time.Now(), a.topic, a.msg.Frame))
		case <-p.box.wake:
			p.box.run()
		case now := <-timer.C:
			p.machine.Tick(now)
		}
		p.drain()
		if lingering == nil {
			select {
			case <-p.done:
				lingering = time.After(p.lingers())
			default:
			}
		}
		if next := p.machine.Next(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

func (p *Pairing) receive(topic int, s rendezvous.Session, in chan<- arrival) {
	for {
		msg, err := s.Receive(p.ctx)
		if err != nil {
			return
		}
		select {
		case in <- arrival{topic, msg}:
		case <-p.ctx.Done():
			return
		}
	}
}

// drain carries out what the machine wants, in order.
func (p *Pairing) drain() {
	for {
		act, ok := p.machine.Poll()
		if !ok {
			return
		}
		switch act.Kind {
		case pairing.ActionSend:
			if err := p.sessions[act.Topic].Publish(p.ctx, act.Frame); err != nil {
				p.n.cfg.Logger.Debug("frame not sent", "err", err)
			}
		case pairing.ActionStore:
			p.machine.Stored(time.Now(), act.Record.State, p.store(act.Record))
		case pairing.ActionEvent:
			p.report(act.Event)
		}
	}
}

// store makes a record durable and lets the pair's own peer take part.
func (p *Pairing) store(rec pairing.Record) error {
	dev := record(rec, time.Now())
	if !p.how.vouchedBy.IsZero() { // others may look for the same device
		p.n.kin.storing.Lock()
		defer p.n.kin.storing.Unlock()
	}
	if err := p.introduced(&dev); err != nil {
		return err
	}
	if old, ok := p.n.store.Get(dev.PairID); ok {
		if old.State == registry.Tomb {
			return errors.New("kith: the pair was ended")
		}
		if old.State != dev.State && old.State != registry.Active {
			if _, err := p.n.store.Update(dev.PairID, func(d *registry.Device) { d.State = dev.State }); err != nil {
				return err
			}
		}
	} else if _, err := p.n.store.Put(dev); err != nil {
		return err
	}
	p.pairID = dev.PairID
	if stored, ok := p.n.store.Get(dev.PairID); ok {
		peer := p.n.startPeer(stored)
		if peer == nil {
			return fmt.Errorf("kith: %w", net.ErrClosed)
		}
		peer.post(peer.reload)
	}
	return nil
}

func record(rec pairing.Record, now time.Time) registry.Device {
	return registry.Device{
		PairID: rec.PairID, State: registry.State(rec.State), ID: rec.Peer, WireGuard: rec.PeerInfo.WireGuard,
		Name: rec.PeerInfo.Name, PeerName: rec.PeerInfo.Name, OS: rec.PeerInfo.OS,
		Joiner: rec.Role == pairing.Joiner, Method: rec.Method.String(), Verified: rec.CheckVerified,
		Chain: rec.Chain.Key, ChainDay: rec.Chain.Day, CommitJ: rec.CommitJ, CommitO: rec.CommitO,
		Deadline: rec.Deadline, Check: rec.Check, Created: now, Changed: now, LastSeen: now,
		Skew: rec.PeerInfo.Day - wire.Day(now), Endpoints: rec.PeerInfo.Endpoints[:min(len(rec.PeerInfo.Endpoints), maxEndpoints)],
	}
}

// addresses are the candidates' addresses, best first: the other side tries them
// even if no medium carries signaling between the two.
func addresses(list []signaling.Candidate) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(list))
	for _, c := range list {
		out = append(out, c.Addr)
	}
	return out
}

func (p *Pairing) report(ev pairing.Event) {
	out := PairEvent{
		Kind: ev.Kind, Check: ev.Check, Choices: ev.Choices, Ask: ev.NeedsCheck,
		Peer: ev.Peer, Name: ev.PeerInfo.Name, OS: ev.PeerInfo.OS, Reason: ev.Reason,
	}
	select {
	case p.events <- out:
	default: // a reader that does not read loses steps, not the result
	}
	switch ev.Kind {
	case pairing.EventPaired:
		p.finish(nil)
	case pairing.EventSettled:
		closeOnce(p.settled)
	case pairing.EventFailed:
		failed := &PairError{Reason: ev.Reason}
		if ev.Reason == pairing.NobodyThere || ev.Reason == pairing.Expired {
			failed.Cause = p.n.suspected()
		}
		p.finish(failed)
	}
}

// finish sets the outcome; the first one counts.
func (p *Pairing) finish(err error) {
	p.once.Do(func() {
		if err == nil {
			p.device, _ = p.n.store.Get(p.pairID)
		} else {
			p.err = err
		}
		close(p.done)
	})
}

func (p *Pairing) closeSessions() {
	for _, s := range p.sessions {
		if err := s.Close(); err != nil {
			p.n.cfg.Logger.Debug("session not closed", "err", err)
		}
	}
}
