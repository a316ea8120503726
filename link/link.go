package link

import (
	"bytes"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

// ErrNoPath reports that a Link has no path to its peer at the moment.
var ErrNoPath = errors.New("link: no path to the peer")

// A Config says what a Link needs to know of its peer. Peer and Keys are required.
type Config struct {
	// Peer is the device at the other end.
	Peer identity.DeviceID
	// Keys returns the probe keys of a UTC day (days since 1970): the one we seal
	// with and the one the peer seals with. It errs for a day that has none. It is
	// called by one goroutine at a time.
	Keys func(day int64) (send, receive [32]byte, err error)
	// Events gets every event in order, on the Link's goroutine: it must not block
	// and must not call Close. Default: events are dropped.
	Events func(Event)
	// Logger gets changes of paths. Default: discard.
	Logger *slog.Logger
	// Now is the wall clock, for the day of the keys. Default: time.Now.
	Now func() time.Time
	// DataSize is the datagram that a path has to carry to count as good, in
	// bytes of UDP payload, from MinDataSize to MaxDataSize. Default: DefaultDataSize.
	DataSize int
}

// A Link is the way to one paired device: a datagram pipe that outlives its
// paths. It is the conn.Endpoint that WireGuard sends to. Its methods are safe
// for concurrent use.
type Link struct {
	socket *Socket
	cfg    Config
	core   *checker // owned by run
	keys   keyring  // owned by run
	skew   int64    // the peer's day minus ours; owned by run
	round  int      // number of Resets obeyed; owned by run
	drill  *drill   // owned by run

	replays replays

	listing bool // our interfaces are being listed; owned by run
	listed  chan networks
	again   bool // the list is asked for once more; owned by run

	inbox chan *datagram
	wake  chan struct{}
	stop  chan struct{}
	done  chan struct{}
	close sync.Once

	route   atomic.Pointer[route]
	held    atomic.Pointer[held]
	paths   atomic.Pointer[[]Path]
	sent    atomic.Bool  // data was sent since run last looked
	waiting atomic.Int64 // when the oldest unanswered data was sent, nanoseconds after born; 0: none
	born    time.Time

	mu   sync.Mutex // guards todo
	todo orders
}

// orders are what callers want of run.
type orders struct {
	resets  int // since run last looked
	remote  []namedAddr
	named   bool // remote was set
	probe   bool
	ports   bool // carriers came or went
	try     []place
	relayed *bool
	nats    *[2]punch.Behaviour // ours and the peer's
	failed  bool                // sending data failed
	peerDay int64
	skewed  bool // peerDay was set
}

// A route is where data goes: one carrier and the way it names the peer.
type route struct {
	carrier carrier
	ep      conn.Endpoint
}

// A held packet is a WireGuard handshake message that came before there was a
// path: one end may have a path a moment before the other, and WireGuard would
// repeat a lost message only after five seconds.
type held struct {
	packet []byte
	since  time.Time
}

// holdFor is how long a held packet is of use.
const holdFor = time.Second

// A carrier takes datagrams to endpoints of its own kind: the UDP socket, or a relay.
type carrier interface {
	carry(bufs [][]byte, ep conn.Endpoint) error
}

// NewLink returns the Link to a peer, without candidates yet. It errs if the
// Config is incomplete, or if there are no keys for today.
func (s *Socket) NewLink(cfg Config) (*Link, error) {
	if cfg.Keys == nil || cfg.Peer.IsZero() {
		return nil, errors.New("link: Config needs Peer and Keys")
	}
	if cfg.DataSize == 0 {
		cfg.DataSize = DefaultDataSize
	}
	if cfg.DataSize < MinDataSize || cfg.DataSize > MaxDataSize {
		return nil, errors.New("link: DataSize out of range")
	}
	if cfg.Events == nil {
		cfg.Events = func(Event) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Link{
		socket: s, cfg: cfg, inbox: make(chan *datagram, 64), wake: make(chan struct{}, 1),
		listed: make(chan networks, 1), stop: make(chan struct{}), done: make(chan struct{}), born: time.Now(),
	}
	l.core, l.drill = l.newCore(), newDrill(l)
	if err := l.renewKeys(); err != nil {
		return nil, err
	}
	s.addLink(l)
	l.order(func(o *orders) { o.probe, o.ports = true, true })
	go l.run()
	return l, nil
}

// SetRemote replaces the addresses at which the peer says it may be found, and
// starts to try those that are new. Of more than 20 those of the highest
// priority count. Addresses that worked before are kept. It does not block.
func (l *Link) SetRemote(list []signaling.Candidate) {
	remote := make([]namedAddr, 0, len(list))
	for _, c := range list {
		remote = append(remote, namedAddr{addr: c.Addr, kind: c.Kind, priority: c.Priority})
	}
	l.order(func(o *orders) { o.remote, o.named = remote, true })
}

// SetPeerDay tells which UTC day it is by the peer's clock, so that probes are
// understood although the clocks differ by days. It does not block.
func (l *Link) SetPeerDay(day int64) {
	l.order(func(o *orders) { o.peerDay, o.skewed = day, true })
}

// SetNAT tells how both sides' NATs behave, for hole punching where one of them is
// hard; the zero Behaviour is one that is not known. It does not block.
func (l *Link) SetNAT(self, peer punch.Behaviour) {
	l.order(func(o *orders) { o.nats = &[2]punch.Behaviour{self, peer} })
}

// SetRelayOnly says whether paths through relays alone are wanted. It does not
// block.
func (l *Link) SetRelayOnly(only bool) { l.order(func(o *orders) { o.relayed = &only }) }

// Probe asks every known address anew, as after a change of the network. It
// does not block.
func (l *Link) Probe() { l.order(func(o *orders) { o.probe = true }) }

// Reset forgets every path and every address, as after word that the peer is
// another run of itself: its old sockets are gone, and what proved them proves
// nothing any more. Addresses that are set after it count. Events that come after
// it have a Round one greater, so that earlier ones are known as such; there is
// no Down for a path that it ended. It does not block.
func (l *Link) Reset() {
	l.mu.Lock()
	reset := l.todo.resets + 1
	old := l.todo
	l.todo = orders{ // what is not about the peer's run stays
		resets: reset, peerDay: old.peerDay, skewed: old.skewed, ports: old.ports, relayed: old.relayed, nats: old.nats,
	}
	l.mu.Unlock()
	l.poke()
}

// Path returns the selected path, and whether there is one.
func (l *Link) Path() (Path, bool) {
	if all := l.paths.Load(); all != nil && len(*all) > 0 && (*all)[0].Selected {
		return (*all)[0], true
	}
	return Path{}, false
}

// Paths returns the proven paths, the selected one first, then the better ones.
func (l *Link) Paths() []Path {
	all := l.paths.Load()
	if all == nil {
		return nil
	}
	return append([]Path(nil), *all...)
}

// Peer returns the device at the other end.
func (l *Link) Peer() identity.DeviceID { return l.cfg.Peer }

// Close ends the Link and waits for its goroutine. Packets sent to it after
// that are refused. It may be called more than once.
func (l *Link) Close() {
	l.close.Do(func() {
		l.socket.removeLink(l)
		close(l.stop)
	})
	<-l.done
}

func (l *Link) newCore() *checker {
	c := newChecker(l, rand.Reader, l.cfg.DataSize)
	c.loopback, c.replays = l.socket.cfg.Loopback, &l.replays
	return c
}

func (l *Link) order(set func(*orders)) {
	l.mu.Lock()
	set(&l.todo)
	l.mu.Unlock()
	l.poke()
}

func (l *Link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// transmit sends data on the selected path.
func (l *Link) transmit(bufs [][]byte) error {
	r := l.route.Load()
	if r == nil {
		if len(bufs) != 1 || !isHandshake(bufs[0]) || l.ended() {
			return ErrNoPath
		}
		l.held.Store(&held{packet: bytes.Clone(bufs[0]), since: time.Now()})
		if l.route.Load() != nil { // it has come since we looked
			l.release()
		}
		return nil
	}
	if l.waiting.Load() == 0 {
		l.waiting.Store(int64(time.Since(l.born)) | 1)
	}
	if !l.sent.Load() {
		l.sent.Store(true)
		l.poke()
	}
	err := r.carrier.carry(bufs, r.ep)
	if err != nil {
		l.order(func(o *orders) { o.failed = true })
	}
	return err
}

func isHandshake(b []byte) bool {
	const longest = 256 // bytes; an initiation has 148, a response 92
	return isWireGuard(b) && b[0] <= 2 && len(b) <= longest
}

// release sends the held packet, if there is one that is still of use.
func (l *Link) release() {
	if h := l.held.Swap(nil); h != nil && time.Since(h.since) < holdFor {
		_ = l.transmit([][]byte{h.packet}) // lost like any datagram
	}
}

func (l *Link) ended() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// received notes that data came from one of the peer's addresses.
func (l *Link) received() {
	if l.waiting.Load() != 0 {
		l.waiting.Store(0)
	}
}

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
	var looked time.Time // at the data counters
	var failed bool      // to renew the keys
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
		next := l.look(now, &looked)
		l.core.tick(now)
		if at := l.drill.step(now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		paths := l.core.paths()
		l.paths.Store(&paths)
		if at := l.core.next(now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// look gives the data counters to the checker, and returns when to look again;
// zero: not before data is sent.
func (l *Link) look(now time.Time, looked *time.Time) time.Time {
	sent := false
	if now.Sub(*looked) >= trafficPeriod {
		sent = l.sent.Swap(false)
		if sent {
			*looked = now
		}
	}
	var waiting time.Time
	if since := l.waiting.Load(); since != 0 {
		waiting = l.born.Add(time.Duration(since))
	}
	l.core.traffic(now, sent, waiting)
	if now.Sub(*looked) < trafficPeriod {
		return looked.Add(trafficPeriod)
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
		l.drill.stop()
		l.drill.backoff.Reset()
		l.drill.rescues = 0
		old := l.core
		l.core = l.newCore()
		l.core.networks, l.core.carriers, l.core.relayed = old.networks, old.carriers, old.relayed
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
		l.core.probe(now)
	}
	if todo.failed {
		l.core.sendFailed(now)
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
		l.core.onPong(d.at, d.from, d.ep, p)
	}
}

// The outlet of the checker.

func (l *Link) send(to place, via conn.Endpoint, p probe, size int) error {
	carrier, via, err := l.socket.route(to, via)
	if err != nil {
		return err
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
	l.cfg.Logger.Info("link "+kind.String(), "peer", l.cfg.Peer.Short(), "path", p.Remote, "kind", p.Kind, "rtt", p.RTT, "size", p.Size)
	l.cfg.Events(Event{Kind: kind, Link: l, Path: p, Round: l.round})
}

var _ outlet = (*Link)(nil)
