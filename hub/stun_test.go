package hub

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// change is a CHANGE-REQUEST.
func change(flags byte) stun.Setter {
	return stun.RawAttribute{Type: stun.AttrChangeRequest, Length: 4, Value: []byte{0, 0, 0, flags}}
}

// ask sends a binding request from conn to a server and returns the answer and
// where it came from, or nil.
func ask(t testing.TB, conn *net.UDPConn, to string, attrs ...stun.Setter) (*stun.Message, netip.AddrPort) {
	t.Helper()
	req, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, attrs...)...)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := netip.ParseAddrPort(to)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	for range 5 {
		if _, err := conn.WriteToUDPAddrPort(req.Raw, dst); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, src, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			continue
		}
		m := &stun.Message{Raw: bytes.Clone(buf[:n])}
		if err := m.Decode(); err != nil || m.TransactionID != req.TransactionID {
			t.Fatalf("%x: %v", buf[:n], err)
		}
		if err := stun.Fingerprint.Check(m); err != nil {
			t.Errorf("fingerprint: %v", err)
		}
		return m, netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	}
	return nil, netip.AddrPort{}
}

func udpConn(t testing.TB, address string) *net.UDPConn {
	t.Helper()
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(t.Context(), "udp", address)
	if err != nil {
		t.Skipf("%s cannot be used here: %v", address, err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	return pc.(*net.UDPConn)
}

func mapped(t testing.TB, m *stun.Message) string {
	t.Helper()
	var x stun.XORMappedAddress
	if err := x.GetFrom(m); err != nil {
		t.Fatal(err)
	}
	return x.String()
}

func attrAddr(m *stun.Message, at stun.AttrType) string {
	var a stun.MappedAddress
	if a.GetFromAs(m, at) != nil {
		return ""
	}
	return a.String()
}

// TestBindingTwoPorts asks both ports of a hub with one address.
func TestBindingTwoPorts(t *testing.T) {
	h := open(t, nil)
	conn := udpConn(t, "127.0.0.1:0")
	for _, server := range h.Address().STUNServers() {
		m, from := ask(t, conn, server)
		if m == nil || m.Type != stun.BindingSuccess || mapped(t, m) != conn.LocalAddr().String() || from.String() != server {
			t.Fatalf("%s: %v from %v", server, m, from)
		}
		if attrAddr(m, stun.AttrResponseOrigin) != server || m.Contains(stun.AttrOtherAddress) {
			t.Errorf("%s: origin %q, other %q", server, attrAddr(m, stun.AttrResponseOrigin), attrAddr(m, stun.AttrOtherAddress))
		}
	}
	servers := h.Address().STUNServers()
	if m, from := ask(t, conn, servers[0], change(changePort)); m == nil || m.Type != stun.BindingSuccess || from.String() != servers[1] {
		t.Errorf("change port: %v from %v", m, from)
	}
	if m, _ := ask(t, conn, servers[0], change(changeIP|changePort)); m == nil || m.Type != stun.BindingError {
		t.Errorf("change both: %v", m)
	}
	await(t, "four answers counted", func() bool { return metric(h, "kith_hub_stun_answers_total") == 4 })
}

// TestBindingPadding: who pads a request gets an answer of the same size, and no larger
// one, so that it shows whether large packets pass both ways (RFC 5780 section 7.6).
func TestBindingPadding(t *testing.T) {
	h := open(t, nil)
	conn := udpConn(t, "127.0.0.1:0")
	for _, pad := range []int{4, 100, 1000, 1408} {
		m, _ := ask(t, conn, h.Address().STUNServers()[0], stun.RawAttribute{Type: stun.AttrPadding, Length: uint16(pad), Value: make([]byte, pad)})
		if m == nil || m.Type != stun.BindingSuccess || mapped(t, m) != conn.LocalAddr().String() {
			t.Fatalf("%d bytes of padding: %v", pad, m)
		}
		if got, want := len(m.Raw), 24+pad; got != want && pad >= 100 {
			t.Errorf("%d bytes answered to %d", got, want)
		}
	}
}

// TestBindingTwoAddresses asks a hub with two addresses for an answer from each
// of its four sockets (RFC 5780).
func TestBindingTwoAddresses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has 127.0.0.2 without being told to")
	}
	h := open(t, func(c *Config) { c.AltIP = netip.MustParseAddr("127.0.0.2") })
	a := h.Address()
	at := func(ip string, port uint16) string { return net.JoinHostPort(ip, strconv.Itoa(int(port))) }
	all := [2][2]string{
		{at("127.0.0.1", a.Port), at("127.0.0.1", a.AltPort)},
		{at("127.0.0.2", a.Port), at("127.0.0.2", a.AltPort)},
	}
	conn := udpConn(t, "127.0.0.1:0")
	for i := range 2 {
		for p := range 2 {
			for flags, want := range map[byte]string{
				0: all[i][p], changePort: all[i][1-p], changeIP: all[1-i][p], changeIP | changePort: all[1-i][1-p],
			} {
				m, from := ask(t, conn, all[i][p], change(flags))
				if m == nil || from.String() != want || attrAddr(m, stun.AttrResponseOrigin) != want ||
					attrAddr(m, stun.AttrOtherAddress) != all[1-i][1-p] || mapped(t, m) != conn.LocalAddr().String() {
					t.Errorf("to %s, change %#x: from %v, want %s: %v", all[i][p], flags, from, want, m)
				}
			}
		}
	}
}

// TestWildcardAnswersFromWhereItWasAsked holds that a hub on all addresses
// answers from the one that was asked, for STUN and TURN.
func TestWildcardAnswersFromWhereItWasAsked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has 127.0.0.2 without being told to")
	}
	h := open(t, func(c *Config) { c.Listen, c.Host, c.RelayIP = ":0", "127.0.0.2", netip.MustParseAddr("127.0.0.1") })
	conn := udpConn(t, "0.0.0.0:0")
	for _, server := range h.Address().STUNServers() {
		if m, from := ask(t, conn, server); m == nil || from.String() != server || attrAddr(m, stun.AttrResponseOrigin) != server {
			t.Errorf("%s answered as %v: %v", server, from, m)
		}
	}
	if m, from := ask(t, conn, h.Address().STUNServers()[0], change(changePort)); m == nil || from.String() != h.Address().STUNServers()[1] {
		t.Errorf("change port: answered as %v: %v", from, m)
	}
	// The TURN client takes answers from its server only.
	user, password := turnUser(h, "desk", time.Hour)
	relay := allocate(t, turnDial(t, h, "udp", user, password))
	peer := udpConn(t, "127.0.0.1:0")
	exchange(t, relay, peer.LocalAddr(), peer, []byte("to a peer, over the second address of this machine"))
	exchange(t, peer, relay.LocalAddr(), relay, []byte("and back"))
	if v6 := udpConn(t, "[::1]:0"); v6 != nil && h.socks.has(1) {
		server := net.JoinHostPort("::1", strconv.Itoa(int(h.addr.Port)))
		if m, from := ask(t, v6, server); m == nil || from.String() != server || mapped(t, m) != v6.LocalAddr().String() {
			t.Errorf("IPv6: %v from %v", m, from)
		}
	}
}

// TestBindingRefused holds what is not answered, and what is answered with an
// error.
func TestBindingRefused(t *testing.T) {
	src, self := netip.MustParseAddrPort("192.0.2.1:7"), netip.MustParseAddrPort("192.0.2.2:3478")
	origin := func(p place) (netip.AddrPort, bool) { return self, p == place{} }
	build := func(set ...stun.Setter) []byte {
		m, err := stun.Build(append([]stun.Setter{stun.TransactionID}, set...)...)
		if err != nil {
			t.Fatal(err)
		}
		return m.Raw
	}
	forged := build(stun.BindingRequest, stun.Fingerprint)
	forged[len(forged)-1] ^= 1
	for name, req := range map[string][]byte{
		"empty":           nil,
		"a success":       build(stun.BindingSuccess),
		"an indication":   build(stun.NewType(stun.MethodBinding, stun.ClassIndication)),
		"an allocation":   build(stun.NewType(stun.MethodAllocate, stun.ClassRequest)),
		"no cookie":       append([]byte{0, 1, 0, 0, 1, 2, 3, 4}, make([]byte, 12)...),
		"bad fingerprint": forged,
		"long":            build(stun.BindingRequest, stun.RawAttribute{Type: 0x8099, Length: 1500, Value: make([]byte, 1500)}),
		"short change":    build(stun.BindingRequest, stun.RawAttribute{Type: stun.AttrChangeRequest, Length: 2, Value: []byte{0, 2}}),
	} {
		if resp, _, _ := binding(req, src, place{}, origin); resp != nil {
			t.Errorf("%s: answered with %x", name, resp)
		}
	}
	for name, req := range map[string][]byte{
		"low port":      build(stun.BindingRequest, responsePort(53)),
		"unknown":       build(stun.BindingRequest, stun.RawAttribute{Type: 0x7f01, Length: 0}),
		"no such place": build(stun.BindingRequest, change(changePort)),
	} {
		resp, from, to := binding(req, src, place{}, origin)
		m := &stun.Message{Raw: resp}
		if err := m.Decode(); err != nil || m.Type != stun.BindingError || !m.Contains(stun.AttrUnknownAttributes) || from != (place{}) || to != src {
			t.Errorf("%s: %v %v", name, m, err)
		}
	}
}

// responsePort asks for the answer at another port (RFC 5780 section 7.5).
func responsePort(port uint16) stun.RawAttribute {
	return stun.RawAttribute{Type: stun.AttrResponsePort, Length: 4, Value: []byte{byte(port >> 8), byte(port), 0, 0}}
}

// TestResponsePort has an answer sent to another socket.
func TestResponsePort(t *testing.T) {
	h := open(t, nil)
	asks, hears := udpConn(t, "127.0.0.1:0"), udpConn(t, "127.0.0.1:0")
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest, responsePort(addrOf(hears.LocalAddr()).Port()))
	if err != nil {
		t.Fatal(err)
	}
	server := netip.MustParseAddrPort(h.Address().STUNServers()[0])
	if _, err := asks.WriteToUDPAddrPort(m.Raw, server); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxBinding)
	if err := hears.SetReadDeadline(time.Now().Add(testLimit)); err != nil {
		t.Fatal(err)
	}
	n, from, err := hears.ReadFromUDPAddrPort(buf)
	got := &stun.Message{Raw: buf[:n]}
	if err != nil || got.Decode() != nil || got.TransactionID != m.TransactionID || from != server {
		t.Fatalf("%v from %v: %v", got, from, err)
	}
	if mapped(t, got) != asks.LocalAddr().String() {
		t.Errorf("says that it saw %s", mapped(t, got))
	}
}

// TestBindingRate holds that one address gets so many answers.
func TestBindingRate(t *testing.T) {
	s := newSources(bindingRate, bindingBurst)
	now := time.Unix(1e9, 0)
	count := func(ip string, n int) (passed int) {
		for range n {
			if s.allow(now, netip.MustParseAddr(ip)) {
				passed++
			}
		}
		return passed
	}
	if got := count("192.0.2.1", 1000); got != bindingBurst {
		t.Errorf("%d at once", got)
	}
	if got := count("192.0.2.2", 1); got != 1 {
		t.Error("another address has to wait")
	}
	now = now.Add(time.Second)
	if got := count("192.0.2.1", 1000); got != bindingRate {
		t.Errorf("%d after a second", got)
	}
	for i := range 3 * maxSources {
		s.allow(now, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if len(s.ips) > maxSources {
		t.Errorf("%d addresses are remembered", len(s.ips))
	}
}

// TestDatagrams holds that other packets are dropped and counted.
func TestDatagrams(t *testing.T) {
	h := open(t, nil)
	conn := udpConn(t, "127.0.0.1:0")
	for _, server := range h.Address().STUNServers() {
		to := netip.MustParseAddrPort(server)
		for _, p := range []string{"", "x", "\x16\xfe\xfd", "\x01\x01\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa", "\x80aaaaaaaaaaaaaaaaaaaaaa"} {
			if _, err := conn.WriteToUDPAddrPort([]byte(p), to); err != nil {
				t.Fatal(err)
			}
		}
	}
	await(t, "ten datagrams dropped", func() bool { return metric(h, `kith_hub_drops_total{reason="datagram"}`) == 10 })
	if m, _ := ask(t, conn, h.Address().STUNServers()[1]); m == nil {
		t.Error("no answer any more")
	}
}

// FuzzBinding answers anything, or not, but with an answer that can be read and
// is not much larger than the question.
func FuzzBinding(f *testing.F) {
	for _, set := range [][]stun.Setter{{}, {responsePort(7000)}, {responsePort(53)}, {change(changePort)}, {change(changeIP), stun.Fingerprint}, {stun.NewUsername("a"), stun.NewSoftware("b")}, {stun.RawAttribute{Type: stun.AttrPadding, Length: 400, Value: make([]byte, 400)}}} {
		m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, set...)...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Raw, uint8(len(set)))
	}
	f.Fuzz(func(t *testing.T, req []byte, which uint8) {
		src := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7"), netip.MustParseAddrPort("[2001:db8::1]:7")}[which&1]
		at := place{int(which >> 1 & 1), int(which >> 2 & 1)}
		have := which >> 3
		_ = classify(req)
		resp, from, to := binding(req, src, at, func(p place) (netip.AddrPort, bool) {
			return netip.MustParseAddrPort("192.0.2.2:3478"), have>>(2*p.ip+p.port)&1 == 0
		})
		if resp == nil {
			return
		}
		m := &stun.Message{Raw: resp}
		if err := m.Decode(); err != nil || !bytes.Equal(m.TransactionID[:], req[8:20]) || stun.Fingerprint.Check(m) != nil {
			t.Fatalf("%x: %v", resp, err)
		}
		if to.Addr() != src.Addr() || to != src && to.Port() < lowestResponse {
			t.Errorf("sent to %v", to)
		}
		if m.Type == stun.BindingSuccess && mapped(t, m) != src.String() {
			t.Errorf("mapped %s", mapped(t, m))
		}
		if from.ip>>1 != 0 || from.port>>1 != 0 || len(resp) > len(req)+120 {
			t.Errorf("%d bytes for %d from %v", len(resp), len(req), from)
		}
	})
}

// TestOutside relays where only others see the relay's address, as behind a NAT
// that maps a whole address: allocations reach each other all the same.
func TestOutside(t *testing.T) {
	h := open(t, func(c *Config) { c.RelayIP, c.AllowPrivate = netip.MustParseAddr("203.0.113.7"), false })
	if got := h.RelayIPs(); len(got) != 1 || got[0].String() != "203.0.113.7" {
		t.Fatal(got)
	}
	user, password := turnUser(h, "desk", time.Hour)
	one := allocate(t, turnDial(t, h, "udp", user, password))
	two := allocate(t, turnDial(t, h, "tcp", user, password))
	if _, err := two.WriteTo([]byte("permission"), one.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if src := exchange(t, one, two.LocalAddr(), two, []byte("from one allocation to another")); src.String() != one.LocalAddr().String() {
		t.Errorf("from %v, want %v", src, one.LocalAddr())
	}
}

// TestPermit is the table of where the relay may send.
func TestPermit(t *testing.T) {
	for a, want := range map[string][2]bool{ // on the internet, in a closed network
		"1.1.1.1": {true, true}, "2606:4700::1111": {true, true}, "203.0.113.9": {true, true},
		"127.0.0.1": {false, true}, "::1": {false, true}, "10.1.2.3": {false, true}, "172.16.0.1": {false, true}, "192.168.0.1": {false, true},
		"fd00::1": {false, true}, "100.64.0.1": {false, true}, "169.254.169.254": {false, true}, "fe80::1": {false, true}, "fd00:ec2::254": {false, true},
		"0.0.0.0": {false, false}, "::": {false, false}, "224.0.0.251": {false, false}, "ff02::fb": {false, false}, "255.255.255.255": {false, false},
		"0.1.2.3": {false, true}, "240.0.0.1": {false, true}, "64:ff9b::7f00:1": {false, true}, "2002:7f00:1::": {false, true}, "::7f00:1": {false, true},
	} {
		for i, private := range []bool{false, true} {
			if got := mayRelay(netip.MustParseAddr(a), private); got != want[i] {
				t.Errorf("%s, private %v: %v", a, private, got)
			}
		}
	}
	if mayRelay(netip.Addr{}, true) || mayRelay(netip.MustParseAddr("::ffff:1.1.1.1"), true) {
		t.Error("no address, or one in disguise, was let through")
	}
	// An address of this machine that is not the relay's.
	h := open(t, func(c *Config) { c.AllowPrivate = false })
	h.turn.relays.own[netip.MustParseAddr("1.2.3.4")] = true
	h.turn.relays.owned = time.Now()
	if h.turn.relays.permit(nil, net.ParseIP("1.2.3.4")) || !h.turn.relays.permit(nil, net.ParseIP("1.2.3.5")) || h.turn.relays.permit(nil, nil) {
		t.Error("this machine's other address was let through")
	}
}

// TestLifetimes ends TCP clients without an allocation, and keeps those with one.
func TestLifetimes(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes eleven seconds")
	}
	t.Parallel()
	h := open(t, nil)
	user, password := turnUser(h, "desk", time.Hour)
	kept := allocate(t, turnDial(t, h, "tcp", user, password))
	idle, err := net.Dial("tcp", h.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	gone := false
	for end := time.After(turnFirst + 3*time.Second); ; {
		select {
		case <-tick.C: // one binding request a second is no reason to stay
			m, err := stun.Build(stun.TransactionID, stun.BindingRequest)
			if err != nil {
				t.Fatal(err)
			}
			_ = idle.SetDeadline(time.Now().Add(time.Second))
			if _, err = idle.Write(m.Raw); err == nil {
				_, err = idle.Read(make([]byte, 1500))
			}
			gone = gone || err != nil
			continue
		case <-end:
		case <-ctx.Done():
		}
		break
	}
	if !gone {
		t.Error("a client without an allocation stayed")
	}
	peer := udpConn(t, "127.0.0.1:0")
	exchange(t, kept, peer.LocalAddr(), peer, []byte("still relayed after thirteen seconds"))
}
