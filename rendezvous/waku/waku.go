package waku

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

const (
	maxNodes        = 8
	defaultBurst    = 3
	defaultInterval = time.Second
	remembered      = 2048 // messages, so that copies are known; twice as many at most
)

var (
	// ErrConfig reports an address or a network that cannot be used.
	ErrConfig = errors.New("waku: bad configuration")
	// ErrCluster reports a node of another Waku network.
	ErrCluster = errors.New("waku: the node is of cluster")
	// ErrProof reports a network whose nodes take a message only with an RLN proof
	// (17/WAKU2-RLN-RELAY), for which one needs a paid membership.
	ErrProof = errors.New("waku: this Waku network asks for RLN proofs, which kith does not make: use nodes of a network without, such as a hub's (kith hub --waku)")

	// ErrService reports a libp2p host that offers nothing of Waku.
	ErrService = errors.New("it is a libp2p host, but neither takes nor gives messages of Waku")
	// ErrConnecting reports a node of which nothing is known yet.
	ErrConnecting = errors.New("connecting")

	errRefused = errors.New("the node refuses")
)

// Config is what New needs. Nodes must be set.
type Config struct {
	// Nodes are multiaddrs of 1 to 8 nodes: /dns4/host/tcp/60000/p2p/ID, with /ws or
	// /wss behind the port for a WebSocket, and /ip4, /ip6 or /dns in the place of
	// /dns4. Without /p2p/ID any node that answers there is taken. /dnsaddr is not
	// resolved.
	Nodes []string
	// Network that the nodes are of. Default: kith's own.
	Network Network
	// TLS for wss; default: the system's certificate authorities.
	TLS *tls.Config
	// Burst is how many frames a session sends at once, in number. Default 3.
	Burst int
	// Interval is how often a session sends after that. Default one second.
	Interval time.Duration
	// Again is called when a node is there again after its connection was lost. It
	// must not block. Default: nothing is called.
	Again func()
	// Logger: default discard.
	Logger *slog.Logger
}

// An Exchange is some nodes of one Waku network as a medium. It is safe for
// concurrent use.
type Exchange struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	nodes  []*uplink

	mu       sync.Mutex // guards the fields below; not held while the network is waited for
	closed   bool
	up       int                              // nodes that are connected
	ready    chan struct{}                    // closed while one is
	sessions map[string]map[*session]struct{} // by content topic
	seen     seen
}

var (
	_ rendezvous.Exchange = (*Exchange)(nil)
	_ rendezvous.Checker  = (*Exchange)(nil)
	_ rendezvous.Opener   = (*Exchange)(nil)
	_ owner               = (*Exchange)(nil)
)

// New starts to connect to the nodes, and goes on for as long as the Exchange
// lives. It errs with ErrConfig for addresses and networks that are none; whether
// a node can be reached is told by Health.
func New(cfg Config) (*Exchange, error) {
	cfg.Network = cfg.Network.withDefaults()
	if err := cfg.Network.check(); err != nil {
		return nil, err
	}
	addrs, err := parseAddresses(cfg.Nodes)
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%w: no node is given", ErrConfig)
	}
	if cfg.Burst <= 0 {
		cfg.Burst = defaultBurst
	}
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h, err := newHost(nil, nil, cfg.TLS)
	if err != nil {
		return nil, err
	}
	e := &Exchange{
		cfg: cfg, log: cfg.Logger.With("exchange", "waku"), ready: make(chan struct{}),
		sessions: make(map[string]map[*session]struct{}), seen: seen{most: remembered},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	for _, a := range addrs {
		u := newUplink(e.ctx, &e.wg, e, h, a, cfg.Network, e.log)
		e.nodes = append(e.nodes, u)
		e.wg.Go(u.run)
	}
	return e, nil
}

func parseAddresses(texts []string) ([]address, error) {
	if len(texts) > maxNodes {
		return nil, fmt.Errorf("%w: more than %d nodes are given", ErrConfig, maxNodes)
	}
	out := make([]address, 0, len(texts))
	for _, s := range texts {
		a, err := parseAddress(s)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// CheckAddress errs with ErrConfig if a multiaddr cannot be one of Config.Nodes.
func CheckAddress(node string) error {
	_, err := parseAddress(node)
	return err
}

// CheckNodes errs with ErrConfig if these cannot be Config.Nodes and Config.Network,
// for example because they are too many. No node is needed here.
func CheckNodes(nodes []string, n Network) error {
	if err := n.withDefaults().check(); err != nil {
		return err
	}
	_, err := parseAddresses(nodes)
	return err
}

// Another connects to the same nodes once more. It errs as New does.
func (e *Exchange) Another() (rendezvous.Exchange, error) {
	cfg := e.cfg
	cfg.Again = nil
	return New(cfg)
}

// Servers returns the host:port of the nodes.
func (e *Exchange) Servers() (out []string) {
	for _, u := range e.nodes {
		out = append(out, net.JoinHostPort(u.addr.raw[0].Value(), u.addr.raw[1].Value())) // as parseAddress holds
	}
	return out
}

// Name returns "waku".
func (e *Exchange) Name() string { return "waku" }

// Health says whether a node is connected, and if not why.
func (e *Exchange) Health() rendezvous.Health {
	h := rendezvous.Health{Name: e.Name()}
	good, first := 0, ""
	var errs []error
	for _, u := range e.nodes {
		if _, err := u.state(); err != nil {
			errs = append(errs, err)
			continue
		}
		if good++; first == "" {
			first = u.addr.text
		}
	}
	h.Ready = good > 0
	switch {
	case good == 0:
		h.Err = errors.Join(errs...)
		h.Detail = fmt.Sprintf("%s not connected", e.nodes[0].addr.text)
	case len(e.nodes) == 1:
		h.Detail = first + " connected"
	default:
		h.Detail = fmt.Sprintf("%d of %d nodes connected, %s among them", good, len(e.nodes), first)
	}
	return h
}

// Check asks the nodes whether they are still there, connects anew to those that
// do not answer soon, and tries at once those that are not connected. It does not
// block.
func (e *Exchange) Check() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	for _, u := range e.nodes {
		u.check()
	}
}

// changed counts the nodes that are connected.
func (e *Exchange) changed(_ *uplink, up, again bool) {
	e.mu.Lock()
	if up {
		if e.up++; e.up == 1 {
			close(e.ready)
		}
	} else if e.up--; e.up == 0 {
		e.ready = make(chan struct{})
	}
	tell := up && again && e.cfg.Again != nil && !e.closed
	e.mu.Unlock()
	if tell {
		e.cfg.Again()
	}
}

// wants reports whether a session receives on a content topic.
func (e *Exchange) wants(topic string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.wanted(topic)
}

// wanted is wants with the lock held.
func (e *Exchange) wanted(topic string) bool {
	for s := range e.sessions[topic] {
		if s.mode != rendezvous.SendOnly {
			return true
		}
	}
	return false
}

func (e *Exchange) topics() (out []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for t := range e.sessions {
		if e.wanted(t) {
			out = append(out, t)
		}
	}
	return out
}

// arrived gives a message to the sessions of its topic, once.
func (e *Exchange) arrived(_ *uplink, pubsub string, m *message, stored bool) {
	if len(m.payload) != rendezvous.FrameSize {
		return
	}
	h := m.hash(pubsub)
	e.mu.Lock()
	var to []*session
	if e.seen.add(h) {
		for s := range e.sessions[m.contentTopic] {
			if s.mode != rendezvous.SendOnly {
				to = append(to, s)
			}
		}
	}
	e.mu.Unlock()
	for _, s := range to {
		s.Deliver(rendezvous.Message{Frame: append([]byte(nil), m.payload...), Exchange: e.Name(), Stored: stored})
	}
}

// Join opens a session. It errs with net.ErrClosed after Close.
func (e *Exchange) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	topic := contentTopic(p.Topic)
	pubsub, err := e.cfg.Network.pubsub(topic)
	if err != nil {
		return nil, err
	}
	s := &session{
		e: e, topic: topic, pubsub: pubsub, mode: p.Mode, Inbox: rendezvous.NewInbox(e.Name()),
		out: rendezvous.NewOutbox(e.cfg.Burst, e.cfg.Interval),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("waku: join: %w", net.ErrClosed)
	}
	before := e.wanted(topic)
	if e.sessions[topic] == nil {
		e.sessions[topic] = make(map[*session]struct{})
	}
	e.sessions[topic][s] = struct{}{}
	if p.Mode != rendezvous.ReceiveOnly {
		e.wg.Go(s.send)
	}
	if e.wanted(topic) && !before {
		e.announce(topic)
	}
	return s, nil
}

// announce tells the nodes that a topic is wanted now, or no longer.
func (e *Exchange) announce(topic string) {
	for _, u := range e.nodes {
		u.changedTopic(topic)
	}
}

// leave forgets a session.
func (e *Exchange) leave(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.wanted(s.topic)
	delete(e.sessions[s.topic], s)
	if len(e.sessions[s.topic]) == 0 {
		delete(e.sessions, s.topic)
	}
	if before && !e.wanted(s.topic) {
		e.announce(s.topic)
	}
}

// Close ends all sessions and connections and waits for the driver's goroutines.
func (e *Exchange) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var open []*session
	for _, set := range e.sessions {
		for s := range set {
			open = append(open, s)
		}
	}
	e.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
	e.cancel()
	e.wg.Wait()
	return nil
}

// explain adds the node, and what a person can do.
func explain(node string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrProof):
		return fmt.Errorf("%w (%s)", ErrProof, node)
	case errors.Is(err, ErrCluster):
		return fmt.Errorf("%w (%s): give the cluster of its network, or another node", err, node)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("waku: %s does not answer in time; is it the port of a Waku node? %w", node, err)
	}
	return fmt.Errorf("waku: %s: %w", node, err)
}

// seen remembers the latest hashes: at most twice as many as it says.
type seen struct {
	most     int
	now, old map[hash]struct{}
}

// add reports whether a hash is new.
func (s *seen) add(h hash) bool {
	if _, ok := s.now[h]; ok {
		return false
	}
	if _, ok := s.old[h]; ok {
		return false
	}
	if s.now == nil || len(s.now) >= s.most {
		s.turn()
	}
	s.now[h] = struct{}{}
	return true
}

// turn forgets the older half.
func (s *seen) turn() { s.old, s.now = s.now, make(map[hash]struct{}) }
