package lan

import (
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

// Group4 is the IPv4 multicast group: 239.255.107.105, organisation-local (RFC
// 2365), whose last bytes spell "ki".
func Group4() netip.Addr { return netip.AddrFrom4([4]byte{239, 255, 'k', 'i'}) }

// Group6 is the IPv6 multicast group ff12::6b69:7468: transient, link-local (RFC
// 4291 section 2.7), whose last bytes spell "kith".
func Group6() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x12, 12: 'k', 13: 'i', 14: 't', 15: 'h'})
}

// Config is what New may be given. The zero value uses every interface but
// loopback.
type Config struct {
	Logger *slog.Logger // default: discard
	// Monitor says when interfaces change; the caller runs it. Default: one of
	// the Exchange's own.
	Monitor *netmon.Monitor
	// Port is the port number of the multicast groups. Default: Port. All
	// devices of a network must use the same.
	Port uint16
	// MDNSPort is the port number of mDNS. Default: 5353.
	MDNSPort uint16
	// DisableMulticast leaves kith's own groups out.
	DisableMulticast bool
	// DisableMDNS leaves mDNS out.
	DisableMDNS bool
	// IncludeLoopback also uses the loopback interface, so that two processes
	// of one machine meet with no network up.
	IncludeLoopback bool
}

// An Exchange is the LAN as a medium. It is safe for concurrent use.
type Exchange struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	socks  *sockets
	mdns   *mdns // nil if disabled or not possible
	rate   bucket

	mu       sync.Mutex // guards the fields below; not held while sending
	closed   bool
	topics   map[rendezvous.Tag]map[*session]struct{}
	peers    map[rendezvous.Tag]map[netip.AddrPort]time.Time // when each was last heard of
	problems []string
}

var (
	_ rendezvous.Exchange   = (*Exchange)(nil)
	_ rendezvous.Endpointer = (*Exchange)(nil)
)

// New opens the LAN. It errs only if no UDP socket can be opened at all; what
// else does not work is told by Health.
func New(cfg Config) (*Exchange, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Port == 0 {
		cfg.Port = Port
	}
	if cfg.MDNSPort == 0 {
		cfg.MDNSPort = mdnsPort
	}
	e := &Exchange{
		cfg: cfg, log: cfg.Logger, topics: make(map[rendezvous.Tag]map[*session]struct{}),
		peers: make(map[rendezvous.Tag]map[netip.AddrPort]time.Time),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	var err error
	if e.socks, err = openSockets(cfg); err != nil {
		e.cancel()
		return nil, err
	}
	if !cfg.DisableMDNS {
		if e.mdns, err = openMDNS(e); err != nil {
			e.problems = append(e.problems, "mDNS: "+err.Error())
		}
	}
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
				e.announceAll()
			}
		}
	})
	e.socks.receive(&e.wg, e.take)
	if e.mdns != nil {
		e.mdns.start(&e.wg)
	}
	return e, nil
}

// refresh joins the groups on the interfaces that are there now.
func (e *Exchange) refresh(mon *netmon.Monitor) {
	list, err := mon.Interfaces()
	if err != nil {
		e.log.Warn("interfaces not listed", "err", err)
		return
	}
	use := slices.DeleteFunc(list, func(i netmon.Interface) bool {
		return !i.Up || len(i.Addrs) == 0 || (i.Loopback && !e.cfg.IncludeLoopback)
	})
	// Interfaces of VPNs and containers come last: they are less likely to be
	// the network that a person means.
	slices.SortStableFunc(use, func(a, b netmon.Interface) int { return rank(a) - rank(b) })
	e.socks.setInterfaces(use)
	if e.mdns != nil {
		e.mdns.setInterfaces(use)
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

// Name returns "lan".
func (e *Exchange) Name() string { return "lan" }

// Health says on which interfaces frames are sent and received.
func (e *Exchange) Health() rendezvous.Health {
	h := rendezvous.Health{Name: e.Name()}
	names, failed := e.socks.state()
	e.mu.Lock()
	problems := append(slices.Clone(e.problems), failed...)
	e.mu.Unlock()
	if len(names) == 0 {
		h.Err = errors.New("no network interface is up")
		h.Detail = "no network interface is up"
	} else {
		h.Ready = true
		h.Detail = "multicast and mDNS on " + strings.Join(names, ", ")
		if e.mdns == nil {
			h.Detail = "multicast on " + strings.Join(names, ", ")
		}
	}
	if len(problems) > 0 {
		h.Detail += " (" + strings.Join(problems, "; ") + ")"
	}
	return h
}

// Endpoints returns the local-network addresses on which unicast frames are
// taken, those of real interfaces first.
func (e *Exchange) Endpoints() []netip.AddrPort { return e.socks.endpoints() }

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
	e.cancel()
	if e.mdns != nil {
		e.mdns.close()
	}
	e.socks.close()
	e.wg.Wait()
	return nil
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

// learn remembers an address that knows a tag: answers go there, too, one
// datagram for each that is published, so that nobody is made to amplify.
func (e *Exchange) learn(tag rendezvous.Tag, from netip.AddrPort) (isNew bool) {
	if !from.IsValid() || e.socks.own(from) {
		return false
	}
	set := e.peers[tag]
	if set == nil {
		set = make(map[netip.AddrPort]time.Time)
		e.peers[tag] = set
	}
	_, known := set[from]
	if !known && len(set) >= maxPeers {
		oldest := from
		for a, t := range set {
			if oldest == from || t.Before(set[oldest]) {
				oldest = a
			}
		}
		delete(set, oldest)
	}
	set[from] = time.Now()
	return !known
}

// found takes an address that mDNS gives for a tag: what was published last goes
// there at once.
func (e *Exchange) found(tag rendezvous.Tag, at netip.AddrPort) {
	e.mu.Lock()
	var last [][]byte
	if len(e.topics[tag]) > 0 && e.learn(tag, at) {
		for s := range e.topics[tag] {
			if f := s.last; f != nil && s.point.Mode != rendezvous.ReceiveOnly {
				last = append(last, f)
			}
		}
	}
	e.mu.Unlock()
	for _, d := range last {
		_ = e.socks.unicast(d, at)
	}
}

// unicastTo returns the addresses that know a tag.
func (e *Exchange) unicastTo(tag rendezvous.Tag) []netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []netip.AddrPort
	for a, t := range e.peers[tag] {
		if time.Since(t) > peerLife {
			delete(e.peers[tag], a)
			continue
		}
		out = append(out, a)
	}
	return out
}

// receiving returns the tags that mDNS may name.
func (e *Exchange) receiving(tag rendezvous.Tag) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.topics[tag] {
		if s.point.Announce {
			return true
		}
	}
	return false
}

func (e *Exchange) announced() []rendezvous.Tag {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []rendezvous.Tag
	for tag, set := range e.topics {
		for s := range set {
			if s.point.Announce {
				out = append(out, tag)
				break
			}
		}
	}
	return out
}

func (e *Exchange) announceAll() {
	if e.mdns == nil {
		return
	}
	for _, tag := range e.announced() {
		e.mdns.announce(tag, false)
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
	if p.Announce && e.mdns != nil {
		e.mdns.announce(s.tag, false)
	}
	return s, nil
}

// A bucket is a token bucket: at most a number of tokens per second, with a
// burst of as many.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) take(now time.Time, perSecond float64) bool {
	b.tokens = min(perSecond, b.tokens+now.Sub(b.last).Seconds()*perSecond)
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
