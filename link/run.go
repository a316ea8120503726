package link

import (
	"crypto/rand"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/internal/wire"
)

// trafficPeriod is how often run looks at the data counters while data flows.
const trafficPeriod = 500 * time.Millisecond

// run owns the checker.
func (l *Link) run() {
	defer close(l.done)
	defer l.route.Store(nil)
	defer l.drill.stop()
	defer func() {
		if l.listing {
			<-l.listed
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var failed bool // to renew the keys
	for {
		select {
		case <-l.stop:
			return
		case d := <-l.inbox:
			l.handle(d)
			l.socket.recycle(d)
		case <-l.wake:
			l.obey()
		case to := <-l.drill.guesses:
			l.core.guess(time.Now(), to)
		case a := <-l.drill.over:
			l.drill.ended(time.Now(), a)
		case n := <-l.listed:
			l.listing = false
			l.core.setNetworks(time.Now(), n)
			if l.again {
				l.list()
			}
		case <-timer.C:
		}
		if err := l.renewKeys(); err != nil && !failed {
			failed = true // the old keys stay good for a day
			l.cfg.Logger.Error("probe keys not renewed", "peer", l.cfg.Peer.Short(), "err", err)
		}
		now := time.Now()
		next := l.look(now)
		l.core.tick(now)
		if l.core.looks() {
			l.socket.Glance()
		}
		if at := l.drill.step(now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		paths := l.core.paths()
		l.paths.Store(&paths)
		if at := l.core.next(now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		l.asleep.Store(l.core.dormant)
		if at := now.Add(keyPeriod); next.IsZero() || next.After(at) {
			next = at
		}
		timer.Reset(time.Until(next))
	}
}

// look gives the data counters to the checker, and returns when to look again;
// zero: not before there is data.
func (l *Link) look(now time.Time) time.Time {
	sent := false
	if now.Sub(l.looked) >= trafficPeriod {
		sent = l.sent.Swap(false)
		heard := l.heard.Swap(false)
		if heard {
			l.core.received(now)
		}
		moving := heard || sent
		if moving || l.moving { // and once more when it has ended
			l.meter.look(now)
		}
		if l.moving = moving; moving {
			l.looked = now
		}
	}
	var waiting time.Time
	if since := l.waiting.Load(); since != 0 {
		waiting = l.born.Add(time.Duration(since))
	}
	l.core.traffic(now, sent, waiting)
	if now.Sub(l.looked) < trafficPeriod {
		return l.looked.Add(trafficPeriod)
	}
	return time.Time{}
}

func (l *Link) obey() {
	l.mu.Lock()
	todo := l.todo
	l.todo = orders{}
	l.mu.Unlock()
	now := time.Now()
	if todo.resets > 0 {
		l.round += todo.resets
		l.core.clear()
		l.waiting.Store(0)
		l.meter.told(0)
		l.drill.stop()
		l.drill.backoff.Reset()
		l.drill.rescues = 0
		old := l.core
		l.core = l.newCore()
		l.core.networks, l.core.carriers, l.core.relayed = old.networks, old.carriers, old.relayed
		l.core.direct, l.core.lazy, l.core.used = old.direct, old.lazy, now
		l.core.force, l.core.forcedUntil = old.force, old.forcedUntil
	}
	l.core.port = l.socket.Port()
	if todo.skewed {
		l.skew = todo.peerDay - wire.Day(l.cfg.Now())
	}
	if todo.named || todo.probe {
		l.list()
	}
	if todo.relayed != nil && l.core.relayed != *todo.relayed {
		l.core.relayOnly(now, *todo.relayed)
	}
	if todo.direct != nil && l.core.direct != *todo.direct {
		l.core.noRelays(now, *todo.direct)
	}
	if todo.lazy != nil && l.core.lazy != *todo.lazy {
		l.core.setLazy(now, *todo.lazy)
	}
	if todo.nats != nil {
		l.drill.set(now, todo.nats[0], todo.nats[1])
	}
	if todo.named {
		l.core.setRemote(now, todo.remote)
	}
	if todo.ports {
		l.core.setCarriers(now, l.socket.carriersOf(l))
	}
	l.core.tryPlaces(now, todo.try)
	if todo.probe {
		l.core.stir(now)
		l.core.probe(now)
	}
	if todo.failed {
		l.core.sendFailed(now)
	}
	if todo.force != nil {
		l.core.setForce(now, *todo.force)
	}
	if todo.sizes {
		l.core.doubtSizes(now)
	}
	for _, ch := range todo.lists {
		ch <- l.core.candidates() // it has room for one
	}
}

// list has our interfaces listed. The system may take its time for that, as it
// does while namespaces come and go, and pings must not wait for it.
func (l *Link) list() {
	l.again = l.listing
	if l.listing {
		return
	}
	l.listing = true
	go func() { l.listed <- l.socket.networks() }() // run receives it, at the latest when it ends
}

// handle opens a datagram that carries one of our tags.
func (l *Link) handle(d *datagram) {
	if n := d.from.carrier; n != 0 && l.socket.table.Load().ports[n] == nil {
		return // its carrier went while it waited
	}
	p, err := d.sealer.open(d.buf[:d.n])
	if err != nil {
		l.socket.stats.forged.Add(1)
		return
	}
	switch p.kind {
	case ping:
		l.core.onPing(time.Now(), d.from, d.ep, p)
	case pong:
		if l.core.onPong(d.at, d.from, d.ep, p) {
			l.meter.told(p.loss)
		}
	}
}

// The outlet of the checker.

func (l *Link) send(to place, via conn.Endpoint, p probe, size int) error {
	carrier, via, err := l.socket.route(to, via)
	if err != nil {
		return err
	}
	if p.kind == pong {
		p.loss = l.meter.lossCode()
	}
	raw, err := l.keys.send.seal(rand.Reader, p, size)
	if err != nil {
		return err
	}
	return carrier.carry([][]byte{raw}, via)
}

func (l *Link) use(c *candidate) {
	if c == nil {
		l.route.Store(nil)
		return
	}
	carrier, ep, err := l.socket.route(c.place, c.via)
	if err != nil {
		l.cfg.Logger.Warn("path has no endpoint", "peer", l.cfg.Peer.Short(), "path", c.place.addr, "err", err)
		l.route.Store(nil)
		return
	}
	if old := l.route.Load(); old == nil || old.ep != ep {
		l.route.Store(&route{carrier: carrier, ep: ep})
		l.release()
	}
}

func (l *Link) admit(p place, proven bool) { l.socket.admit(p, l, proven) }
func (l *Link) forget(p place)             { l.socket.forget(p, l) }
func (l *Link) answered()                  { l.waiting.Store(0) }

func (l *Link) event(kind EventKind, p Path) {
	paths := l.core.paths()
	l.paths.Store(&paths)
	l.cfg.Logger.Info("link event", "event", kind.String(), "peer", l.cfg.Peer.Short(), "path", p.Remote, "kind", p.Kind, "rtt", p.RTT, "size", p.Size)
	l.cfg.Events(Event{Kind: kind, Link: l, Path: p, Round: l.round})
}

var _ outlet = (*Link)(nil)
