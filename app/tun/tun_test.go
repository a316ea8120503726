package tun

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/kithproject/kith/app/forward"
)

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestTCP carries a stream both ways, and half an end.
func TestTCP(t *testing.T) {
	for _, mtu := range []uint32{1280, 65535} {
		_, k, n := open(t, mtu, nil)
		n.ports[80] = func(c net.Conn) { // says what it heard, after the end
			defer c.Close()
			b, _ := io.ReadAll(c)
			_, _ = c.Write(b)
		}
		conn, err := k.dial(patient(t), netip.AddrPortFrom(laptop, 80))
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 3<<20)
		_, _ = rand.Read(want)
		go func() {
			_, _ = conn.Write(want)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("MTU %d: %d bytes of %d, %v", mtu, len(got), len(want), err)
		}
	}
}

// TestRefused says to programs what the dial said.
func TestRefused(t *testing.T) {
	_, k, _ := open(t, 1500, nil)
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(laptop, 81), netip.AddrPortFrom(resolver, 54)} {
		if _, err := k.dial(patient(t), to); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v, want refused", to, err)
		}
	}
	// A TCP of gVisor does not listen to these; that Linux does, TestNetworkTun shows.
	for _, c := range []struct {
		to   netip.Addr
		code header.ICMPv6Code
	}{{nobody, noRoute}, {blocked, prohibited}, {tablet, addrUnreachable}} {
		syn := segment(own, c.to, 4000, 80, header.TCPFlagSyn, 7)
		k.send(syn)
		p := k.await("ICMPv6 error", func(p packet) bool { return p.next == header.ICMPv6ProtocolNumber && p.body[0] == 1 })
		if header.ICMPv6Code(p.body[1]) != c.code || !bytes.Equal(p.body[8:], syn) || p.dst != own {
			t.Errorf("%s: code %d about % x", c.to, p.body[1], p.body[8:])
		}
		if sum(p.next, p.src, p.dst, p.body) != 0 {
			t.Error("the checksum is wrong")
		}
	}
}

// segment makes a TCP segment without data.
func segment(src, dst netip.Addr, sport, dport uint16, flags header.TCPFlags, seq uint32) []byte {
	b := make([]byte, ipHeader+header.TCPMinimumSize)
	fillHeader(b, header.TCPProtocolNumber, src, dst, header.TCPMinimumSize)
	header.TCP(b[ipHeader:]).Encode(&header.TCPFields{
		SrcPort: sport, DstPort: dport, SeqNum: seq, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535,
	})
	header.TCP(b[ipHeader:]).SetChecksum(sum(header.TCPProtocolNumber, src, dst, b[ipHeader:]))
	return b
}

// TestOneDial dials once for a connection that a program begins again and again, and
// gives up when the program does.
func TestOneDial(t *testing.T) {
	tun, k, n := open(t, 1500, func(c *Config) { c.DialTimeout = time.Hour })
	n.hold = make(chan struct{})
	for range 3 {
		k.send(segment(own, laptop, 4000, 80, header.TCPFlagSyn, 7))
	}
	if d := <-n.dials; d != "tcp laptop 80" {
		t.Error(d)
	}
	k.send(segment(own, laptop, 4000, 80, header.TCPFlagRst, 8))
	for ctx := patient(t); len(tun.waitingFlows()) > 0; runtime.Gosched() { // the dial ends with its context
		if ctx.Err() != nil {
			t.Fatal("the dial goes on")
		}
	}
	if len(n.dials) != 0 {
		t.Error("dialed again:", <-n.dials)
	}
}

func (t *Tun) waitingFlows() []flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []flow
	for f := range t.tcp.waiting {
		out = append(out, f)
	}
	return out
}

// TestBounds refuses more than there may be, at once.
func TestBounds(t *testing.T) {
	tun, k, n := open(t, 1500, func(c *Config) { c.DialTimeout = time.Hour; c.MaxConns = maxDialsPerPeer + 3 })
	n.hold = make(chan struct{})
	isReset := func(p packet) bool {
		return p.next == header.TCPProtocolNumber && header.TCPFlags(p.body[13])&header.TCPFlagRst != 0
	}
	for i := range maxDialsPerPeer + 1 {
		k.send(segment(own, laptop, uint16(4000+i), 80, header.TCPFlagSyn, 7))
	}
	if p := k.await("reset", isReset); binary.BigEndian.Uint16(p.body[2:]) != 4000+maxDialsPerPeer {
		t.Errorf("reset: port %d", binary.BigEndian.Uint16(p.body[2:]))
	}
	for i := range 4 {
		k.send(segment(own, tablet, uint16(6000+i), 80, header.TCPFlagSyn, 7))
	}
	if p := k.await("reset", isReset); binary.BigEndian.Uint16(p.body[2:]) != 6003 {
		t.Errorf("reset: port %d", binary.BigEndian.Uint16(p.body[2:]))
	}
	if got := len(tun.waitingFlows()); got != maxDialsPerPeer+3 {
		t.Errorf("%d wait", got)
	}
}

// TestCloseResets ends what is open, also where a kernel does not answer.
func TestCloseResets(t *testing.T) {
	tun, k, n := open(t, 1500, nil)
	ended := make(chan error, 1)
	n.ports[80] = func(c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
		c.Close()
	}
	conn, err := k.dial(patient(t), netip.AddrPortFrom(laptop, 80))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	n.ports[82] = n.ports[80]
	k.send(segment(own, laptop, 4000, 82, header.TCPFlagSyn, 7)) // its answer is reset by the kernel, which knows nothing of it
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("read: %v, want a reset", err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the far side goes on")
	}
}

// TestKernelForgets ends a connection of which the kernel knows nothing any more, and
// has said so while nobody heard it.
func TestKernelForgets(t *testing.T) {
	tun, k, n := open(t, 65535, nil)
	tun.idle = 40 * time.Millisecond
	ended := make(chan struct{})
	n.ports[80] = func(c net.Conn) {
		defer close(ended)
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	if _, err := k.dial(patient(t), netip.AddrPortFrom(laptop, 80)); err != nil {
		t.Fatal(err)
	}
	if err := k.stack.RemoveAddress(nicID, tcpip.AddrFrom16(own.As16())); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the far side goes on")
	}
}

// TestReset passes a reset of the device on, as withdrawing a right makes one.
func TestReset(t *testing.T) {
	_, k, n := open(t, 65535, nil)
	n.ports[80] = func(c net.Conn) {
		_, _ = c.Write([]byte("begin"))
		_, _ = c.Read(make([]byte, 1))
		forward.Abort(c)
	}
	conn, err := k.dial(patient(t), netip.AddrPortFrom(laptop, 80))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("%v, want a reset", err)
	}
}

func TestUDP(t *testing.T) {
	_, k, n := open(t, 65535, nil)
	n.ports[53] = func(c net.Conn) {
		buf := make([]byte, 65535)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			_, _ = c.Write(buf[:n])
		}
	}
	conn := k.dialUDP(netip.AddrPortFrom(laptop, 53))
	for _, size := range []int{0, 1, 1400, 9000, maxUDP} {
		want := bytes.Repeat([]byte{7}, size)
		if _, err := conn.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 65535)
		n, err := conn.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("%d bytes: %d came back, %v", size, n, err)
		}
	}
	for _, c := range []struct {
		to   netip.Addr
		port uint16
		code header.ICMPv6Code
	}{{laptop, 54, portUnreachable}, {nobody, 53, noRoute}, {tablet, 53, addrUnreachable}, {blocked, 1, prohibited}, {resolver, 54, portUnreachable}} {
		if _, err := k.dialUDP(netip.AddrPortFrom(c.to, c.port)).Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		p := k.await("ICMPv6 error", func(p packet) bool { return p.next == header.ICMPv6ProtocolNumber && p.body[0] == 1 })
		about, ok := parse(append(slices.Clone(p.body[8:]), 0)) // of a flow, the header alone
		if header.ICMPv6Code(p.body[1]) != c.code || !ok || about.dst != c.to || binary.BigEndian.Uint16(about.body[2:]) != c.port {
			t.Errorf("%s port %d: code %d about %+v", c.to, c.port, p.body[1], about)
		}
	}
}

func echoRequest(src, dst netip.Addr, text string) []byte {
	body := append([]byte{128, 0, 0, 0, 1, 2, 3, 4}, text...)
	b := make([]byte, ipHeader, ipHeader+len(body))
	fillHeader(b, header.ICMPv6ProtocolNumber, src, dst, len(body))
	header.ICMPv6(body).SetChecksum(sum(header.ICMPv6ProtocolNumber, src, dst, body))
	return append(b, body...)
}

func TestPing(t *testing.T) {
	_, k, _ := open(t, 1500, nil)
	icmp := func(p packet) bool { return p.next == header.ICMPv6ProtocolNumber }
	for _, to := range []netip.Addr{laptop, resolver} {
		request := echoRequest(own, to, "hello")
		k.send(request)
		p := k.await("reply", icmp)
		if p.body[0] != 129 || p.src != to || p.dst != own || !bytes.Equal(p.body[4:], request[ipHeader+4:]) || sum(p.next, p.src, p.dst, p.body) != 0 {
			t.Errorf("%s: % x", to, p.raw)
		}
	}
	for to, code := range map[netip.Addr]header.ICMPv6Code{tablet: addrUnreachable, nobody: noRoute} {
		request := echoRequest(own, to, "hello")
		k.send(request)
		if p := k.await("error", icmp); p.body[0] != 1 || header.ICMPv6Code(p.body[1]) != code || !bytes.Equal(p.body[8:], request) {
			t.Errorf("%s: % x", to, p.raw)
		}
	}
}

// TestForeign drops what is not this machine's, or not for a device: no dial, no answer.
func TestForeign(t *testing.T) {
	_, k, n := open(t, 1500, nil)
	lan := netip.MustParseAddr("2001:db8::1")
	for _, raw := range [][]byte{
		segment(lan, laptop, 4000, 80, header.TCPFlagSyn, 7),
		segment(laptop, tablet, 4000, 80, header.TCPFlagSyn, 7),
		segment(own, lan, 4000, 80, header.TCPFlagSyn, 7),
		segment(own, netip.MustParseAddr("ff02::1"), 4000, 80, header.TCPFlagSyn, 7),
		echoRequest(lan, laptop, "x"), {}, {0x60}, make([]byte, ipHeader), bytes.Repeat([]byte{0x45}, 40),
	} {
		k.send(raw)
	}
	k.send(echoRequest(own, resolver, "last"))
	if p := <-k.seen; p[6] != byte(header.ICMPv6ProtocolNumber) || !bytes.HasSuffix(p, []byte("last")) {
		t.Errorf("an answer: % x", p)
	}
	if len(n.dials) > 0 {
		t.Error("dialed", <-n.dials)
	}
}

// FuzzReceive sends any packet; what comes back are packets of at most the MTU.
func FuzzReceive(f *testing.F) {
	f.Add(segment(own, laptop, 4000, 80, header.TCPFlagSyn, 7))
	f.Add(segment(own, laptop, 4000, 80, header.TCPFlagAck, 7))
	f.Add(segment(own, nobody, 4000, 80, header.TCPFlagSyn, 7))
	f.Add(echoRequest(own, laptop, "x"))
	f.Add(dnsPacket("laptop.kith."))
	f.Add([]byte{0x60})
	tun, err := New(Config{
		Device: fuzzDevice{}, Addr: own, Prefix: prefix, Resolver: resolver,
		Peer: func(a netip.Addr) (string, bool) { return "laptop", a == laptop },
		Dial: func(context.Context, forward.Protocol, string, uint16) (net.Conn, error) { return nil, ErrBlocked },
		Ping: func(context.Context, string) error { return nil }, Lookup: func(string) (netip.Addr, bool) { return laptop, true },
		Name: func(netip.Addr) (string, bool) { return "laptop", true },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = tun.Close() })
	f.Fuzz(func(_ *testing.T, raw []byte) {
		if len(raw) >= ipHeader { // so that it is not dropped at once
			raw = bytes.Clone(raw)
			raw[0] = 0x60
			copy(raw[8:], own.AsSlice())
			binary.BigEndian.PutUint16(raw[4:], uint16(len(raw)-ipHeader))
		}
		tun.receive(raw)
	})
}

type fuzzDevice struct{}

func (fuzzDevice) Read([]byte) (int, error) { return 0, net.ErrClosed }
func (fuzzDevice) MTU() int                 { return 1500 }
func (fuzzDevice) Close() error             { return nil }
func (fuzzDevice) Write(b []byte, _ bool) error {
	if p, ok := parse(b[Headroom:]); !ok || len(b) > Headroom+1500 || p.dst != own {
		panic("not a packet for this machine")
	}
	return nil
}
