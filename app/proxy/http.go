package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"time"

	"github.com/kithproject/kith/app/forward"
)

const (
	maxHeader   = 64 << 10 // bytes of a client's header
	maxAnswer   = 1 << 20  // bytes of a service's header
	idleTimeout = time.Minute
	copyBuffer  = 32 << 10 // bytes
)

// serveHTTP begins to serve what handle finds to be HTTP; end stops it, when no
// client is left.
func (s *server) serveHTTP(ctx context.Context, addr net.Addr) (end func()) {
	transport := &http.Transport{
		DialContext: func(dialing context.Context, _, address string) (net.Conn, error) {
			dialing, cancel := context.WithCancel(dialing)
			defer cancel()
			defer context.AfterFunc(ctx, cancel)()
			return s.dialHTTP(dialing, address)
		},
		DisableCompression:     true, // what the service sends is passed on
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxAnswer,
	}
	quiet := slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug)
	s.reverse = &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     transport,
		FlushInterval: -1, // each piece at once: a stream of events waits for nothing
		BufferPool:    &buffers{},
		ErrorLog:      quiet,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, err error) { writeRefusal(w, asRefusal(err)) },
	}
	s.http = &httpListener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{
		Handler:                      http.HandlerFunc(s.answer),
		ReadHeaderTimeout:            s.cfg.HandshakeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     quiet,
		BaseContext:                  func(net.Listener) context.Context { return ctx },
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(s.http) }) // ends with the listener
	return func() {
		srv.Close()
		wg.Wait()
		transport.CloseIdleConnections()
	}
}

// rewrite makes of the request to the proxy the one to the service: the same, but for
// the fields that are between client and proxy, which ReverseProxy drops.
func rewrite(r *httputil.ProxyRequest) {
	r.Out.Host = r.In.Host
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, is := r.In.Header[name]; is {
			r.Out.Header[name] = values
		}
	}
}

// buffers are what ReverseProxy copies through.
type buffers struct{ pool sync.Pool }

// Get returns a buffer.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, copyBuffer)
}

// Put takes a buffer back.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// dialHTTP dials what an HTTP client wrote as host:port. It errs with a *refusal.
func (s *server) dialHTTP(ctx context.Context, hostPort string) (net.Conn, error) {
	host, port, err := splitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	conn, err := s.dial(ctx, forward.TCP, host, port)
	if err != nil {
		return nil, err
	}
	return s.cfg.Counters.Conn(conn), nil
}

// splitHostPort errs with a *refusal.
func splitHostPort(hostPort string) (string, uint16, error) {
	host, portText, err := net.SplitHostPort(hostPort)
	port, err2 := strconv.ParseUint(portText, 10, 16)
	if err != nil || err2 != nil || port == 0 {
		return "", 0, refuse(repFailure, http.StatusBadRequest, "http_request_error", "%q is not HOST:PORT", hostPort)
	}
	return host, uint16(port), nil
}

// answer is the handler of all requests.
func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodConnect && r.URL.Host == "" && r.URL.Path == "/proxy.pac":
		writePAC(w, r)
	case r.Method != http.MethodConnect && r.URL.Host == "":
		writeRefusal(w, refuse(0, http.StatusBadRequest, "http_request_error",
			"this is a proxy, not a web server: a program is to use it for http://NAME%s/ (set http_proxy=http://%s)", Domain, s.http.addr))
	case s.secured() && !s.authorizedHTTP(r):
		w.Header().Set("Proxy-Authenticate", `Basic realm="kith proxy", charset="UTF-8"`)
		writeRefusal(w, refuse(0, http.StatusProxyAuthRequired, "http_request_denied", "the proxy wants its username and password"))
	case r.Method == http.MethodConnect:
		s.connect(w, r)
	case r.URL.Scheme != "http":
		writeRefusal(w, refuse(0, http.StatusNotImplemented, "http_request_error", "for %s:// use CONNECT", r.URL.Scheme))
	default:
		s.reverse.ServeHTTP(w, r)
	}
}

func (s *server) authorizedHTTP(r *http.Request) bool {
	// Request.BasicAuth reads the field of the service; this is the proxy's.
	as := http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	username, password, ok := as.BasicAuth()
	return ok && s.authorized(username, password)
}

// connect carries a connection (RFC 9110 section 9.3.6).
func (s *server) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := splitHostPort(r.Host)
	if err != nil {
		writeRefusal(w, asRefusal(err))
		return
	}
	far, err := s.dial(r.Context(), forward.TCP, host, port)
	if err != nil {
		writeRefusal(w, asRefusal(err))
		return
	}
	defer far.Close()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeRefusal(w, asRefusal(err))
		return
	}
	defer conn.Close()
	near, err := established(conn, rw.Reader, far)
	if err != nil {
		return
	}
	s.cfg.Counters.Carry(r.Context(), near, far)
}

// established tells the client, and passes on what it said already. It errs if either
// side has gone.
func established(conn net.Conn, in *bufio.Reader, far net.Conn) (net.Conn, error) {
	if err := conn.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return nil, err
	}
	if n := in.Buffered(); n > 0 {
		said, err := in.Peek(n)
		if err != nil {
			return nil, err
		}
		if _, err := far.Write(said); err != nil {
			return nil, err
		}
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if handed, ok := conn.(*handedConn); ok && handed.first == nil {
		return handed.Conn, nil // the socket itself, for which there are shorter ways
	}
	return conn, nil
}

func writeRefusal(w http.ResponseWriter, no *refusal) {
	w.Header().Set("Proxy-Status", "kith; error="+no.kind)
	http.Error(w, "kith: "+no.text, no.status)
}

// writePAC answers with settings for browsers, which use the proxy for devices alone.
func writePAC(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr) // http.Server sets it
	w.Header().Set("Content-Type", "application/x-ns-proxy-autoconfig")
	fmt.Fprintf(w, "function FindProxyForURL(url, host) {\n\treturn dnsDomainIs(host, %q) ? \"PROXY %s\" : \"DIRECT\";\n}\n", Domain, local)
}

// An httpListener is where the HTTP server finds its connections.
type httpListener struct {
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

// hand gives a connection, of which the first byte was read, to the server, and waits
// until it is closed.
func (l *httpListener) hand(ctx context.Context, conn net.Conn, first byte) {
	if conn.SetDeadline(time.Time{}) != nil {
		return
	}
	c := &handedConn{Conn: conn, first: []byte{first}, over: make(chan struct{})}
	select {
	case l.conns <- c:
		<-c.over
	case <-ctx.Done():
	case <-l.closed:
	}
}

// Accept returns the next connection.
func (l *httpListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *httpListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns where the proxy listens.
func (l *httpListener) Addr() net.Addr { return l.addr }

// A handedConn is a connection whose first byte has been read.
type handedConn struct {
	net.Conn
	first []byte
	once  sync.Once
	over  chan struct{}
}

func (c *handedConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 && len(b) > 0 {
		b[0], c.first = c.first[0], nil
		return 1, nil
	}
	return c.Conn.Read(b)
}

// CloseWrite ends the sending side alone, where the connection can.
func (c *handedConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close closes the connection, and lets hand return.
func (c *handedConn) Close() error {
	defer c.once.Do(func() { close(c.over) })
	return c.Conn.Close()
}
