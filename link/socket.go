package link

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

// A SocketConfig says how the shared socket is opened. The zero value works.
type SocketConfig struct {
	// Port is the UDP port. Default 0: a free one, kept as long as the Socket lives.
	Port uint16
	// Loopback also offers this machine's loopback addresses, so that two nodes
	// on one machine meet with no network up.
	Loopback bool
	// Bind is what carries the datagrams. Default: UDP over IPv4 and IPv6, in
	// batches and with segmentation offload on Linux. Tests put faults here.
	Bind conn.Bind
	// Changed is called after the addresses of Local changed, but for those of
	// interfaces. It must not block. Default: nothing is called.
	Changed func()
	// Logger gets openings and refusals of the system. Default: discard.
	Logger *slog.Logger
}

// A Socket is the UDP socket that WireGuard and the path probes of all Links
// share. It implements conn.Bind: the WireGuard device opens and closes it, any
// number of times, and its Links survive that. Its methods are safe for
// concurrent use.
type Socket struct {
	cfg   SocketConfig
	bind  conn.Bind
	log   *slog.Logger
	look  func() ([]netmon.Interface, error)
	pool  sync.Pool
	stats counters

	aside *aside
	gate  punch.Gate // one attempt at hole punching at a time
	stun  *gatherer

	port  atomic.Uint32         // in use, or used last
	live  atomic.Bool           // opened and not closed
	table atomic.Pointer[table] // what packets are matched against

	listMu sync.Mutex // guards nets and asked
	nets   networks   // our interfaces
	asked  time.Time  // when they were

	mu    sync.Mutex // guards the fields below, and writing table and port
	epoch *epoch     // of the last Open; nil before it and after Close
	links map[*Link]struct{}
	mark  *uint32

	lastPort int // number of the newest Port
}

// NewSocket returns a Socket, not open yet: the WireGuard device opens it.
func NewSocket(cfg SocketConfig) *Socket {
	s := &Socket{cfg: cfg, bind: cfg.Bind, log: cfg.Logger, look: netmon.Interfaces, links: make(map[*Link]struct{}), aside: newAside()}
	s.stun = newGatherer(s)
	if s.bind == nil {
		s.bind = new(udpBind)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.pool.New = func() any { return new(datagram) }
	s.table.Store(&table{})
	s.port.Store(uint32(cfg.Port))
	return s
}

// Port returns the UDP port: the one in use, or that of the last time, or the
// configured one.
func (s *Socket) Port() uint16 { return uint16(s.port.Load()) }

// Local lists the addresses at which a peer may find this Socket, the best
// first, at most 20: those of real interfaces, what a router maps to it, what
// STUN servers see, those of relays, then of VPN and container interfaces.
// Loopback addresses are in it if SocketConfig.Loopback asks for them. It is
// empty while no port is known.
func (s *Socket) Local() []signaling.Candidate {
	port := s.Port()
	if port == 0 {
		return nil
	}
	nets := s.networks()
	out := nets.candidates(port, s.cfg.Loopback)
	add := func(kind signaling.Kind, priority uint32, addr netip.AddrPort) {
		known := slices.ContainsFunc(out, func(c signaling.Candidate) bool { return c.Addr == addr })
		if addr.IsValid() && !known {
			out = append(out, signaling.Candidate{Kind: kind, Addr: addr, Priority: priority})
		}
	}
	add(signaling.Mapped, priorityMapped, s.stun.portMapping())
	for _, addr := range s.stun.reflexive() {
		add(signaling.Reflexive, priorityReflexive, addr)
	}
	for _, p := range s.table.Load().ports {
		if p.info.relay() {
			add(signaling.Relayed, priorityRelayed, p.info.addr)
		}
	}
	slices.SortStableFunc(out, func(a, b signaling.Candidate) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.Addr.Compare(b.Addr))
	})
	return out[:min(len(out), maxRemote)]
}

// listAge is for how long a list of interfaces is good: less than the debounce
// of who tells us that they changed, and enough that many links ask once.
const listAge = 100 * time.Millisecond

// networks lists our interfaces, or returns the last list if the system refuses.
func (s *Socket) networks() networks {
	s.listMu.Lock()
	defer s.listMu.Unlock()
	if asked := time.Now(); asked.Sub(s.asked) > listAge {
		list, err := s.look()
		if err != nil {
			s.log.Warn("interfaces not listed", "err", err)
			return s.nets
		}
		s.nets, s.asked = list, asked
	}
	return s.nets
}

// An epoch lasts from an Open to the Close after it.
type epoch struct {
	now  atomic.Pointer[generation] // nil after Close
	over chan struct{}              // closed with it
}

// A generation is one opening of the system's sockets. Rebind begins a new one
// in the same epoch.
type generation struct {
	fns  []conn.ReceiveFunc // empty while the sockets are being replaced
	over chan struct{}      // closed when another generation or the end has come
}

// receivers is the number of ReceiveFuncs for the socket that Open returns at
// least: one for IPv4 and one for IPv6, even if one of them comes only with a
// Rebind.
const receivers = 2

// Open opens the socket, as conn.Bind asks. Port 0 means the configured port, or
// that of the last time; if the latter is taken and none is configured, another
// is chosen. It errs if the port is taken or the system has no UDP, and with
// conn.ErrBindAlreadyOpen.
func (s *Socket) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	g, err := s.openLocked(port)
	if err != nil {
		return nil, 0, err
	}
	e := &epoch{over: make(chan struct{})}
	e.now.Store(g)
	s.epoch = e
	s.live.Store(true)
	out := make([]conn.ReceiveFunc, max(receivers, len(g.fns)), receivers+1)
	for i := range out {
		r := &receiver{socket: s, epoch: e, index: i}
		out[i] = r.receive
	}
	out = append(out, func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		return s.aside.receive(e.over, bufs, sizes, eps)
	})
	s.probeLocked()
	return out, s.Port(), nil
}

func (s *Socket) openLocked(port uint16) (*generation, error) {
	if port == 0 {
		port = s.Port()
	}
	fns, got, err := s.bind.Open(port)
	if err != nil && port != 0 && s.cfg.Port == 0 {
		s.log.Warn("port of the last time is taken", "port", port, "err", err)
		fns, got, err = s.bind.Open(0)
	}
	if err != nil {
		return nil, fmt.Errorf("link: open UDP port %d: %w", port, err)
	}
	if s.mark != nil {
		if err := s.bind.SetMark(*s.mark); err != nil {
			s.log.Warn("packet mark not set", "err", err)
		}
	}
	s.port.Store(uint32(got))
	return &generation{fns: fns, over: make(chan struct{})}, nil
}

func (s *Socket) probeLocked() {
	for l := range s.links {
		l.Probe()
	}
}

// Close closes the socket, as conn.Bind asks: what Open returned ends with
// net.ErrClosed. Links stay, without a path until the next Open. It errs if the
// system does.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == nil {
		return nil
	}
	g := s.epoch.now.Swap(nil)
	close(s.epoch.over)
	s.epoch = nil
	s.live.Store(false)
	err := s.bind.Close()
	close(g.over)
	return err
}

// Rebind replaces the system's sockets by new ones on the same port, without
// the WireGuard device noticing, and has every Link ask all its candidates: for
// use when the network changed and old sockets may be bound to what is gone. If
// it errs, nothing is received until a Rebind succeeds; net.ErrClosed means that
// the Socket is not open.
func (s *Socket) Rebind() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == nil {
		return net.ErrClosed
	}
	between := &generation{over: make(chan struct{})}
	old := s.epoch.now.Swap(between)
	closeErr := s.bind.Close()
	close(old.over)
	g, err := s.openLocked(0)
	if err != nil {
		return errors.Join(err, closeErr)
	}
	s.epoch.now.Store(g)
	close(between.over)
	s.probeLocked()
	return nil
}

// SetMark sets the mark of all packets that are sent (SO_MARK on Linux), as
// conn.Bind asks; it survives Close and Rebind. It errs if the system does.
func (s *Socket) SetMark(mark uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark = &mark
	if s.epoch == nil {
		return nil
	}
	return s.bind.SetMark(mark)
}

// Send sends packets on the selected path of a Link, as conn.Bind asks. While
// there is none, the last handshake message waits for up to a second for one. It errs
// with ErrNoPath, with net.ErrClosed, with conn.ErrWrongEndpointType if ep is no
// Link, or if the system does.
func (s *Socket) Send(bufs [][]byte, ep conn.Endpoint) error {
	l, ok := ep.(*Link)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	return l.transmit(bufs)
}

// ParseEndpoint always errs: the endpoints of a Socket are Links.
func (s *Socket) ParseEndpoint(string) (conn.Endpoint, error) {
	return nil, errors.New("link: an endpoint is a Link, not an address")
}

// BatchSize returns the number of packets per receive and send at most.
func (s *Socket) BatchSize() int { return s.bind.BatchSize() }

// carry sends datagrams to an endpoint of the underlying bind.
func (s *Socket) carry(bufs [][]byte, ep conn.Endpoint) error {
	if !s.live.Load() {
		return net.ErrClosed
	}
	return s.bind.Send(bufs, ep)
}

// endpoint returns the underlying bind's endpoint for an address, with the
// system to choose ours.
func (s *Socket) endpoint(addr netip.AddrPort) (conn.Endpoint, error) {
	return s.bind.ParseEndpoint(addr.String())
}

// route returns what takes packets to a place, and the endpoint there. via is how
// its last answer came, or nil.
func (s *Socket) route(to place, via conn.Endpoint) (carrier, conn.Endpoint, error) {
	c, err := s.carrier(to.carrier)
	if err != nil {
		return nil, nil, err
	}
	if to.carrier != 0 {
		return c, newEndpoint(to.addr, netip.Addr{}), nil
	}
	if via == nil {
		via, err = s.endpoint(to.addr)
	}
	return c, via, err
}

// A table is what received packets are matched against. It is never changed,
// only replaced.
type table struct {
	sources map[place]source // who sends WireGuard from there
	tags    map[probeTag]key // who is meant by a probe
	ports   map[int]*Port    // other ways than the shared socket, by number
}

type source struct {
	link   *Link
	proven bool // it has answered a ping from there
}

type key struct {
	link   *Link
	sealer *sealer
}

// change replaces the table by an edited copy.
func (s *Socket) change(edit func(*table)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changeLocked(edit)
}

func (s *Socket) changeLocked(edit func(*table)) {
	old := s.table.Load()
	fresh := &table{sources: maps.Clone(old.sources), tags: maps.Clone(old.tags), ports: maps.Clone(old.ports)}
	if fresh.sources == nil {
		fresh.sources = make(map[place]source)
	}
	if fresh.ports == nil {
		fresh.ports = make(map[int]*Port)
	}
	if fresh.tags == nil {
		fresh.tags = make(map[probeTag]key)
	}
	edit(fresh)
	s.table.Store(fresh)
}

func (s *Socket) addLink(l *Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[l] = struct{}{}
}

func (s *Socket) removeLink(l *Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, l)
	s.changeLocked(func(t *table) {
		maps.DeleteFunc(t.sources, func(_ place, src source) bool { return src.link == l })
		maps.DeleteFunc(t.tags, func(_ probeTag, k key) bool { return k.link == l })
	})
}

// setKeys replaces the keys under which probes for a link come in.
func (s *Socket) setKeys(l *Link, sealers []*sealer) {
	s.change(func(t *table) {
		maps.DeleteFunc(t.tags, func(_ probeTag, k key) bool { return k.link == l })
		for _, sl := range slices.Backward(sealers) {
			t.tags[sl.tag()] = key{link: l, sealer: sl}
		}
	})
}

// admit gives WireGuard packets from an address to a link. An address that
// another link has proven, or both have only claimed, stays with that one: a
// peer must not draw another's packets to itself by naming its address.
func (s *Socket) admit(a place, l *Link, proven bool) {
	free := func(t *table) bool {
		old, ok := t.sources[a]
		if ok && old.link == l {
			return proven && !old.proven
		}
		return !ok || (proven && !old.proven)
	}
	if !free(s.table.Load()) {
		return
	}
	s.change(func(t *table) {
		if free(t) {
			t.sources[a] = source{link: l, proven: proven}
		}
	})
}

// forget ends admit.
func (s *Socket) forget(a place, l *Link) {
	if s.table.Load().sources[a].link != l {
		return
	}
	s.change(func(t *table) {
		if t.sources[a].link == l {
			delete(t.sources, a)
		}
	})
}

var (
	_ conn.Bind = (*Socket)(nil)
	_ carrier   = (*Socket)(nil)
)
