package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	socksclient "golang.org/x/net/proxy"

	"github.com/kithproject/kith/app/forward"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// laptopAddr is the tunnel address of the test's one device.
const laptopAddr = "fd4b:6974:6800::7"

// A world is the other devices: laptop's ports are services of this machine. Its port
// 81 is not allowed, 82 has no listener, 83 fails oddly; tablet is away.
type world struct {
	mu    sync.Mutex
	ports map[uint16]string // address of the service
	asked []string          // hosts
}

func (w *world) resolve(host string) (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, host)
	peer, ok := map[string]string{"laptop.kith": "laptop", laptopAddr: "laptop", "tablet.kith": "tablet"}[host]
	return peer, ok
}

func (w *world) dial(ctx context.Context, protocol forward.Protocol, peer string, port uint16) (net.Conn, error) {
	if peer != "laptop" {
		return nil, fmt.Errorf("dial %s: %w", peer, ErrNotConnected)
	}
	w.mu.Lock()
	to, ok := w.ports[port]
	w.mu.Unlock()
	switch {
	case ok:
		var d net.Dialer
		return d.DialContext(ctx, string(protocol), to)
	case port == 81:
		return nil, forward.ErrDenied
	case port == 82:
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	case port == 84:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, errors.New("odd failure")
}

// start serves a proxy until the test ends, and returns its address.
func start(t testing.TB, w *world, change func(*Config)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Resolve: w.resolve, Dial: w.dial, DialTimeout: time.Second}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// web is a service that tells what it was asked.
func web(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for name := range r.Header {
			if strings.HasPrefix(name, "Proxy-") || name == "X-Forwarded-For" {
				t.Errorf("the service sees %s", name)
			}
		}
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.URL, body)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// echo sends back what comes, and then its end.
func echo(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// TestCurl is what people will type.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	w := &world{ports: map[uint16]string{80: web(t)}}
	open := start(t, w, nil)
	locked := start(t, w, func(c *Config) { c.Username, c.Password = "me", "secret:word" })
	for _, c := range []struct {
		name string
		args []string
		want string // in the output
		code int    // of curl
	}{
		{"socks", []string{"--socks5-hostname", open, "http://laptop.kith/x"}, "GET laptop.kith /x", 0},
		{"socks, upper case and a dot", []string{"--socks5-hostname", open, "http://LAPTOP.kith./x"}, "GET LAPTOP.kith. /x", 0},
		{"socks, address", []string{"--socks5", open, "http://[" + laptopAddr + "]/x"}, "/x", 0},
		{"socks, the Internet", []string{"--socks5-hostname", open, "http://example.com/"}, "(2)", 97},
		{"socks, an address of the Internet", []string{"--socks5", open, "http://192.0.2.1/"}, "(2)", 97},
		{"socks, this machine", []string{"--noproxy", "", "--socks5-hostname", open, "http://localhost/"}, "(2)", 97},
		{"socks, unknown", []string{"--socks5-hostname", open, "http://phone.kith/"}, "(4)", 97},
		{"socks, away", []string{"--socks5-hostname", open, "http://tablet.kith/"}, "(4)", 97},
		{"socks, not allowed", []string{"--socks5-hostname", open, "http://laptop.kith:81/"}, "(2)", 97},
		{"socks, no listener", []string{"--socks5-hostname", open, "http://laptop.kith:82/"}, "(5)", 97},
		{"socks, no answer", []string{"--socks5-hostname", open, "http://laptop.kith:84/"}, "(4)", 97},
		{"socks, odd", []string{"--socks5-hostname", open, "http://laptop.kith:83/"}, "(1)", 97},
		{"socks4", []string{"--socks4a", open, "http://laptop.kith/"}, "", 97},
		{"http", []string{"--proxy", "http://" + open, "http://laptop.kith/x?y"}, "GET laptop.kith /x?y", 0},
		{"http, post", []string{"--proxy", "http://" + open, "--data", "body", "http://laptop.kith/x"}, "POST laptop.kith /x body", 0},
		{"http, tunnel", []string{"--proxytunnel", "--proxy", "http://" + open, "http://laptop.kith/x"}, "GET laptop.kith /x", 0},
		{"http, address", []string{"--proxy", "http://" + open, "http://[" + laptopAddr + "]/x"}, "/x", 0},
		{"http, the Internet", []string{"--proxy", "http://" + open, "http://example.com/"}, "no way to anywhere else", 0},
		{"http, this machine", []string{"--noproxy", "", "--proxy", "http://" + open, "http://127.0.0.1/"}, "no way to anywhere else", 0},
		{"http, the Internet, tunnel", []string{"--proxytunnel", "--proxy", "http://" + open, "http://example.com/"}, "502", 56},
		{"http, unknown", []string{"--proxy", "http://" + open, "http://phone.kith/"}, "no paired device is called phone", 0},
		{"http, away", []string{"--proxy", "http://" + open, "http://tablet.kith/"}, "tablet is not connected", 0},
		{"http, not allowed", []string{"--proxy", "http://" + open, "http://laptop.kith:81/"}, "kith allow THIS-DEVICE 81", 0},
		{"http, no listener", []string{"--proxy", "http://" + open, "http://laptop.kith:82/"}, "nothing listens on its port 82", 0},
		{"http, no proxy", []string{"http://" + open + "/"}, "this is a proxy", 0},
		{"browser settings", []string{"http://" + open + "/proxy.pac"}, "PROXY " + open, 0},
		{"password", []string{"--proxy", "socks5h://me:secret:word@" + locked, "http://laptop.kith/x"}, "GET laptop.kith /x", 0},
		{"password, http", []string{"--proxy", "http://me:secret:word@" + locked, "http://laptop.kith/x"}, "GET laptop.kith /x", 0},
		{"password, tunnel", []string{"--proxytunnel", "--proxy", "http://me:secret:word@" + locked, "http://laptop.kith/x"}, "GET laptop.kith /x", 0},
		{"password nobody asks for", []string{"--proxy", "socks5h://me:secret@" + open, "http://laptop.kith/x"}, "GET laptop.kith /x", 0},
		{"no password", []string{"--socks5-hostname", locked, "http://laptop.kith/x"}, "", 97},
		{"wrong password", []string{"--proxy", "socks5h://me:guess@" + locked, "http://laptop.kith/x"}, "", 97},
		{"no password, http", []string{"--proxy", "http://" + locked, "http://laptop.kith/x"}, "username and password", 0},
		{"wrong password, http", []string{"--proxy", "http://me:guess@" + locked, "http://laptop.kith/x"}, "username and password", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"--silent", "--show-error", "--disable", "--max-time", "20"}, c.args...)
			cmd := exec.CommandContext(t.Context(), curl, args...)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			code := 0
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != c.code || !strings.Contains(string(out), c.want) {
				t.Errorf("curl %s: exit %d, want %d: %q, want %q", strings.Join(c.args, " "), code, c.code, out, c.want)
			}
		})
	}
	for _, host := range w.asked {
		if !strings.HasSuffix(host, Domain) && net.ParseIP(host) == nil {
			t.Errorf("was asked for %q", host)
		}
	}
}

// client is Go's HTTP client behind a proxy.
func client(t *testing.T, proxy string) *http.Client {
	t.Helper()
	u, err := url.Parse(proxy)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(u)}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func get(t *testing.T, c *http.Client, url string) (int, string, http.Header) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestGoClient(t *testing.T) {
	w := &world{ports: map[uint16]string{8080: web(t)}}
	var counters forward.Counters
	at := start(t, w, func(c *Config) { c.Counters = &counters })
	for _, scheme := range []string{"http", "socks5", "socks5h"} {
		c := client(t, scheme+"://"+at)
		for range 3 { // on one connection
			if code, body, _ := get(t, c, "http://laptop.kith:8080/a"); code != 200 || body != "GET laptop.kith:8080 /a " {
				t.Errorf("%s: %d %q", scheme, code, body)
			}
		}
	}
	if tr := counters.Traffic(); tr.Total != 3 || tr.Sent == 0 || tr.Received == 0 {
		t.Errorf("counted %+v, want 3 connections", tr)
	}
	c := client(t, "http://"+at)
	for _, want := range []struct {
		url, status string
		code        int
	}{
		{"http://laptop.kith:81/", "kith; error=http_request_denied", http.StatusForbidden},
		{"http://laptop.kith:82/", "kith; error=connection_refused", http.StatusBadGateway},
		{"http://tablet.kith/", "kith; error=destination_unavailable", http.StatusBadGateway},
		{"http://phone.kith/", "kith; error=destination_not_found", http.StatusBadGateway},
		{"http://kith/", "kith; error=http_request_denied", http.StatusBadGateway},
		{"http://laptop.kith.example.com/", "kith; error=http_request_denied", http.StatusBadGateway},
	} {
		code, body, header := get(t, c, want.url)
		if code != want.code || header.Get("Proxy-Status") != want.status || !strings.HasPrefix(body, "kith: ") {
			t.Errorf("%s: %d %q %q, want %d %q", want.url, code, header.Get("Proxy-Status"), body, want.code, want.status)
		}
	}
	// CONNECT, as for https: what comes after it is the service's own.
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "sealed") }))
	defer tls.Close()
	w.mu.Lock()
	w.ports[443] = tls.Listener.Addr().String()
	w.mu.Unlock()
	for _, scheme := range []string{"http", "socks5h"} {
		c := client(t, scheme+"://"+at)
		conf := tls.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		conf.ServerName = "example.com" // which the test server's certificate has
		c.Transport.(*http.Transport).TLSClientConfig = conf
		if code, body, _ := get(t, c, "https://laptop.kith/"); code != 200 || body != "sealed" {
			t.Errorf("%s: %d %q", scheme, code, body)
		}
	}
}

// TestHalfClose sends, ends, and reads, through golang.org/x/net/proxy and CONNECT.
func TestHalfClose(t *testing.T) {
	at := start(t, &world{ports: map[uint16]string{7: echo(t)}}, nil)
	want := bytes.Repeat([]byte("kith"), 1<<20)
	dialSocks := func(t *testing.T) net.Conn {
		d, err := socksclient.SOCKS5("tcp", at, &socksclient.Auth{User: "any", Password: "any"}, socksclient.Direct)
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.Dial("tcp", "laptop.kith:7")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	dialConnect := func(t *testing.T) net.Conn {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		// The first bytes come with the request, as an eager client may send them.
		if _, err := io.WriteString(c, "CONNECT laptop.kith:7 HTTP/1.1\r\nHost: laptop.kith:7\r\n\r\neager"); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, len("HTTP/1.1 200 Connection established\r\n\r\neager"))
		if _, err := io.ReadFull(c, head); err != nil || !strings.HasSuffix(string(head), "\r\n\r\neager") {
			t.Fatalf("%q, %v", head, err)
		}
		return c
	}
	for name, dial := range map[string]func(*testing.T) net.Conn{"socks": dialSocks, "connect": dialConnect} {
		t.Run(name, func(t *testing.T) {
			c := dial(t)
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = c.Write(want)
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
			}
		})
	}
}

// TestLoopbackOnly refuses a listener that others can reach, unless asked.
func TestLoopbackOnly(t *testing.T) {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), ln, Config{}); !errors.Is(err, ErrPublic) {
		t.Errorf("got %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
	if ln, err = net.Listen("tcp", ":0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, ln, Config{Public: true}); err != nil {
		t.Errorf("got %v", err)
	}
}

// TestHostile sends what no client would.
func TestHostile(t *testing.T) {
	w := &world{ports: map[uint16]string{80: web(t)}}
	at := start(t, w, func(c *Config) { c.HandshakeTimeout = 300 * time.Millisecond })
	for name, send := range map[string]string{
		"nothing":                "",
		"half a greeting":        "\x05",
		"methods missing":        "\x05\xff\x00",
		"no method fits":         "\x05\x01\x01",
		"half a request":         "\x05\x01\x00\x05\x01",
		"another version":        "\x05\x01\x00\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
		"an empty name":          "\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50",
		"a name of bytes":        "\x05\x01\x00\x05\x01\x00\x03\x04a\x00.b\x00\x50",
		"an address type":        "\x05\x01\x00\x05\x01\x00\x09\x00\x00",
		"bind":                   "\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50",
		"port 0":                 "\x05\x01\x00\x05\x01\x00\x03\x0blaptop.kith\x00\x00",
		"tls":                    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"half a line":            "GET http://laptop.kith/",
		"a header without end":   "GET http://laptop.kith/ HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*maxHeader),
		"many headers":           "GET http://laptop.kith/ HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", maxHeader/3),
		"connect without a port": "CONNECT laptop.kith HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"connect to port 0":      "CONNECT laptop.kith:0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"another scheme":         "GET ftp://laptop.kith/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a name of the rebound":  "GET / HTTP/1.1\r\nHost: laptop.kith\r\nConnection: close\r\n\r\n",
		"http 2":                 "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"two lengths":            "POST http://laptop.kith/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nx",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, send) // the proxy may end it before it is all sent
			got, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("was not ended; it said %q", got)
			}
			if len(got) > 1 && got[0] == socksVersion && len(got) > 3 && got[3] == repSucceeded {
				t.Errorf("was served: %q", got)
			}
			if bytes.HasPrefix(got, []byte("HTTP/1.1 2")) {
				t.Errorf("was served: %q", got)
			}
		})
	}
}

// TestClientsAreBounded refuses more clients than there may be.
func TestClientsAreBounded(t *testing.T) {
	at := start(t, &world{}, func(c *Config) { c.MaxConns = 1 })
	first, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := net.Dial("tcp", at)
	if err != nil {
		return // refused before the dial was done
	}
	defer second.Close()
	if err := second.SetDeadline(time.Now().Add(patience / 4)); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want a reset", err)
	}
}

// TestServeEndsWithItsContext ends while connections of each kind are open.
func TestServeEndsWithItsContext(t *testing.T) {
	hanging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer hanging.Close()
	w := &world{ports: map[uint16]string{80: hanging.Listener.Addr().String(), 7: echo(t)}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, Config{Resolve: w.resolve, Dial: w.dial}) }()
	var conns []net.Conn
	for _, send := range []string{
		"", "G", "\x05", "\x05\x01\x00\x05\x01\x00\x03\x0blaptop.kith\x00\x07", "\x05\x01\x00\x05\x01\x00\x03\x0blaptop.kith\x00\x54",
		"\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00",
		"CONNECT laptop.kith:7 HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://laptop.kith/ HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://laptop.kith:84/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, send)
		conns = append(conns, c)
	}
	for _, i := range []int{3, 5, 6, 7} { // these are served by now
		if _, err := conns[i].Read(make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Serve does not end")
	}
}
