package link

import (
	"net/netip"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
)

// While a hole's socket becomes one of its own, data goes on.
func TestDataPassesWhileAHoleIsKept(t *testing.T) {
	for range 3 {
		a, _, logA, _ := drillers(t)
		a.wait(t, Up, 10*time.Second)
		for ended := false; !ended; {
			if err := a.say("x"); err != nil {
				t.Fatal(err)
			}
			select {
			case r := <-logA.lines:
				ended = r.Message == over
			default:
			}
		}
		a.Close()
	}
}

// Whoever recorded a ping of the peer, and plays it to a socket of a pool, gets
// no hole: that would take the place of the peer's, and have us ask the replayer.
func TestReplayedPingMakesNoHole(t *testing.T) {
	n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	peer := stranger(t)
	old := sealed(t, probe{kind: ping, session: 4, seq: 1})
	if _, err := peer.WriteToUDPAddrPort(old, n.addr()); err != nil {
		t.Fatal(err)
	}
	if err := peer.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 2048)); err != nil { // it was handled
		t.Fatal(err)
	}
	at := openPool(t, n.Link)
	at.receive(3, netip.MustParseAddrPort("127.0.0.1:9"), old)
	if at.holesNow() != 0 {
		t.Error("a replay from before made a hole")
	}
	fresh := sealed(t, probe{kind: ping, session: 4, seq: 2})
	at.receive(5, peer.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort(), fresh)
	for i := 10; i < 20; i++ {
		at.receive(i, netip.MustParseAddrPort("127.0.0.1:9"), fresh)
	}
	if at.holesNow() != 1 {
		t.Errorf("%d holes of one ping", at.holesNow())
	}
}

// A pong at a socket that has no hole was never asked for.
func TestPongMakesNoHole(t *testing.T) {
	n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	at := openPool(t, n.Link)
	at.receive(3, netip.MustParseAddrPort("127.0.0.1:9"), sealed(t, probe{kind: pong, tx: txid{1}}))
	if at.holesNow() != 0 {
		t.Error("a pong made a hole")
	}
}
