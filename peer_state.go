package kith

import (
	"context"
	"net"
	"time"

	"github.com/kithproject/kith/link"
)

func (p *peer) disconnected(why string) {
	p.mu.Lock()
	was := p.connected
	p.connected, p.path = false, nil
	if was {
		p.since, p.was = time.Now(), true
		close(p.over)
	}
	p.looking = "looking for it: " + why
	p.signalLocked()
	p.mu.Unlock()
	p.stopVerify()
	if was {
		p.emit(EventDisconnected, why)
	}
}

func (p *peer) emit(kind EventKind, detail string) {
	p.n.cfg.Logger.Info("peer event", "event", string(kind), "peer", p.id.Short(), "detail", detail)
	p.n.rooms.happened(kind, p.id)
	p.n.tell(kind, p.n.device(p.rec), detail)
}

func (p *peer) isConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

func (p *peer) setPath(path link.Path) {
	p.mu.Lock()
	moved := p.connected && (p.path == nil || p.path.Remote != path.Remote || p.path.Kind != path.Kind)
	if p.connected {
		p.path = &path
	}
	p.signalLocked()
	p.mu.Unlock()
	if moved {
		p.n.leaveLanes(&p.id)
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
	if p.meter != nil {
		if t := p.meter.Traffic(); t.Sent+t.Received > 0 {
			d.Traffic = &t
		}
	}
	if p.path != nil {
		path := *p.path
		d.Path = &path
		if path.Kind == link.Relay {
			d.Better = p.whyNotStraight()
		}
	}
}

// await returns when the device is connected, with a channel that is closed when
// it no longer is, or with the context's error. If it is not, it is called for.
func (p *peer) await(ctx context.Context) (over <-chan struct{}, err error) {
	p.wanted.Add(1)
	defer p.wanted.Add(-1)
	for called := false; ; called = true {
		p.mu.Lock()
		ok, over, changed := p.connected, p.over, p.changed
		p.mu.Unlock()
		if ok {
			return over, nil
		}
		if !called {
			p.post(p.rouse)
		}
		select {
		case <-changed:
		case <-p.done:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
