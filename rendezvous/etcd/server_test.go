package etcd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// A server is a real etcd, a child process on loopback.
type server struct {
	url, peer, dir string
	stop           func()
}

func freeURL(t testing.TB, scheme string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return scheme + "://" + ln.Addr().String()
}

// newServer starts one, or skips the test where there is none.
func newServer(t testing.TB, scheme string, flags ...string) *server {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		if os.Getenv("KITH_REQUIRE_NETTEST") != "" {
			t.Fatal("etcd is missing: make deps")
		}
		t.Skip("needs etcd (Debian: etcd-server)")
	}
	s := &server{url: freeURL(t, scheme), peer: freeURL(t, "http"), dir: t.TempDir()}
	s.start(t, flags...)
	return s
}

// start runs the server on its addresses and directory until stop, or the end of
// the test, and waits until it is ready.
func (s *server) start(t testing.TB, flags ...string) {
	t.Helper()
	var out bytes.Buffer
	args := append([]string{
		"--name", "x", "--data-dir", filepath.Join(s.dir, "data"), "--listen-client-urls", s.url, "--advertise-client-urls", s.url,
		"--listen-peer-urls", s.peer, "--initial-advertise-peer-urls", s.peer, "--initial-cluster", "x=" + s.peer, "--unsafe-no-fsync",
	}, flags...)
	cmd := exec.Command("etcd", args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, append(os.Environ(), "ETCD_UNSUPPORTED_ARCH=arm64")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	s.stop = func() {
		_ = cmd.Process.Kill()
		<-exited
	}
	t.Cleanup(s.stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	address := s.url[strings.Index(s.url, "://")+3:]
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-exited:
			t.Fatalf("etcd did not start:\n%s", out.String())
		case <-ctx.Done():
			t.Fatal("etcd did not start in time")
		}
	}
}

// wipe restarts the server without its data.
func (s *server) wipe(t testing.TB) {
	t.Helper()
	s.stop()
	if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
		t.Fatal(err)
	}
	s.start(t)
}

// client is one with all rights.
func (s *server) client(t testing.TB, cfg clientv3.Config) *clientv3.Client {
	t.Helper()
	cfg.Endpoints, cfg.Logger = []string{s.url}, zap.NewNop()
	c, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// must fails the test if any of the errors is one.
func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(fmt.Errorf("set up: %w", err))
		}
	}
}
