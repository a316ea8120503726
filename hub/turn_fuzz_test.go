package hub

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// FuzzTURN sends the relay what a client with good credentials may send: any
// attributes in any request, signed. The relay goes on.
func FuzzTURN(f *testing.F) {
	f.Add(uint8(0), []byte("\x00\x19\x00\x04\x11\x00\x00\x00"))
	f.Add(uint8(0), []byte("\x00\x19\x00\x04\x11\x00\x00\x00\x00\x18\x00\x01\x80\x00\x00\x00"))
	f.Add(uint8(1), []byte("\x00\x0d\x00\x04\x00\x00\x00\x00"))
	f.Add(uint8(2), []byte("\x00\x12\x00\x08\x00\x01\x12\x34\x5e\x12\xa4\x43"))
	f.Add(uint8(3), []byte("\x00\x0c\x00\x04\x40\x00\x00\x00\x00\x12\x00\x08\x00\x01\x12\x34\x5e\x12\xa4\x43"))
	f.Add(uint8(4), []byte("\x00\x12\x00\x08\x00\x01\x12\x34\x5e\x12\xa4\x43\x00\x13\x00\x01a\x00\x00\x00"))
	f.Add(uint8(7), []byte("\x40\x00\x00\x01a\x00\x00\x00"))
	h := open(f, func(c *Config) { c.AllowPrivate = false })
	conn := udpConn(f, "127.0.0.1:0")
	server := netip.MustParseAddrPort(h.hostPort())
	buf := make([]byte, 2048)
	// roundTrip sends, and waits for the answer to an Allocate without credentials
	// after it: the relay handles packets in order.
	roundTrip := func(t testing.TB, raw []byte) *stun.Message {
		barrier, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			for _, p := range [][]byte{raw, barrier.Raw} {
				if _, err := conn.WriteToUDPAddrPort(p, server); err != nil {
					t.Fatal(err)
				}
			}
			for {
				_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
				n, _, err := conn.ReadFromUDPAddrPort(buf)
				if err != nil {
					break
				}
				m := &stun.Message{Raw: bytes.Clone(buf[:n])}
				if m.Decode() == nil && m.TransactionID == barrier.TransactionID {
					return m
				}
			}
		}
		t.Fatalf("the relay does not answer after %x", raw)
		return nil
	}
	var nonce stun.Nonce
	if err := nonce.GetFrom(roundTrip(f, nil)); err != nil {
		f.Fatal(err)
	}
	user, password := turnUser(h, "desk", time.Hour)
	types := []stun.MessageType{
		stun.NewType(stun.MethodAllocate, stun.ClassRequest), stun.NewType(stun.MethodRefresh, stun.ClassRequest),
		stun.NewType(stun.MethodCreatePermission, stun.ClassRequest), stun.NewType(stun.MethodChannelBind, stun.ClassRequest),
		stun.NewType(stun.MethodSend, stun.ClassIndication), stun.NewType(stun.MethodConnect, stun.ClassRequest),
		stun.NewType(stun.MethodConnectionBind, stun.ClassRequest),
	}
	f.Fuzz(func(t *testing.T, which uint8, attrs []byte) {
		if len(attrs) > 1000 {
			return
		}
		i := int(which) % (len(types) + 1)
		if i == len(types) { // as it stands: ChannelData and the like
			roundTrip(t, attrs)
			return
		}
		m, err := stun.Build(stun.TransactionID, types[i])
		if err != nil {
			t.Fatal(err)
		}
		for rest := attrs; len(rest) >= 4; { // type, length, value, padding
			n := min(int(rest[3]), len(rest)-4)
			m.Add(stun.AttrType(uint16(rest[0])<<8|uint16(rest[1])), rest[4:4+n])
			rest = rest[min(len(rest), 4+(n+3)&^3):]
		}
		for _, s := range []stun.Setter{stun.NewUsername(user), stun.NewRealm(turnRealm), nonce, stun.NewLongTermIntegrity(user, turnRealm, password)} {
			if err := s.AddTo(m); err != nil {
				return // the attributes hold one that must come last
			}
		}
		roundTrip(t, m.Raw)
		if n := h.turn.quota.total(); n > 1 {
			t.Fatalf("%d allocations by one client on one port", n)
		}
	})
}
