package link

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/signaling"
)

func TestMain(m *testing.M) {
	if side := os.Getenv(labNodeEnv); side != "" {
		os.Exit(labNode(side)) // one end of a link in a namespace of TestLab
	}
	goleak.VerifyTestMain(m)
}

// testKeys gives the probe keys of a pair for tests.
func testKeys(secret string, first bool) func(int64) ([32]byte, [32]byte, error) {
	return func(day int64) (send, receive [32]byte, err error) {
		if day < 0 {
			return send, receive, errors.New("no keys")
		}
		key := func(side byte) [32]byte {
			return sha256.Sum256(binary.BigEndian.AppendUint64(append([]byte(secret), side), uint64(day)))
		}
		if first {
			return key(1), key(2), nil
		}
		return key(2), key(1), nil
	}
}

// A node is one end of a link in a test: an open socket that a device would
// read, and one link.
type node struct {
	*Link
	socket *Socket
	events chan Event
	data   chan string // WireGuard payloads, after the 32 bytes of header
}

// newNode opens a socket and reads it as a WireGuard device does.
func newNode(t *testing.T, cfg SocketConfig, lcfg Config) *node {
	t.Helper()
	cfg.Loopback = true
	n := &node{socket: NewSocket(cfg), events: make(chan Event, 256), data: make(chan string, 4096)}
	lcfg.Events = func(ev Event) { n.events <- ev }
	var err error
	if n.Link, err = n.socket.NewLink(lcfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	n.open(t)
	return n
}

// open opens the socket as often as the test likes, and reads until it is closed.
func (n *node) open(t *testing.T) {
	t.Helper()
	fns, _, err := n.socket.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() { n.read(t, fn) })
	}
	t.Cleanup(func() {
		if err := n.socket.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func (n *node) read(t *testing.T, fn conn.ReceiveFunc) {
	size := n.socket.BatchSize()
	bufs, sizes, eps := make([][]byte, size), make([]int, size), make([]conn.Endpoint, size)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	for {
		got, err := fn(bufs, sizes, eps)
		if err != nil {
			return
		}
		for i := range got {
			if sizes[i] == 0 {
				continue
			}
			if eps[i] != conn.Endpoint(n.Link) {
				t.Errorf("endpoint is %v, want the link", eps[i])
			}
			select {
			case n.data <- string(bufs[i][32:sizes[i]]):
			default:
			}
		}
	}
}

// wait returns the next event of a kind.
func (n *node) wait(t *testing.T, kind EventKind, within time.Duration) Event {
	t.Helper()
	timeout := time.After(within)
	for {
		select {
		case ev := <-n.events:
			if ev.Kind == kind {
				return ev
			}
		case <-timeout:
			t.Fatalf("no %s event within %s; paths %v", kind, within, n.Paths())
		}
	}
}

// say sends a packet that looks like WireGuard data.
func (n *node) say(text string) error {
	return n.socket.Send([][]byte{data(text)}, n.Link)
}

func data(text string) []byte {
	return append(append([]byte{4, 0, 0, 0}, make([]byte, 28)...), text...)
}

func (n *node) hear(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case got := <-n.data:
			if got == want {
				return
			}
		case <-timeout:
			t.Fatalf("did not hear %q", want)
		}
	}
}

// loopback are the loopback addresses of a socket.
func loopback(s *Socket, addrs ...string) []signaling.Candidate {
	var out []signaling.Candidate
	for _, a := range addrs {
		out = append(out, signaling.Candidate{Kind: signaling.Host, Addr: netip.AddrPortFrom(netip.MustParseAddr(a), s.Port())})
	}
	return out
}

func pair(t *testing.T) (a, b *node) {
	t.Helper()
	a = newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	b = newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
	return a, b
}

func TestTwoSocketsFindEachOther(t *testing.T) {
	a, b := pair(t)
	start := time.Now()
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	up := a.wait(t, Up, 5*time.Second)
	t.Logf("up after %s: %s", time.Since(start), up.Path)
	b.wait(t, Up, 5*time.Second) // b knew no address: a's ping told it
	if up.Path.Kind != Loopback || up.Path.Remote.Port() != b.socket.Port() || up.Path.Observed.Port() != a.socket.Port() {
		t.Errorf("path %+v", up.Path)
	}
	if err := a.say("from a"); err != nil {
		t.Fatal(err)
	}
	b.hear(t, "from a")
	if err := b.say("from b"); err != nil {
		t.Fatal(err)
	}
	a.hear(t, "from b")
	for a.wait(t, Changed, 5*time.Second).Path.Size != DefaultDataSize { //nolint:revive // the condition does the work
	}
}
