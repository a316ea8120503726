// Package hub is the optional server of kith: one process that two devices can
// meet at (an MQTT broker), that tells them how the internet sees them (STUN) and
// that carries their packets when no direct path can be had (TURN). It may also keep
// sealed letters for devices that are away (app/mail). It sees sealed frames, packets
// and letters, and addresses; it never has a key of a pair.
//
// Everything is on one port number. The TCP listener tells the protocol from the
// first bytes: TLS (0x16), MQTT (0x10), STUN or TURN (0x00 to 0x03) or HTTP
// ("GET "), mail ("KML1") and dial-back ("KDB1"), both inside TLS only, and inside TLS the same again, so that MQTT over WebSocket and TURN
// over TLS pass a firewall that lets only TCP port 443 through. The UDP port
// answers STUN and carries TURN; a second UDP port, and a second address if there
// is one, answer STUN alone, for clients that want to know how their NAT maps and
// filters, and for how long it remembers (RFC 5780). As a node of a DHT or of a Waku network it has a port more for
// each; Waku is also told apart at the main one.
//
// Nobody gets anything for free: the broker and the relay need the access secret
// of the address (package hubaddr), topics and sizes are restricted to what kith
// sends, every queue, rate and count is bounded, and the relay refuses to send
// into private networks. The DHT and Waku are open to all, as they are everywhere;
// what one client may do there is bounded too.
//
// Open starts it, Close stops it and waits.
package hub

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/rendezvous/dht"
	"github.com/kithproject/kith/rendezvous/waku"
)

// Defaults of Config.
const (
	// DefaultListen is where a hub listens.
	DefaultListen = ":443"
	// DefaultMaxConns is how many TCP connections there may be in all, a count.
	DefaultMaxConns = 20000
	// DefaultMaxConnsPerIP is how many TCP connections one IPv4 address or IPv6
	// /64 may have, a count.
	DefaultMaxConnsPerIP = 64
	// DefaultMaxAllocations is how many TURN allocations there may be, a count.
	DefaultMaxAllocations = 1000
	// DefaultAllocationsPerClient is the same for one client name, a count.
	DefaultAllocationsPerClient = 8
	// DefaultAllocationsPerIP is the same for one IPv4 address or IPv6 /64, a count.
	DefaultAllocationsPerIP = 32
	// DefaultRelayMin is the lowest port of relayed addresses, a port number.
	DefaultRelayMin = 49152
	// DefaultRelayMax is the highest port of relayed addresses, a port number.
	DefaultRelayMax = 65535

	closeGrace = 2 * time.Second // for farewells
)

var (
	// ErrConfig reports a Config that cannot be used.
	ErrConfig = errors.New("hub: the configuration cannot be used")
	// ErrListen reports a port that cannot be listened on.
	ErrListen = errors.New("hub: cannot listen")
)

// Config is what Open needs. Dir must be set.
type Config struct {
	// Dir is where the key, the certificate and the last settings are kept, for
	// this user only. It is made if it is missing.
	Dir string
	// Listen is the host:port for TCP and UDP; default DefaultListen. Port 0 picks
	// one. With AltIP the host must be an IP address.
	Listen string
	// Host is the name or IP address that clients use; default: what was used last,
	// or this machine's address on its way to the internet.
	Host string
	// AltPort is the number of the second UDP port; default the port after that of
	// Listen, or any if that is 0. A number below 0 means none.
	AltPort int
	// AltIP is a second address of this machine, for RFC 5780; default none.
	AltIP netip.Addr
	// CertFile and KeyFile are a certificate chain and its key in PEM; default:
	// a self-signed certificate that is made once and kept in Dir.
	CertFile, KeyFile string
	// RelayIP is the address that relayed packets come from as peers see it;
	// default: the address of Host, else of Listen, else of the way to the internet.
	RelayIP netip.Addr
	// RelayMin and RelayMax are the first and last port number of relayed
	// addresses; default DefaultRelayMin and DefaultRelayMax.
	RelayMin, RelayMax uint16
	// AllowPrivate lets the relay send to private, shared, link-local and loopback
	// addresses. Only for closed networks and tests: it opens the network that the
	// hub stands in to everybody who has its address.
	AllowPrivate bool
	// Bandwidth is what one client name may relay each way, in bytes a second;
	// default 0, no limit.
	Bandwidth int
	// MaxConns, MaxConnsPerIP, MaxAllocations, AllocationsPerClient and
	// AllocationsPerIP bound what their constants say, each a count.
	MaxConns, MaxConnsPerIP, MaxAllocations, AllocationsPerClient, AllocationsPerIP int
	// DHT says of which distributed hash table the hub is a node that devices can
	// begin with; default DHTOff.
	DHT DHTMode
	// DHTPort is the UDP port number of that node; default any.
	DHTPort uint16
	// DHTBootstrap are other nodes (host:port); default those of Mainline, or none
	// for a private table.
	DHTBootstrap []string
	// Waku makes the hub a node of kith's own Waku network, for whoever wants to use
	// it, at WakuPort and at the port of Listen, there also over WebSocket.
	Waku bool
	// WakuPort is its TCP port number; 0 picks one. Devices look at DefaultWakuPort.
	WakuPort uint16
	// WakuPeers are multiaddrs of at most 8 other nodes, whose messages it passes on,
	// and they its own: /dns4/HOST/tcp/60000/p2p/ID. One of two needs to name the other.
	WakuPeers []string
	// Mail has the hub keep sealed letters for devices that are away (package app/mail),
	// in Dir/mail.
	Mail bool
	// MailQuota is what it keeps in all, and MailPerClient of letters from one address, in
	// bytes; default mail.DefaultMaxBytes and mail.DefaultPerDepositor.
	MailQuota, MailPerClient int64
	// MailDays is for how many days; default mail.Days.
	MailDays int
	// Metrics is the host:port of an HTTP listener with Prometheus text at
	// /metrics; default none.
	Metrics string
	// Logger: default discard. Client addresses are logged at the debug level only.
	Logger *slog.Logger

	channelLife, permissionLife time.Duration // shorter, for tests; default those of RFC 8656
}

func (cfg *Config) defaults() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	set := func(n *int, def int) {
		if *n <= 0 {
			*n = def
		}
	}
	set(&cfg.MaxConns, DefaultMaxConns)
	set(&cfg.MaxConnsPerIP, DefaultMaxConnsPerIP)
	set(&cfg.MaxAllocations, DefaultMaxAllocations)
	set(&cfg.AllocationsPerClient, DefaultAllocationsPerClient)
	set(&cfg.AllocationsPerIP, DefaultAllocationsPerIP)
	if cfg.RelayMin == 0 && cfg.RelayMax == 0 {
		cfg.RelayMin, cfg.RelayMax = DefaultRelayMin, DefaultRelayMax
	}
	if cfg.Listen == "" {
		cfg.Listen = DefaultListen
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case cfg.Dir == "":
		return bad("there is no state directory")
	case cfg.RelayMin == 0 || cfg.RelayMax < cfg.RelayMin:
		return bad("the relay's ports %d-%d are not a range", cfg.RelayMin, cfg.RelayMax)
	case (cfg.CertFile == "") != (cfg.KeyFile == ""):
		return bad("a certificate needs its key, and a key its certificate")
	case cfg.AltPort > 65535:
		return bad("%d is not a port", cfg.AltPort)
	case cfg.MailQuota < 0, cfg.MailPerClient < 0, cfg.MailDays < 0, cfg.MailDays > maxDays:
		return bad("mail is kept for at most %d days, and quotas are not below zero", maxDays)
	case cfg.Bandwidth < 0:
		return bad("the bandwidth is below zero")
	}
	return nil
}

// A Hub is a running server. It is safe for concurrent use.
type Hub struct {
	cfg     Config
	log     *slog.Logger
	addr    hubaddr.Address
	m       *meters
	socks   *sockets
	mux     *mux
	broker  *broker
	dht     *dht.Node // nil if it has none
	web     *web
	turn    *turnServer
	waku    *waku.Service // nil if it is no node
	mail    *mailbox      // nil if it keeps none
	metrics *http.Server
	wg      sync.WaitGroup
	once    sync.Once
	err     error
	failed  chan error

	wakuPort uint16
}

// Open starts a hub. It errs with ErrConfig, with ErrListen if a port cannot be
// had, with fs.ErrPermission if Dir is open to others, and with what the system
// says of files and names.
func Open(ctx context.Context, cfg Config) (*Hub, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	host, port, err := splitListen(cfg.Listen)
	if err != nil {
		return nil, err
	}
	st, err := loadState(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cert, pin, err := st.certificate(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	h := &Hub{cfg: cfg, log: cfg.Logger, failed: make(chan error, 1)}
	last := st.settings()
	if h.addr.Host, err = pickHost(ctx, cfg.Host, last.Host, host); err != nil {
		return nil, err
	}
	local, err := bindAll(ctx, host, port, cfg.AltPort, cfg.AltIP)
	if err != nil {
		return nil, err
	}
	h.socks = local
	h.addr.Port, h.addr.AltPort = local.port, local.altPort
	h.addr.Access, h.addr.Pin = st.access(), pin
	if err := h.start(ctx, cert, st.wakuSeed()); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if err := st.saveSettings(settings{Host: h.addr.Host, Port: h.addr.Port, AltPort: h.addr.AltPort, Pin: hex.EncodeToString(pin[:])}); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.log.Info("hub started", "port", h.addr.Port, "alt_port", h.addr.AltPort)
	return h, nil
}

// start builds the servers on the sockets that bindAll made.
func (h *Hub) start(ctx context.Context, cert tls.Certificate, wakuSeed [32]byte) (err error) {
	h.m = newMeters()
	h.socks.m = h.m
	h.mux = newMux(h.cfg, h.m, serverTLS(cert))
	if h.broker, err = newBroker(h.m, h.log, h.addr.MQTTPassword()); err != nil {
		return err
	}
	h.web = newWeb(h.broker, h.m, h.mux, h.socks.tcp.Addr())
	relayIP, err := h.relayIP(ctx)
	if err != nil {
		return err
	}
	if h.turn, err = newTURN(h.cfg, h.m, h.log, h.addr.TURNSecret(), h.socks, relayIP); err != nil {
		return err
	}
	h.m.watch(h)
	h.mux.broker, h.mux.web, h.mux.turn, h.mux.dialer = h.broker, h.web, h.turn, newDialer(h.cfg, h.addr, h.turn.relays.isSelf)
	if err := h.startDHT(); err != nil {
		return err
	}
	if err := h.startWaku(ctx, wakuSeed); err != nil {
		return err
	}
	if err := h.startMail(); err != nil {
		return err
	}
	if err := h.startMetrics(ctx); err != nil {
		return err
	}
	h.wg.Go(h.web.serve)
	h.wg.Go(func() {
		if err := h.mux.serve(h.socks.tcp); err != nil {
			h.fail(fmt.Errorf("hub: accepting connections: %w", err))
		}
	})
	for _, s := range h.socks.alternates() {
		h.wg.Go(func() { s.serveBinding() })
	}
	return nil
}

// relayIP returns the addresses that relayed packets come from as peers see it,
// for IPv4 and IPv6; an invalid one for a family that cannot be relayed.
func (h *Hub) relayIP(ctx context.Context) (out [2]netip.Addr, err error) {
	put := func(a netip.Addr) {
		a = a.Unmap()
		if i := familyOf(a); a.IsValid() && !a.IsUnspecified() && !out[i].IsValid() && h.socks.has(i) {
			out[i] = a
		}
	}
	put(h.cfg.RelayIP)
	if a, err := netip.ParseAddr(h.addr.Host); err == nil {
		put(a)
	} else if addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", h.addr.Host); err == nil {
		for _, a := range addrs {
			put(a)
		}
	}
	for i := range out {
		put(h.socks.bound(i))
		if a := routeIP(ctx, i); i == 0 || h.cfg.AllowPrivate || mayRelay(a, false) {
			put(a) // a private IPv4 address may be mapped to a public one, an IPv6 one is not
		}
	}
	if !out[0].IsValid() && !out[1].IsValid() {
		return out, fmt.Errorf("%w: no address to relay from is known: give it with the relay's address", ErrConfig)
	}
	return out, nil
}

// Address returns the address that clients need.
func (h *Hub) Address() hubaddr.Address { return h.addr }

// RelayIPs returns the addresses that relayed packets come from as peers see it:
// one of IPv4, one of IPv6, or both.
func (h *Hub) RelayIPs() []netip.Addr {
	var out []netip.Addr
	for _, a := range h.turn.relays.ip {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// Serve waits until ctx ends or the hub fails, and closes it. It errs with what
// made the hub fail or what Close says; the end of ctx is no error.
func (h *Hub) Serve(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
	case err = <-h.failed:
	}
	return errors.Join(err, h.Close())
}

// Close says farewell to all clients, closes everything and waits, for about
// two seconds at most.
func (h *Hub) Close() error {
	h.once.Do(func() { h.err = h.close() })
	return h.err
}

func (h *Hub) close() error {
	var errs []error
	try := func(err error) {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if h.metrics != nil {
		try(h.metrics.Close())
	}
	if h.dht != nil {
		try(h.dht.Close())
	}
	if h.mux != nil {
		h.mux.stop(time.Now().Add(closeGrace))
	}
	try(h.socks.tcp.Close())
	if h.waku != nil {
		try(h.waku.Close())
	}
	if h.mail != nil {
		try(h.mail.close())
	}
	if h.web != nil {
		try(h.web.close())
	}
	if h.broker != nil {
		try(h.broker.close(h.closeConns))
	}
	if h.turn != nil {
		try(h.turn.close(h.closeConns))
	}
	h.closeConns()
	h.socks.close()
	if h.mux != nil {
		h.mux.wg.Wait()
	}
	h.wg.Wait()
	h.log.Info("hub stopped")
	return errors.Join(errs...)
}

func (h *Hub) closeConns() {
	if h.mux != nil {
		h.mux.closeAll()
	}
}

// LastAddress returns the address of the hub whose state is in dir without
// starting it, as it was used last; host, if not empty, replaces its host. It errs
// with fs.ErrNotExist if no hub ever ran there.
func LastAddress(dir, host string) (hubaddr.Address, error) {
	st, err := readState(dir)
	if err != nil {
		return hubaddr.Address{}, err
	}
	last := st.settings()
	if host != "" {
		if last.Host, err = hubaddr.CleanHost(host); err != nil {
			return hubaddr.Address{}, err
		}
	}
	a := hubaddr.Address{Host: last.Host, Port: last.Port, AltPort: last.AltPort, Access: st.access(), Pin: last.pin()}
	if !a.Valid() {
		return hubaddr.Address{}, fmt.Errorf("hub: %s: the settings of the last run are damaged: start the hub once", dir)
	}
	return a, nil
}

func splitListen(listen string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %q is not HOST:PORT or :PORT", ErrConfig, listen)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %q is not a port", ErrConfig, text)
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return "", 0, fmt.Errorf("%w: %q is not an IP address to listen on", ErrConfig, host)
		}
	}
	return host, uint16(n), nil
}

// pickHost chooses what clients will use.
func pickHost(ctx context.Context, given, last, listen string) (string, error) {
	if given != "" {
		host, err := hubaddr.CleanHost(given)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrConfig, err)
		}
		return host, nil
	}
	if last != "" {
		return last, nil
	}
	if a, err := netip.ParseAddr(listen); err == nil && !a.IsUnspecified() {
		return a.WithZone("").Unmap().String(), nil
	}
	for i := range 2 {
		if a := routeIP(ctx, i); a.IsValid() {
			return a.String(), nil
		}
	}
	return "", fmt.Errorf("%w: say which name or address clients use", ErrConfig)
}

// routeIP returns the address that this machine has on its way to the internet
// by IPv4 (0) or IPv6 (1). No packet is sent for it.
func routeIP(ctx context.Context, family int) netip.Addr {
	to := [2]string{"192.0.2.1:9", "[2001:db8::1]:9"}[family]
	var d net.Dialer
	c, err := d.DialContext(ctx, udpNetwork(family), to)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	ap, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return ap.AddrPort().Addr().Unmap().WithZone("")
}
