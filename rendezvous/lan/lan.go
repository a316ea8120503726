package lan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
)

const (
	// Port is the UDP port number of kith's multicast groups.
	Port = 27491

	datagramSize = rendezvous.TagSize + rendezvous.FrameSize
	maxPeers     = 16               // addresses kept per topic
	peerLife     = 10 * time.Minute // after its last frame
	rateLimit    = 2000             // frames per second that are looked at
)

// An Exchange is the LAN as a medium. It is safe for concurrent use.
type Exchange struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	socks  *sockets
	groups *groups // nil if disabled or not possible
	mdns   *mdns   // nil if disabled or not possible
	near   *nearby
	echoes *echoes
	again  chan struct{} // holds a token when all is to be joined again
	opened chan struct{} // closed when the fields above are set: what comes before waits
	rate   bucket

	mu       sync.Mutex // guards the fields below; not held while sending
	closed   bool
	topics   map[rendezvous.Tag]map[*session]struct{}
	peers    map[rendezvous.Tag]map[netip.AddrPort]time.Time // when each was last heard of
	problems []error
}

var (
	_ rendezvous.Exchange   = (*Exchange)(nil)
	_ rendezvous.Endpointer = (*Exchange)(nil)
	_ rendezvous.Opener     = (*Exchange)(nil)
)

// New opens the LAN. It errs if no UDP socket can be opened at all, and for a
// Config that contradicts itself; what else does not work is told by Health.
func New(cfg Config) (*Exchange, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	e := &Exchange{
		cfg: cfg, log: cfg.Logger, topics: make(map[rendezvous.Tag]map[*session]struct{}),
		peers: make(map[rendezvous.Tag]map[netip.AddrPort]time.Time), again: make(chan struct{}, 1), opened: make(chan struct{}),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if e.socks, err = openSockets(cfg); err != nil {
		e.cancel()
		return nil, err
	}
	e.near, e.echoes = newNearby(e.tellNearby, e.nearbyPorts), newEchoes()
	e.socks.receive(&e.wg, e.takeUnicast)
	e.openGroups()
	if !cfg.DisableMDNS {
		if e.mdns, err = openMDNS(e); err != nil {
			e.problems = append(e.problems, fmt.Errorf("mDNS: %w", err))
		}
	}
	close(e.opened)
	mon := cfg.Monitor
	if mon == nil {
		mon = netmon.New(netmon.Config{Logger: cfg.Logger})
		e.wg.Go(func() { _ = mon.Run(e.ctx) })
	}
	changes, unsubscribe := mon.Subscribe()
	e.refresh(mon)
	e.wg.Go(func() {
		defer unsubscribe()
		for {
			select {
			case <-e.ctx.Done():
				return
			case <-changes:
				e.refresh(mon)
				e.echoes.moved()
			case <-e.again:
				e.rejoin(mon)
			}
			e.announceAll()
			e.near.again()
		}
	})
	return e, nil
}

// openGroups opens kith's own groups.
func (e *Exchange) openGroups() {
	if e.cfg.DisableMulticast {
		return
	}
	g := newGroups(e.cfg.Port, e.cfg.HopLimit, datagramSize, Group4(), Group6(), &e.wg, e.takeGroup)
	g.from, g.chosen = e.socks.conns, e.socks.chosen
	if e.cfg.Groups == GroupsBoth {
		g.scope = e.cfg.Scope
	}
	if err := g.open(); err != nil {
		e.problems = append(e.problems, fmt.Errorf("multicast: %w", err))
		return
	}
	e.groups = g
}

// refresh joins the groups on the interfaces that are there now.
func (e *Exchange) refresh(mon *netmon.Monitor) {
	list, err := mon.Interfaces()
	if err != nil {
		e.log.Warn("interfaces not listed", "err", err)
		return
	}
	use := slices.DeleteFunc(list, func(i netmon.Interface) bool {
		if len(e.cfg.Interfaces) > 0 && !slices.Contains(e.cfg.Interfaces, i.Name) {
			return true
		}
		return !i.Up || len(i.Addrs) == 0 || (i.Loopback && !e.cfg.IncludeLoopback && len(e.cfg.Interfaces) == 0)
	})
	// Interfaces of VPNs and containers come last: they are less likely to be
	// the network that a person means.
	slices.SortStableFunc(use, func(a, b netmon.Interface) int { return rank(a) - rank(b) })
	e.socks.setInterfaces(use)
	if e.groups != nil {
		e.groups.setInterfaces(use)
	}
	if e.mdns != nil {
		e.mdns.groups.setInterfaces(use)
	}
}

// rejoin joins all groups again, as after a change that nobody told of.
func (e *Exchange) rejoin(mon *netmon.Monitor) {
	if e.groups != nil {
		e.groups.again()
	}
	if e.mdns != nil {
		e.mdns.groups.again()
	}
	e.refresh(mon)
}

// Check joins all groups again and announces again what was announced.
func (e *Exchange) Check() {
	select {
	case e.again <- struct{}{}:
	default: // it is to be done already
	}
}

func rank(i netmon.Interface) int {
	switch {
	case i.Loopback:
		return 2
	case i.Virtual, i.PointToPoint:
		return 1
	}
	return 0
}

// Another opens the same LAN once more, on sockets of its own. It errs as New does.
func (e *Exchange) Another() (rendezvous.Exchange, error) { return New(e.cfg) }

// Servers returns nothing: there are none.
func (e *Exchange) Servers() []string { return nil }

// Name returns "lan".
func (e *Exchange) Name() string { return "lan" }

// Health says on which interfaces frames are sent and received.
func (e *Exchange) Health() rendezvous.Health {
	h := rendezvous.Health{Name: e.Name()}
	on := names(e.socks.interfaces())
	e.mu.Lock()
	var problems []string
	for _, err := range e.problems {
		problems = append(problems, err.Error())
	}
	e.mu.Unlock()
	var ways []string
	if e.groups != nil {
		problems = append(problems, e.groups.state()...)
		ways = append(ways, "multicast")
	}
	switch {
	case e.cfg.MulticastOnly:
		ways = append(ways, "nothing else")
	case e.mdns != nil:
		ways = append(ways, "mDNS")
	}
	for _, name := range e.cfg.Interfaces {
		if !slices.Contains(on, name) {
			problems = append(problems, name+" is not up")
		}
	}
	switch {
	case len(on) == 0:
		h.Err = errNoInterface
	case e.cfg.MulticastOnly && !e.groups.works():
		h.Err = errNoGroup
	case len(ways) == 0:
		ways = append(ways, "unicast")
		fallthrough
	default:
		h.Ready = true
		h.Detail = strings.Join(ways, " and ") + " on " + strings.Join(on, ", ")
	}
	if h.Err != nil {
		h.Detail = h.Err.Error()
	}
	if len(problems) > 0 {
		h.Detail += " (" + strings.Join(problems, "; ") + ")"
	}
	return h
}

var (
	errNoInterface = errors.New("no network interface is up")
	errNoGroup     = errors.New("no interface has joined a multicast group")
)

// A PortError reports that another program holds a UDP port and does not share it.
type PortError struct {
	Port uint16 // number
	Six  bool   // over IPv6
	Err  error
}

// Error names the port.
func (e *PortError) Error() string {
	family := "IPv4"
	if e.Six {
		family = "IPv6"
	}
	return fmt.Sprintf("UDP port %d over %s is held by another program: %v", e.Port, family, e.Err)
}

// Unwrap returns the system's error.
func (e *PortError) Unwrap() error { return e.Err }

// Problems returns what of the Config could not be opened, a *PortError where another
// program holds a port. It is empty if all is well.
func (e *Exchange) Problems() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.Clone(e.problems)
	for _, g := range e.allGroups() {
		g.mu.Lock()
		out = append(out, g.problems...)
		g.mu.Unlock()
	}
	return out
}

// Endpoints returns the local-network addresses on which unicast frames are
// taken, those of real interfaces first. With MulticastOnly there are none.
func (e *Exchange) Endpoints() []netip.AddrPort {
	if e.cfg.MulticastOnly {
		return nil
	}
	return e.socks.endpoints()
}

// Close ends all sessions and waits for the driver's goroutines.
func (e *Exchange) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var open []*session
	for _, set := range e.topics {
		for s := range set {
			open = append(open, s)
		}
	}
	e.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
	e.near.close() // says goodbye
	e.cancel()
	for _, g := range e.allGroups() {
		g.close()
	}
	e.socks.close()
	e.wg.Wait()
	return nil
}

// allGroups returns the groups of both ports.
func (e *Exchange) allGroups() []*groups {
	var out []*groups
	if e.groups != nil {
		out = append(out, e.groups)
	}
	if e.mdns != nil {
		out = append(out, e.mdns.groups)
	}
	return out
}

// takeUnicast looks at what came to the sockets of this Exchange.
func (e *Exchange) takeUnicast(b []byte, in arrival) {
	<-e.opened
	if !e.cfg.MulticastOnly && !e.takeEcho(b, in) {
		e.take(b, in.from)
	}
}

// takeGroup looks at what came to the port of the groups.
func (e *Exchange) takeGroup(b []byte, in arrival) {
	<-e.opened
	if in.unicast() && e.cfg.MulticastOnly {
		return
	}
	if message, ok := bytes.CutPrefix(b, []byte(nearbyMagic)); ok && len(b) <= maxNearby {
		e.takeNearby(message, in)
		return
	}
	if !e.takeEcho(b, in) {
		e.take(b, in.from)
	}
}

// takeNearby looks at what may be of a device in pairing mode on this link.
func (e *Exchange) takeNearby(b []byte, in arrival) {
	if !in.unicast() && onLink(e.socks.interfaces(), in.index, in.from.Addr()) {
		e.near.take(b, in.from.Addr())
	}
}

// tellNearby sends a message by mDNS and on kith's own groups.
func (e *Exchange) tellNearby(build func(i netmon.Interface, six bool) []byte) {
	if e.mdns != nil {
		_, _ = e.mdns.groups.send(nil, build)
	}
	if e.groups != nil {
		_, _ = e.groups.send(nil, func(i netmon.Interface, six bool) []byte {
			b := build(i, six)
			if b == nil {
				return nil
			}
			return append([]byte(nearbyMagic), b...)
		})
	}
}

// nearbyPorts are the ports at which the other side may send frames by unicast;
// 0 is none.
func (e *Exchange) nearbyPorts() (port4, port6 uint16) {
	if e.cfg.MulticastOnly {
		return 0, 0
	}
	return e.socks.conns[0].port(), e.socks.conns[1].port()
}

// take looks at one datagram and gives it to the sessions of its tag. The
// buffer is the caller's.
func (e *Exchange) take(b []byte, from netip.AddrPort) {
	if len(b) != datagramSize {
		return
	}
	tag := rendezvous.Tag(b[:rendezvous.TagSize])
	e.mu.Lock()
	set := e.topics[tag]
	known := len(set) > 0 && e.rate.take(time.Now(), rateLimit)
	var to []*session
	if known {
		for s := range set {
			if s.point.Mode != rendezvous.SendOnly {
				to = append(to, s)
			}
		}
		e.learn(tag, from)
	}
	e.mu.Unlock()
	for _, s := range to {
		s.Deliver(rendezvous.Message{Frame: slices.Clone(b[rendezvous.TagSize:]), Exchange: e.Name(), From: from})
	}
}

// Join opens a session. It errs with net.ErrClosed after Close.
func (e *Exchange) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	const maxEndpoints = 16
	p.Endpoints = slices.Clone(p.Endpoints[:min(len(p.Endpoints), maxEndpoints)])
	s := &session{e: e, point: p, tag: p.Topic.Tag(), Inbox: rendezvous.NewInbox("lan")}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, fmt.Errorf("lan: join: %w", net.ErrClosed)
	}
	if e.topics[s.tag] == nil {
		e.topics[s.tag] = make(map[*session]struct{})
	}
	e.topics[s.tag][s] = struct{}{}
	e.mu.Unlock()
	if e.groups != nil {
		e.groups.addTopic(p.Topic, s.receives())
	}
	if p.Announce {
		e.tellTag(s.tag, false)
	}
	return s, nil
}
