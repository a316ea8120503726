package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/link/punch"
)

const (
	// drillDelay is how long plain punching has after news of the peer, before
	// many sockets or ports are tried: on a LAN, or where a guess about a NAT was
	// wrong, it needs less.
	drillDelay = 300 * time.Millisecond
	// plainDelay is the same where it is not known that plain punching fails.
	plainDelay = 500 * time.Millisecond
	// maxHits is how many sockets of one attempt may be taken for hit.
	maxHits = 4
	// openerTTL gets a socket's first packet past our own NAT and not to the peer's.
	openerTTL = 4
)

// newsGap is how far apart news of the peer's NAT have to be to end a back-off.
const newsGap = 15 * time.Second

// A drill punches holes through a hard NAT for one link, an attempt at a time
// (package punch). All but the goroutine of an attempt is owned by Link.run.
type drill struct {
	l          *Link
	self, peer punch.Behaviour
	news       time.Time // when one of them, or the peer's addresses, came
	ports      *punch.Ports
	backoff    punch.Backoff
	attempt    *attempt // under way; nil: none
	kept       []*hole
	over       chan *attempt       // attempts that have ended
	guesses    chan netip.AddrPort // for the checker to ping
	rescues    int                 // since loss
	loss       time.Time           // of the path that the rescues are for
}

func newDrill(l *Link) *drill {
	return &drill{l: l, over: make(chan *attempt, 1), guesses: make(chan netip.AddrPort, 16)}
}

// An attempt is one run of package punch.
type attempt struct {
	link   *Link
	plan   punch.Plan
	cancel context.CancelFunc
	proven chan *hole // that the checker proved

	mu    sync.Mutex // guards the fields below
	pool  *punch.Pool
	holes map[int]*hole // by socket
	ended bool
}

// set tells what is known of both sides' NATs.
func (d *drill) set(now time.Time, self, peer punch.Behaviour) {
	if d.self == self && d.peer == peer {
		return
	}
	if other(d.self, self) || other(d.peer, peer) {
		// A peer that changes what it says all the time must not have us probe
		// without a pause.
		if other(d.self, self) || now.Sub(d.news) > newsGap {
			d.backoff.Reset()
		}
		d.ports = nil
		d.news = now
	}
	d.self, d.peer = self, peer
}

// other reports whether it is another NAT than before, or is known only now.
func other(was, is punch.Behaviour) bool { return was.Public != is.Public || was.Mapping != is.Mapping }

// plan says what is to be done at the moment, and from when; the role is none
// if a straight path is there.
func (d *drill) plan() (punch.Plan, time.Time) {
	plan := punch.Decide(d.self, d.peer)
	if d.l.core.straight() || d.l.core.relayed || d.l.core.dormant {
		return punch.Plan{}, time.Time{}
	}
	if plan.Role == punch.RoleNone || plan.Role == punch.RoleHopeless {
		return d.rescue()
	}
	if plan.Plain {
		return plan, d.news.Add(plainDelay)
	}
	return plan, d.news.Add(drillDelay)
}

// straight reports whether a path that goes through no relay is proven.
func (c *checker) straight() bool {
	for _, cand := range c.all {
		if cand.usable && cand.kind != Relay {
			return true
		}
	}
	return false
}

// step starts or ends what is due, and returns when it wants to be called again.
func (d *drill) step(now time.Time) time.Time {
	if a := d.attempt; a != nil {
		d.prove(a)
		if d.l.core.uses(0) || d.l.core.relayed || d.l.core.dormant {
			a.cancel() // the shared socket has a way: a prober's hit, or better
		}
		return time.Time{} // its end wakes run
	}
	plan, at := d.plan()
	if plan.Role == punch.RoleNone {
		return time.Time{}
	}
	rescue := plan.Reason == rescueReason
	if ready, ok := d.backoff.Ready(now); !ok && ready.After(at) && !rescue {
		at = ready
	}
	if now.Before(at) {
		return at
	}
	if rescue {
		d.rescues++
	}
	d.begin(plan)
	return time.Time{}
}

// prove tells an attempt which of its holes has become a path.
func (d *drill) prove(a *attempt) {
	for _, cand := range d.l.core.all {
		if cand.place.carrier == 0 || !cand.usable {
			continue
		}
		if h := a.hole(cand.place.carrier); h != nil {
			select {
			case a.proven <- h:
			default:
			}
		}
	}
}

func (a *attempt) hole(port int) *hole {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.holes {
		if h.port.info.id == port {
			return h
		}
	}
	return nil
}

func (d *drill) begin(plan punch.Plan) {
	d.drop(func(h *hole) bool { return !d.l.core.uses(h.port.info.id) })
	if plan.Role == punch.RoleProber {
		if d.ports == nil {
			d.ports = punch.NewPorts(d.peer, seed())
		} else {
			d.ports.Resume(d.peer)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	if plan.Reason == rescueReason {
		ctx, cancel = context.WithTimeout(context.Background(), rescueTime)
	}
	a := &attempt{link: d.l, plan: plan, cancel: cancel, proven: make(chan *hole, 1), holes: make(map[int]*hole)}
	d.attempt = a
	send := d.l.keys.send
	ports := d.ports
	go func() {
		err := a.run(ctx, send, ports, d.guesses)
		cancel()
		d.l.cfg.Logger.Debug("hole punching ended", "peer", d.l.cfg.Peer.Short(), "role", plan.Role, "err", err)
		d.over <- a // run receives it, at the latest when it ends
	}()
	d.l.cfg.Logger.Info("hole punching", "peer", d.l.cfg.Peer.Short(), "role", plan.Role, "reason", plan.Reason, "chance", plan.Chance)
}

func seed() uint64 {
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // it never fails
	return binary.BigEndian.Uint64(raw[:])
}

// ended takes note of the end of an attempt.
func (d *drill) ended(now time.Time, a *attempt) {
	d.attempt = nil
	d.kept = append(d.kept, a.kept()...)
	if d.l.core.straight() {
		d.backoff.Reset()
		d.rescues = 0
		return
	}
	d.backoff.Failed(now)
}

// uses reports whether a path over a carrier is proven that leads to no relay.
func (c *checker) uses(port int) bool {
	for _, cand := range c.all {
		if cand.place.carrier == port && cand.usable && cand.kind != Relay {
			return true
		}
	}
	return false
}

// drop closes the sockets of holes.
func (d *drill) drop(which func(*hole) bool) {
	kept := d.kept[:0]
	for _, h := range d.kept {
		if which(h) {
			h.close()
		} else {
			kept = append(kept, h)
		}
	}
	d.kept = kept
}

// stop ends an attempt under way, waits for it, and closes all sockets.
func (d *drill) stop() {
	if a := d.attempt; a != nil {
		a.cancel()
		for waiting := true; waiting; {
			select {
			case <-d.guesses:
			case a := <-d.over:
				d.attempt = nil
				d.kept = append(d.kept, a.kept()...)
				waiting = false
			}
		}
	}
	d.drop(func(*hole) bool { return true })
}

func (a *attempt) kept() []*hole {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []*hole
	for _, h := range a.holes {
		if h.own.Load() != nil {
			out = append(out, h)
		}
	}
	return out
}

// run carries the attempt out, in its turn.
func (a *attempt) run(ctx context.Context, send *sealer, ports *punch.Ports, guesses chan<- netip.AddrPort) error {
	turn, err := a.link.socket.gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer turn.Leave()
	defer a.end()
	if a.plan.Sockets > 0 {
		pool, err := punch.OpenPool(punch.PoolConfig{Sockets: a.plan.Sockets, Receive: a.receive, Logger: a.link.cfg.Logger})
		if err != nil {
			return fmt.Errorf("link: open sockets for hole punching: %w", err)
		}
		a.mu.Lock()
		a.pool = pool
		a.mu.Unlock()
		a.plan.Sockets = pool.Len()
	}
	sched, err := punch.NewAttempt(a.plan, ports, seed(), time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var keeper sync.WaitGroup
	defer keeper.Wait()
	defer cancel()
	keeper.Go(func() {
		select {
		case h := <-a.proven:
			if err := a.keep(h); err != nil {
				a.link.cfg.Logger.Warn("hole not kept", "peer", a.link.cfg.Peer.Short(), "err", err)
			}
			cancel()
		case <-ctx.Done():
		}
	})
	pings := pinger{sealer: send, session: seed()}
	return punch.Run(ctx, sched, turn.Pacer, func(s punch.Shot) error {
		if s.Socket == punch.MainSocket {
			select {
			case guesses <- s.To:
			case <-ctx.Done():
			}
			return nil
		}
		raw, err := pings.next()
		if err != nil {
			return err
		}
		if s.Opening {
			return a.pool.SendTTL(s.Socket, [][]byte{raw}, s.To, openerTTL)
		}
		return a.pool.SendFrom(s.Socket, [][]byte{raw}, s.To)
	})
}

// A pinger seals pings that nobody waits for: what counts is that one arrives.
type pinger struct {
	sealer  *sealer
	session uint64
	seq     uint64
}

func (p *pinger) next() ([]byte, error) {
	p.seq++
	q := probe{kind: ping, session: p.session, seq: p.seq}
	if _, err := rand.Read(q.tx[:]); err != nil {
		return nil, err
	}
	return p.sealer.seal(rand.Reader, q, smallProbe)
}

// receive takes what comes to a socket of the pool. What is not a probe of this
// link's peer is dropped; a hit is handed to the checker, which proves the way
// back.
func (a *attempt) receive(socket int, from netip.AddrPort, packet []byte) {
	a.mu.Lock()
	h := a.holes[socket]
	a.mu.Unlock()
	if h == nil {
		p, ok := a.genuine(packet)
		if !ok {
			return
		}
		if h = a.hit(socket, p); h == nil {
			return
		}
		a.link.order(func(o *orders) { o.try = append(o.try, place{addr: onSocket(from).addr, carrier: h.port.info.id}) })
	}
	h.port.Deliver(from, packet)
}

// genuine opens a ping that the link's peer has sealed, and that is no replay.
func (a *attempt) genuine(packet []byte) (p probe, ok bool) {
	if !isProbe(packet) {
		return p, false
	}
	k, ok := a.link.socket.table.Load().tags[probeTag(packet[4:4+tagSize])]
	if !ok || k.link != a.link {
		return p, false
	}
	p, err := k.sealer.open(bytes.Clone(packet))
	return p, err == nil && p.kind == ping && !a.link.replays.knows(p.session, p.seq)
}

// hit makes a hole of a socket, unless there are enough.
func (a *attempt) hit(socket int, by probe) *hole {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.holes[socket]; h != nil {
		return h
	}
	if a.ended || a.pool == nil || len(a.holes) >= maxHits {
		return nil
	}
	for _, h := range a.holes {
		if h.by == by.tx {
			return nil // the same ping, played to another socket
		}
	}
	h := &hole{index: socket, pool: a.pool, by: by.tx, done: make(chan struct{})}
	h.port = a.link.socket.attach(&Port{socket: a.link.socket, carrier: h, link: a.link})
	a.holes[socket] = h
	return h
}

// keep turns a hole's socket into one of its own and closes all others.
func (a *attempt) keep(h *hole) error {
	h.keeps.Lock()
	defer h.keeps.Unlock()
	c, err := a.pool.Keep(h.index)
	if err != nil {
		return err
	}
	_ = c.SetReadBuffer(socketBuffer) // the system may grant less
	_ = c.SetWriteBuffer(socketBuffer)
	if raw, err := c.SyscallConn(); err == nil {
		_ = control("udp4", "", raw) // without it, more system calls
	}
	u := newUDPConn(c, false)
	h.own.Store(u)
	go h.read(u)
	return nil
}

// end closes the pool, and all holes that were not proven.
func (a *attempt) end() {
	a.mu.Lock()
	a.ended = true
	pool := a.pool
	var lost []*hole
	for i, h := range a.holes {
		if h.own.Load() == nil {
			lost = append(lost, h)
			delete(a.holes, i)
		}
	}
	a.mu.Unlock()
	for _, h := range lost {
		h.port.Detach()
	}
	if pool != nil {
		_ = pool.Close() // it never errs
	}
}

// tryPlaces asks places from which the peer was heard over a new carrier.
func (c *checker) tryPlaces(now time.Time, list []place) {
	for _, p := range list {
		if c.relayed && !c.relays(p.carrier) {
			continue
		}
		cand := c.all[p]
		if cand == nil {
			cand = c.add(p)
			cand.heard = now
			c.trim()
		}
		if c.all[p] != nil && !cand.usable {
			c.due(now, cand)
		}
	}
}
