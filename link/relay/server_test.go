package relay

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"github.com/pion/turn/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testUser     = "kith"
	testPassword = "correct horse"
	testRealm    = "test.invalid"
)

// A testServer is pion's TURN server on loopback, over UDP, TCP and TLS.
type testServer struct {
	ip     netip.Addr
	turn   *turn.Server
	ports  [3]uint16 // by transport
	tls    *tls.Config
	lns    []*trackingListener
	closed sync.Once
}

// A trackingListener can cut what it accepted, which pion's server does not.
type trackingListener struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *trackingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *trackingListener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
}

// newServer starts a server; change may alter its configuration. It skips the
// test if this machine lacks the address.
func newServer(t testing.TB, ip string, change func(*turn.ServerConfig)) *testServer {
	t.Helper()
	return newServerAt(t, ip, 0, change)
}

func newServerAt(t testing.TB, ip string, udpPort uint16, change func(*turn.ServerConfig)) *testServer {
	t.Helper()
	s := &testServer{ip: netip.MustParseAddr(ip), tls: certificate(t, ip)}
	gen := &turn.RelayAddressGeneratorStatic{RelayAddress: net.ParseIP(ip), Address: ip}
	pc, err := net.ListenPacket("udp", net.JoinHostPort(ip, strconv.Itoa(int(udpPort))))
	if err != nil {
		t.Skipf("no %s here: %v", ip, err)
	}
	_ = pc.(*net.UDPConn).SetReadBuffer(socketBuffer)
	s.ports[overUDP] = netip.MustParseAddrPort(pc.LocalAddr().String()).Port()
	cfg := turn.ServerConfig{
		Realm: testRealm,
		AuthHandler: func(ra *turn.RequestAttributes) (string, []byte, bool) {
			return ra.Username, turn.GenerateAuthKey(ra.Username, ra.Realm, testPassword), ra.Username == testUser
		},
		PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: pc, RelayAddressGenerator: gen}},
	}
	for _, via := range []transport{overTCP, overTLS} {
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		s.ports[via] = netip.MustParseAddrPort(ln.Addr().String()).Port()
		tracking := &trackingListener{Listener: ln}
		s.lns = append(s.lns, tracking)
		ln = tracking
		if via == overTLS {
			ln = tls.NewListener(ln, s.tls)
		}
		cfg.ListenerConfigs = append(cfg.ListenerConfigs, turn.ListenerConfig{Listener: ln, RelayAddressGenerator: gen})
	}
	if change != nil {
		change(&cfg)
	}
	if s.turn, err = turn.NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

// kill ends the server without a word.
func (s *testServer) kill() {
	s.closed.Do(func() {
		_ = s.turn.Close()
		for _, l := range s.lns {
			l.cut()
		}
	})
}

func (s *testServer) url(via transport) string {
	host := net.JoinHostPort(s.ip.String(), strconv.Itoa(int(s.ports[via])))
	return [...]string{"turn:" + host, "turn:" + host + "?transport=tcp", "turns:" + host}[via]
}

func (s *testServer) config(via transport) Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.tls.Certificates[0].Leaf)
	return Config{URL: s.url(via), User: testUser, Password: testPassword, TLS: &tls.Config{RootCAs: pool}}
}

// certificate makes a self-signed one.
func certificate(t testing.TB, ip string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"}, IPAddresses: []net.IP{net.ParseIP(ip)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}}
}

// A received is one packet that came through.
type received struct {
	from   netip.AddrPort
	packet []byte
}

// An inbox takes what a relay receives.
type inbox chan received

func (i inbox) receive(from netip.AddrPort, packet []byte) {
	i <- received{from, bytes.Clone(packet)}
}

// next waits for a packet.
func (i inbox) next(t testing.TB) received {
	t.Helper()
	select {
	case r := <-i:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("nothing received for 10 s")
	}
	return received{}
}

// open dials with the given timing and an inbox.
func open(t testing.TB, cfg Config, change func(*timing)) (*Relay, inbox) {
	t.Helper()
	in := make(inbox, 1024)
	if cfg.Receive == nil {
		cfg.Receive = in.receive
	}
	s, err := parseURL(cfg.URL)
	if err != nil {
		t.Fatal(err)
	}
	times := timingOf(s.via)
	if change != nil {
		change(&times)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := dial(ctx, cfg, s, times, systemLookup)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, in
}

// await waits for the end of a relay, and returns after how long it came.
func await(t testing.TB, r *Relay, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	select {
	case <-r.Done():
	case <-time.After(limit):
		t.Fatalf("not lost within %v", limit)
	}
	return time.Since(start)
}

// send sends packets, or ends the test.
func send(t testing.TB, r *Relay, to netip.AddrPort, packets ...[]byte) {
	t.Helper()
	if err := r.Send(packets, to); err != nil {
		t.Fatal(err)
	}
}

// opened waits until a peer has a way.
func opened(t testing.TB, r *Relay, to netip.AddrPort) *peer {
	t.Helper()
	send(t, r, to)
	p := r.peers.find(to)
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if w := p.way.Load(); w == wayChannel || w == wayIndication {
			return p
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("no way to %v: %d", to, p.way.Load())
		}
	}
}

// A proxy stands between a client and a server's UDP port, and loses what it is
// told to.
type proxy struct {
	front *net.UDPConn
	lose  atomic.Pointer[func(frame []byte, up bool) bool]
	wg    sync.WaitGroup
}

func newProxy(t testing.TB, s *testServer) *proxy {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.ip, s.ports[overUDP])))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{front: front}
	var client atomic.Pointer[netip.AddrPort]
	lost := func(b []byte, up bool) bool {
		f := p.lose.Load()
		return f != nil && (*f)(b, up)
	}
	p.wg.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			n, from, err := front.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			client.Store(&from)
			if !lost(buf[:n], true) {
				_, _ = back.Write(buf[:n])
			}
		}
	})
	p.wg.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			n, err := back.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if to := client.Load(); err == nil && to != nil && !lost(buf[:n], false) {
				_, _ = front.WriteToUDPAddrPort(buf[:n], *to)
			}
		}
	})
	t.Cleanup(func() {
		_, _ = front.Close(), back.Close()
		p.wg.Wait()
	})
	return p
}

// filter says what is lost from now on; nil: nothing.
func (p *proxy) filter(f func(frame []byte, up bool) bool) {
	if f == nil {
		p.lose.Store(nil)
		return
	}
	p.lose.Store(&f)
}

func (p *proxy) url() string { return "turn:" + p.front.LocalAddr().String() }

// is tells a message of a method, whatever its class.
func is(frame []byte, m stun.Method) bool {
	var typ stun.MessageType
	if !isSTUN(frame) {
		return false
	}
	typ.ReadValue(binary.BigEndian.Uint16(frame))
	return typ.Method == m
}
