package etcd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fast(s *server) Config { return Config{Endpoints: []string{s.url}, Interval: time.Millisecond} }

func open(t testing.TB, cfg Config) *Exchange {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func join(t testing.TB, e *Exchange, p rendezvous.Point) *session {
	t.Helper()
	s, err := e.Join(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return s.(*session)
}

// untilArrives publishes until the frame arrives.
func untilArrives(t testing.TB, from, to rendezvous.Session, f []byte) {
	t.Helper()
	rendezvoustest.UntilArrives(t, from, to, f, 50*time.Millisecond)
}

func TestSuite(t *testing.T) {
	s := newServer(t, "http")
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) { return open(t, fast(s)), open(t, fast(s)) })
}

// TestSuiteWithUserAndTLS also holds that the driver needs no more rights than
// those to its prefix.
func TestSuiteWithUserAndTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key, roots := selfSigned(t, dir)
	s := newServer(t, "https", "--cert-file", cert, "--key-file", key)
	root := s.client(t, clientv3.Config{TLS: roots})
	ctx := t.Context()
	_, err1 := root.UserAdd(ctx, "root", "toor")
	_, err2 := root.UserGrantRole(ctx, "root", "root")
	_, err3 := root.RoleAdd(ctx, "kith")
	_, err4 := root.RoleGrantPermission(ctx, "kith", "/kith/1/", clientv3.GetPrefixRangeEnd("/kith/1/"), clientv3.PermissionType(clientv3.PermReadWrite))
	_, err5 := root.RoleAdd(ctx, "reader")
	_, err6 := root.RoleGrantPermission(ctx, "reader", "/kith/1/", clientv3.GetPrefixRangeEnd("/kith/1/"), clientv3.PermissionType(clientv3.PermRead))
	must(t, err1, err2, err3, err4, err5, err6)
	for user, role := range map[string]string{"anna": "kith", "ben": "reader"} {
		_, err1 = root.UserAdd(ctx, user, "hunter2")
		_, err2 = root.UserGrantRole(ctx, user, role)
		must(t, err1, err2)
	}
	_, err := root.AuthEnable(ctx)
	must(t, err)
	right := fast(s)
	right.User, right.Password, right.TLS = "anna", "hunter2", roots
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"wrong password":  {func(c *Config) { c.Password = "hunter3" }, "invalid user ID or password"},
		"no user":         {func(c *Config) { c.User, c.Password = "", "" }, "user name is empty"},
		"only reads":      {func(c *Config) { c.User = "ben" }, "permission denied"},
		"another prefix":  {func(c *Config) { c.Prefix = "/other/" }, "permission denied"},
		"not trusted":     {func(c *Config) { c.TLS = nil }, "certificate and user right?"},
		"nobody is there": {func(c *Config) { c.Endpoints = []string{freeURL(t, "https")} }, "are address"},
	} {
		cfg := right
		c.change(&cfg)
		e := open(t, cfg)
		rendezvoustest.Await(t, name, func() bool { return e.Health().Err != nil && !strings.Contains(e.Health().Err.Error(), "connecting") })
		h := e.Health()
		if h.Ready || !strings.Contains(h.Err.Error(), c.want) || strings.Contains(fmt.Sprint(h, cfg), "hunter") {
			t.Errorf("%s: %+v", name, h)
		}
		if err := join(t, e, rendezvous.Point{}).Publish(ctx, rendezvoustest.Frame(1)); !errors.Is(err, rendezvous.ErrUnreachable) {
			t.Errorf("%s: publish: %v", name, err)
		}
	}
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) { return open(t, right), open(t, right) })
}

func selfSigned(t *testing.T, dir string) (cert, key string, client *tls.Config) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err1 := x509.CreateCertificate(rand.Reader, tmpl, tmpl, private.Public(), private)
	rawKey, err2 := x509.MarshalPKCS8PrivateKey(private)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	must(t, err1, err2, os.WriteFile(cert, certPEM, 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey}), 0o600))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// TestRestart restarts the server, with its data and without: then its revisions
// begin anew, and a watch would wait for ever.
func TestRestart(t *testing.T) {
	s := newServer(t, "http")
	a, b := open(t, fast(s)), open(t, fast(s))
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
	untilArrives(t, sa, sb, rendezvoustest.Frame(1))
	s.stop()
	a.Check()
	rendezvoustest.Await(t, "health without a server", func() bool { return !a.Health().Ready })
	s.start(t)
	untilArrives(t, sa, sb, rendezvoustest.Frame(2))
	untilArrives(t, sb, sa, rendezvoustest.Frame(3))
	s.wipe(t)
	untilArrives(t, sa, sb, rendezvoustest.Frame(4))
	untilArrives(t, sb, sa, rendezvoustest.Frame(5))
}

// TestMissed holds that a reader gets the newest four frames of a writer, oldest
// first, and that closing takes them back.
func TestMissed(t *testing.T) {
	s := newServer(t, "http")
	a, b := open(t, fast(s)), open(t, fast(s))
	from, to := join(t, a, rendezvous.Point{}), join(t, a, rendezvous.Point{})
	for i := range 10 {
		untilArrives(t, from, to, rendezvoustest.Frame(byte(i)))
	}
	to.Close()
	late := join(t, b, rendezvous.Point{})
	var got []byte
	for len(got) < slots {
		m, err := late.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Frame[0])
	}
	if !slices.IsSorted(got) || got[slots-1] != 9 { // some may have been published twice
		t.Errorf("a late reader got %v", got)
	}
	client := s.client(t, clientv3.Config{})
	count := func() int64 {
		r, err := client.Get(t.Context(), "/kith/1/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		must(t, err)
		return r.Count
	}
	if n := count(); n != slots {
		t.Errorf("%d keys, want %d", n, slots)
	}
	from.Close()
	rendezvoustest.Await(t, "keys of a closed session are gone", func() bool { return count() == 0 })
}

// TestLease holds that frames of a device that has gone vanish by themselves, and
// that one that goes on has few leases.
func TestLease(t *testing.T) {
	s := newServer(t, "http")
	cfg := fast(s)
	cfg.Lease = 2 * time.Second
	a, b := open(t, cfg), open(t, cfg)
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
	client := s.client(t, clientv3.Config{})
	start := time.Now()
	most := 0
	for i := 0; time.Since(start) < 3*cfg.Lease; i++ {
		untilArrives(t, sa, sb, rendezvoustest.Frame(byte(i)))
		r, err := client.Leases(t.Context())
		must(t, err)
		most = max(most, len(r.Leases))
	}
	if most == 0 || most > 4 {
		t.Errorf("%d leases of one writer at once", most)
	}
	rendezvoustest.Await(t, "keys expire", func() bool {
		r, err := client.Get(t.Context(), sa.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		must(t, err)
		return r.Count == 0
	})
}

// TestHostile fills the topic with what is no frame.
func TestHostile(t *testing.T) {
	s := newServer(t, "http")
	a, b := open(t, fast(s)), open(t, fast(s))
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
	untilArrives(t, sa, sb, rendezvoustest.Frame(1))
	client := s.client(t, clientv3.Config{})
	put := func(key, value string) {
		t.Helper()
		_, err := client.Put(t.Context(), key, value)
		must(t, err)
	}
	const large = 1500 << 10
	for i := range 2 * maxMissed {
		put(fmt.Sprint(sa.prefix, "huge", i), strings.Repeat("x", large))
		put(fmt.Sprint(sa.prefix, strings.Repeat("k", large/2), i), "")
	}
	for i := range 500 {
		put(fmt.Sprint(sa.prefix, "short", i), strings.Repeat("x", rendezvous.FrameSize-i%2*2+1))
	}
	for i := range maxMissed { // the newest are the largest
		put(fmt.Sprint(sa.prefix, "huge", i), strings.Repeat("y", large))
	}
	untilArrives(t, sa, sb, rendezvoustest.Frame(2))
	late := join(t, b, rendezvous.Point{})
	untilArrives(t, sa, late, rendezvoustest.Frame(3))
	if n := len(sb.frames); n > burst {
		t.Errorf("%d frames wait", n)
	}
	for i := range 2 * rendezvous.QueueSize { // frames, as far as anybody can see
		put(fmt.Sprint(sa.prefix, "frame", i), string(rendezvoustest.Frame(byte(i))))
	}
	untilArrives(t, sa, late, rendezvoustest.Frame(4))
}

// TestNames holds that the topic cannot be seen in the keys, and that two topics
// and two sessions have nothing in common.
func TestNames(t *testing.T) {
	e := open(t, Config{Endpoints: []string{freeURL(t, "http")}})
	topic := rendezvous.Topic{1, 2, 3}
	one, two, other := join(t, e, rendezvous.Point{Topic: topic}), join(t, e, rendezvous.Point{Topic: topic}), join(t, e, rendezvous.Point{Topic: rendezvous.Topic{1, 2, 4}})
	if one.prefix != two.prefix || one.own == two.own || one.prefix == other.prefix || len(one.prefix) != len("/kith/1/")+41 {
		t.Errorf("names %q, %q, %q", one.own, two.own, other.own)
	}
	for i := range len(topic) - 3 {
		if strings.Contains(one.prefix, fmt.Sprintf("%x", topic[i:i+4])) {
			t.Errorf("the topic shows in %q", one.prefix)
		}
	}
}

func TestBadEndpoints(t *testing.T) {
	for _, u := range []string{"", "host:2379", "ftp://host", "http://", "http://user:secret@host", "://"} {
		if _, err := New(Config{Endpoints: []string{"http://good:1", u}}); !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want ErrConfig", u, err)
		}
	}
	if _, err := New(Config{}); !errors.Is(err, ErrConfig) {
		t.Errorf("no endpoint: %v", err)
	}
}

func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"http://h:1", "https://[::1]:2379", "http://a:b@c", "h", "http:///x", "http://%41"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := New(Config{Endpoints: []string{s}})
		if err != nil {
			return
		}
		if u, err := url.Parse(s); err != nil || u.User != nil || u.Hostname() == "" {
			t.Errorf("%q was accepted", s)
		}
		e.Close()
	})
}

// BenchmarkLatency is the time from Publish to Receive.
func BenchmarkLatency(b *testing.B) {
	s := newServer(b, "http")
	x, y := open(b, fast(s)), open(b, fast(s))
	from, to := join(b, x, rendezvous.Point{}), join(b, y, rendezvous.Point{})
	untilArrives(b, from, to, rendezvoustest.Frame(1))
	var all []time.Duration
	for n := uint32(2); b.Loop(); n++ {
		f := rendezvoustest.Frame(0)
		copy(f, fmt.Sprint(n))
		start := time.Now()
		must(b, from.Publish(b.Context(), f))
		for {
			m, err := to.Receive(b.Context())
			must(b, err)
			if bytes.Equal(m.Frame, f) {
				break
			}
		}
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "µs/median")
	b.ReportMetric(float64(all[len(all)*95/100].Microseconds()), "µs/p95")
}
