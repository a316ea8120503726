package link

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/signaling"
)

// An airWire joins two nodes in a synctest bubble.
type airWire struct {
	nodes [2]*node
	addrs [2]netip.AddrPort
	count atomic.Int64 // datagrams sent
	cut   atomic.Bool
}

// onWire makes two nodes that know each other's address, 10 ms apart.
func onWire(t *testing.T) *airWire {
	t.Helper()
	w := new(airWire)
	var binds [2]*airBind
	for i := range binds {
		w.addrs[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 41641)
		binds[i] = &airBind{in: make(chan airPacket), over: make(chan struct{})}
	}
	for i, bind := range binds {
		other := binds[1-i]
		bind.answer = func(raw []byte, to netip.AddrPort) []airPacket {
			w.count.Add(1)
			if to != w.addrs[1-i] || w.cut.Load() {
				return nil
			}
			p := airPacket{from: w.addrs[i], raw: append([]byte(nil), raw...)}
			time.AfterFunc(10*time.Millisecond, func() {
				select {
				case other.in <- p:
				case <-other.over:
				}
			})
			return nil
		}
	}
	for i, bind := range binds {
		w.nodes[i] = newNode(t, SocketConfig{Bind: bind}, Config{Peer: identity.DeviceID{byte(2 - i)}, Keys: testKeys("pair", i == 0)})
	}
	for i, n := range w.nodes {
		n.SetRemote([]signaling.Candidate{{Kind: signaling.Host, Addr: w.addrs[1-i]}})
	}
	for _, n := range w.nodes {
		n.wait(t, Up, 5*time.Second)
	}
	return w
}

// pass lets time pass in the bubble.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestIdleLinkCostsAKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onWire(t)
		pass(time.Minute)
		before := w.count.Load()
		const period = 10 * time.Minute
		pass(period)
		if sent, most := w.count.Load()-before, int64(4*period/idlePing); sent > most {
			t.Errorf("both sent %d packets in %s, more than a ping and a pong per 25 s", sent, period)
		}
	})
}

func TestLazyLinkSleepsAndWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onWire(t)
		a, b := w.nodes[0], w.nodes[1]
		a.SetLazy(true)
		b.SetLazy(true)
		if err := a.say("before"); err != nil {
			t.Fatal(err)
		}
		b.hear(t, "before")
		pass(time.Minute)
		if !a.Dormant() || !b.Dormant() {
			t.Fatalf("asleep: %v, %v", a.Dormant(), b.Dormant())
		}
		before := w.count.Load()
		pass(time.Hour)
		if sent := w.count.Load() - before; sent != 0 {
			t.Errorf("%d packets in an hour of idleness", sent)
		}
		if _, up := a.Path(); !up {
			t.Error("the path is gone")
		}
		for len(a.events) > 0 {
			<-a.events
		}
		// Days later its keys are those of the day.
		pass(50 * time.Hour)
		start := time.Now()
		if err := a.say("good morning"); err != nil {
			t.Fatal(err)
		}
		b.hear(t, "good morning")
		if took := time.Since(start); took != 10*time.Millisecond {
			t.Errorf("the first packet took %s", took)
		}
		if ev := a.wait(t, Waking, time.Second); ev.Link != a.Link || ev.Path.Remote != w.addrs[1] {
			t.Errorf("event %+v", ev)
		}
		pass(5 * time.Second)
		if _, up := a.Path(); !up || a.Dormant() || b.Dormant() || len(a.events) != 0 {
			t.Errorf("asleep: %v, %v; %d events, up %v", a.Dormant(), b.Dormant(), len(a.events), up)
		}
	})
}

// TestLazyLinkWithoutAPath: nobody is asked while it sleeps, and a handshake message
// without a path wakes it.
func TestLazyLinkWithoutAPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onWire(t)
		a, b := w.nodes[0], w.nodes[1]
		a.SetLazy(true)
		w.cut.Store(true)
		if err := a.say("into the void"); err != nil {
			t.Fatal(err)
		}
		a.wait(t, Down, 10*time.Second)
		pass(time.Minute)
		before := w.count.Load()
		b.Close()
		pass(time.Hour)
		if sent := w.count.Load() - before; sent != 0 || !a.Dormant() {
			t.Errorf("%d packets to nobody, asleep: %v", sent, a.Dormant())
		}
		initiation := append([]byte{1, 0, 0, 0}, make([]byte, 144)...)
		if err := a.socket.Send([][]byte{initiation}, a.Link); err != nil {
			t.Fatal(err)
		}
		if ev := a.wait(t, Waking, time.Second); ev.Path != (Path{}) {
			t.Errorf("event %+v", ev)
		}
		pass(100 * time.Millisecond)
		if w.count.Load() == before {
			t.Error("nobody is asked")
		}
	})
}
