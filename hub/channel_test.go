package hub

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// channelClient is a client over UDP with an allocation.
func channelClient(t testing.TB, h *Hub, name string) (*rawTURN, *net.UDPAddr) {
	t.Helper()
	user, password := turnUser(h, name, time.Hour)
	c := dialRaw(t, h, "udp", user, password)
	_ = c.Conn.(*net.UDPConn).SetReadBuffer(socketBuffer)
	m := c.ask(t, stun.MethodAllocate, wantUDP)
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil {
		t.Fatal(m)
	}
	return c, &net.UDPAddr{IP: x.IP, Port: x.Port}
}

func (c *rawTURN) bind(t testing.TB, number uint16, peer net.Addr) {
	t.Helper()
	if m := c.ask(t, stun.MethodChannelBind, channelAttr(number), peerAttr(peer)); m.Type.Class != stun.ClassSuccessResponse {
		t.Fatal(m)
	}
}

// numbered is packet i of a size, which can be told from all others.
func numbered(i, size int) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
	p := binary.BigEndian.AppendUint32(nil, uint32(i))
	return append(p, bytes.Repeat(sum[:], size/len(sum)+1)...)[:size]
}

// sizes are those of a burst: trains of one size, with a shorter last packet and
// without, and packets that fit no train.
func sizes() (out []int) {
	for range 3 {
		for _, run := range [][2]int{{1300, 70}, {40, 1}, {1300, 3}, {1301, 2}, {8, 5}, {1400, 1}, {0x4, 1}, {1200, 64}, {1199, 1}} {
			for range run[1] {
				out = append(out, run[0])
			}
		}
	}
	return out
}

// TestChannelData sends bursts through channels, both ways and from one allocation
// to another, and compares every byte and the order.
func TestChannelData(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"one address": nil,
		"outside":     func(c *Config) { c.RelayIP = netip.MustParseAddr("203.0.113.7") },
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, change)
			one, oneAt := channelClient(t, h, "one")
			two, twoAt := channelClient(t, h, "two")
			peer := udpConn(t, "127.0.0.1:0")
			_ = peer.SetReadBuffer(socketBuffer)
			one.bind(t, 0x4001, peer.LocalAddr())
			one.bind(t, 0x4fff, twoAt)
			two.bind(t, 0x4000, oneAt)
			relayAt := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(oneAt.Port))
			up := func(c *rawTURN, number uint16) func([]byte) error {
				return func(p []byte) error { _, err := c.Write(channelData(number, p)); return err }
			}
			down := func(c *rawTURN, number uint16) func() []byte {
				return func() []byte {
					raw := c.read(t, time.Second)
					if len(raw) < channelHeader || binary.BigEndian.Uint16(raw) != number || int(binary.BigEndian.Uint16(raw[2:])) != len(raw)-channelHeader {
						return nil
					}
					return raw[channelHeader:]
				}
			}
			buf := make([]byte, 2048)
			for way, w := range map[string]struct {
				send    func([]byte) error
				receive func() []byte
			}{
				"to peer": {up(one, 0x4001), func() []byte {
					_ = peer.SetReadDeadline(time.Now().Add(time.Second))
					n, src, err := peer.ReadFromUDPAddrPort(buf)
					if err != nil || src != relayAt {
						return nil
					}
					return buf[:n]
				}},
				"to client":     {func(p []byte) error { _, err := peer.WriteToUDPAddrPort(p, relayAt); return err }, down(one, 0x4001)},
				"to allocation": {up(one, 0x4fff), down(two, 0x4000)},
				"back":          {up(two, 0x4000), down(one, 0x4fff)},
			} {
				if err := burst(w.send, w.receive); err != nil {
					t.Errorf("%s: %v", way, err)
				}
			}
		})
	}
}

// burst sends packets of all sizes, a few at a time, and takes them at the other
// end. It errs if one is missing, another, or out of order.
func burst(send func([]byte) error, receive func() []byte) error {
	all := sizes()
	const ahead = 100
	for got, sent := 0, 0; got < len(all); got++ {
		for ; sent < len(all) && sent < got/ahead*ahead+ahead; sent++ {
			if err := send(numbered(sent, all[sent])); err != nil {
				return err
			}
		}
		if p := receive(); !bytes.Equal(p, numbered(got, all[got])) {
			return fmt.Errorf("packet %d of %d bytes came as %d bytes", got, all[got], len(p))
		}
	}
	return nil
}

// TestChannelRights holds that only those get through whom the client let through,
// and only as long.
func TestChannelRights(t *testing.T) {
	h := open(t, func(c *Config) { c.channelLife, c.permissionLife = time.Second, time.Second })
	c, at := channelClient(t, h, "desk")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(at.Port))
	peer, other := udpConn(t, "127.0.0.1:0"), udpConn(t, "127.0.0.1:0")
	passes := func(from *net.UDPConn) []byte {
		if _, err := from.WriteToUDPAddrPort([]byte("from a peer"), to); err != nil {
			t.Fatal(err)
		}
		for {
			raw := c.read(t, 50*time.Millisecond)
			if raw == nil || bytes.Contains(raw, []byte("from a peer")) {
				return raw
			}
		}
	}
	goes := func() bool {
		if _, err := c.Write(channelData(0x4000, []byte("to a peer"))); err != nil {
			t.Fatal(err)
		}
		_ = peer.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _, err := peer.ReadFromUDPAddrPort(make([]byte, 100))
		return err == nil
	}
	if raw := passes(peer); raw != nil || goes() {
		t.Fatalf("without any right: %x", raw)
	}
	for range 2 { // the second time after all has ended
		c.bind(t, 0x4000, peer.LocalAddr())
		await(t, "through the channel", func() bool {
			c.bind(t, 0x4000, peer.LocalAddr())
			raw := passes(peer)
			return len(raw) > 0 && raw[0] == 0x40 && goes()
		})
		await(t, "from another port, in an indication", func() bool {
			c.bind(t, 0x4000, peer.LocalAddr())
			raw := passes(other)
			return len(raw) > 0 && raw[0] == 0x00
		})
		await(t, "the channel's end", func() bool { return !goes() })
		await(t, "the permission's end", func() bool { return passes(other) == nil && passes(peer) == nil })
	}
	if metric(h, `kith_hub_drops_total{reason="permission"}`) == 0 {
		t.Error("nothing was counted")
	}
	// The end of the allocation.
	c.bind(t, 0x4000, peer.LocalAddr())
	if m := c.ask(t, stun.MethodRefresh, stun.RawAttribute{Type: stun.AttrLifetime, Length: 4, Value: make([]byte, 4)}); m.Type.Class != stun.ClassSuccessResponse {
		t.Fatal(m)
	}
	if goes() {
		t.Error("after the end of the allocation")
	}
	// Nothing is kept of it.
	await(t, "no allocation", func() bool { return metric(h, "kith_hub_allocations") == 0 })
	h.turn.udp[0].mu.Lock()
	defer h.turn.udp[0].mu.Unlock()
	if n := len(h.turn.udp[0].clients); n != 0 {
		t.Errorf("%d clients are left", n)
	}
}

// TestMalformedChannelData holds that lengths that lie, and channels that there are
// not, are dropped, also in between others.
func TestMalformedChannelData(t *testing.T) {
	h := open(t, nil)
	c, _ := channelClient(t, h, "desk")
	peer := udpConn(t, "127.0.0.1:0")
	c.bind(t, 0x4000, peer.LocalAddr())
	for _, p := range []string{"\x40\x00\x00\x09eight by", "\x40\x00\xff\xff", "\x40\x01\x00\x05other", "\x4f\xff\x00\x00", "\x40\x00\x00\x06padded\x00\x00"} {
		if _, err := c.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	_ = peer.SetReadDeadline(time.Now().Add(testLimit))
	if n, _, err := peer.ReadFrom(buf); err != nil || string(buf[:n]) != "padded" {
		t.Errorf("%q %v", buf[:n], err)
	}
}

// TestManyPermissions bounds what one allocation may have the hub remember.
func TestManyPermissions(t *testing.T) {
	h := open(t, nil)
	c, _ := channelClient(t, h, "desk")
	allow := func(i int) stun.ErrorCode {
		return errorOf(c.ask(t, stun.MethodCreatePermission, peerAddress(netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 1, byte(i >> 8), byte(i)}), 9))))
	}
	for i := range maxPeers {
		if code := allow(i); code != 0 {
			t.Fatalf("permission %d: %d", i, code)
		}
	}
	if code := allow(maxPeers); code != stun.CodeForbidden {
		t.Errorf("one too many: %d", code)
	}
	if code := allow(0); code != 0 {
		t.Errorf("once more for the first: %d", code)
	}
}
