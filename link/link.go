package link

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kithproject/kith/identity"
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
	core   *checker  // owned by run
	keys   keyring   // owned by run
	skew   int64     // the peer's day minus ours; owned by run
	looked time.Time // at the data counters; owned by run
	moving bool      // there was data when it looked; owned by run
	round  int       // number of Resets obeyed; owned by run
	drill  *drill    // owned by run

	replays   replays
	newcomers bucket // owned by run
	meter     meter

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
	heard   atomic.Bool  // data was received since then
	asleep  atomic.Bool  // Dormant
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
	direct  *bool
	lazy    *bool
	nats    *[2]punch.Behaviour // ours and the peer's
	failed  bool                // sending data failed
	peerDay int64
	skewed  bool // peerDay was set
	force   *forcing
	sizes   bool                 // the sizes of all paths are in doubt
	lists   []chan<- []Candidate // who wants to know all
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

// SetNoRelay says whether relays are refused, also those that the peer uses: what
// comes from addresses that it names as relayed is not answered. It does not block.
func (l *Link) SetNoRelay(none bool) { l.order(func(o *orders) { o.direct = &none }) }

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
		resets: reset, peerDay: old.peerDay, skewed: old.skewed, ports: old.ports, relayed: old.relayed, direct: old.direct, lazy: old.lazy, nats: old.nats,
		force: old.force, lists: old.lists,
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
	c.loopback, c.replays, c.newcomers = l.socket.cfg.Loopback, &l.replays, &l.newcomers
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
