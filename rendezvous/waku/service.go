package waku

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	defaultClients       = 1024
	defaultPerAddress    = 16
	defaultSubscriptions = 1024    // of one client
	allSubscriptions     = 200_000 // of all clients: about 40 MiB
	defaultRate          = 50      // messages a second from one client
	defaultStoreBytes    = 32 << 20
	defaultStoreAge      = time.Hour
	defaultMemory        = 1 << 30
	duplicatesFor        = 2 * time.Minute // at least, that a message is known
	duplicatesMost       = 50_000          // messages, the same
	acceptRetry          = 50 * time.Millisecond
)

// Preface is what a libp2p connection over TCP begins with (multistream-select
// 1.0): a port that is shared with other protocols tells it by that.
const Preface = "\x13/multistream/1.0.0\n"

// ServiceConfig is what NewService needs. Seed must be set.
type ServiceConfig struct {
	// Seed of the node's libp2p identity (Ed25519, RFC 8032 section 5.1.5): the same
	// seed gives the same ID. It is a secret.
	Seed [32]byte
	// Network that the node serves. Default: kith's own.
	Network Network
	// Peers are multiaddrs of at most 8 other nodes, in the form of Config.Nodes. What
	// clients send here is pushed to them, and what clients want here is subscribed
	// there. One of two nodes that name each other is enough.
	Peers []string
	// Clients is how many connections are served at once. Default 1024.
	Clients int
	// PerAddress is how many connections one IPv4 address, or one IPv6 /64, may
	// have. Default 16.
	PerAddress int
	// Subscriptions is how many content topics one client may subscribe, in number.
	// Default 1024. Peers that are named with their ID may subscribe more.
	Subscriptions int
	// Rate is how many messages a second one client may send for long; four times as
	// many at once. Peers that are named with their ID may send without limit. Default 50.
	Rate int
	// StoreBytes is how many bytes of messages are kept, in memory. Default 32 MiB.
	StoreBytes int
	// StoreAge is how long they are kept. Default one hour.
	StoreAge time.Duration
	// Memory is how many bytes the streams of all clients may use. Each reserves 256
	// KiB, of which most use next to nothing. Default 1 GiB.
	Memory int64
	// Logger: default discard.
	Logger *slog.Logger
}

// String tells nothing of the seed.
func (c ServiceConfig) String() string { return "waku service (seed redacted)" }

// GoString tells nothing of the seed.
func (c ServiceConfig) GoString() string { return c.String() }

// LogValue tells nothing of the seed.
func (c ServiceConfig) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Stats counts what a Service has done and holds.
type Stats struct {
	Clients       int    // number of connections that are served now
	Subscriptions int    // number of content topics that clients are subscribed to now
	Peers         int    // number of other nodes that are connected now
	Stored        int    // number of messages that are kept now
	StoredBytes   int    // bytes that they take
	Received      uint64 // count of messages that were new
	Duplicates    uint64 // count of messages that were known
	Pushed        uint64 // count of messages sent to subscribers
	Forwarded     uint64 // count of messages sent to other nodes
	Dropped       uint64 // count of messages not sent since a subscriber or a node was busy or gone
	Refused       uint64 // count of requests and connections over a limit
	Invalid       uint64 // count of requests that could not be read, or were for another network
}

// A Service is a node of a Waku network. It is safe for concurrent use.
type Service struct {
	cfg     ServiceConfig
	log     *slog.Logger
	h       *host
	ctx     context.Context //nolint:containedctx // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	peers   []*uplink
	trusted map[string]bool // IDs of peers
	store   *store

	mu        sync.Mutex // guards the fields below; not held while the network is waited for
	closed    bool
	listeners map[interface{ Close() error }]struct{}
	links     int
	addresses map[netip.Addr]int
	subs      map[subscription]map[*client]struct{}
	wanted    map[string]int // content topics, by how many pubsub topics they are subscribed on
	total     int            // of all clients' subscriptions
	seen      seen
	turned    time.Time
	stats     Stats
}

var _ owner = (*Service)(nil)

// A subscription is what a filter asks for.
type subscription struct{ pubsub, topic string }

// NewService makes a node, which connects to its peers from now on. It serves
// what Serve, ServeConn and ListenWebSocket give it. It errs with ErrConfig for a
// network or an address that is none.
func NewService(cfg ServiceConfig) (*Service, error) {
	cfg.Network = cfg.Network.withDefaults()
	if err := cfg.Network.check(); err != nil {
		return nil, err
	}
	addrs, err := parseAddresses(cfg.Peers)
	if err != nil {
		return nil, err
	}
	if cfg.Seed == [32]byte{} {
		return nil, fmt.Errorf("%w: no seed is given", ErrConfig)
	}
	for _, d := range []struct {
		field *int
		value int
	}{
		{&cfg.Clients, defaultClients}, {&cfg.PerAddress, defaultPerAddress}, {&cfg.Subscriptions, defaultSubscriptions},
		{&cfg.Rate, defaultRate}, {&cfg.StoreBytes, defaultStoreBytes},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if cfg.StoreAge <= 0 {
		cfg.StoreAge = defaultStoreAge
	}
	if cfg.Memory <= 0 {
		cfg.Memory = defaultMemory
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h, err := newHost(cfg.Seed[:], &budget{most: cfg.Memory}, nil)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, log: cfg.Logger.With("service", "waku"), h: h, trusted: make(map[string]bool),
		store: newStore(cfg.StoreBytes, cfg.StoreAge), listeners: make(map[interface{ Close() error }]struct{}),
		addresses: make(map[netip.Addr]int), subs: make(map[subscription]map[*client]struct{}),
		wanted: make(map[string]int), seen: seen{most: duplicatesMost}, turned: time.Now(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, a := range addrs {
		if a.peer == h.id {
			continue // itself, in a list that all nodes share
		}
		if a.peer != "" {
			s.trusted[a.peer.String()] = true
		}
		u := newUplink(s.ctx, &s.wg, s, h, a, cfg.Network, s.log)
		s.peers = append(s.peers, u)
		s.wg.Go(u.run)
	}
	return s, nil
}

// ID returns the node's libp2p ID, for the /p2p/ part of its multiaddr.
func (s *Service) ID() string { return s.h.id.String() }

// Multiaddr returns the address under which clients find this node at a host,
// which is a name or an IP address, and a TCP port. kind is "", "ws" or "wss".
func (s *Service) Multiaddr(host string, port uint16, kind string) string {
	proto := "dns4"
	if a, err := netip.ParseAddr(host); err == nil {
		host, proto = a.Unmap().WithZone("").String(), "ip6"
		if a.Unmap().Is4() {
			proto = "ip4"
		}
	}
	if kind != "" {
		kind = "/" + kind
	}
	return fmt.Sprintf("/%s/%s/tcp/%d%s/p2p/%s", proto, host, port, kind, s.ID())
}

// track remembers a listener until it is forgotten; it reports false after Close.
func (s *Service) track(ln interface{ Close() error }) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Service) forget(ln interface{ Close() error }) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

// Serve serves the connections of a listener, whose first bytes are libp2p's
// multistream-select, until the listener or the Service is closed. It closes the
// listener. It errs with net.ErrClosed after Close, otherwise with the listener's
// error.
func (s *Service) Serve(ln net.Listener) error {
	defer ln.Close()
	if !s.track(ln) {
		return fmt.Errorf("waku: serve: %w", net.ErrClosed)
	}
	defer s.forget(ln)
	for {
		conn, err := ln.Accept()
		if err != nil {
			if isBusy(err) && s.rest(acceptRetry) {
				continue
			}
			if s.ctx.Err() != nil {
				err = net.ErrClosed
			}
			return fmt.Errorf("waku: serve: %w", err)
		}
		if !s.start(func() { _ = s.serveConn(conn) }) {
			conn.Close()
		}
	}
}

// start runs f in a goroutine that Close waits for; it reports false after Close.
func (s *Service) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// rest waits; it reports false when the Service closes.
func (s *Service) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// ServeConn serves one connection, for example that of a WebSocket which an HTTP
// server has accepted, until it ends; then it is closed. Its remote address, as
// text "IP:port", counts for the limit on connections. It errs with the reason why
// the connection was not served, or with net.ErrClosed after Close.
func (s *Service) ServeConn(conn net.Conn) error {
	done := make(chan error, 1)
	if !s.start(func() { done <- s.serveConn(conn) }) {
		conn.Close()
		return fmt.Errorf("waku: serve: %w", net.ErrClosed)
	}
	return <-done
}

func (s *Service) serveConn(conn net.Conn) error {
	leave, err := s.admit(addrPort(conn.RemoteAddr()).Addr())
	if err != nil {
		conn.Close()
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(s.ctx, connectTimeout)
	up, err := s.h.accept(ctx, conn)
	cancel()
	if err != nil {
		conn.Close()
		return fmt.Errorf("waku: handshake: %w", err)
	}
	s.serveLink(up)
	return nil
}

// ListenWebSocket listens for WebSocket connections on a TCP address, "host:port"
// with a numeric host, without TLS, and returns the address that it got. It errs
// with net.ErrClosed after Close, otherwise with the reason why it cannot listen.
func (s *Service) ListenWebSocket(listen string) (netip.AddrPort, error) {
	none := netip.AddrPort{}
	ap, err := netip.ParseAddrPort(listen)
	if err != nil {
		return none, fmt.Errorf("waku: listen: %w", err)
	}
	family := "ip6"
	if ap.Addr().Unmap().Is4() {
		family = "ip4"
	}
	m, err := ma.NewMultiaddr("/" + family + "/" + ap.Addr().Unmap().WithZone("").String() + "/tcp/" + strconv.Itoa(int(ap.Port())) + "/ws")
	if err != nil {
		return none, fmt.Errorf("waku: listen: %w", err)
	}
	t, err := websocket.New(s.h.known, &manager{budget: s.h.memory}, nil, websocket.WithHandshakeTimeout(connectTimeout))
	if err != nil {
		return none, fmt.Errorf("waku: listen: %w", err)
	}
	ln, err := t.Listen(m)
	if err != nil {
		return none, fmt.Errorf("waku: listen: %w", err)
	}
	if !s.track(ln) || !s.start(func() { s.acceptWebSockets(ln) }) {
		ln.Close()
		return none, fmt.Errorf("waku: listen: %w", net.ErrClosed)
	}
	return numbers(ln.Multiaddr()), nil
}

func (s *Service) acceptWebSockets(ln transport.Listener) {
	defer s.forget(ln)
	defer ln.Close()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		leave, err := s.admit(numbers(conn.RemoteMultiaddr()).Addr())
		if err != nil {
			conn.Close()
			continue
		}
		if !s.start(func() {
			defer leave()
			s.serveLink(conn)
		}) {
			conn.Close()
			leave()
		}
	}
}

// admit counts a connection, or errs if there are too many.
func (s *Service) admit(a netip.Addr) (leave func(), err error) {
	if a = a.Unmap(); a.Is6() {
		p, err := a.WithZone("").Prefix(64)
		if err != nil {
			return nil, fmt.Errorf("waku: remote address: %w", err)
		}
		a = p.Addr()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links >= s.cfg.Clients || s.addresses[a] >= s.cfg.PerAddress {
		s.stats.Refused++
		return nil, errors.New("waku: too many connections")
	}
	s.links++
	s.addresses[a]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.links--
		if s.addresses[a]--; s.addresses[a] == 0 {
			delete(s.addresses, a)
		}
	}, nil
}

// serveLink serves a connection until it ends.
func (s *Service) serveLink(conn transport.CapableConn) {
	c := s.newClient()
	s.serveClient(c, conn, c.handlers())
}

func (s *Service) serveClient(c *client, conn transport.CapableConn, handlers map[string]handler) {
	c.link = newLink(s.h, conn, handlers, nodeStreams)
	c.trusted = s.trusted[c.link.peer().String()]
	ctx, cancel := context.WithCancel(s.ctx)
	var pusher sync.WaitGroup
	pusher.Go(func() { c.deliver(ctx) })
	c.link.serve(ctx)
	cancel()
	c.unsubscribeAll()
	pusher.Wait()
}

// Stats returns what the node has done since it began.
func (s *Service) Stats() Stats {
	messages, size := s.store.usage(time.Now())
	peers := 0
	for _, u := range s.peers {
		if l, _ := u.state(); l != nil {
			peers++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Clients, out.Subscriptions, out.Peers, out.Stored, out.StoredBytes = s.links, s.total, peers, messages, size
	return out
}

// PeerErrors returns why peers are not connected, one error for each; nil if all
// are.
func (s *Service) PeerErrors() error {
	var errs []error
	for _, u := range s.peers {
		if _, err := u.state(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close ends all connections and waits for the node's goroutines.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	open := s.listeners
	s.listeners = make(map[interface{ Close() error }]struct{})
	s.mu.Unlock()
	s.cancel()
	var errs []error
	for ln := range open {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

// isBusy reports an error of Accept that passes: too many files are open.
func isBusy(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
