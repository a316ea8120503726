package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pion/stun/v4"
)

// readConn is a connection that only reads.
type readConn struct {
	net.Conn
	io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// TestStreamFrames cuts frames of every size, however they arrive.
func TestStreamFrames(t *testing.T) {
	var wire []byte
	var want [][]byte
	add := func(frame []byte) {
		wire = append(wire, frame...)
		want = append(want, frame)
	}
	for _, n := range []int{0, 1, 2, 3, 4, 5, 1200, maxPacket, 1<<16 - 1} {
		add(appendChannel(nil, firstNumber, bytes.Repeat([]byte{1}, n), true))
		add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint).Raw)
	}
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(wire), "by bytes": iotest.OneByteReader(bytes.NewReader(wire)),
		"by halves": iotest.HalfReader(bytes.NewReader(wire)),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStream(readConn{Reader: r})
			for i, w := range want {
				if got, _, err := s.read(); err != nil || !bytes.Equal(got, w) {
					t.Fatalf("frame %d: %d bytes, want %d: %v", i, len(got), len(w), err)
				}
			}
			if _, _, err := s.read(); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		})
	}
	s := newStream(readConn{Reader: bytes.NewReader(wire[:6])})
	if _, _, err := s.read(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.read(); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if _, _, err := newStream(readConn{Reader: bytes.NewReader([]byte("SSH-2.0-x"))}).read(); !errors.Is(err, errNoTURN) {
		t.Error(err)
	}
}

// FuzzStream: whatever the server's stream holds, frames come out whole and it
// ends.
func FuzzStream(f *testing.F) {
	f.Add(appendChannel(nil, firstNumber, []byte("hello"), true))
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint).Raw)
	f.Add([]byte{0x40, 0, 0xff, 0xff, 0, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, wire []byte) {
		s := newStream(readConn{Reader: bytes.NewReader(wire)})
		total := 0
		for {
			frame, _, err := s.read()
			if err != nil {
				return
			}
			if len(frame) < dataHeader || len(frame)%4 != 0 {
				t.Fatalf("a frame of %d bytes", len(frame))
			}
			if total += len(frame); total > len(wire) {
				t.Fatal("more came out than went in")
			}
		}
	})
}

// FuzzHandle: no frame of a server does harm, and an indication is read as pion
// reads it.
func FuzzHandle(f *testing.F) {
	to := netip.MustParseAddrPort("192.0.2.1:1234")
	ind := appendIndication(nil, to, []byte("hello"), transactionID{1})
	ind[1] = dataIndication
	f.Add(ind)
	ind6 := appendIndication(nil, netip.MustParseAddrPort("[2001:db8::1]:1234"), []byte("hello!"), transactionID{2})
	ind6[1] = dataIndication
	f.Add(ind6)
	f.Add(appendChannel(nil, firstNumber, []byte("hello"), true))
	f.Add(stun.MustBuild(stun.NewTransactionIDSetter(transactionID{3}), stun.BindingSuccess, stun.Fingerprint).Raw)
	f.Fuzz(func(t *testing.T, frame []byte) {
		var got netip.AddrPort
		var data []byte
		r := &Relay{cfg: Config{Receive: func(from netip.AddrPort, packet []byte) { got, data = from, packet }}}
		r.waiting.init()
		r.peers.init()
		r.peers.add(to)
		answers := r.waiting.add(transactionID{3})
		r.handle(frame)
		if len(answers) > 0 && !isSTUN(frame) {
			t.Fatal("an answer that is none")
		}
		m := new(stun.Message)
		if got.IsValid() && !isChannel(frame) && stun.Decode(frame, m) == nil {
			want, err := addressOf(m, stun.AttrXORPeerAddress)
			wantData, err2 := m.Get(stun.AttrData)
			one := count(m, stun.AttrXORPeerAddress) == 1 && count(m, stun.AttrData) == 1
			if one && err == nil && err2 == nil && (want != got || !bytes.Equal(wantData, data)) {
				t.Fatalf("%v %q, pion reads %v %q", got, data, want, wantData)
			}
		}
	})
}

func count(m *stun.Message, typ stun.AttrType) (n int) {
	for _, a := range m.Attributes {
		if a.Type == typ {
			n++
		}
	}
	return n
}

// TestIndicationPion: what we write, pion reads.
func TestIndicationPion(t *testing.T) {
	for _, to := range []string{"192.0.2.1:1", "[2001:db8::1]:65535"} {
		for _, n := range []int{0, 1, 2, 3, 4, 1500} {
			data := bytes.Repeat([]byte{7}, n)
			m := new(stun.Message)
			raw := appendIndication([]byte("before"), netip.MustParseAddrPort(to), data, transactionID{9})[6:]
			if err := stun.Decode(raw, m); err != nil {
				t.Fatal(err)
			}
			from, err := addressOf(m, stun.AttrXORPeerAddress)
			got, err2 := m.Get(stun.AttrData)
			if err != nil || err2 != nil || from.String() != to || !bytes.Equal(got, data) ||
				m.Type != stun.NewType(stun.MethodSend, stun.ClassIndication) {
				t.Errorf("%v: %v %d bytes, %v %v", m, from, len(got), err, err2)
			}
		}
	}
}

// TestStreamFull: a server that reads no more makes Send drop, not wait.
func TestStreamFull(t *testing.T) {
	near, far := net.Pipe() // has no room at all
	defer far.Close()
	s := newStream(near)
	ended := make(chan error, 1)
	go func() { ended <- s.run() }()
	p := &peer{number: firstNumber}
	packet := make([]byte, 1400)
	for range 1000 {
		if err := s.packets([][]byte{packet}, p, p.number); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	waiting := len(s.data.buf)
	s.mu.Unlock()
	if p.dropped.Load() == 0 || waiting > streamQueue+len(packet)+2*dataHeader {
		t.Errorf("%d dropped, %d bytes wait", p.dropped.Load(), waiting)
	}
	for range 1000 {
		if err := s.request(make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.urgent) > urgentQueue {
		t.Errorf("%d bytes of requests wait", len(s.urgent))
	}
	s.close()
	<-ended
	if err := s.packets([][]byte{packet}, p, p.number); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := s.request(nil); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestRace: the first address that works wins, the rest is cleaned up.
func TestRace(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	silent, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.2:%d", s.ports[overUDP]))
	if err != nil {
		t.Skip("no second loopback address:", err)
	}
	defer silent.Close()
	addrs := func(list ...string) lookup {
		return func(context.Context, string) (out []netip.Addr, err error) {
			for _, a := range list {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		}
	}
	for name, c := range map[string]struct {
		via   transport
		addrs []string
		least time.Duration
	}{
		"udp, the first is silent": {overUDP, []string{"127.0.0.2", "127.0.0.1"}, 250 * time.Millisecond},
		"udp, the first is best":   {overUDP, []string{"127.0.0.1", "127.0.0.2"}, 0},
		"tcp, the first refuses":   {overTCP, []string{"127.0.0.3", "127.0.0.1"}, 0},
		"tcp, IPv6 is not there":   {overTCP, []string{"127.0.0.1", "::1"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			cfg := s.config(c.via)
			srv := server{host: "relay.test", port: s.ports[c.via], via: c.via}
			r, err := dial(t.Context(), cfg, srv, timingOf(c.via), addrs(c.addrs...))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if took := time.Since(start); took < c.least || took > c.least+time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	var started atomic.Bool
	look := func(context.Context, string) ([]netip.Addr, error) {
		started.Store(true)
		time.AfterFunc(50*time.Millisecond, cancel)
		return []netip.Addr{netip.MustParseAddr("127.0.0.2")}, nil
	}
	srv := server{host: "relay.test", port: s.ports[overUDP]}
	if _, err := dial(ctx, s.config(overUDP), srv, timingOf(overUDP), look); !errors.Is(err, context.Canceled) || !started.Load() {
		t.Errorf("canceled: %v", err)
	}
}

// TestResolve alternates the families, and has an end.
func TestResolve(t *testing.T) {
	look := func(context.Context, string) (out []netip.Addr, err error) {
		for i := range 20 {
			out = append(out, netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: byte(i)}))
		}
		return append(out, netip.MustParseAddr("2001:db8::1")), nil
	}
	got, err := resolve(t.Context(), "x", look)
	if err != nil || len(got) != maxAddresses || got[0].String() != "2001:db8::1" || got[1].String() != "192.0.2.0" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := resolve(t.Context(), "x", func(context.Context, string) ([]netip.Addr, error) { return nil, nil }); err == nil {
		t.Error("no address is no error")
	}
}
