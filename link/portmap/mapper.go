package portmap

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultLifetime is how long a mapping is asked for.
const DefaultLifetime = 2 * time.Hour

// ErrConfig is returned by Run for a Config without Gateway, or for port 0.
var ErrConfig = errors.New("portmap: a gateway lookup and a port are needed")

// ErrRunning is returned by Run while another Run of the same Mapper runs.
var ErrRunning = errors.New("portmap: already running")

// A Transport is what is mapped, by its number of IANA.
type Transport uint8

// The transports.
const (
	UDP Transport = 17
	TCP Transport = 6
)

// number is that of IANA, also of the zero value, which is UDP.
func (t Transport) number() byte {
	if t == TCP {
		return byte(TCP)
	}
	return byte(UDP)
}

// String returns "UDP" or "TCP", as UPnP writes them.
func (t Transport) String() string {
	if t == TCP {
		return "TCP"
	}
	return "UDP"
}

// Config says how a Mapper works.
type Config struct {
	// Transport is of the port that is mapped; default UDP.
	Transport Transport
	// Gateway looks the default gateway up, and our own address towards it;
	// required. It must be quick and is called from Run's goroutine:
	// [DefaultGateway], or what an app is told by its system.
	Gateway func() (gw, self netip.Addr, ok bool)
	// Gateway6 looks the IPv6 default gateway up, and those of our addresses that
	// are to be reached from outside; at most four are used. Each gets a pinhole
	// in the gateway's firewall. It must be quick, may be called by several
	// goroutines at once, and nil is no pinholes: [DefaultGateway6], or what an
	// app is told by its system.
	Gateway6 func() (gw netip.Addr, self []netip.Addr, ok bool)
	// Logger; nil discards.
	Logger *slog.Logger
	// Lifetime of a mapping to ask for; 0 is DefaultLifetime, less than two
	// minutes is two minutes, more than a day is a day.
	Lifetime time.Duration
	// NonceKey is a secret of this device, the same in every run; optional. With
	// it PCP's mapping nonces stay the same, so that after a crash the mapping
	// left behind is taken over. Without it a PCP gateway may say no until that
	// mapping has expired. Any length.
	NonceKey []byte
}

// A Mapping is a port of the gateway that leads to ours, or a pinhole in its firewall.
type Mapping struct {
	// Protocol is "pcp", "nat-pmp" or "upnp".
	Protocol string
	// Internal is our own port.
	Internal uint16
	// External is where others reach it. The address may be unspecified if the
	// gateway does not know it; see DoubleNAT.
	External netip.AddrPort
	// Gateway is who made it.
	Gateway netip.Addr
	// Expires is the end of it if it were not renewed; zero if it has none
	// (a UPnP gateway without leases). Renewals are not reported.
	Expires time.Time
	// Pinhole is true if External is our own address and port: nothing is
	// translated, but a firewall lets in what is sent there.
	Pinhole bool
	// DoubleNAT is true if the external address is not one of the internet
	// (private, 100.64.0.0/10, unspecified): the gateway itself is behind a NAT.
	DoubleNAT bool
}

// A Mapper keeps one port mapped, and pinholes for it open. Make it with New. Its methods are safe for
// concurrent use.
type Mapper struct {
	cfg      Config
	log      *slog.Logger
	key      []byte
	running  atomic.Bool
	refresh  chan struct{}
	refresh6 chan struct{} // for Gateway6

	// How the gateway is spoken to; tests put other things here.
	udpPort   uint16
	dial      func(gw, self netip.Addr) (io.ReadWriteCloser, error)
	discover  func(ctx context.Context, gw, self netip.Addr) (control, error)
	discover6 func(ctx context.Context, gw, self netip.Addr) (control, error)
}

// control is what a UPnP gateway can do; see igd.
type control interface {
	add(ctx context.Context, external, internal uint16, lease time.Duration) (netip.Addr, error)
	check(ctx context.Context, external, internal uint16) (netip.Addr, bool, error)
	remove(ctx context.Context, external, internal uint16) error
	carry(Transport) // before the others: what is mapped, if not UDP
}

// New returns a Mapper that does nothing until Run.
func New(cfg Config) *Mapper {
	if cfg.Lifetime == 0 {
		cfg.Lifetime = DefaultLifetime
	}
	cfg.Lifetime = min(max(cfg.Lifetime, 2*time.Minute), maxLifetime)
	m := &Mapper{cfg: cfg, log: cfg.Logger, key: cfg.NonceKey, refresh: make(chan struct{}, 1), refresh6: make(chan struct{}, 1), udpPort: serverPort}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if len(m.key) == 0 {
		m.key = make([]byte, sha256.Size)
		_, _ = rand.Read(m.key) // never errs
	}
	m.dial = m.dialUDP
	m.discover = func(ctx context.Context, gw, self netip.Addr) (control, error) {
		return discoverIGD(ctx, gw, self, netip.AddrPortFrom(ssdpGroup4, ssdpPort), netip.AddrPortFrom(gw, ssdpPort))
	}
	m.discover6 = func(ctx context.Context, gw, self netip.Addr) (control, error) {
		targets := []netip.AddrPort{netip.AddrPortFrom(gw, ssdpPort)}
		if gw.Zone() != "" {
			targets = append(targets, netip.AddrPortFrom(ssdpGroup6.WithZone(gw.Zone()), ssdpPort))
		}
		return discoverIGD6(ctx, gw, self, targets...)
	}
	return m
}

// dialUDP connects to the gateway's PCP and NAT-PMP port: the system then drops
// what others send, and tells when nobody listens.
func (m *Mapper) dialUDP(gw, self netip.Addr) (io.ReadWriteCloser, error) {
	return net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(self, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(gw, m.udpPort)))
}

func discoverIGD(ctx context.Context, gw, self netip.Addr, targets ...netip.AddrPort) (control, error) {
	return search(ctx, gw, self, targets, func(ctx context.Context, u *url.URL, _ netip.Addr) (control, error) {
		return describe(ctx, gw, self, u)
	})
}

// Refresh says that the network changed, or may have: the gateway is looked up
// and asked anew, also one that did not answer before. It returns at once.
func (m *Mapper) Refresh() {
	for _, ch := range []chan struct{}{m.refresh, m.refresh6} {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Run keeps a mapping of our port until ctx ends, then removes it (at most
// one second) and returns the context's error. Until then it calls changed(m,
// true) when there is a mapping or it became another one, and changed(m, false)
// when that one is lost; changed must not block. With Config.Gateway6 it does the
// same for pinholes at the same time: at most one mapping per address of ours,
// which for a pinhole is External's. Calls come one at a time, not all from the
// same goroutine. Gateways that map nothing are no error. Run errs at once with
// ErrConfig or ErrRunning.
func (m *Mapper) Run(ctx context.Context, port uint16, changed func(Mapping, bool)) error {
	if port == 0 || m.cfg.Gateway == nil {
		return ErrConfig
	}
	if !m.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer m.running.Store(false)
	if changed == nil {
		changed = func(Mapping, bool) {}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if m.cfg.Gateway6 != nil {
		var mu sync.Mutex // one call at a time
		tell := changed
		changed = func(m Mapping, ok bool) {
			mu.Lock()
			defer mu.Unlock()
			tell(m, ok)
		}
		wg.Go(func() { m.keepPinholes(ctx, port, changed) })
	}
	m.keep(ctx, port, changed)
	return ctx.Err()
}

// keep is Run for one address of ours.
func (m *Mapper) keep(ctx context.Context, port uint16, changed func(Mapping, bool)) {
	r := &run{
		m: m, changed: changed, packets: make(chan packet), results: make(chan jobDone),
		core: &core{
			port: port, transport: m.cfg.Transport, lifetime: m.cfg.Lifetime, nonce: m.nonce(port), udpPort: m.udpPort,
			random: func() uint16 { return uint16(1024 + mathrand.N(65536-1024)) }, //nolint:gosec // any free port will do
		},
	}
	r.loop(ctx)
}

// nonce derives the mapping nonce: one per gateway, address and port, which
// nobody else can know.
func (m *Mapper) nonce(port uint16) func(gw, self netip.Addr) [nonceSize]byte {
	return func(gw, self netip.Addr) [nonceSize]byte {
		h := hmac.New(sha256.New, m.key)
		a, b := gw.As16(), self.As16()
		h.Write([]byte("kith portmap nonce 1"))
		h.Write(a[:])
		h.Write(b[:])
		h.Write(binary.BigEndian.AppendUint16(nil, port))
		if m.cfg.Transport == TCP { // which is a mapping of its own
			h.Write([]byte{byte(TCP)})
		}
		return [nonceSize]byte(h.Sum(nil)[:nonceSize])
	}
}
