package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// openBind opens a bind and returns its ReceiveFunc for the family of an address.
func openBind(t *testing.T, b *udpBind, ip string) (conn.ReceiveFunc, uint16) {
	t.Helper()
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	if netip.MustParseAddr(ip).Is4() {
		return fns[0], port
	}
	if len(fns) < 2 {
		t.Skip("this machine has no IPv6")
	}
	return fns[1], port
}

func TestUDPCarriesEveryBatch(t *testing.T) {
	repeat := func(n, size int) []int {
		out := make([]int, n)
		for i := range out {
			out[i] = size
		}
		return out
	}
	for _, ip := range []string{"127.0.0.1", "::1"} {
		for _, offload := range []bool{true, false} {
			for _, room := range []int{1, 3, 128} {
				for name, sizes := range map[string][]int{
					"one":               {1432},
					"a train":           repeat(45, 1432),
					"more than a train": repeat(128, 1432),
					"last one shorter":  append(repeat(10, 1000), 7),
					"growing":           {1, 2, 3, 500, 1432},
					"shrinking":         {1432, 1000, 999, 32, 1},
					"small ones":        repeat(128, 32),
					"two kinds in turn": {1432, 32, 1432, 32, 1432, 1432, 32},
					"large ones":        repeat(20, 9000),
				} {
					t.Run(fmt.Sprintf("%s, offload %v, room for %d, %s", ip, offload, room, name), func(t *testing.T) {
						var from, to udpBind
						_, _ = openBind(t, &from, ip)
						fn, port := openBind(t, &to, ip)
						disableOffload(&from, !offload)
						checkBatch(t, &from, fn, netip.AddrPortFrom(netip.MustParseAddr(ip), port), sizes, room)
					})
				}
			}
		}
	}
}

func checkBatch(t *testing.T, from *udpBind, fn conn.ReceiveFunc, to netip.AddrPort, want []int, room int) {
	t.Helper()
	ep, err := from.ParseEndpoint(to.String())
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.NewChaCha8([32]byte{})
	sent, bufs := make([][]byte, len(want)), make([][]byte, len(want))
	for i, size := range want {
		sent[i] = make([]byte, size)
		_, _ = rnd.Read(sent[i])
		bufs[i] = append(make([]byte, 0, 65535), sent[i]...)
	}
	if err := from.Send(bufs, ep); err != nil {
		t.Fatal(err)
	}
	in, sizes, eps := make([][]byte, room), make([]int, room), make([]conn.Endpoint, room)
	for i := range in {
		in[i] = make([]byte, 65535)
	}
	for got := 0; got < len(want); {
		n, err := fn(in, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if string(in[i][:sizes[i]]) != string(sent[got]) {
				t.Fatalf("packet %d: %d bytes, want %d", got, sizes[i], want[got])
			}
			e := eps[i].(*udpEndpoint)
			if udpBatch > 1 && e.local != to.Addr() {
				t.Fatalf("came to %v, want %v", e.local, to.Addr())
			}
			if back, err := netip.ParseAddrPort(e.DstToString()); err != nil || back.Addr() != to.Addr() {
				t.Fatalf("came from %v", e.DstToString())
			}
			got++
		}
	}
}

func TestUDPAnswersFromTheAddressThatWasAsked(t *testing.T) {
	if udpBatch == 1 {
		t.Skip("this system does not tell our address")
	}
	var b udpBind
	fn, port := openBind(t, &b, "127.0.0.1")
	c := stranger(t)
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.77"), port)
	if _, err := c.WriteToUDPAddrPort([]byte("ask"), asked); err != nil {
		t.Fatal(err)
	}
	eps := make([]conn.Endpoint, 1)
	if _, err := fn([][]byte{make([]byte, 100)}, make([]int, 1), eps); err != nil {
		t.Fatal(err)
	}
	if err := b.Send([][]byte{[]byte("answer")}, eps[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := c.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil || from != asked {
		t.Errorf("answer from %v, %v; want %v", from, err, asked)
	}
}

func TestUDPErrors(t *testing.T) {
	var b udpBind
	ep, err := b.ParseEndpoint("127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Send([][]byte{{1}}, ep); !errors.Is(err, net.ErrClosed) {
		t.Errorf("before Open: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close before Open: %v", err)
	}
	fn, _ := openBind(t, &b, "127.0.0.1")
	if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("second Open: %v", err)
	}
	if err := b.Send([][]byte{{1}}, &Link{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("to a Link: %v", err)
	}
	if err := b.Send([][]byte{make([]byte, 65535)}, ep); err == nil {
		t.Error("a packet larger than UDP was sent")
	}
	if _, err := b.ParseEndpoint("nowhere"); err == nil {
		t.Error("an endpoint without an address")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := fn([][]byte{make([]byte, 100)}, make([]int, 1), make([]conn.Endpoint, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive after Close: %v", err)
	}
}

func TestMarkSurvivesRebind(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mark packets")
	}
	s := NewSocket(SocketConfig{})
	if err := s.SetMark(7); err != nil {
		t.Errorf("SetMark before Open: %v", err)
	}
	if _, _, err := s.Open(0); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.SetMark(8); err != nil {
		t.Skip("the system refuses marks:", err)
	}
	if err := s.Rebind(); err != nil {
		t.Fatal(err)
	}
	if got := markOf(t, s.bind.(*udpBind)); got != 8 {
		t.Errorf("mark %d, want 8", got)
	}
}

func TestTextOfPaths(t *testing.T) {
	p := Path{Kind: LAN, Remote: netip.MustParseAddrPort("192.0.2.7:41641"), RTT: 1234567}
	for rtt, want := range map[time.Duration]string{
		0:                       "lan 192.0.2.7:41641",
		1234567:                 "lan 192.0.2.7:41641 (1.23ms)",
		123456789:               "lan 192.0.2.7:41641 (123.5ms)",
		2345 * time.Millisecond: "lan 192.0.2.7:41641 (2.35s)",
	} {
		p.RTT = rtt
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, k := range []PathKind{Virtual, Direct, LAN, Loopback} {
		p.Kind = k
		raw, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back Path
		if err := json.Unmarshal(raw, &back); err != nil || back != p {
			t.Errorf("%s: %+v, %v", raw, back, err)
		}
	}
	var k PathKind
	if err := k.UnmarshalText([]byte("warp")); err == nil || PathKind(99).String() != "unknown" || EventKind(9).String() != "unknown" {
		t.Error("unknown kinds")
	}
}
