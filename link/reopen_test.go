package link

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
)

func TestCloseAndOpenAgain(t *testing.T) {
	a, b := connected(t)
	port := a.socket.Port()
	if _, _, err := a.socket.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("second Open: %v", err)
	}
	for range 3 {
		if err := a.socket.Close(); err != nil {
			t.Fatal(err)
		}
		if err := a.say("x"); err == nil {
			t.Error("sending on a closed socket succeeds")
		}
		if err := a.socket.Rebind(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Rebind of a closed socket: %v", err)
		}
		a.open(t)
		if a.socket.Port() != port {
			t.Errorf("port %d, want %d", a.socket.Port(), port)
		}
		await(t, "data to pass", func() bool {
			_ = a.say("again")
			select {
			case <-b.data:
				return true
			default:
				return false
			}
		})
	}
	a.Close()
	a.Close()
	if err := a.say("x"); !errors.Is(err, ErrNoPath) {
		t.Errorf("sending to a closed link: %v", err)
	}
	if n := len(a.socket.table.Load().sources) + len(a.socket.table.Load().tags); n != 0 {
		t.Errorf("a closed link left %d entries", n)
	}
}

func TestReceiveFuncsEnd(t *testing.T) {
	s := NewSocket(SocketConfig{})
	fns, _, err := s.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, len(fns))
	for _, fn := range fns {
		go func() {
			_, err := fn([][]byte{make([]byte, 2000)}, make([]int, 1), make([]conn.Endpoint, 1))
			ends <- err
		}()
	}
	if err := s.Rebind(); err != nil { // they do not notice
		t.Fatal(err)
	}
	select {
	case err := <-ends:
		t.Fatalf("a ReceiveFunc ended with %v at Rebind", err)
	default:
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range fns {
		if err := <-ends; !errors.Is(err, net.ErrClosed) {
			t.Errorf("ended with %v", err)
		}
	}
}

func TestRebindKeepsPortAndPath(t *testing.T) {
	a, b := connected(t)
	port := a.socket.Port()
	for range 5 {
		if err := a.socket.Rebind(); err != nil {
			t.Fatal(err)
		}
	}
	if a.socket.Port() != port {
		t.Errorf("port %d, want %d", a.socket.Port(), port)
	}
	if err := a.say("after"); err != nil {
		t.Fatal(err)
	}
	b.hear(t, "after")
	if err := b.say("back"); err != nil {
		t.Fatal(err)
	}
	a.hear(t, "back")
}

func TestRebindThatFailsCanBeRepeated(t *testing.T) {
	broken := &refusing{Bind: new(udpBind)}
	a := newNode(t, SocketConfig{Bind: broken}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	b.wait(t, Up, 5*time.Second)
	broken.refuse.Store(true)
	if err := a.socket.Rebind(); err == nil {
		t.Fatal("Rebind succeeded without a socket")
	}
	broken.refuse.Store(false)
	if err := a.socket.Rebind(); err != nil {
		t.Fatal(err)
	}
	await(t, "data to pass", func() bool {
		_ = b.say("back")
		select {
		case <-a.data:
			return true
		default:
			return false
		}
	})
}

type refusing struct {
	conn.Bind
	refuse atomic.Bool
}

func (r *refusing) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if r.refuse.Load() {
		return nil, 0, errors.New("no buffer space available")
	}
	return r.Bind.Open(port)
}

func TestPortThatIsTaken(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	taken := uint16(c.LocalAddr().(*net.UDPAddr).Port)
	s := NewSocket(SocketConfig{Port: taken})
	if _, _, err := s.Open(0); err == nil {
		t.Error("a configured port that is taken was not refused")
	}
	s = NewSocket(SocketConfig{})
	s.port.Store(uint32(taken)) // that of the last time
	if _, port, err := s.Open(0); err != nil || port == taken {
		t.Errorf("port %d, %v", port, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
