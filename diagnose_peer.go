package kith

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/app/measure"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/signaling"
)

// endedFor is how long a run that is about no device tells of a pair that the other side
// has ended.
const endedFor = 24 * time.Hour

// candidateTime is how long a link has to say what came of its addresses: it does so at once.
const candidateTime = time.Second

// doctorPeers are the devices that a run is about: one, by name or ID, or all. It errs if
// ref fits none.
func (n *Node) doctorPeers(ref string) (peers []doctor.Peer, err error) {
	var recs []registry.Device
	if ref == "" {
		recs = n.store.List()
		for _, rec := range n.endedByOthers() {
			same := func(d registry.Device) bool { return d.Name == rec.Name }
			if time.Since(rec.Changed) < endedFor && !slices.ContainsFunc(recs, same) {
				recs = append(recs, rec)
			}
		}
	} else {
		rec, err := n.find(ref)
		if err == nil {
			err = notMember(rec)
		}
		if err != nil {
			for _, rec := range n.endedByOthers() {
				if strings.EqualFold(rec.Name, ref) || rec.ID.String() == ref {
					return []doctor.Peer{n.doctorPeer(rec, true)}, nil
				}
			}
			return nil, err
		}
		recs = []registry.Device{rec}
	}
	for _, rec := range recs {
		peers = append(peers, n.doctorPeer(rec, ref != ""))
	}
	return peers, nil
}

// endedByOthers are the pairs that were at work until the other side ended them.
func (n *Node) endedByOthers() (out []registry.Device) {
	for _, rec := range n.store.Tombs() {
		if _, again := n.store.ByID(rec.ID); !again && !rec.Member() && !rec.LastSeen.IsZero() && !n.kin.removed.has(rec.ID) {
			out = append(out, rec)
		}
	}
	return out
}

// doctorPeer is a device as checks see it; named says that the run is about it.
func (n *Node) doctorPeer(rec registry.Device, named bool) doctor.Peer {
	d := n.device(rec)
	out := doctor.Peer{
		ID: d.ID, Name: d.Name, Named: named, Finished: d.State == Paired, Blocked: d.Rights.Blocked, Ended: rec.State == registry.Tomb,
		Connected: d.Connected, Why: d.Better, Seen: rec.LastSeen, Days: rec.Skew,
		Now: func() doctor.Peer {
			if now, ok := n.store.Get(rec.PairID); ok {
				return n.doctorPeer(now, named)
			}
			return n.doctorPeer(rec, named)
		},
	}
	if d.Path != nil {
		out.Path = d.Path.String()
	}
	n.mu.Lock()
	p := n.peers[rec.PairID]
	n.mu.Unlock()
	if p == nil { // blocked
		return out
	}
	p.mu.Lock()
	said, meter := p.said, p.meter
	p.mu.Unlock()
	out.Heard, out.Left, out.Version, out.Answers, out.NAT = said.at, said.left, said.version, said.answers, said.nat
	if !said.at.IsZero() {
		out.Days = said.days
	}
	out.Speaks = p.unproved()
	out.Ask = p.ask
	if meter != nil {
		out.Sizes = meter.ProbeSizes
		out.Candidates = func() []doctor.Candidate {
			ctx, cancel := context.WithTimeout(n.ctx, candidateTime)
			defer cancel()
			all, err := meter.Candidates(ctx)
			if err != nil {
				return nil
			}
			list := make([]doctor.Candidate, 0, len(all))
			for _, c := range all {
				one := doctor.Candidate{
					Local: c.Local, Remote: c.Remote, Path: c.Kind.String(), Via: c.Via, Usable: c.Usable, Selected: c.Selected,
					Sent: c.Sent, Failed: c.Failed, Answered: c.Answered, Late: c.Late, Received: c.Received, Small: c.Small, Sizing: c.Sizing, Size: c.Size, RTT: c.RTT,
				}
				if c.Origin != 0 {
					one.Kind = c.Origin.String()
				}
				list = append(list, one)
			}
			return list
		}
	}
	if out.Finished {
		out.Echo = func(ctx context.Context) (time.Duration, error) { return n.tunnel.Ping(ctx, rec.ID.Addr()) }
	}
	if out.Finished && named {
		out.Measure = func(ctx context.Context, force string) (doctor.Measurement, error) {
			res, path, err := n.Measure(ctx, rec.ID.String(), force)
			if errors.Is(err, measure.ErrNoPath) {
				err = fmt.Errorf("%w: %w", doctor.ErrNoPath, err)
			}
			return doctor.Measurement{
				Path: path, RTT: res.RTT, LatencyOut: res.LatencyOut, LatencyIn: res.LatencyIn, JitterOut: res.JitterOut, JitterIn: res.JitterIn,
				RateOut: res.RateOut, RateIn: res.RateIn, LossOut: res.LossOut, LossIn: res.LossIn,
				Duration: res.Duration, BytesOut: res.BytesOut, BytesIn: res.BytesIn,
			}, err
		}
	}
	return out
}

// ask has the other device look and answer, whether it is connected or not: over all media.
func (p *peer) ask(ctx context.Context, q doctor.Question) (doctor.Reply, error) {
	body, err := signaling.Question{DialBack: q.DialBack, Secret: q.Secret, Pin: q.Pin}.Encode()
	if err != nil {
		return doctor.Reply{}, err
	}
	began := time.Now()
	var channel *signaling.Channel
	err = p.call(ctx, func() {
		if channel = p.channel; channel == nil {
			return
		}
		p.commit.Ask() // one that has ended the pair says so; one of before questions knows this
		if p.rec.State == registry.Active && p.link != nil && !p.isConnected() {
			channel.Announce(p.presence())
		}
	})
	if err != nil {
		return doctor.Reply{}, err
	}
	if channel == nil {
		return doctor.Reply{}, fmt.Errorf("kith: %w", net.ErrClosed)
	}
	type outcome struct {
		raw []byte
		err error
	}
	answered := make(chan outcome, 1)
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asking.Go(func() {
		raw, err := channel.Ask(ctx, body)
		answered <- outcome{raw, err}
	})
	for {
		p.mu.Lock()
		said, connected, changed := p.said, p.connected, p.changed
		p.mu.Unlock()
		switch {
		case said.ended:
			return doctor.Reply{}, doctor.ErrEnded
		case !said.at.IsZero() && !said.answers && (connected || said.at.After(began)):
			return doctor.Reply{}, doctor.ErrOld
		}
		select {
		case o := <-answered:
			if o.err != nil {
				return doctor.Reply{}, o.err
			}
			r, err := signaling.ReadReply(o.raw)
			return replyOf(r), err
		case <-changed:
		}
	}
}

// unproved is when something of the device came last that did not show that it hears
// this one.
func (p *peer) unproved() time.Time {
	p.mu.Lock()
	channel := p.speaks
	p.mu.Unlock()
	if channel == nil {
		return time.Time{}
	}
	return channel.Unproved()
}

// replyOf is a reply as checks see it.
func replyOf(r signaling.Reply) doctor.Reply {
	out := doctor.Reply{Version: r.Version, Clock: r.Clock, Causes: r.Causes, DialBack: r.DialBack, From: append([]netip.AddrPort(nil), r.From...)}
	for _, t := range r.Tried {
		c := doctor.Candidate{Remote: t.Addr, Sent: uint64(t.Sent), Answered: uint64(t.Answered), Received: uint64(t.Received), Size: int(t.Size)}
		if t.Kind != 0 {
			c.Kind = t.Kind.String()
		}
		out.Candidates = append(out.Candidates, c)
	}
	return out
}
