package kith

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link/portmap"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/mqtt"
)

// A RelayPolicy says when data may go through a relay.
type RelayPolicy string

// The policies.
const (
	RelayAuto   RelayPolicy = "auto"   // where there is no straight path, or not yet
	RelayNever  RelayPolicy = "never"  // straight paths or none
	RelayAlways RelayPolicy = "always" // relays alone: peers do not learn this device's addresses
)

// ParseRelayPolicy reads "auto", "never" or "always". It errs for any other text.
func ParseRelayPolicy(text string) (RelayPolicy, error) {
	switch p := RelayPolicy(text); p {
	case RelayAuto, RelayNever, RelayAlways:
		return p, nil
	}
	return "", fmt.Errorf("kith: %q is no relay policy: auto, never and always are", text)
}

// A TURNServer is a relay besides those of hubs.
type TURNServer struct {
	// URL is turn:host[:port][?transport=udp|tcp] or turns:host[:port].
	URL string
	// User and Password, or the Secret that time-limited ones are made of (as
	// coturn's use-auth-secret).
	User, Password, Secret string
}

// String returns the URL alone.
func (t TURNServer) String() string { return t.URL }

// LogValue returns String.
func (t TURNServer) LogValue() slog.Value { return slog.StringValue(t.URL) }

const (
	// resolveRetry is how long after a failure a STUN server's name is looked up again.
	resolveRetry = 10 * time.Second
	// changeDelay collects changes of this device's addresses before peers are told.
	changeDelay = 15 * time.Millisecond
	// hubBurst and hubInterval are how often a session publishes at a hub, which
	// allows more than a public broker.
	hubBurst    = 12
	hubInterval = 100 * time.Millisecond
)

// A reach sees to it that this device can be reached from outside: it asks STUN
// servers, keeps a port mapping, and opens relays while a peer needs one.
type reach struct {
	n      *Node
	mapper *portmap.Mapper
	relays *relays
	kick   chan struct{} // the network changed
	doubts chan struct{} // a path does not answer
	news   chan struct{} // the socket's addresses changed

	mu     sync.Mutex // guards the fields below after start
	hubs   []hubaddr.Address
	media  map[hubaddr.Address]rendezvous.Exchange // of the hubs
	mapped []portmap.Mapping
}

func newReach(n *Node) *reach {
	r := &reach{
		n: n, kick: make(chan struct{}, 1), doubts: make(chan struct{}, 1), news: make(chan struct{}, 1),
		hubs: slices.Clone(n.cfg.Hubs), media: make(map[hubaddr.Address]rendezvous.Exchange),
	}
	r.relays = newRelays(n)
	return r
}

// addHubMedium has the node meet at a hub's broker.
func (r *reach) addHubMedium(a hubaddr.Address) error {
	ex, err := r.hubExchange(a)
	if err != nil {
		return fmt.Errorf("kith: hub %s: %w", a.Host, err)
	}
	if err := r.n.media.Add(ex); err != nil {
		return errors.Join(fmt.Errorf("kith: hub %s: %w", a.Host, err), ex.Close())
	}
	r.media[a] = ex
	return nil
}

// hubExchange is a hub's broker as a medium.
func (r *reach) hubExchange(a hubaddr.Address) (rendezvous.Exchange, error) {
	return mqtt.New(mqtt.Config{
		URL: a.MQTTURLs()[0], User: hubaddr.MQTTUser, Password: a.MQTTPassword(), TLS: a.TLSConfig(),
		Burst: hubBurst, Interval: hubInterval, Logger: r.n.cfg.Logger,
		Again: r.doubt, // a hub that restarted has forgotten its relays
	})
}

// UseHub also meets at a hub, asks it, and is relayed by it, from now until the
// node is closed. What was used before at the same host is not used any more: the hub has
// got another key, secret or port. It does nothing for a hub that is in use alone there. It
// errs for an address that cannot be used, and with net.ErrClosed.
func (n *Node) UseHub(a hubaddr.Address) error {
	r := n.reach
	r.mu.Lock()
	// In one go, or two callers with two addresses would each take the other's away.
	if err := r.useHub(a); err != nil {
		r.mu.Unlock()
		return err
	}
	var gone []rendezvous.Exchange
	r.hubs = slices.DeleteFunc(slices.Clone(r.hubs), func(old hubaddr.Address) bool {
		if old.Host != a.Host || old == a {
			return false
		}
		if ex := r.media[old]; ex != nil {
			gone = append(gone, ex)
			delete(r.media, old)
		}
		r.relays.remove(old)
		return true
	})
	r.mu.Unlock()
	for _, ex := range gone {
		if err := n.media.Remove(ex); err != nil {
			n.cfg.Logger.Info("hub left, though not as it should be", "hub", a.Host, "err", err)
		}
	}
	poke(r.kick)
	return nil
}

// alsoUseHub is UseHub besides what is used at the same host: a code is not trusted to
// take a hub away.
func (n *Node) alsoUseHub(a hubaddr.Address) error {
	n.reach.mu.Lock()
	defer n.reach.mu.Unlock()
	return n.reach.useHub(a)
}

// useHub adds a hub; r.mu is held.
func (r *reach) useHub(a hubaddr.Address) error {
	if slices.Contains(r.hubs, a) {
		return nil
	}
	if err := r.addHubMedium(a); err != nil {
		return err
	}
	r.hubs = append(r.hubs, a)
	_ = r.n.start(func() { r.n.learnHub(a) }) // errs only when the node is closed
	r.relays.add(hubPlace(a, r.n.cfg.Logger))
	poke(r.kick)
	return nil
}

// hintHubs are as many hubs as a code has room to name: the first.
func (n *Node) hintHubs() []string {
	n.reach.mu.Lock()
	defer n.reach.mu.Unlock()
	if len(n.reach.hubs) == 0 {
		return nil
	}
	return n.reach.hubs[0].Hints()
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// start runs all parts as goroutines of the node.
func (r *reach) start() {
	if !r.n.cfg.NoPortMapping {
		secret := r.n.id.WireGuardPrivate()
		r.mapper = portmap.New(portmap.Config{
			Gateway: portmap.DefaultGateway, Gateway6: portmap.DefaultGateway6, Logger: r.n.cfg.Logger, NonceKey: wire.Expand(secret[:], "port mapping"),
		})
	}
	r.n.wg.Go(func() { _ = r.n.socket.Run(r.n.ctx) })
	r.n.wg.Go(r.findServers)
	r.n.wg.Go(r.tellPeers)
	if r.n.dht != nil && r.n.cfg.Relay != RelayAlways {
		r.n.wg.Go(r.n.askNodes)
	}
	r.n.wg.Go(r.recover)
	r.n.wg.Go(r.relays.run)
	if r.mapper != nil {
		r.n.wg.Go(r.keepMapping)
	}
}

// networkChanged has everything asked anew.
func (r *reach) networkChanged() {
	r.n.media.Check()
	r.n.socket.Gather()
	if r.mapper != nil {
		r.mapper.Refresh()
	}
	r.n.laneMap.refresh()
	r.relays.check()
	poke(r.kick)
}

// doubt says that a path is silent: perhaps it is this device's own network that
// changed, although nothing told so.
func (r *reach) doubt() { poke(r.doubts) }

const (
	// recoverEvery is how often everything is asked anew while a device that was
	// connected is not, and recoverFor for how long after it was lost.
	recoverEvery = 1500 * time.Millisecond
	recoverFor   = 5 * time.Minute
)

// recover asks whether media, relays and mappings are still there when a path
// goes silent, and again and again until it is back.
func (r *reach) recover() {
	var again <-chan time.Time
	var until time.Time
	for {
		select {
		case <-r.n.ctx.Done():
			return
		case <-r.doubts:
			until = time.Now().Add(recoverFor)
		case <-again:
		}
		r.n.socket.Gather()
		r.n.media.Check()
		r.relays.check()
		again = nil
		if time.Now().Before(until) && r.anyLost() {
			again = time.After(recoverEvery)
		}
	}
}

// anyLost reports whether a device is not connected that was lately.
func (r *reach) anyLost() bool {
	for _, p := range r.n.allPeers() {
		p.mu.Lock()
		lost := !p.connected && !p.since.IsZero() && time.Since(p.since) < recoverFor && p.was
		p.mu.Unlock()
		if lost {
			return true
		}
	}
	return false
}

func (r *reach) keepMapping() {
	err := r.mapper.Run(r.n.ctx, r.n.socket.Port(), func(m portmap.Mapping, ok bool) {
		r.noteMapping(m, ok)
		if m.External.Addr().Is6() {
			return // a firewall lets our own address through, which peers know
		}
		addr := m.External
		if !ok || m.DoubleNAT || m.Pinhole {
			addr = netip.AddrPort{}
		}
		r.n.socket.SetMapped(addr)
	})
	if r.n.ctx.Err() == nil {
		r.n.cfg.Logger.Warn("port mapping ended", "err", err)
	}
}

// noteMapping keeps what the router does for us, for status.
func (r *reach) noteMapping(m portmap.Mapping, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mapped = slices.DeleteFunc(r.mapped, func(old portmap.Mapping) bool {
		return old.External.Addr().Is4() && m.External.Addr().Is4() || old.External == m.External
	})
	if ok {
		r.mapped = append(r.mapped, m)
	}
}

// mappings returns what the router does for us.
func (r *reach) mappings() []PortMapping {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []PortMapping
	for _, m := range r.mapped {
		out = append(out, PortMapping{Protocol: m.Protocol, External: m.External, Pinhole: m.Pinhole, DoubleNAT: m.DoubleNAT})
	}
	return out
}

// stunServers are host:port of all servers that may be asked, hubs first.
func (r *reach) stunServers() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, h := range r.hubs {
		out = append(out, h.STUNServers()...)
	}
	return append(out, r.n.cfg.STUN...)
}

// findServers keeps the addresses of the STUN servers up to date.
func (r *reach) findServers() {
	for {
		addrs, failed := resolveAll(r.n.ctx, r.stunServers())
		if len(addrs) > 0 {
			r.n.socket.SetServers(addrs)
		}
		var retry <-chan time.Time
		if failed != nil {
			r.n.cfg.Logger.Info("stun server not found", "err", failed)
			retry = time.After(resolveRetry)
		}
		select {
		case <-r.n.ctx.Done():
			return
		case <-r.kick:
		case <-retry:
		}
	}
}

// resolveAll looks up servers, all at once. It errs with the last failure.
func resolveAll(ctx context.Context, names []string) (out []netip.AddrPort, err error) {
	ctx, cancel := context.WithTimeout(ctx, resolveRetry)
	defer cancel()
	found := make([][]netip.AddrPort, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { found[i], errs[i] = resolve(ctx, name) })
	}
	wg.Wait()
	for i := range names {
		out = append(out, found[i]...)
		if errs[i] != nil {
			err = errs[i]
		}
	}
	return out, err
}

// resolve returns one address per family of a host:port.
func resolve(ctx context.Context, name string) ([]netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(name)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	families := make(map[bool]bool)
	for _, ip := range ips {
		if ip = ip.Unmap(); !families[ip.Is4()] {
			families[ip.Is4()] = true
			out = append(out, netip.AddrPortFrom(ip, uint16(port)))
		}
	}
	return out, nil
}

// tellPeers announces this device's addresses anew when they change.
func (r *reach) tellPeers() {
	for {
		select {
		case <-r.n.ctx.Done():
			return
		case <-r.news:
		}
		timer := time.NewTimer(changeDelay)
		select {
		case <-r.n.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		r.n.askedPublic()
		for _, p := range r.n.allPeers() {
			p.post(p.addressesChanged)
		}
	}
}

// addressesChanged has peers told of this device's addresses, soon.
func (n *Node) addressesChanged() { poke(n.reach.news) }
