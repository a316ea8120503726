package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"github.com/pion/turn/v5"
)

// TestRefused: every refusal is told apart, and none tells a secret.
func TestRefused(t *testing.T) {
	other := certificate(t, "127.0.0.1")
	otherPool := x509.NewCertPool()
	otherPool.AddCert(other.Certificates[0].Leaf)
	for name, c := range map[string]struct {
		via    transport
		server func(*turn.ServerConfig)
		config func(*Config)
		want   error
	}{
		"wrong password, udp": {config: func(c *Config) { c.Password = "hunter2-secret" }, want: ErrCredentials},
		"wrong password, tcp": {via: overTCP, config: func(c *Config) { c.Password = "hunter2-secret" }, want: ErrCredentials},
		"wrong password, tls": {via: overTLS, config: func(c *Config) { c.Password = "hunter2-secret" }, want: ErrCredentials},
		"wrong user":          {config: func(c *Config) { c.User = "mallory" }, want: ErrCredentials},
		"wrong secret":        {config: func(c *Config) { c.Secret = []byte("hunter2-secret") }, want: ErrCredentials},
		"quota": {
			server: func(c *turn.ServerConfig) { c.QuotaHandler = func(string, string, net.Addr) bool { return false } },
			want:   ErrQuota,
		},
		"no ports left": {
			server: func(c *turn.ServerConfig) {
				c.PacketConnConfigs[0].RelayAddressGenerator = &turn.RelayAddressGeneratorStatic{
					RelayAddress: net.IPv4(127, 0, 0, 1), Address: "192.0.2.1", // not ours
				}
			},
			want: ErrFull,
		},
		"unknown authority": {via: overTLS, config: func(c *Config) { c.TLS = nil }, want: ErrTLS},
		"another certificate": {
			via: overTLS, config: func(c *Config) { c.TLS = &tls.Config{RootCAs: otherPool} }, want: ErrTLS,
		},
		"another name": {
			via: overTLS, config: func(c *Config) { c.TLS.ServerName = "other.test" }, want: ErrTLS,
		},
		"pin": {
			via: overTLS, want: ErrTLS,
			config: func(c *Config) {
				c.TLS = &tls.Config{
					InsecureSkipVerify: true,
					VerifyConnection:   func(tls.ConnectionState) error { return errors.New("another key than pinned") },
				}
			},
		},
		"bad URL": {config: func(c *Config) { c.URL = "turn:u:hunter2-secret@127.0.0.1" }, want: ErrURL},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "127.0.0.1", c.server)
			cfg := s.config(c.via)
			if c.config != nil {
				c.config(&cfg)
			}
			var log logBuffer
			cfg.Logger = log.logger()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			r, err := Dial(ctx, cfg)
			if err == nil {
				_ = r.Close()
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			for _, text := range []string{err.Error(), log.String(), fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg)} {
				for _, secret := range []string{"hunter2", testPassword} {
					if strings.Contains(text, secret) {
						t.Errorf("a secret is in %q", text)
					}
				}
			}
			if n := s.turn.AllocationCount(); n != 0 {
				t.Errorf("%d allocations left", n)
			}
		})
	}
}

// A logBuffer is a log that can be looked at while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// TestForbidden: a peer that the server does not relay to is named so, and does
// not harm the others.
func TestForbidden(t *testing.T) {
	s := newServer(t, "127.0.0.1", func(c *turn.ServerConfig) {
		c.PacketConnConfigs[0].PermissionHandler = func(_ net.Addr, ip net.IP) bool { return ip.String() != "127.0.0.66" }
	})
	r, _ := open(t, s.config(overUDP), nil)
	bad, good := netip.MustParseAddrPort("127.0.0.66:9"), netip.MustParseAddrPort("127.0.0.1:9")
	send(t, r, bad, []byte("x"))
	p := r.peers.find(bad)
	until(t, "refused", func() bool { return p.way.Load() == wayForbidden })
	if err := r.Send([][]byte{{1}}, bad); !errors.Is(err, ErrForbidden) {
		t.Errorf("forbidden peer: %v", err)
	}
	opened(t, r, good)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if err := r.Send(nil, netip.MustParseAddrPort("[::1]:9")); !errors.Is(err, ErrFamily) {
		t.Errorf("another family: %v", err)
	}
	if err := r.Send(nil, netip.AddrPort{}); !errors.Is(err, ErrFamily) {
		t.Errorf("no address: %v", err)
	}
	if err := r.Send([][]byte{make([]byte, 1<<16)}, good); !errors.Is(err, ErrTooLong) {
		t.Errorf("a packet too long: %v", err)
	}
	// IPv4 written as IPv6 is the same peer.
	if send(t, r, netip.AddrPortFrom(netip.AddrFrom16(good.Addr().As16()), good.Port())); len(r.peers.all()) != 2 {
		t.Errorf("%d peers", len(r.peers.all()))
	}
}

// until waits for a state that nothing announces.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("not %s within 10 s", what)
		}
	}
}

// secretServer checks time-limited credentials, and counts what it refused.
func secretServer(t *testing.T, secret string) *testServer {
	return newServer(t, "127.0.0.1", func(c *turn.ServerConfig) {
		c.AuthHandler = turn.LongTermTURNRESTAuthHandler(secret, nil)
	})
}

// TestSecret: time-limited credentials are accepted, end, and are made anew
// within the same allocation.
func TestSecret(t *testing.T) {
	s := secretServer(t, "shared")
	cfg := s.config(overUDP)
	cfg.User, cfg.Password, cfg.Secret = "", "", []byte("shared")
	r, _ := open(t, cfg, nil)
	// A day later: the server would refuse these.
	r.auth.mu.Lock()
	r.auth.end = time.Now().Add(-time.Minute)
	r.auth.user, r.auth.password = timeLimited(r.auth.secret, r.auth.id, r.auth.end)
	r.auth.keyLocked()
	ended := r.auth.user
	r.auth.mu.Unlock()
	if !r.refresh(time.Now(), 0) {
		t.Fatalf("not refreshed: %v", r.Err())
	}
	r.auth.mu.Lock()
	user := r.auth.user
	r.auth.mu.Unlock()
	_, idBefore, _ := strings.Cut(ended, ":")
	_, idAfter, _ := strings.Cut(user, ":")
	if user == ended || idBefore != idAfter || idBefore == "" {
		t.Errorf("credentials were for %q, and are for %q", ended, user)
	}
	opened(t, r, netip.MustParseAddrPort("127.0.0.1:9"))
	// The secret itself changes: there is no way back.
	r.auth.mu.Lock()
	r.auth.secret, r.auth.end = []byte("revoked"), time.Now()
	r.auth.key = stun.NewLongTermIntegrity("x", "y", "z")
	r.auth.mu.Unlock()
	if r.refresh(time.Now(), 0) || !errors.Is(r.Err(), ErrLost) {
		t.Errorf("with a wrong secret: %v", r.Err())
	}
}

// TestStaleNonce: the server wants another nonce for every request.
func TestStaleNonce(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	r, _ := open(t, s.config(overUDP), nil)
	for range 3 {
		r.auth.mu.Lock()
		r.auth.nonce = stun.NewNonce("0123456789abcdef")
		r.auth.mu.Unlock()
		if !r.refresh(time.Now(), 0) {
			t.Fatal(r.Err())
		}
	}
}

// TestForgedAnswer: an answer that is not made with our key does not count, and
// does not keep the true one out.
func TestForgedAnswer(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	r, _ := open(t, cfg, nil)
	forged := make(chan error, 1)
	p.filter(func(b []byte, up bool) bool {
		if up || !is(b, stun.MethodRefresh) {
			return false
		}
		m, err := stun.Build(stun.NewTransactionIDSetter(transactionID(b[8:stunHeader])),
			stun.NewType(stun.MethodRefresh, stun.ClassSuccessResponse), lifetime(3600),
			stun.NewLongTermIntegrity(testUser, testRealm, "guessed"), stun.Fingerprint)
		if err == nil {
			r.waiting.answered(m.Raw) // the true one follows
		}
		forged <- err
		return false
	})
	if !r.refresh(time.Now(), 0) {
		t.Errorf("the true answer was not heard: %v", r.Err())
	}
	p.filter(nil)
	if err := <-forged; err != nil {
		t.Fatal(err)
	}
	if life := time.Duration(r.life.Load()); life != 10*time.Minute {
		t.Errorf("lifetime %v", life)
	}
}
