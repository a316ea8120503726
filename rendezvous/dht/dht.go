package dht

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

const (
	defaultRate = 50                     // questions a second, after the burst
	rateBurst   = 200                    // questions at once
	readBuffer  = 1 << 20                // bytes of a socket
	saveEvery   = 10 * time.Minute       // of the nodes file
	againLeast  = 2 * time.Second        // between two Checks that count
	keepContact = 256                    // nodes that are given by AddNodes, a file or a name
	tagLookup   = tagSize + nonceLen + 1 // bytes that a datagram of ours has at least
)

// DefaultBootstrap returns the public nodes of Mainline that programs begin with,
// as host:port. Nothing is sent to them unless they are put into Config.Bootstrap.
func DefaultBootstrap() []string {
	return []string{
		"router.bittorrent.com:6881", "dht.transmissionbt.com:6881", "router.utorrent.com:6881", "dht.libtorrent.org:25401",
		"dht.aelitis.com:6881",
	}
}

// Config is what New needs. The zero value is a node that knows no other.
type Config struct {
	// Bootstrap are nodes to begin with, host:port. Names are looked up in the
	// background. Default: none; see DefaultBootstrap.
	Bootstrap []string
	// NodesFile keeps good nodes between two runs. Default: none are kept.
	NodesFile string
	// Port is the UDP port for IPv4 and IPv6. Default: the system picks one.
	Port uint16
	// Conn is used instead of sockets of its own, for the one address family of
	// its local address, and closed by Close. Its addresses must be *net.UDPAddr.
	Conn net.PacketConn
	// Rate is how many questions a second are sent on average at most; four seconds'
	// worth more at once are allowed, but not more than 200. Default 50.
	Rate float64
	// Private is for a DHT without the internet: ids need not fit addresses
	// (BEP 42), and every address is believed.
	Private bool
	// Serve makes this a full node from the start; see SetPublic.
	Serve bool
	// NoShortcut leaves out announcements and direct datagrams.
	NoShortcut bool
	// NoIPv6 leaves out IPv6.
	NoIPv6 bool
	// LookupHost looks a name up. Default: the system does.
	LookupHost func(ctx context.Context, host string) ([]netip.Addr, error)
	// Logger: default discard.
	Logger *slog.Logger
}

// Stats are counts since New. Bytes are those of whole packets with their IP and
// UDP headers.
type Stats struct {
	Good, Known              int   // count of nodes in the routing tables
	Sent, Received           int64 // packets
	SentBytes, ReceivedBytes int64 // bytes
	Queries                  int64 // count of questions sent
	Malformed                int64 // packets that were no KRPC and no datagram of an open session
	Forged                   int64 // datagrams with a tag of an open session and a wrong seal
	Puts                     int64 // frames that enough nodes took
	Items                    int64 // frames that came through the mailbox
	Direct                   int64 // frames that came directly
	Sessions                 int   // count of open ones
}

type counters struct {
	forged, puts, fromItems, fromPeers, foreign atomic.Int64
}

// An Exchange is the DHT as a medium. It is safe for concurrent use.
type Exchange struct {
	cfg     Config
	log     *slog.Logger
	engines []*engine
	stats   counters
	ctx     context.Context //nolint:containedctx // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	resolve chan struct{}    // names are looked up again
	clock   func() time.Time // for sequence numbers

	mu      sync.Mutex // guards the fields below; a box's mutex is taken after it
	closed  bool
	done    chan struct{} // closed when Close is through
	boxes   map[rendezvous.Topic]*box
	tags    map[[tagSize]byte]tagged
	saved   []contact // of the nodes file and AddNodes
	named   []contact // of Config.Bootstrap
	nameErr error     // why a name was not looked up
	checked time.Time
}

type tagged struct {
	b    *box
	slot int
}

var (
	_ rendezvous.Exchange = (*Exchange)(nil)
	_ rendezvous.Checker  = (*Exchange)(nil)
	_ rendezvous.Opener   = (*Exchange)(nil)
)

// New opens the sockets and begins to look for nodes. It errs if no socket can be
// opened, or a bootstrap node is not host:port; that no node answers is told by
// Health.
func New(cfg Config) (*Exchange, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Rate <= 0 {
		cfg.Rate = defaultRate
	}
	if cfg.LookupHost == nil {
		cfg.LookupHost = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	e := &Exchange{
		cfg: cfg, log: cfg.Logger, resolve: make(chan struct{}, 1), boxes: make(map[rendezvous.Topic]*box),
		tags: make(map[[tagSize]byte]tagged), done: make(chan struct{}), clock: time.Now,
	}
	names, err := e.bootstrap(cfg.Bootstrap)
	if err != nil {
		return nil, err
	}
	conns, err := listen(cfg)
	if err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.saved = loadNodes(cfg.NodesFile, e.log)
	limit := newLimiter(cfg.Rate, min(rateBurst, int(4*cfg.Rate)+1))
	for _, conn := range conns {
		eng := newEngine(conn, cfg.Private, e.log, limit)
		eng.serving.Store(cfg.Serve)
		eng.busy, eng.onUp, eng.other = e.busy, e.wakeAll, e.datagram
		eng.seeds = func() []contact { return e.seeds(eng) }
		e.engines = append(e.engines, eng)
	}
	for _, eng := range e.engines {
		e.wg.Go(func() { eng.read(e.ctx) })
		e.wg.Go(func() { eng.maintain(e.ctx) })
	}
	if len(names) > 0 {
		e.wg.Go(func() { e.lookUp(names) })
	}
	if cfg.NodesFile != "" {
		e.wg.Go(e.saveNowAndThen)
	}
	return e, nil
}

func listen(cfg Config) ([]net.PacketConn, error) {
	if cfg.Conn != nil {
		return []net.PacketConn{cfg.Conn}, nil
	}
	var out []net.PacketConn
	four, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(cfg.Port)})
	if err == nil {
		out = append(out, four)
	}
	if !cfg.NoIPv6 {
		six, err6 := net.ListenUDP("udp6", &net.UDPAddr{Port: int(cfg.Port)})
		if err6 == nil {
			out = append(out, six)
		}
		err = errors.Join(err, err6)
	}
	for _, c := range out { // a flood must not crowd out the rest
		_ = c.(*net.UDPConn).SetReadBuffer(readBuffer)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("dht: no socket on UDP port %d: %w", cfg.Port, err)
	}
	return out, nil
}

// Name returns "dht".
func (e *Exchange) Name() string { return "dht" }

func (e *Exchange) busy() bool { return e.topics() > 0 }

func (e *Exchange) topics() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.boxes)
}

func (e *Exchange) allBoxes() []*box {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*box, 0, len(e.boxes))
	for _, b := range e.boxes {
		out = append(out, b)
	}
	return out
}

func (e *Exchange) wakeAll() {
	for _, b := range e.allBoxes() {
		poke(b.wakeK)
	}
}

// Check makes all sessions look often again for two minutes, since the network
// may have changed or a device is being looked for. It does not block.
func (e *Exchange) Check() {
	e.mu.Lock()
	now := time.Now()
	if e.closed || now.Sub(e.checked) < againLeast {
		e.mu.Unlock()
		return
	}
	e.checked = now
	e.mu.Unlock()
	poke(e.resolve)
	for _, eng := range e.engines {
		poke(eng.kick)
	}
	for _, b := range e.allBoxes() {
		for _, p := range b.places {
			p.hurry()
		}
		b.heat(hotFor)
	}
}

// SetPublic says whether others can reach this device at its DHT socket. If so it
// answers their questions, within bounds; if not it only asks (BEP 43). The
// default is Config.Serve.
func (e *Exchange) SetPublic(reachable bool) {
	for _, eng := range e.engines {
		if eng.serving.Swap(reachable) != reachable {
			poke(eng.kick)
		}
	}
}

// AddNodes gives nodes to begin with, such as hubs and paired devices that serve.
// At most 256 are kept, the newest.
func (e *Exchange) AddNodes(nodes ...netip.AddrPort) {
	e.mu.Lock()
	for _, p := range nodes {
		if usable(p) {
			e.saved = append([]contact{{addr: netip.AddrPortFrom(p.Addr().Unmap(), p.Port())}}, e.saved...)
		}
	}
	e.saved = e.saved[:min(len(e.saved), keepContact)]
	e.mu.Unlock()
	for _, eng := range e.engines {
		poke(eng.kick)
	}
}

// Nodes returns up to n good nodes, at which another device can begin.
func (e *Exchange) Nodes(n int) (out []netip.AddrPort) {
	for _, eng := range e.engines {
		for _, c := range eng.goodOnes(n) {
			out = append(out, c.addr)
		}
	}
	return out[:min(len(out), n)]
}

// Addrs returns the addresses of the sockets.
func (e *Exchange) Addrs() (out []netip.AddrPort) {
	for _, eng := range e.engines {
		out = append(out, addrPort(eng.conn.LocalAddr()))
	}
	return out
}

// Stats returns the counts.
func (e *Exchange) Stats() Stats {
	out := Stats{
		Forged: e.stats.forged.Load(), Puts: e.stats.puts.Load(), Items: e.stats.fromItems.Load(), Direct: e.stats.fromPeers.Load(),
		Malformed: e.stats.foreign.Load(),
	}
	for _, eng := range e.engines {
		eng.mu.Lock()
		good, known := eng.table.count(time.Now())
		eng.mu.Unlock()
		t := &eng.traffic
		out.Good, out.Known = out.Good+good, out.Known+known
		out.Sent, out.Received = out.Sent+t.sent.Load(), out.Received+t.received.Load()
		out.SentBytes, out.ReceivedBytes = out.SentBytes+t.sentB.Load(), out.ReceivedBytes+t.receivedB.Load()
		out.Queries, out.Malformed = out.Queries+t.queries.Load(), out.Malformed+t.bad.Load()
	}
	for _, b := range e.allBoxes() {
		b.mu.Lock()
		out.Sessions += len(b.sessions)
		b.mu.Unlock()
	}
	return out
}

// Health says how many nodes are good, or why none answers.
func (e *Exchange) Health() rendezvous.Health {
	h := rendezvous.Health{Name: e.Name()}
	good, serving, alone := 0, false, false
	for _, eng := range e.engines {
		up, n := eng.up(time.Now())
		h.Ready = h.Ready || up && n > 0
		alone = alone || up && eng.serving.Load()
		good += n
		serving = serving || eng.serving.Load()
	}
	role := "read-only"
	if serving {
		role = "serving"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	// A table may begin with this node, unless it was told of others.
	h.Ready = h.Ready || alone && len(e.saved)+len(e.named) == 0
	if h.Ready {
		h.Detail = fmt.Sprintf("%d good nodes, %s", good, role)
		if good == 1 {
			h.Detail = "1 good node, " + role
		}
		return h
	}
	why := ErrNoNodes
	if n := len(e.saved) + len(e.named); n > 0 {
		why = fmt.Errorf("%w of %d that are known: is UDP blocked here?", ErrSilent, n)
	}
	if e.nameErr != nil {
		why = fmt.Errorf("%w; %w", why, e.nameErr)
	}
	h.Detail, h.Err = strings.TrimPrefix(why.Error(), "dht: "), why
	return h
}

// Join opens a session. It errs with net.ErrClosed after Close.
func (e *Exchange) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &session{Inbox: rendezvous.NewInbox(e.Name()), mode: p.Mode, slot: int(min(p.Side, 1))}
	if p.Mode != rendezvous.Both {
		s.slot = 0
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, fmt.Errorf("dht: join: %w", net.ErrClosed)
	}
	b := e.boxes[p.Topic]
	fresh := b == nil
	if fresh {
		b = newBox(e, p.Topic)
		e.boxes[p.Topic] = b
		for slot, tag := range b.keys.tags {
			e.tags[tag] = tagged{b, slot}
		}
	}
	s.box = b
	b.add(s)
	if fresh {
		b.heat(hotFor)
		b.start(e.ctx)
	}
	e.mu.Unlock()
	if !fresh {
		b.heat(hotFor)
	}
	return s, nil
}

// leave ends a session. A frame that no node has yet may still be put for a
// moment.
func (e *Exchange) leave(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := s.box
	b.mu.Lock()
	delete(b.sessions, s)
	last, waits := len(b.sessions) == 0, b.pendingFrame()
	b.mu.Unlock()
	switch {
	case !last:
	case waits && !e.closed:
		e.wg.Go(func() {
			_ = pause(e.ctx, linger)
			e.mu.Lock()
			defer e.mu.Unlock()
			b.mu.Lock()
			empty := len(b.sessions) == 0
			b.mu.Unlock()
			if empty {
				e.drop(b)
			}
		})
	default:
		e.drop(b)
	}
}

// drop ends a box; e.mu is held.
func (e *Exchange) drop(b *box) {
	b.cancel()
	if e.boxes[b.topic] != b {
		return
	}
	delete(e.boxes, b.topic)
	for _, tag := range b.keys.tags {
		delete(e.tags, tag)
	}
}

// datagram takes what came on a socket and is no KRPC.
func (e *Exchange) datagram(raw []byte, from netip.AddrPort) {
	if len(raw) < tagLookup || e.cfg.NoShortcut {
		e.stats.foreign.Add(1)
		return
	}
	e.mu.Lock()
	t, ok := e.tags[[tagSize]byte(raw)]
	e.mu.Unlock()
	if !ok {
		e.stats.foreign.Add(1)
		return
	}
	t.b.datagram(t.slot, raw, from)
}

// transmit sends datagrams of a topic.
func (e *Exchange) transmit(k *keys, out []sending) {
	for _, s := range out {
		for _, eng := range e.engines {
			if eng.six != s.to.Addr().Is4() {
				_ = eng.send(k.datagram(s.slot, s.frame), s.to) // whatever is lost comes again
			}
		}
	}
}

// Close ends all sessions, saves the nodes file and waits for the driver's
// goroutines. It errs if the file cannot be written.
func (e *Exchange) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		<-e.done
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	defer close(e.done)
	for _, b := range e.allBoxes() {
		b.mu.Lock()
		var open []*session
		for s := range b.sessions {
			open = append(open, s)
		}
		b.mu.Unlock()
		for _, s := range open {
			s.Close()
		}
	}
	err := e.save()
	e.cancel()
	for _, eng := range e.engines {
		err = cmp.Or(err, eng.conn.Close())
	}
	e.wg.Wait()
	return err
}
