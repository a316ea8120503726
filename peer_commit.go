package kith

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
)

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
			switch p.rec.State {
			case registry.Active:
				p.n.confirmed(p.pairID)
			case registry.Tomb:
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
		if err := p.n.dropMember(p.id); err != nil {
			p.n.cfg.Logger.Error("member not made a paired device", "peer", rec.ID.Short(), "err", err)
		}
		if err := p.look(); err != nil {
			p.n.cfg.Logger.Error("link not started", "peer", rec.ID.Short(), "err", err)
		}
		// After what is being said now: where a medium limits frames, what the other side
		// needs to be paired, too, comes before addresses.
		p.post(p.search)
		p.emit(EventPaired, "")
		p.n.promoted(rec.PairID)
	case registry.Tomb:
		p.hearEnd()
		p.disconnected("unpaired")
		p.detach()
		p.n.endLanes(p.id)
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
		p.listenForHeir()
		return
	}
	if p.commit.State() == pairing.Prepared && rec.State == registry.Active {
		// The other side hears of it on the pair's own topics, too: the code's topic may
		// have no turn left for this second.
		p.commit.Promoted(time.Now())
		p.adopt(rec)
		p.drainCommit()
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
