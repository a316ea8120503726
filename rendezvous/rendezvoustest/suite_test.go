package rendezvoustest_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	rendezvoustest.Run(t, func(*testing.T) (a, b rendezvous.Exchange) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		return n.Exchange("memory"), n.Exchange("memory")
	})
}

func TestMemoryWithFaults(t *testing.T) {
	rendezvoustest.Run(t, func(*testing.T) (a, b rendezvous.Exchange) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{Duplicate: 0.2, MaxDelay: 5 * time.Millisecond})
		return n.Exchange("memory"), n.Exchange("memory")
	})
}

// TestRace joins a good medium, a dead one and a lossy one: the suite must not
// notice.
func TestRace(t *testing.T) {
	rendezvoustest.Run(t, func(*testing.T) (a, b rendezvous.Exchange) {
		good := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		dead := rendezvoustest.NewNetwork(2, rendezvoustest.Faults{})
		dead.Cut(true)
		bad := rendezvoustest.NewNetwork(3, rendezvoustest.Faults{Loss: 0.5, Duplicate: 0.5, MaxDelay: time.Millisecond})
		side := func() rendezvous.Exchange {
			return rendezvous.Race(dead.Exchange("dead"), good.Exchange("good"), bad.Exchange("bad"))
		}
		return side(), side()
	})
}
