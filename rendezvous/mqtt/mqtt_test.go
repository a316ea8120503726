package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// idHook remembers the names of clients that connect.
type idHook struct {
	broker.HookBase
	mu  sync.Mutex
	ids []string
}

func (h *idHook) ID() string           { return "ids" }
func (h *idHook) Provides(b byte) bool { return b == broker.OnConnect }
func (h *idHook) OnConnect(c *broker.Client, _ packets.Packet) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ids = append(h.ids, c.ID)
	return nil
}

// startBroker runs a broker in this process and returns its address.
func startBroker(t *testing.T, kind, address string, tlsCfg *tls.Config, ledger *auth.Ledger) (string, *idHook, func()) {
	t.Helper()
	s := broker.New(&broker.Options{Logger: slog.New(slog.DiscardHandler)})
	var err error
	if ledger != nil {
		err = s.AddHook(new(auth.Hook), &auth.Options{Ledger: ledger})
	} else {
		err = s.AddHook(new(auth.AllowHook), nil)
	}
	ids := &idHook{}
	err = errors.Join(err, s.AddHook(ids, nil))
	cfg := listeners.Config{ID: "l", Address: address, TLSConfig: tlsCfg}
	var l listeners.Listener
	if kind == "ws" {
		l = listeners.NewWebsocket(cfg)
	} else {
		l = listeners.NewTCP(cfg)
	}
	if err = errors.Join(err, s.AddListener(l), s.Serve()); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() { s.Close() })
	t.Cleanup(stop)
	return l.Address(), ids, stop
}

func fastConfig(url string) Config { return Config{URL: url, Burst: 1000, Interval: time.Millisecond} }

func open(t *testing.T, cfg Config) *Exchange {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestSuiteTCP(t *testing.T) {
	address, _, _ := startBroker(t, "tcp", "127.0.0.1:0", nil, nil)
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		return open(t, fastConfig("mqtt://"+address)), open(t, fastConfig("mqtt://"+address))
	})
}

func TestSuiteWebSocket(t *testing.T) {
	address := freeAddress(t) // the WebSocket listener does not tell its port
	startBroker(t, "ws", address, nil, nil)
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		return open(t, fastConfig("ws://"+address+"/mqtt")), open(t, fastConfig("ws://"+address+"/mqtt"))
	})
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestTLS(t *testing.T) {
	server, client := rendezvoustest.Certificate(t, -time.Hour, time.Hour)
	address, _, _ := startBroker(t, "tcp", "127.0.0.1:0", server, nil)
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		cfg := fastConfig("mqtts://" + address)
		cfg.TLS = client
		return open(t, cfg), open(t, cfg)
	})
	e := open(t, fastConfig("mqtts://"+address)) // trusts the system's authorities only
	var unknown x509.UnknownAuthorityError
	if h := awaitError(t, e); !strings.Contains(h.Err.Error(), "not trusted") || !errors.As(h.Err, &unknown) {
		t.Errorf("health: %v", h.Err)
	}
}

// awaitError waits until an attempt to connect has failed.
func awaitError(t *testing.T, e *Exchange) rendezvous.Health {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		h := e.Health()
		if h.Err != nil && !errors.Is(h.Err, ErrConnecting) {
			return h
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("no error: %+v", h)
		}
	}
}

func TestCredentials(t *testing.T) {
	address, ids, _ := startBroker(t, "tcp", "127.0.0.1:0", nil, &auth.Ledger{
		Auth: auth.AuthRules{{Username: "anna", Password: "hunter2", Allow: true}},
		ACL:  auth.ACLRules{{Username: "anna", Filters: auth.Filters{"#": auth.ReadWrite}}},
	})
	right := fastConfig("mqtt://" + address)
	right.User, right.Password = "anna", "hunter2"
	wrong := right
	wrong.Password = "hunter3"
	e := open(t, wrong)
	h := awaitError(t, e)
	if !errors.Is(h.Err, ErrCredentials) || strings.Contains(h.Err.Error()+h.Detail, "hunter") {
		t.Errorf("health: %+v", h)
	}
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) { return open(t, right), open(t, right) })
	ids.mu.Lock()
	defer ids.mu.Unlock()
	seen := make(map[string]bool)
	for _, id := range ids.ids {
		if seen[id] || len(id) < 16 {
			t.Errorf("client name %q is not random", id)
		}
		seen[id] = true
	}
}

// TestBrokerRestarts kills the broker and starts another at its address.
func TestBrokerRestarts(t *testing.T) {
	address := freeAddress(t)
	_, _, stop := startBroker(t, "tcp", address, nil, nil)
	a, b := open(t, fastConfig("mqtt://"+address)), open(t, fastConfig("mqtt://"+address))
	topic := rendezvous.Topic{1}
	sa, err := a.Join(t.Context(), rendezvous.Point{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := b.Join(t.Context(), rendezvous.Point{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	untilArrives(t, sa, sb)
	stop()
	startBroker(t, "tcp", address, nil, nil)
	untilArrives(t, sa, sb)
}

func untilArrives(t *testing.T, from, to rendezvous.Session) {
	t.Helper()
	rendezvoustest.UntilArrives(t, from, to, rendezvoustest.Frame(0), 50*time.Millisecond)
}

func TestBadURLs(t *testing.T) {
	for _, u := range []string{"", "http://host", "mqtt://", "mqtt://user:secret@host", "mqtt://user@host", "host:1883", "://"} {
		if _, err := New(Config{URL: u}); !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want ErrConfig", u, err)
		}
	}
}

func FuzzURL(f *testing.F) {
	for _, s := range []string{"mqtt://h", "mqtts://h:1", "ws://h/p", "wss://[::1]:9/x?y", "mqtt://a:b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := brokerURL(s)
		if err == nil && (u.User != nil || u.Hostname() == "") {
			t.Errorf("%q was accepted", s)
		}
	})
}
