package kith

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/doctor/dialback"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/signaling"
)

const (
	// answerTime is how long looking for an answer may take.
	answerTime = 8 * time.Second
	// ownFor is how long what this device found wrong with itself is told without
	// another look, whoever asks.
	ownFor = time.Minute
	// ownTime is how long it looks for a device that is not connected; one that is waits
	// for doctor.QuickTotal.
	ownTime = 6 * time.Second
)

// capabilities are what this device says that it can, to this peer.
func (p *peer) capabilities() uint64 {
	if p.member {
		return 0
	}
	return signaling.Answers
}

// takeQuestion is what takes questions of the other device: nothing, if it is known as a
// member of a room alone.
func (p *peer) takeQuestion() func(signaling.Asked) bool {
	if p.member {
		return nil
	}
	return func(a signaling.Asked) bool {
		q, err := signaling.ReadQuestion(a.Body)
		if err != nil {
			return false
		}
		select {
		case p.answer <- struct{}{}:
		default:
			return false // one at a time
		}
		err = p.n.start(func() {
			defer func() { <-p.answer }()
			p.answerQuestion(a, q)
		})
		if err != nil { // the node is closing
			<-p.answer
		}
		return err == nil
	}
}

// answerQuestion looks, and says what it saw.
func (p *peer) answerQuestion(a signaling.Asked, q signaling.Question) {
	ctx, cancel := context.WithTimeout(p.ctx, answerTime)
	defer cancel()
	var l *link.Link
	err := p.call(ctx, func() {
		if p.rec.State == registry.Active {
			l = p.link
		}
	})
	if err != nil || l == nil {
		return
	}
	tried, err := l.Candidates(ctx)
	if err != nil {
		return
	}
	reply := signaling.Reply{Version: Version}
	reply.Tried, reply.From = triedOf(tried)
	var wg sync.WaitGroup
	if q.DialBack.IsValid() {
		wg.Go(func() { reply.DialBack = p.n.dialBack(ctx, q, tried).String() })
	}
	total := ownTime
	if p.isConnected() {
		total = doctor.QuickTotal
	}
	wg.Go(func() { reply.Causes = p.n.ownCauses(ctx, total) })
	wg.Wait()
	reply.Clock = time.Now()
	raw, err := reply.Encode()
	if err == nil {
		err = p.call(ctx, func() { _ = p.channel.Answer(a, raw) }) // Encode has bounded it
	}
	if err != nil {
		p.n.cfg.Logger.Debug("question not answered", "peer", p.id.Short(), "err", err)
	}
}

// triedOf are the peer's addresses as it may be told of them: those at which something
// came of it first.
func triedOf(all []link.Candidate) (tried []signaling.Tried, from []netip.AddrPort) {
	for _, c := range all {
		addr := netip.AddrPortFrom(c.Remote.Addr().WithZone(""), c.Remote.Port())
		i := slices.IndexFunc(tried, func(t signaling.Tried) bool { return t.Addr == addr })
		if i < 0 {
			i = len(tried)
			tried = append(tried, signaling.Tried{Kind: c.Origin, Addr: addr})
		}
		t := &tried[i]
		t.Sent, t.Answered, t.Received = t.Sent+few(c.Sent), t.Answered+few(c.Answered), t.Received+few(c.Received)
		t.Size = max(t.Size, uint16(c.Size)) //nolint:gosec // at most link.MaxDataSize
		if c.Received > 0 && !slices.Contains(from, addr) {
			from = append(from, addr)
		}
	}
	return tried, from
}

// few is a count as it is told.
func few(n uint64) uint32 { return uint32(min(n, 1<<20)) } //nolint:gosec // bounded

// lowestPort is the lowest port number that is dialed for another device: below are
// those of services that have nothing to do with kith.
const lowestPort = 1024

// dialBack connects to where the other device listens, if that is an address at which it
// has answered a sealed probe: what it merely names may be anybody's.
func (n *Node) dialBack(ctx context.Context, q signaling.Question, known []link.Candidate) dialback.Outcome {
	to := q.DialBack.Addr().Unmap()
	proved := slices.ContainsFunc(known, func(c link.Candidate) bool {
		return c.Answered > 0 && c.Via == "" && c.Remote.Addr().WithZone("") == to
	})
	loopback := to.IsLoopback() && n.cfg.Loopback
	switch {
	case n.cfg.Relay == RelayAlways, !proved, q.DialBack.Port() < lowestPort:
		return dialback.Forbidden
	case !loopback && (to.IsLoopback() || to.IsLinkLocalUnicast() || isOwn(to)):
		return dialback.Forbidden
	}
	outcome, _ := dialback.Dial(ctx, q.DialBack, q.Secret, q.Pin)
	return outcome
}

// isOwn reports whether an address is, or may be, one of this machine.
func isOwn(a netip.Addr) bool {
	list, err := netmon.Interfaces()
	return err != nil || slices.ContainsFunc(list, func(i netmon.Interface) bool {
		return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

// An ownLook is what this device last found wrong with itself.
type ownLook struct {
	mu    sync.Mutex // held during a look
	at    time.Time
	total time.Duration // that it took at most
	names []string

	look func(context.Context, time.Duration) (doctor.Report, error) // of tests; default Node.glance
}

// The names of settings that a paired device that asks is told of: they are no faults.
const (
	relayNeverName  = "peers.policy/never-here"
	relayAlwaysName = "peers.policy/always-here"
)

// ownCauses looks at this device, for total at most and without asking other devices, and
// returns the names of what is wrong: what a paired device that asks is told. No name
// says anything of another device.
func (n *Node) ownCauses(ctx context.Context, total time.Duration) []string {
	o := &n.own
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.at.IsZero() && time.Since(o.at) < ownFor && o.total >= total {
		return o.names
	}
	var names []string
	switch n.cfg.Relay {
	case RelayNever:
		names = append(names, relayNeverName)
	case RelayAlways:
		names = append(names, relayAlwaysName)
	case RelayAuto:
	}
	look := o.look
	if look == nil {
		look = n.glance
	}
	report, err := look(ctx, total)
	if err != nil {
		return names
	}
	for _, c := range report.Causes {
		if c.Severity > doctor.Note && c.Code.Group() != doctor.PeerGroup && !slices.Contains(names, c.Name()) {
			names = append(names, c.Name())
		}
	}
	if ctx.Err() == nil {
		o.at, o.total, o.names = time.Now(), total, names
	}
	return names
}
