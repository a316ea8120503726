package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"
)

const (
	// maxAddresses is how many addresses of a server are tried.
	maxAddresses = 8
	// connectTime is for how long one address is tried, connecting and TLS.
	connectTime = 10 * time.Second
)

// A lookup resolves a host name.
type lookup func(ctx context.Context, host string) ([]netip.Addr, error)

func systemLookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// resolve lists the server's addresses, IPv6 and IPv4 alternating (RFC 8305
// section 4).
func resolve(ctx context.Context, host string, look lookup) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	found, err := look(ctx, host)
	if err != nil {
		return nil, err
	}
	var families [2][]netip.Addr
	for _, a := range found {
		a = a.Unmap()
		i := 0
		if a.Is4() {
			i = 1
		}
		families[i] = append(families[i], a)
	}
	var out []netip.Addr
	for i := range max(len(families[0]), len(families[1])) {
		for _, f := range families {
			if i < len(f) && len(out) < maxAddresses {
				out = append(out, f[i])
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the name has no address")
	}
	return out, nil
}

func dial(ctx context.Context, cfg Config, s server, t timing, look lookup) (*Relay, error) {
	if cfg.Receive == nil {
		cfg.Receive = func(netip.AddrPort, []byte) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	addrs, err := resolve(ctx, s.host, look)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	r, err := dialAddrs(ctx, cfg, s, t, addrs)
	if errors.Is(err, ErrCredentials) && len(cfg.Secret) > 0 {
		// Perhaps because of the clocks. By another socket, since a server may hold an
		// address to the user that it refused (coturn does).
		cfg.Logger.Debug("relay credentials refused", "server", s.String(), "err", err)
		t.life = longLife
		r, err = dialAddrs(ctx, cfg, s, t, addrs)
	}
	return r, err
}

func dialAddrs(ctx context.Context, cfg Config, s server, t timing, addrs []netip.Addr) (*Relay, error) {
	r, err := race(ctx, addrs, t.stagger, func(ctx context.Context, a netip.Addr, next func()) (*Relay, error) {
		return connect(ctx, cfg, s, t, netip.AddrPortFrom(a, s.port), next)
	})
	if err != nil {
		return nil, dialError(s, err)
	}
	if err := r.allocate(ctx); err != nil {
		if errors.Is(err, errSilent) {
			r.abandon()
		}
		_ = r.Close()
		return nil, dialError(s, err)
	}
	r.log.Debug("relay allocated", "server", s.String(), "transport", s.via.String(),
		"relayed", r.addr, "mapped", r.mapped, "lifetime", time.Duration(r.life.Load()))
	r.quiet.Store(true)
	r.start(r.keep)
	r.start(r.sweep)
	return r, nil
}

// dialError names the server, and the kind of error if nothing did yet.
func dialError(s server, err error) error {
	for _, kind := range []error{ErrTLS, ErrCredentials, ErrQuota, ErrFull, ErrFamily} {
		if errors.Is(err, kind) {
			return err
		}
	}
	if codeOf(err) != 0 {
		return err
	}
	return fmt.Errorf("%w: %s over %s: %w", ErrUnreachable, s, s.via, err)
}

// race tries addresses one after the other, stagger apart, or as soon as one has
// failed or says next. The first success counts; what others achieve meanwhile is closed. All
// have ended when it returns.
func race(ctx context.Context, addrs []netip.Addr, stagger time.Duration,
	try func(_ context.Context, _ netip.Addr, next func()) (*Relay, error),
) (*Relay, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		relay *Relay
		err   error
	}
	results, hints := make(chan result, len(addrs)), make(chan struct{}, 1)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var winner *Relay
	var errs []error
	running, next := 0, 0
	for running > 0 || winner == nil && next < len(addrs) {
		var more <-chan time.Time
		if winner == nil && next < len(addrs) {
			more = timer.C
		}
		select {
		case <-more:
			a := addrs[next]
			next++
			running++
			go func() { // awaited by this loop
				r, err := try(ctx, a, func() { poke(hints) })
				if err != nil {
					err = fmt.Errorf("%s: %w", a, err)
				}
				results <- result{r, err}
			}()
			timer.Reset(stagger)
		case <-hints:
			timer.Reset(0)
		case got := <-results:
			running--
			switch {
			case got.err != nil:
				errs = append(errs, got.err)
				timer.Reset(0)
				if ctx.Err() != nil {
					next = len(addrs)
				}
			case winner == nil:
				winner = got.relay
				cancel()
			default:
				_ = got.relay.Close()
			}
		}
	}
	if winner != nil {
		return winner, nil
	}
	return nil, errors.Join(errs...)
}

// connect reaches one address: the connection and TLS, or, over UDP, the answer
// to a first request. What it returns reads already, and has no allocation.
func connect(ctx context.Context, cfg Config, s server, t timing, to netip.AddrPort, next func()) (*Relay, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	c, err := reach(ctx, s.via.network(), to, t.request, next)
	if err != nil {
		return nil, err
	}
	if s.via == overTLS {
		if c, err = handshake(ctx, c, cfg.TLS, s.host); err != nil {
			return nil, err
		}
	}
	r := &Relay{
		cfg: cfg, server: s, times: t, log: cfg.Logger, auth: newAuth(cfg, t.clock(), t.life),
		woken: make(chan struct{}, 1), doubts: make(chan struct{}, 1), done: make(chan struct{}),
	}
	r.waiting.init()
	r.peers.init()
	if s.via == overUDP {
		r.conn = newDatagrams(c)
	} else {
		r.conn = newStream(c)
		r.start(func() {
			if err := r.conn.run(); err != nil {
				r.lost(err)
			}
		})
	}
	r.start(r.read)
	if s.via == overUDP {
		if err := r.greet(ctx); err != nil {
			_ = r.Close()
			return nil, err
		}
	}
	return r, nil
}

// handshake makes TLS of a connection, and closes that if it fails.
func handshake(ctx context.Context, c net.Conn, cfg *tls.Config, host string) (net.Conn, error) {
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	} else {
		cfg = cfg.Clone()
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	t := tls.Client(c, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		// The network's errors, the end of ctx, and one who does not speak TLS say
		// nothing of the certificate.
		_, plain := errors.AsType[tls.RecordHeaderError](err)
		if plain || isNetwork(err) || ctx.Err() != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		return nil, fmt.Errorf("%w: %w", ErrTLS, err)
	}
	return t, nil
}

// greet asks without credentials, which costs the server nothing, and brings its
// realm and nonce.
func (r *Relay) greet(ctx context.Context) error {
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest),
		requestedTransport(), stun.Fingerprint)
	if err != nil {
		return err
	}
	answer, err := r.roundTrip(ctx.Done(), m, r.times.request, nil)
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	if answer.Type.Class == stun.ClassSuccessResponse {
		return r.allocated(answer) // a server for everybody
	}
	if code := errorCode(answer); code != int(stun.CodeUnauthorized) && code != int(stun.CodeStaleNonce) {
		return refusal(stun.MethodAllocate, code)
	}
	if !r.auth.challenge(answer) {
		return errNoTURN
	}
	return nil
}

// allocate asks for the relayed address.
func (r *Relay) allocate(ctx context.Context) error {
	if r.server.via != overUDP {
		if err := r.greet(ctx); err != nil {
			return err
		}
	}
	if r.addr.IsValid() {
		return nil
	}
	start := time.Now()
	answer, err := r.ask(ctx.Done(), stun.MethodAllocate, r.times.request, requestedTransport())
	took := time.Since(start)
	if errors.Is(err, ErrFamily) {
		// A server without IPv4: that is what is meant by saying nothing.
		answer, err = r.ask(ctx.Done(), stun.MethodAllocate, r.times.request, requestedTransport(), requestedIPv6())
	}
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	if r.server.via == overUDP { // a near server that is silent is lost sooner
		r.times.check.wait = min(r.times.check.wait, max(2*took, leastCheck))
	}
	return r.allocated(answer)
}

// leastCheck and mostCheck bound the time between the requests of a check, two
// round trips. Their sixfold, which it lasts, is more than a pause of the
// server's machine, or of a radio.
const (
	leastCheck = 125 * time.Millisecond
	mostCheck  = 250 * time.Millisecond
)

// abandon gives back, without waiting, what the server may have allocated while
// its answer got lost: it would count against the quota until it expires.
func (r *Relay) abandon() {
	if m, key, err := r.build(stun.MethodRefresh, []stun.Setter{lifetime(0)}); err == nil && key != nil {
		_ = r.conn.request(m.Raw)
	}
}

// allocated reads the answer to Allocate.
func (r *Relay) allocated(m *stun.Message) error {
	r.alive.Store(true) // first: it is given back if the rest can not be read
	addr, err := addressOf(m, stun.AttrXORRelayedAddress)
	if err != nil || addr.Port() == 0 {
		return errNoTURN
	}
	mapped, err := addressOf(m, stun.AttrXORMappedAddress)
	if err != nil {
		return errNoTURN
	}
	r.addr, r.mapped = addr, mapped
	r.setLife(m)
	return nil
}

const (
	minLife     = 30 * time.Second
	defaultLife = 10 * time.Minute // RFC 8656 section 3.2
	maxLife     = 24 * time.Hour
)

// setLife takes the lifetime of an answer; unreasonable ones are bounded.
func (r *Relay) setLife(m *stun.Message) {
	life := defaultLife
	if seconds, ok := lifetimeOf(m); ok {
		life = min(max(time.Duration(seconds)*time.Second, minLife), maxLife)
	}
	r.life.Store(int64(life))
}
