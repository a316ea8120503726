package hub

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
)

// TestSniff tells protocols by their first bytes.
func TestSniff(t *testing.T) {
	for head, want := range map[string]protocol{
		"\x16\x03\x01": protoTLS, "\x10": protoMQTT, "\x00\x01": protoSTUN, "\x03": protoSTUN, "GET ": protoHTTP,
		"\x13/mu": protoWaku, "KML1": protoMail, "KDB1": protoDialBack, "KXX1": protoUnknown, "KDBx": protoUnknown, "\x13/mq": protoUnknown, "\x13\x00": protoUnknown,
		"\x04": protoUnknown, "POST": protoUnknown, "GEX ": protoUnknown, "\x80": protoUnknown, "SSH-": protoUnknown, "\x20": protoUnknown,
	} {
		if got, more := sniff([]byte(head)); got != want || more != 0 {
			t.Errorf("%q: %v, %d more", head, got, more)
		}
	}
	for head, want := range map[string]int{"": 1, "G": 3, "GE": 2, "GET": 1, "\x13": 3, "\x13/m": 1, "K": 3, "KD": 2, "KML": 1} {
		if got, more := sniff([]byte(head)); got != protoUnknown || more != want {
			t.Errorf("%q: %v, %d more, want %d", head, got, more, want)
		}
	}
}

// readConn is a connection that only reads.
type readConn struct {
	net.Conn
	io.Reader
}

func (c readConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// FuzzSniff holds that the sniffer never looks at more than it says, and that
// what it looked at is read again, however the bytes come in.
func FuzzSniff(f *testing.F) {
	for _, s := range []string{"", "\x16\x03\x01\x02", "\x10\x0c\x00\x04MQTT", "\x00\x01\x00\x00\x21\x12\xa4\x42", "GET / HTTP/1.1\r\n\r\n", "GEG", "\x13/multistream/1.0.0\n", "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var first protocol
		for i, r := range []io.Reader{bytes.NewReader(data), iotest.OneByteReader(bytes.NewReader(data)), iotest.DataErrReader(bytes.NewReader(data))} {
			s := &stream{Conn: readConn{Reader: r}}
			p := s.sniff()
			if i == 0 {
				first = p
			} else if p != first {
				t.Errorf("%q: %v and %v", data, first, p)
			}
			if p == protoTLS && data[0] != 0x16 || p == protoMQTT && data[0] != 0x10 || p == protoSTUN && data[0] > 3 ||
				p == protoHTTP && !bytes.HasPrefix(data, []byte("GET ")) || p == protoWaku && !bytes.HasPrefix(data, []byte("\x13/mu")) {
				t.Errorf("%q is taken for %v", data, p)
			}
			if rest, err := io.ReadAll(s); err != nil || !bytes.Equal(rest, data) {
				t.Errorf("%q is read as %q: %v", data, rest, err)
			}
		}
	})
}

// FuzzTURNFrames holds that the relay's library only ever sees whole frames of a
// sane length from a TCP client.
func FuzzTURNFrames(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa"))
	f.Add([]byte("\x40\x00\x00\x05hello\x00\x00\x00\x40\x01\x00\x00"))
	f.Add([]byte("\x00\x03\xff\xec\x21\x12\xa4\x42aaaaaaaaaaaa")) // 20 more wrap around to 0
	f.Add([]byte("\x50\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &turnConn{Conn: quietConn{readConn{Reader: bytes.NewReader(data)}}, t: &turnServer{m: newMeters(), tcpLogins: newSources(loginRate, loginBurst)}}
		got, err := io.ReadAll(c)
		if !bytes.HasPrefix(data, got) {
			t.Fatalf("%x is read as %x", data, got)
		}
		for rest := got; len(rest) >= 4; {
			n, ok := frameLength([4]byte(rest))
			if !ok || n < 4 || n >= maxDatagram {
				t.Fatalf("a frame of %d bytes passed: %x", n, rest)
			}
			rest = rest[min(n, len(rest)):]
		}
		if err == nil && len(got) <= len(data)-stunHeader { // a header cut off is not passed on
			t.Fatalf("%d of %d bytes without an error", len(got), len(data))
		}
	})
}

// quietConn takes deadlines for what has none.
type quietConn struct{ readConn }

func (quietConn) SetReadDeadline(time.Time) error { return nil }

// send opens a connection, writes, and returns what comes back until the end.
func send(t *testing.T, h *Hub, data string) (string, error) {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", h.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(data)); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(testLimit))
	out, err := io.ReadAll(c)
	return string(out), err
}

// TestGarbage holds that what is no protocol is cut off at once, and that the hub
// goes on.
func TestGarbage(t *testing.T) {
	h := open(t, nil)
	for name, data := range map[string]string{
		"random":             "\xde\xad\xbe\xef",
		"ssh":                "SSH-2.0-x\r\n",
		"post":               "POST / HTTP/1.1\r\n\r\n",
		"tls garbage":        "\x16\x03\x01\x00\x05hello",
		"tls alert":          "\x15\x03\x01\x00\x02\x01\x00",
		"mqtt garbage":       "\x10\x02xx",
		"mqtt huge":          "\x10\xff\xff\xff\x7f",
		"mqtt bad length":    "\x10\xff\xff\xff\xff\xff",
		"stun no cookie":     "\x00\x01\x00\x00aaaaaaaaaaaaaaaa",
		"stun wraps around":  "\x00\x01\xff\xec\x21\x12\xa4\x42aaaaaaaaaaaa",
		"stun odd length":    "\x00\x01\x00\x03\x21\x12\xa4\x42aaaaaaaaaaaa",
		"turn unknown":       "\x00\x03\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa\x7f\xff\xff\xff",
		"http garbage":       "GET \x00\x00\r\n\r\n",
		"http header":        "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 64<<10) + "\r\n\r\n",
		"websocket elsewise": "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
	} {
		start := time.Now()
		if _, err := send(t, h, data); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: still open", name)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	if metric(h, `kith_hub_drops_total{reason="garbage"}`) < 4 || metric(h, `kith_hub_drops_total{reason="frame"}`) < 2 {
		t.Error("garbage was not counted")
	}
	dialMQTT(t, h, h.Address().MQTTURLs()[0], nil)
}

// TestNestedTLS refuses TLS in TLS.
func TestNestedTLS(t *testing.T) {
	h := open(t, nil)
	c, err := tls.Dial("tcp", h.hostPort(), h.Address().TLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("\x16\x03\x01\x00\x05hello")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(testLimit))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("still open: %v", err)
	}
}

// TestSlowClients holds that those who say nothing, or little by little, are cut
// off after five seconds, or ten where a first step was made, and keep nobody
// waiting meanwhile.
func TestSlowClients(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes eleven seconds")
	}
	t.Parallel()
	h := open(t, nil)
	starts := map[string]string{
		"silent": "", "half of GET": "GE", "half a hello": "\x16\x03\x01\x02\x00\x01", "half a connect": "\x10\x20\x00\x04",
		"half a request": "GET /healthz HTTP/1.1\r\nHost", "stun and no more": "\x00\x01\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa",
	}
	type result struct {
		name string
		err  error
		took time.Duration
	}
	results := make(chan result, len(starts))
	start := time.Now()
	for name, data := range starts {
		c, err := net.Dial("tcp", h.hostPort())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = c.SetReadDeadline(start.Add(testLimit))
			_, err := io.Copy(io.Discard, c)
			results <- result{name, err, time.Since(start)}
		}()
	}
	dialMQTT(t, h, h.Address().MQTTURLs()[0], nil)
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("another client had to wait for %v", took)
	}
	for range starts {
		if r := <-results; errors.Is(r.err, os.ErrDeadlineExceeded) || r.took > turnFirst+2*time.Second {
			t.Errorf("%s: cut off after %v: %v", r.name, r.took, r.err)
		}
	}
}

// TestConnLimits holds that one address, and all, have so many connections, and
// that places are given back.
func TestConnLimits(t *testing.T) {
	for reason, change := range map[string]func(*Config){
		"per_ip": func(c *Config) { c.MaxConnsPerIP = 3 },
		"full":   func(c *Config) { c.MaxConns = 3 },
	} {
		t.Run(reason, func(t *testing.T) {
			h := open(t, change)
			var held []net.Conn
			for range 3 {
				c, err := net.Dial("tcp", h.hostPort())
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, c)
			}
			await(t, "three connections", func() bool { return metric(h, "kith_hub_connections") == 3 })
			if _, err := send(t, h, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil && metric(h, `kith_hub_drops_total{reason="`+reason+`"}`) == 0 {
				t.Error("a fourth connection was taken")
			}
			await(t, "the refusal counted", func() bool { return metric(h, `kith_hub_drops_total{reason="`+reason+`"}`) == 1 })
			for _, c := range held {
				_ = c.Close()
			}
			await(t, "places given back", func() bool { return metric(h, "kith_hub_connections") == 0 })
			if out, err := send(t, h, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || !strings.HasSuffix(out, "ok\n") {
				t.Errorf("%q %v", out, err)
			}
		})
	}
}

// TestIPKey counts IPv4 by address and IPv6 by network.
func TestIPKey(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		if got := ipKey(netip.MustParseAddr(a)); got.String() != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}

// TestCloseIsBounded closes a hub with clients of every kind that do nothing, one
// of which never reads.
func TestCloseIsBounded(t *testing.T) {
	h := open(t, nil)
	for _, data := range []string{"", "\x10", "\x16", "G", "\x00\x01\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa"} {
		c, err := net.Dial("tcp", h.hostPort())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	c := dialMQTT(t, h, "mqtt://"+h.hostPort(), func(c *autopaho.ClientConfig) { c.KeepAlive = 3600 })
	topic := randomTopic()
	c.subscribe(t, topic)
	user, password := turnUser(h, "desk", time.Hour)
	allocate(t, turnDial(t, h, "tls", user, password))
	start := time.Now()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > closeGrace+2*time.Second {
		t.Errorf("took %v", took)
	}
	if err := h.Close(); err != nil {
		t.Errorf("the second time: %v", err)
	}
}
