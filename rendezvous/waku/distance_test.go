package waku

import (
	"net"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/rendezvous"
)

// farAway forwards connections to a node and holds every byte back for half of a
// round trip. It returns the node's address through it.
func farAway(t testing.TB, s *Service, node string, rtt time.Duration) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target, err := parseAddress(node)
	if err != nil {
		t.Fatal(err)
	}
	nettest.Distance(t, ln, func() (net.Conn, error) { return net.Dial("tcp", target.host) }, rtt)
	return s.Multiaddr("127.0.0.1", addrPort(ln.Addr()).Port(), "")
}

// TestAtDistance measures what a start costs at 50 ms of round trip: from New to
// the first frame across, and one frame afterwards. TCP's own round trip is not in
// it.
func TestAtDistance(t *testing.T) {
	const rtt = 50 * time.Millisecond
	s, near := startService(t, ServiceConfig{})
	far := farAway(t, s, near, rtt)
	start := time.Now()
	a, b := open(t, fastConfig(far)), open(t, fastConfig(far))
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
	publish(t.Context(), t, sa, frameOf(1)) // waits for the connection
	awaitFrame(t.Context(), t, sb, frameOf(1))
	first := time.Since(start)
	start = time.Now()
	publish(t.Context(), t, sb, frameOf(2))
	awaitFrame(t.Context(), t, sa, frameOf(2))
	next := time.Since(start)
	t.Logf("first frame after %v, another in %v", first, next)
	if first > 20*rtt || next > 6*rtt {
		t.Errorf("first frame after %v, another in %v: too many round trips", first, next)
	}
}
