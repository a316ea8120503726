package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun/v4"
)

// A Config says which server, and who we are there. It prints without secrets.
type Config struct {
	// URL is the server: turn:host[:3478][?transport=udp|tcp] or turns:host[:443].
	// See the package's documentation.
	URL string
	// User and Password are long-term credentials (RFC 8489 section 9.2).
	User, Password string
	// Secret is the shared secret of time-limited credentials, as coturn's
	// use-auth-secret; if given, User and Password are not used.
	Secret []byte
	// TLS is for turns. Default: the system's authorities and the URL's host. A pin
	// goes into its VerifyConnection.
	TLS *tls.Config
	// Receive gets every packet that peers sent, on the relay's one reading
	// goroutine: what it does not finish with, the system drops. packet is valid
	// only during the call. It must not call Close. Default: discard.
	Receive func(from netip.AddrPort, packet []byte)
	// Logger gets what happens, without secrets, at debug level. Default: discard.
	Logger *slog.Logger
}

// String says which server, and nothing that is secret.
func (c Config) String() string {
	s, err := parseURL(c.URL)
	if err != nil {
		return "relay.Config{bad URL, redacted}"
	}
	return "relay.Config{" + s.via.String() + " " + s.String() + ", redacted}"
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// timing are the times of the package's documentation; tests shorten them.
type timing struct {
	stagger time.Duration    // between the server's addresses
	request pace             // of requests in general
	check   pace             // of the refresh that decides on life and death
	goodbye pace             // of Close
	idle    time.Duration    // without proof of life and without traffic: check
	busy    time.Duration    // the same with traffic
	tick    time.Duration    // between looks while there is traffic
	gap     time.Duration    // between checks that errors of the system ask for
	sweep   time.Duration    // between looks at the peers
	rebind  time.Duration    // a channel is renewed after it
	unused  time.Duration    // a channel is let go after it
	forget  time.Duration    // and its number free for others, after its last bind
	refused time.Duration    // a forbidden peer is not asked for
	clock   func() time.Time // for the end of credentials
	life    time.Duration    // of time-limited credentials
}

func timingOf(via transport) timing {
	t := timing{
		stagger: 250 * time.Millisecond,
		request: pace{tries: 5, wait: 300 * time.Millisecond, double: true, again: 100 * time.Millisecond, patience: 3 * time.Second},
		check:   pace{tries: 6, wait: mostCheck, again: 50 * time.Millisecond, enough: 2},
		goodbye: pace{tries: 2, wait: 300 * time.Millisecond, again: 50 * time.Millisecond, enough: 1},
		idle:    28 * time.Second, busy: 5 * time.Second, tick: time.Second, gap: 250 * time.Millisecond,
		sweep: 30 * time.Second, rebind: 3 * time.Minute, unused: 10 * time.Minute,
		// RFC 8656 section 12: 10 minutes of life, and 5 before the number may mean another peer.
		forget: 15 * time.Minute, refused: time.Minute, clock: time.Now, life: credentialLife,
	}
	if via != overUDP {
		t.request = pace{tries: 1, wait: 8 * time.Second, again: 100 * time.Millisecond, patience: 3 * time.Second}
		t.check = pace{tries: 1, wait: 4 * time.Second}
		t.goodbye = pace{tries: 1, wait: time.Second}
	}
	return t
}

// A Relay is an allocation on a TURN server. Its methods are safe for concurrent
// use.
type Relay struct {
	cfg    Config
	server server
	times  timing
	log    *slog.Logger
	conn   carrier
	auth   *auth

	addr, mapped netip.AddrPort // set by Dial, then fixed
	life         atomic.Int64   // of the allocation, as a time.Duration
	alive        atomic.Bool    // there is an allocation to be given back

	tx, rx   atomic.Uint64 // bytes of packets
	proofs   atomic.Uint64 // frames that prove the allocation alive
	answered atomic.Uint64 // tx at the last of them
	quiet    atomic.Bool   // the keeper waits long, as nothing is sent
	woken    chan struct{} // capacity 1: quiet has ended
	doubts   chan struct{} // capacity 1: check now

	waiting transactions
	peers   peers

	done chan struct{}
	wg   sync.WaitGroup // every goroutine; start adds
	mu   sync.Mutex     // guards err, and closing done
	err  error
}

// Addr returns the relayed address: peers send there.
func (r *Relay) Addr() netip.AddrPort { return r.addr }

// Mapped returns our own address as the server sees it.
func (r *Relay) Mapped() netip.AddrPort { return r.mapped }

// Stats returns how many bytes were relayed from us and to us: packets without
// any header, those that were dropped on the way included.
func (r *Relay) Stats() (tx, rx uint64) { return r.tx.Load(), r.rx.Load() }

// Done returns a channel that is closed when the allocation is lost, or after
// Close.
func (r *Relay) Done() <-chan struct{} { return r.done }

// Err returns the error that ended the Relay: one that is ErrLost or
// ErrCredentials, or ErrClosed after Close; nil while Done is open.
func (r *Relay) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Check asks the server at once whether the allocation lives, without waiting:
// after the network changed, or the machine slept.
func (r *Relay) Check() { poke(r.doubts) }

// Close gives the allocation back and waits until every goroutine has ended: about
// a second if the server does not answer. It errs never; a second Close
// only waits.
func (r *Relay) Close() error {
	if r.alive.Swap(false) {
		select {
		case <-r.done:
		default:
			// Best effort: without it the server keeps the allocation until it expires.
			_, _ = r.ask(nil, stun.MethodRefresh, r.times.goodbye, lifetime(0))
		}
	}
	r.lose(ErrClosed)
	r.wg.Wait()
	return nil
}

// lose ends the Relay with a reason; only the first counts.
func (r *Relay) lose(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.err = err
	close(r.done)
	r.conn.close()
	r.log.Debug("relay ended", "server", r.server.String(), "transport", r.server.via.String(), "err", err)
}

// lost is lose for what ErrLost stands for.
func (r *Relay) lost(err error) {
	if !errors.Is(err, ErrLost) && !errors.Is(err, ErrCredentials) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	r.lose(err)
}

// start runs f in a goroutine that Close waits for. It reports false when there
// is nothing to be done any more.
func (r *Relay) start(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return false
	}
	r.wg.Go(f)
	return true
}

// poke fills a channel of capacity 1.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Dial connects to the server and allocates a relayed address. It errs with
// ErrURL, ErrUnreachable, ErrTLS, ErrCredentials, ErrQuota, ErrFull, ErrFamily or
// a ServerError, and when ctx ends, which bounds all of it; otherwise it gives up
// after about 10 s per step. ctx has no meaning after Dial has returned.
func Dial(ctx context.Context, cfg Config) (*Relay, error) {
	s, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	return dial(ctx, cfg, s, timingOf(s.via), systemLookup)
}
