// Package proxy lets any program reach the paired devices by name: a SOCKS5 and HTTP
// proxy on one port of this machine. It is given a way to find devices and to dial
// them; it knows nothing of the network between.
//
//	curl --proxy socks5h://127.0.0.1:1080 http://laptop.kith:8080/
//	curl --proxy http://127.0.0.1:1080 http://laptop.kith:8080/
//
// The first byte of a connection tells which it speaks: SOCKS5 (RFC 1928) with
// CONNECT and UDP ASSOCIATE, without or with a username and password (RFC 1929), or
// HTTP/1.1 with CONNECT and with requests for http:// addresses (RFC 9110 section
// 9.3.6, RFC 9112 section 3.2.2).
//
// It is no way to the Internet: names that end in .kith and the devices' tunnel
// addresses are reached, and everything else is refused. What a program is told:
//
//	                               SOCKS5 reply             HTTP
//	none of the devices            2 not allowed            502, and what to do
//	no device of this name         4 host unreachable       502
//	the device is not connected    4 host unreachable       502
//	it has not allowed the port    2 not allowed            403
//	nothing listens there          5 connection refused     502
//
// A browser that is to use it for .kith alone, and go elsewhere directly, is given
// the address http://127.0.0.1:1080/proxy.pac for its proxy settings.
//
// The SOCKS5 server is our own, 300 lines. Of the libraries, things-go/go-socks5
// (maintained) and txthinking/socks5 (both MIT) neither end with a context nor bound
// the flows of UDP, and the first sets no deadline for a client that says nothing and
// chooses the reply by the words of an error, where a device that is away and a port
// that is not allowed must be told apart. HTTP is the standard library's.
package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/kithproject/kith/app/forward"
)

// Domain is the end of every name that the proxy reaches.
const Domain = ".kith"

var (
	// ErrNotConnected is for Config.Dial to wrap: the device cannot be reached now.
	ErrNotConnected = errors.New("proxy: the device is not connected")
	// ErrPublic reports a listener that others than this machine can reach.
	ErrPublic = errors.New("proxy: others could use this address: listen on 127.0.0.1, or say that it shall be public")
)

// Config is what the proxy needs. Resolve and Dial must be set.
type Config struct {
	// Resolve returns the device of a host, which is a name in lower case that ends
	// in .kith, or an IP address. Anything else is refused without asking.
	Resolve func(host string) (peer string, ok bool)
	// Dial opens a connection to a port of a device. It errs with ErrNotConnected,
	// forward.ErrDenied, forward.ErrClosed or syscall.ECONNREFUSED, with the
	// context's error, or with any other. For UDP each Read and each Write is one
	// datagram.
	Dial func(ctx context.Context, protocol forward.Protocol, peer string, port uint16) (net.Conn, error)
	// Username and Password must be given by each client if one is set.
	Username, Password string
	// Public allows a listener that others than this machine can reach.
	Public bool
	// HandshakeTimeout is how long a client may take to say what it wants; default
	// 10 s.
	HandshakeTimeout time.Duration
	// DialTimeout is how long a connection waits for its device; default 15 s.
	DialTimeout time.Duration
	// MaxConns is how many clients there may be at once; default 1024.
	MaxConns int
	// Counters count what is carried; nil counts nothing.
	Counters *forward.Counters
	// Logger is told of connections that fail; nil tells nobody.
	Logger *slog.Logger
}

// Serve accepts clients from ln until ctx ends or ln fails. It closes ln and waits
// for all connections; it returns nil when ctx ended. It errs with ErrPublic, and
// with the listener's error.
func Serve(ctx context.Context, ln net.Listener, cfg Config) error {
	if !cfg.Public && !private(ln.Addr()) {
		ln.Close()
		return fmt.Errorf("%w (%s)", ErrPublic, ln.Addr())
	}
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 15 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{cfg: cfg, associations: make(chan struct{}, maxAssociations)}
	end := s.serveHTTP(ctx, ln.Addr())
	defer end()
	o := forward.Options{MaxConns: cfg.MaxConns, Failed: func(err error) { cfg.Logger.Info("proxy client refused", "err", err) }}
	if err := o.Accept(ctx, ln, s.handle); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}

// private reports whether only this machine can reach an address.
func private(addr net.Addr) bool {
	if addr.Network() == "unix" {
		return true
	}
	ap, err := netip.ParseAddrPort(addr.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

type server struct {
	cfg          Config
	associations chan struct{} // as many as there may be
	http         *httpListener
	reverse      http.Handler
}

// handle serves one client.
func (s *server) handle(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { forward.Abort(conn) })
	defer stop()
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(s.cfg.HandshakeTimeout)) != nil {
		return
	}
	// No more than is needed is read, so that what follows stays in the socket, and
	// the kernel can carry it.
	var first [1]byte
	if _, err := conn.Read(first[:]); err != nil {
		return
	}
	switch b := first[0]; {
	case b == socksVersion:
		s.socks(ctx, conn)
	case b == 4:
		_, _ = conn.Write([]byte{0, 91, 0, 0, 0, 0, 0, 0}) // SOCKS4: request rejected
		finish(conn)
	case b >= 'A' && b <= 'Z':
		s.http.hand(ctx, conn, b)
	default: // TLS, perhaps: whoever means an https:// proxy gets an end, not a wait
	}
}

// finish ends a connection to which the last word was written, so that a client that
// still speaks reads it.
func finish(conn net.Conn) {
	if h, ok := conn.(interface{ CloseWrite() error }); !ok || h.CloseWrite() != nil {
		return
	}
	if conn.SetReadDeadline(time.Now().Add(time.Second)) != nil {
		return
	}
	buf := make([]byte, 1024)
	for range 64 {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// authorized compares in constant time.
func (s *server) authorized(username, password string) bool {
	same := func(a, b string) int {
		x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
		return subtle.ConstantTimeCompare(x[:], y[:])
	}
	return same(username, s.cfg.Username)&same(password, s.cfg.Password) == 1
}

func (s *server) secured() bool { return s.cfg.Username != "" || s.cfg.Password != "" }

// resolve finds the device of a host. It errs with a *refusal.
func (s *server) resolve(host string) (peer string, err error) {
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	addr, parseErr := netip.ParseAddr(host)
	ours := strings.HasSuffix(host, Domain)
	if parseErr == nil {
		ours = addr.Zone() == ""
		host = addr.Unmap().String()
	}
	if ours {
		if peer, ok := s.cfg.Resolve(host); ok {
			return peer, nil
		}
	}
	if ours && parseErr != nil {
		return "", refuse(repHostUnreachable, http.StatusBadGateway, "destination_not_found",
			"no paired device is called %s; kith devices lists their names", strings.TrimSuffix(host, Domain))
	}
	return "", refuse(repNotAllowed, http.StatusBadGateway, "http_request_denied",
		"%q is none of your devices, and kith proxy is no way to anywhere else: use it for NAME%s alone "+
			"(a browser does with the address /proxy.pac of this proxy in its proxy settings)", host, Domain)
}

// dial opens a connection to what a client named. It errs with a *refusal.
func (s *server) dial(ctx context.Context, protocol forward.Protocol, host string, port uint16) (net.Conn, error) {
	peer, err := s.resolve(host)
	if err == nil && port == 0 {
		err = refuse(repNotAllowed, http.StatusBadGateway, "http_request_denied", "0 is not a port")
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, protocol, peer, port)
	if err != nil {
		no := explain(err, peer, port)
		s.cfg.Logger.Info("proxy connection failed", "device", peer, "port", port, "err", err)
		return nil, no
	}
	return conn, nil
}

// A refusal is what a client is told.
type refusal struct {
	reply  byte   // of SOCKS5
	status int    // of HTTP
	kind   string // of the Proxy-Status field (RFC 9209 section 2.3)
	text   string
}

func (r *refusal) Error() string { return "proxy: " + r.text }

func refuse(reply byte, status int, kind, format string, args ...any) *refusal {
	return &refusal{reply: reply, status: status, kind: kind, text: fmt.Sprintf(format, args...)}
}

// windowsRefused is ECONNREFUSED on Windows, which package syscall does not translate.
const windowsRefused = syscall.Errno(10061)

// explain says what an error of Config.Dial means.
func explain(err error, peer string, port uint16) *refusal {
	switch {
	case errors.Is(err, forward.ErrDenied):
		return refuse(repNotAllowed, http.StatusForbidden, "http_request_denied",
			"%s does not let this device reach its port %d; on %s run: kith allow THIS-DEVICE %d (kith devices there shows its name)", peer, port, peer, port)
	case errors.Is(err, forward.ErrClosed), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, windowsRefused):
		return refuse(repRefused, http.StatusBadGateway, "connection_refused",
			"%s refused: nothing listens on its port %d, or it does not let this device reach it (on %s: kith allow THIS-DEVICE %d)", peer, port, peer, port)
	case errors.Is(err, ErrNotConnected), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EHOSTUNREACH):
		return refuse(repHostUnreachable, http.StatusBadGateway, "destination_unavailable",
			"%s is not connected: is kith up running there? kith status says what is tried", peer)
	}
	return refuse(repFailure, http.StatusBadGateway, "proxy_internal_error", "%s: %v", peer, err)
}

// asRefusal returns the refusal that err is.
func asRefusal(err error) *refusal {
	var no *refusal
	if errors.As(err, &no) {
		return no
	}
	return refuse(repFailure, http.StatusBadGateway, "proxy_internal_error", "%v", err)
}
