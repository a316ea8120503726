package hub

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/kithproject/kith/doctor/dialback"
	"github.com/kithproject/kith/hub/hubaddr"
)

// dialBackConn connects to a hub over TLS, or not, from a loopback address.
func dialBackConn(t testing.TB, h *Hub, from string, secure bool) net.Conn {
	t.Helper()
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	var conn net.Conn
	var err error
	if secure {
		conn, err = (&tls.Dialer{NetDialer: d, Config: h.Address().TLSConfig()}).DialContext(t.Context(), "tcp", h.hostPort())
	} else {
		conn, err = d.DialContext(t.Context(), "tcp", h.hostPort())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestDialBack(t *testing.T) {
	h := open(t, nil)
	l, err := dialback.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	login := h.Address().DialBackLogin()
	ask := func(r dialback.Request) dialback.Answer {
		t.Helper()
		conn := dialBackConn(t, h, "127.0.0.1", true)
		a, err := dialback.Ask(ctx, conn, login, r)
		if err != nil {
			t.Fatal(err)
		}
		if a.Client != addrOf(conn.LocalAddr()) {
			t.Errorf("the hub sees %v, not %v", a.Client, conn.LocalAddr())
		}
		return a
	}
	if a := ask(dialback.Request{Port: l.Port(), Code: l.Code(), Pin: l.Pin()}); a.Outcome != dialback.OK {
		t.Fatal(a.Outcome)
	}
	if from, err := l.Wait(ctx); err != nil || !from.Addr().IsLoopback() {
		t.Errorf("came from %v, %v", from, err)
	}
	if a := ask(dialback.Request{Port: l.Port(), Pin: l.Pin()}); a.Outcome != dialback.Other {
		t.Errorf("a wrong code: %v", a.Outcome)
	}
	if a := ask(dialback.Request{Port: 443}); a.Outcome != dialback.Forbidden {
		t.Errorf("a port of others: %v", a.Outcome)
	}
	if a := ask(dialback.Request{}); a.Outcome != dialback.Seen {
		t.Errorf("nothing to dial: %v", a.Outcome)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if a := ask(dialback.Request{Port: l.Port()}); a.Outcome != dialback.Refused {
		t.Errorf("nobody listens: %v", a.Outcome)
	}
	var busy bool
	for range int(dialBurst) {
		busy = ask(dialback.Request{Port: l.Port()}).Outcome == dialback.Busy
	}
	if !busy {
		t.Error("one address may ask for ever")
	}
}

// TestDialBackRefused: without the password, in the clear, and from a private address
// of a hub for the internet.
func TestDialBackRefused(t *testing.T) {
	h := open(t, func(c *Config) { c.AllowPrivate = false })
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	login := h.Address().DialBackLogin()
	wrong := append([]byte(nil), login...)
	wrong[len(wrong)-1] ^= 1
	if _, err := dialback.Ask(ctx, dialBackConn(t, h, "127.0.0.1", true), wrong, dialback.Request{Port: 9}); err == nil {
		t.Error("the password does not matter")
	}
	if _, err := dialback.Ask(ctx, dialBackConn(t, h, "127.0.0.1", false), login, dialback.Request{Port: 9}); err == nil {
		t.Error("TLS does not matter")
	}
	a, err := dialback.Ask(ctx, dialBackConn(t, h, "127.0.0.1", true), login, dialback.Request{Port: 40000})
	if err != nil || a.Outcome != dialback.Forbidden {
		t.Errorf("a private address: %v %v", a.Outcome, err)
	}
	for reason, n := range map[string]float64{"dialback_password": 1, "dialback_plain": 1} {
		await(t, reason, func() bool { return metric(h, `kith_hub_drops_total{reason="`+reason+`"}`) == n })
	}
}

// TestDialBackClose: a hub that stops waits for no one who does not answer.
func TestDialBackClose(t *testing.T) {
	h := open(t, nil)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	conn := dialBackConn(t, h, "127.0.0.1", true)
	got := make(chan struct{})
	go func() {
		defer close(got)
		_, _ = dialback.Ask(t.Context(), conn, h.Address().DialBackLogin(), dialback.Request{Port: addrOf(silent.Addr()).Port()})
	}()
	back, err := silent.Accept() // it dials
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	<-got // with an answer, or because the hub hung up
}

// TestDialBackMay is the table of what is dialed.
func TestDialBackMay(t *testing.T) {
	mine := netip.MustParseAddr("203.0.113.7")
	own := func(a netip.Addr) bool { return a == mine }
	for _, test := range []struct {
		client         string
		port           uint16
		public, closed bool // a hub on the internet, and of a closed network
	}{
		{"203.0.113.9", 1024, true, true}, {"203.0.113.9", 1023, false, false}, {"203.0.113.9", 22, false, false},
		{"2001:4860::1", 41641, true, true}, {"203.0.113.7", 41641, false, true}, {"192.168.1.2", 41641, false, true}, {"127.0.0.1", 41641, false, true},
	} {
		for _, private := range []bool{false, true} {
			want := test.public
			if private {
				want = test.closed
			}
			d := newDialer(Config{AllowPrivate: private}, hubaddr.Address{}, own)
			if got := d.may(netip.MustParseAddr(test.client), test.port); got != want {
				t.Errorf("%s port %d, private %v: %v", test.client, test.port, private, got)
			}
		}
	}
	// What a hub takes for its own: of its machine, and the one by which others see it.
	h := open(t, func(c *Config) { c.RelayIP = mine })
	for a, want := range map[string]bool{"203.0.113.7": true, "127.0.0.1": true, "203.0.113.9": false} {
		if got := h.mux.dialer.own(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s is its own: %v", a, got)
		}
	}
}

// TestDialBackPlaces: who has the hub dial ports that say nothing takes places from nobody else.
func TestDialBackPlaces(t *testing.T) {
	d := newDialer(Config{AllowPrivate: true}, hubaddr.Address{}, func(netip.Addr) bool { return false })
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	client, r := netip.MustParseAddrPort("127.0.0.1:9"), dialback.Request{Port: addrOf(silent.Addr()).Port()}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range dialsEach {
		wg.Go(func() { d.dial(ctx, client, r) })
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if a := d.dial(ctx, client, r); a.Outcome != dialback.Busy {
		t.Errorf("the ninth at once: %v", a.Outcome)
	}
	cancel()
	wg.Wait()
	if d.all != 0 || len(d.each) != 0 {
		t.Errorf("%d places of %d addresses are not given back", d.all, len(d.each))
	}
	six := netip.MustParseAddr("2001:db8::1")
	for range dialsEach {
		if !d.begin(six) {
			t.Fatal("there is no place")
		}
	}
	if d.begin(netip.MustParseAddr("2001:db8::2")) {
		t.Error("one network has more places than its share")
	}
	if !d.begin(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("another network has no place")
	}
	for i := d.all; i < maxDials; i++ {
		d.begin(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
	}
	if d.begin(client.Addr()) {
		t.Error("there is no bound for all")
	}
}
