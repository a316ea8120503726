package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/turn/v5"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/relay"
)

// fakeTURN serves TURN on loopback over UDP, for the user kith with the password right.
func fakeTURN(t *testing.T, change func(*turn.ServerConfig)) string {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := turn.ServerConfig{
		Realm: "test.invalid",
		AuthHandler: func(ra *turn.RequestAttributes) (string, []byte, bool) {
			return ra.Username, turn.GenerateAuthKey(ra.Username, ra.Realm, "right"), ra.Username == "kith"
		},
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn: pc, RelayAddressGenerator: &turn.RelayAddressGeneratorStatic{RelayAddress: net.IPv4(127, 0, 0, 1), Address: "127.0.0.1"},
		}},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := turn.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return "turn:" + pc.LocalAddr().String()
}

func turnEnv(cfgs ...relay.Config) *Env { return &Env{TURN: cfgs} }

func TestServers(t *testing.T) {
	env := turnEnv(relay.Config{URL: "turn:a.example"}, relay.Config{URL: "turns:b.example:5349"}, relay.Config{URL: "turn:[2001:db8::1]:99?transport=tcp"},
		relay.Config{URL: "nonsense"}, relay.Config{URL: "turn:a.example"})
	env.Hubs = []hubaddr.Address{{Host: "hub.example", Port: 443, AltPort: 444, Access: hubaddr.Access{1}}}
	want := []string{"hub hub.example:443", "turn:a.example", "turns:b.example:5349", "turn:[2001:db8::1]:99?transport=tcp"}
	if got := serverNames(env); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%q, want %q", got, want)
	}
	for name, want := range map[string]string{
		"hub hub.example:443": "hub.example 443 udp true tcp true tls true 3", "turn:a.example": "a.example 3478 udp true tcp false tls false 1",
		"turns:b.example:5349":                "b.example 5349 udp false tcp true tls true 1",
		"turn:[2001:db8::1]:99?transport=tcp": "2001:db8::1 99 udp false tcp true tls false 1",
	} {
		s, _ := serverNamed(env, name)
		if got := fmt.Sprintf("%s %d udp %v tcp %v tls %v %d", s.Host, s.Port, s.UDP, s.TCP, s.TLS != nil, len(s.ways)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if serverNames(new(Env)) == nil {
		t.Error("no subjects are the device as a whole")
	}
}

func TestRelayResolve(t *testing.T) {
	env := turnEnv(relay.Config{URL: "turn:gone.example"}, relay.Config{URL: "turn:here.example"}, relay.Config{URL: "turn:192.0.2.1"})
	env.lookup = zone(map[string][]string{"here.example": {"192.0.2.9"}})
	for subject, want := range map[string]answerCase{
		"turn:gone.example": {env, "name", "gone.example"}, "turn:here.example": {env, "yes", "192.0.2.9"}, "turn:192.0.2.1": {env, "yes", "192.0.2.1"}, "turn:other": {env, "unknown", ""},
	} {
		runCases(t, "relays.resolve", subject, map[string]answerCase{subject: want})
	}
}

const turnTCP = "turn:192.0.2.9:443?transport=tcp"

func TestRelayTCP(t *testing.T) {
	with := func(p tcpProbe, udp bool) *Env {
		env := turnEnv(relay.Config{URL: turnTCP})
		given(env, "tcp 192.0.2.9:443 false", p)
		if udp {
			env.Remember(factSeen, []sighting{sees("192.0.2.9:443", "10.0.0.2:7", "203.0.113.7:7")})
		}
		return env
	}
	runCases(t, "relays.tcp", turnTCP, map[string]answerCase{
		"connected": {with(connectedTCP, false), "yes", "connected to 192.0.2.9:443"},
		"refused":   {with(refusedTCP, false), "refused", "refuses the connection"},
		"silent":    {with(silentTCP, false), "silent", "nothing answers at its address"},
		"UDP alone": {with(silentTCP, true), "silent", "answers over UDP, but its TCP port does not"},
		"no route":  {with(tcpProbe{Err: errors.New("no route")}, false), "unknown", "no route"},
		"no DNS":    {with(tcpProbe{Err: &net.DNSError{Err: "timeout", IsTimeout: true}}, false), "unknown", "timeout"},
	})
	runCases(t, "relays.tcp", "turn:192.0.2.9", map[string]answerCase{"UDP server": {turnEnv(relay.Config{URL: "turn:192.0.2.9"}), "yes", "UDP alone"}})
}

// TestProbe connects to real listeners.
func TestProbe(t *testing.T) {
	h := newFakeHub(t, nil)
	if p := probeTCP(t.Context(), new(Env), h.addr.Host, h.addr.Port, h.addr.TLSConfig()); !p.proved() || p.Expiry.IsZero() {
		t.Errorf("a hub: %+v", p)
	}
	other := h.addr
	other.Pin[0]++
	p := probeTCP(t.Context(), new(Env), other.Host, other.Port, other.TLSConfig())
	if p.proved() || !p.connected() || p.tlsFinding(time.Now()) != "pin" {
		t.Errorf("another hub: %+v", p)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := tcpAddr(ln.Addr()).Port()
	_ = ln.Close()
	if p := probeTCP(t.Context(), new(Env), "127.0.0.1", port, nil); !p.refused() || p.silent() {
		t.Errorf("nobody: %+v", p)
	}
}

// handshakes is a server that shakes hands, and does no more.
func handshakes(t *testing.T, cert tls.Certificate) netip.AddrPort {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	return accepts(t, ln, func(conn net.Conn) { _ = conn.(*tls.Conn).HandshakeContext(t.Context()) })
}

// accepts has a listener accept connections, one after the other, until the test ends.
func accepts(t *testing.T, ln net.Listener, each func(net.Conn)) netip.AddrPort {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			each(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return tcpAddr(ln.Addr())
}

// TestRelayTLS shakes hands with servers of good and bad certificates.
func TestRelayTLS(t *testing.T) {
	serve := func(until time.Time) (string, *tls.Config) {
		cert, parsed := certificateFor(t, until)
		at := handshakes(t, cert)
		pool := x509.NewCertPool()
		pool.AddCert(parsed)
		return "turns:" + at.String(), &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	good, pool := serve(time.Now().Add(time.Hour))
	old, oldPool := serve(time.Now().Add(-time.Hour))
	early, earlyPool := serve(time.Now().Add(72 * time.Hour))
	for name, test := range map[string]struct {
		cfg  relay.Config
		want string
	}{
		"good": {relay.Config{URL: good, TLS: pool}, "yes"}, "expired": {relay.Config{URL: old, TLS: oldPool}, "expired"},
		"early": {relay.Config{URL: early, TLS: earlyPool}, "early"}, "untrusted": {relay.Config{URL: good}, "untrusted"},
		"expired and untrusted": {relay.Config{URL: old}, "expired"},
	} {
		runCases(t, "relays.tls", test.cfg.URL, map[string]answerCase{name: {turnEnv(test.cfg), test.want, ""}})
	}
	h := newFakeHub(t, nil)
	name := "hub " + hostPort(h.addr.Host, h.addr.Port)
	env := h.env()
	env.Hubs[0].Pin[3]++
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepts(t, plain, func(conn net.Conn) { _, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) })
	runCases(t, "relays.tls", name, map[string]answerCase{"the hub": {h.env(), "yes", ""}, "another hub": {env, "pin", "another hub"}})
	url := "turns:" + plain.Addr().String()
	runCases(t, "relays.tls", url, map[string]answerCase{"no TLS": {turnEnv(relay.Config{URL: url}), "failed", ""}})
	runCases(t, "relays.tls", "turn:192.0.2.1", map[string]answerCase{"plain": {turnEnv(relay.Config{URL: "turn:192.0.2.1"}), "yes", "does not use TLS"}})
	down := turnEnv(relay.Config{URL: "turns:192.0.2.9"})
	given(down, "tcp 192.0.2.9:443 true", silentTCP)
	runCases(t, "relays.tls", "turns:192.0.2.9", map[string]answerCase{"down": {down, "unknown", "no answer"}})
}

func TestRelayUDP(t *testing.T) {
	url := fakeTURN(t, nil)
	runCases(t, "relays.udp", url, map[string]answerCase{"answers": {turnEnv(relay.Config{URL: url}), "yes", "it answers"}})
	with := func(udp *bindResult, tcp tcpProbe, seen bool) *Env {
		env := tcpNet(map[bool]string{true: "203.0.113.7:7"}[seen], probes{"192.0.2.1:443": tcp}, nil)
		given(env, "udp hub 192.0.2.1:443", *udp)
		return env
	}
	silent := &bindResult{err: errNoAnswer}
	out := func(env *Env) *Env {
		env.Remember(factUDPOut, "11.0.9.1:123 answers over UDP")
		return env
	}
	runCases(t, "relays.udp", "hub 192.0.2.1:443", map[string]answerCase{
		"answers":     {with(&bindResult{}, connectedTLS, true), "yes", ""},
		"TCP alone":   {with(silent, connectedTLS, true), "silent", "although it does over TCP"},
		"all UDP":     {with(silent, connectedTLS, false), "unknown", "nobody else"},
		"UDP but its": {out(with(silent, connectedTLS, false)), "silent", "11.0.9.1:123 answers over UDP"},
		"down":        {with(silent, silentTCP, true), "unknown", "neither"},
		"another hub": {with(silent, wrongPin, true), "unknown", ""},
	})
	gone := turnEnv(relay.Config{URL: "turn:192.0.2.1"})
	given(gone, "udp turn:192.0.2.1", *silent)
	alone := turnEnv(relay.Config{URL: "turn:192.0.2.1"})
	given(alone, "udp turn:192.0.2.1", *silent)
	gone.Remember(factSeen, []sighting{sees("192.0.2.9:443", "192.168.1.2:7", "203.0.113.7:7")})
	runCases(t, "relays.udp", "turn:192.0.2.1", map[string]answerCase{
		"a UDP server is down": {gone, "down", "nothing answers"}, "no UDP at all": {alone, "down", "or this network lets no UDP through"},
	})
	runCases(t, "relays.udp", turnTCP, map[string]answerCase{"TCP server": {turnEnv(relay.Config{URL: turnTCP}), "yes", "TCP alone"}})
}

// TestTURN asks real servers for allocations.
func TestTURN(t *testing.T) {
	good := fakeTURN(t, nil)
	quota := fakeTURN(t, func(c *turn.ServerConfig) { c.QuotaHandler = func(string, string, net.Addr) bool { return false } })
	right := func(url string) *Env { return turnEnv(relay.Config{URL: url, User: "kith", Password: "right"}) }
	runCases(t, "relays.auth", good, map[string]answerCase{
		"right":        {right(good), "yes", "the relayed address 127.0.0.1"},
		"wrong":        {turnEnv(relay.Config{URL: good, User: "kith", Password: "left"}), "refused", "refuses the user, password or secret"},
		"unknown user": {turnEnv(relay.Config{URL: good, User: "eve", Password: "right"}), "refused", ""},
		"wrong secret": {turnEnv(relay.Config{URL: good, Secret: []byte("left")}), "refused", ""},
	})
	runCases(t, "relays.auth", quota, map[string]answerCase{"a quota is no wrong password": {right(quota), "yes", "quota"}})
	runCases(t, "relays.allocate", good, map[string]answerCase{"right": {right(good), "yes", "127.0.0.1"}})
	runCases(t, "relays.allocate", quota, map[string]answerCase{"quota": {right(quota), "quota", "quota"}})
	full := right(good)
	given(full, "logins "+good, []login{{way: "udp", err: relay.ErrFull}})
	down := right(good)
	given(down, "logins "+good, []login{{way: "udp", err: relay.ErrUnreachable}})
	odd := right(good)
	given(odd, "logins "+good, []login{{way: "udp", err: &relay.ServerError{Request: "Allocate", Code: 500}}})
	runCases(t, "relays.allocate", good, map[string]answerCase{"full": {full, "full", ""}, "down": {down, "unknown", ""}, "odd": {odd, "refused", "500"}})
	other := right(good)
	given(other, "logins "+good, []login{{way: "udp", err: errors.New("no TURN server")}})
	runCases(t, "relays.auth", good, map[string]answerCase{"odd": {odd, "yes", "500"}, "down": {down, "unknown", ""}, "another service": {other, "other", ""}})
}

// TestRelayEcho sends packets through a server, and through one that passes none on.
func TestRelayEcho(t *testing.T) {
	good := fakeTURN(t, nil)
	deaf := fakeTURN(t, func(c *turn.ServerConfig) {
		c.PacketConnConfigs[0].PermissionHandler = func(net.Addr, net.IP) bool { return false }
	})
	with := func(url string) *Env {
		env := turnEnv(relay.Config{URL: url, User: "kith", Password: "right"})
		env.Remember(factSeen, []sighting{sees(strings.TrimPrefix(url, "turn:"), "127.0.0.1:7", "127.0.0.1:7")})
		return env
	}
	between := with(good)
	between.Remember(factSeen, []sighting(nil))
	runCases(t, "relays.echo", good, map[string]answerCase{
		"a socket":        {with(good), "yes", "and back"},
		"two allocations": {between, "yes", "between two allocations"},
	})
	// On loopback a refusal says nothing: relays refuse private addresses.
	runCases(t, "relays.echo", deaf, map[string]answerCase{"refused": {with(deaf), "unknown", "private"}})
}

// TestInspected tells another hub from a box that inspects TLS or shows a page, and does not
// send people for another address because of one.
func TestInspected(t *testing.T) {
	authority := &x509.Certificate{Subject: pkix.Name{CommonName: "firewall"}}
	for name, test := range map[string]struct {
		names  []string
		issuer *x509.Certificate // nil: itself
		want   string
	}{
		"another hub":             {[]string{hubaddr.CertificateName}, nil, "pin"},
		"a box that copies names": {[]string{hubaddr.CertificateName}, authority, "inspected"},
		"a box that names it":     {[]string{"127.0.0.1"}, authority, "inspected"},
		"a page to log in at":     {[]string{"login.example"}, nil, "inspected"},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "box \x1b[2J"}, DNSNames: test.names,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
		if test.issuer == nil {
			test.issuer = template
		}
		signer := key
		if test.issuer == authority {
			if signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				t.Fatal(err)
			}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, test.issuer, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		at := handshakes(t, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
		env := &Env{Hubs: []hubaddr.Address{{Host: "127.0.0.1", Port: at.Port(), Access: hubaddr.Access{7}}}}
		runCases(t, "relays.tls", "hub "+at.String(), map[string]answerCase{name: {env, test.want, "the certificate is for"}})
		_, err = (&tls.Dialer{Config: env.Hubs[0].TLSConfig()}).DialContext(t.Context(), "tcp", at.String())
		if got := errorKind(fmt.Errorf("the driver: %w", err)); got != test.want {
			t.Errorf("%s: the broker's is %q, want %q", name, got, test.want)
		}
	}
}

// TestOwnQuota: an address that this device itself has is nobody else's fault.
func TestOwnQuota(t *testing.T) {
	const url, hub = "turn:192.0.2.9", "hub 192.0.2.8:443"
	used := []login{{way: "udp", err: relay.ErrQuota}}
	with := func(holds ...string) *Env {
		env := turnEnv(relay.Config{URL: url, User: "anna"}, relay.Config{URL: turnTCP, User: "anna"}, relay.Config{URL: "turn:192.0.2.9:99", User: "ben"})
		env.Hubs = []hubaddr.Address{{Host: "192.0.2.8", Port: 443, Access: hubaddr.Access{7}}}
		env.Relaying = func() []string { return holds }
		for _, name := range serverNames(env) {
			given(env, "logins "+name, used)
		}
		return env
	}
	both := turnEnv(relay.Config{URL: url}, relay.Config{URL: turnTCP})
	given(both, "logins "+url, used)
	given(both, "logins "+turnTCP, []login{{way: "tcp", at: place("192.0.2.9:50000")}})
	alone := turnEnv(relay.Config{URL: url})
	given(alone, "logins "+url, used)
	full := turnEnv(relay.Config{URL: url})
	full.Relaying = func() []string { return []string{url} }
	given(full, "logins "+url, []login{{way: "udp", err: relay.ErrFull}})
	runCases(t, "relays.allocate", url, map[string]answerCase{
		"another device's":           {with(), "quota", "used up"},
		"of another server":          {with("turn:192.0.2.1", "192.0.2.8"), "quota", ""},
		"of another user":            {with("turn:192.0.2.9:99"), "quota", ""},
		"its own":                    {with(url), "yes", "kith has an address there already"},
		"its own, by another way":    {with(turnTCP), "yes", "kith has an address there already"},
		"of this run":                {both, "yes", "this very run had an address there over " + turnTCP},
		"without a node":             {alone, "quota", ""},
		"full with its own included": {full, "yes", "already"},
	})
	runCases(t, "relays.allocate", hub, map[string]answerCase{"a hub's": {with("192.0.2.8"), "yes", "already"}, "another hub's": {with("192.0.2.7"), "quota", ""}})
}

// TestRelaySlow: a line on which a login takes long is given as much time for a packet, one
// that is quick a second or so.
func TestRelaySlow(t *testing.T) {
	for name, test := range map[string]struct{ login, trip, want time.Duration }{
		"quick":       {10 * time.Millisecond, 5 * time.Millisecond, 200 * time.Millisecond},
		"a satellite": {1400 * time.Millisecond, 1900 * time.Millisecond, 2 * time.Second}, // permission, packet, and a lost one
		"silent":      {10 * time.Millisecond, time.Hour, 1200 * time.Millisecond},
		"slow, too":   {1400 * time.Millisecond, time.Hour, 2800 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			start, sent := time.Now(), 0
			got := repeatedly(t.Context(), login{took: test.login}.patience(), func() { sent++ }, func() bool { return time.Since(start) >= test.trip })
			if took := time.Since(start).Round(time.Millisecond); got != (test.trip < time.Hour) || took > test.want || !got && took < test.want-50*time.Millisecond || sent > echoTries {
				t.Errorf("%s: %v after %v and %d packets", name, got, took, sent)
			}
		})
	}
}

// TestRelayTCPShowsWhere: a name's address is in the evidence, whatever came of it.
func TestRelayTCPShowsWhere(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(ln.Addr().String())
	ln.Close() // so that it refuses
	env := &Env{Hubs: []hubaddr.Address{{Host: "localhost", Port: at.Port()}}}
	a := checkRelayTCP(t.Context(), env, "hub "+hostPort("localhost", at.Port()))
	if text := strings.Join(a.Evidence, " "); a.Finding != "hub" || !strings.Contains(text, "refused by ") || !strings.Contains(text, hostPort("", at.Port())) {
		t.Errorf("%+v", a)
	}
}
