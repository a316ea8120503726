package waku

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startService runs a node on loopback and returns its address for TCP.
func startService(t testing.TB, cfg ServiceConfig) (*Service, string) {
	t.Helper()
	if cfg.Seed == [32]byte{} {
		cfg.Seed[0] = 1
	}
	if cfg.Rate == 0 {
		cfg.Rate = 100_000 // the suite sends fast
	}
	if cfg.PerAddress == 0 {
		cfg.PerAddress = 100
	}
	s, err := NewService(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return s, s.Multiaddr("127.0.0.1", addrPort(ln.Addr()).Port(), "")
}

func fastConfig(nodes ...string) Config {
	return Config{Nodes: nodes, Burst: 1000, Interval: time.Millisecond}
}

func open(t testing.TB, cfg Config) *Exchange {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func join(t testing.TB, e *Exchange, p rendezvous.Point) rendezvous.Session {
	t.Helper()
	s, err := e.Join(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSuiteTCP(t *testing.T) {
	_, node := startService(t, ServiceConfig{})
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		return open(t, fastConfig(node)), open(t, fastConfig(node))
	})
}
