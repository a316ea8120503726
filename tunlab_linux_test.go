package kith_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/nettest"
)

// A tunStation is a station whose daemon has an interface, and an /etc of its own.
type tunStation struct {
	*station
	etc    string // what is /etc for the daemon and for ask
	mount  bool   // resolv.conf is a mount of its own, as in a container
	before map[string]string
}

// formerConf is what the machine's resolv.conf says before.
const formerConf = "search lan.test\nnameserver 127.0.0.1\n"

func newTunStation(t *testing.T, h *nettest.Host, mount bool) *tunStation {
	t.Helper()
	for _, tool := range []string{"unshare", "nsenter", "curl", "getent"} {
		if _, err := exec.LookPath(tool); err != nil {
			nettest.Skip(t, "the test of the interface needs the command "+tool)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		nettest.Skip(t, "the kernel offers no TUN: "+err.Error())
	}
	s := &tunStation{station: newStation(t, h), mount: mount}
	s.etc = filepath.Join(filepath.Dir(s.home), "etc")
	if out, err := exec.Command("cp", "-a", "/etc", s.etc).CombinedOutput(); err != nil {
		t.Fatalf("copy /etc: %v: %s", err, out)
	}
	for name, text := range map[string]string{"resolv.conf": formerConf, "nsswitch.conf": "hosts: files dns\n", "hosts": "127.0.0.1 localhost\n"} {
		path := filepath.Join(s.etc, name)
		_ = os.Remove(path) // it may be a link
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.before = s.conf()
	return s
}

// conf returns resolv.conf and what lies beside it.
func (s *tunStation) conf() map[string]string {
	s.t.Helper()
	all, err := filepath.Glob(filepath.Join(s.etc, "*resolv.conf*"))
	if err != nil {
		s.t.Fatal(err)
	}
	out := make(map[string]string)
	for _, path := range all {
		raw, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		out[filepath.Base(path)] = string(raw)
	}
	return out
}

// daemon starts kith up --tun.
func (s *tunStation) daemon(ctx context.Context) {
	s.t.Helper()
	script := `mount --make-rprivate / && mount --bind "$0" /etc && `
	if s.mount {
		script += `mount --bind "$0/resolv.conf" /etc/resolv.conf && `
	}
	args := append([]string{"-m", "sh", "-c", script + `exec "$@"`, s.etc, s.kith}, s.args("up", "--json", "--tun")...)
	if os.Getenv("KITH_TEST_VERBOSE") != "" {
		args = append(args, "-v")
	}
	s.up = s.host.Start("unshare", args...)
	s.up.Await(ctx, `"event":"up"`)
}

// ask runs a program beside the daemon, with its /etc, and returns what it says.
func (s *tunStation) ask(ctx context.Context, args ...string) (string, error) {
	s.t.Helper()
	cmd := s.host.Command(ctx, "nsenter", append([]string{"-t", strconv.Itoa(s.up.PID()), "-m", "--"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is ask for what works.
func (s *tunStation) must(ctx context.Context, args ...string) string {
	s.t.Helper()
	out, err := s.ask(ctx, args...)
	if err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// gone checks that nothing of the interface is left.
func (s *tunStation) gone(ctx context.Context) {
	s.t.Helper()
	for _, args := range [][]string{{"link", "show"}, {"-6", "route", "show", "table", "all"}, {"-6", "addr", "show"}} {
		if out := s.host.Output(ctx, "ip", args...); strings.Contains(out, "kith0") || strings.Contains(out, "fd6b:6974") {
			s.t.Errorf("ip %s: %s", strings.Join(args, " "), out)
		}
	}
	// The guard of a daemon that was killed works on its own.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		now := s.conf()
		if equalFiles(now, s.before) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("resolv.conf was %q, is %q", s.before, now)
		}
	}
}

// killGuard ends the process that would bring resolv.conf back.
func (s *tunStation) killGuard(t *testing.T) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.up.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var children []string
	for _, list := range lists {
		raw, _ := os.ReadFile(list) // a thread may have ended
		children = append(children, strings.Fields(string(raw))...)
	}
	guard := 0
	if len(children) == 1 {
		guard, err = strconv.Atoi(children[0])
	}
	if err != nil || guard == 0 {
		t.Fatalf("the daemon's children: %q", children)
	}
	if err := syscall.Kill(guard, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func equalFiles(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// A tunLab is two paired devices: desk has an interface, laptop serves a web page, and
// echoes datagrams, at ports of its localhost.
type tunLab struct {
	desk   *tunStation
	laptop *station
	addr   netip.Addr // laptop's
}

const (
	webPort, echoPort, closedPort = 8080, 8081, 8082
	pageText                      = "a page of the laptop"
)

func newTunLab(ctx context.Context, t *testing.T, mount bool) *tunLab {
	t.Helper()
	lab := nettest.New(t)
	sw := lab.Bridge("lan")
	l := &tunLab{
		desk:   newTunStation(t, lab.Host("desk").Attach(sw, "10.0.0.1/24"), mount),
		laptop: newStation(t, lab.Host("laptop").Attach(sw, "10.0.0.2/24")),
	}
	l.laptop.daemon(ctx)
	l.desk.station.daemon(ctx)
	pairStations(ctx, t, l.laptop, l.desk.station, "words")
	l.desk.up.Stop()
	l.desk.daemon(ctx)
	var st struct {
		Devices []struct{ ID identity.DeviceID }
	}
	if err := json.Unmarshal([]byte(l.desk.run(ctx, "status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	l.addr = st.Devices[0].ID.Addr()
	l.laptop.run(ctx, "allow", "desk", strconv.Itoa(webPort))
	l.laptop.run(ctx, "allow", "desk", strconv.Itoa(echoPort)+"/udp")
	l.desk.run(ctx, "ping", "-c", "1", "laptop")
	l.serve(t)
	return l
}

// serve answers at the laptop's ports. /endless never ends.
func (l *tunLab) serve(t *testing.T) {
	t.Helper()
	var ln net.Listener
	var pc net.PacketConn
	var err1, err2 error
	l.laptop.host.Do(func() {
		ln, err1 = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(webPort))
		pc, err2 = net.ListenPacket("udp", "127.0.0.1:"+strconv.Itoa(echoPort))
	})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, pageText) })
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.RawQuery, 10, 64)
		_, _ = io.CopyN(w, zeroReader{}, n)
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(ln) }()
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { srv.Close(); pc.Close() })
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// dial connects from the desk, as a program would.
func (l *tunLab) dial(network string, port int) (conn net.Conn, took time.Duration, err error) {
	start := time.Now()
	l.desk.host.Do(func() {
		conn, err = net.DialTimeout(network, net.JoinHostPort(l.addr.String(), strconv.Itoa(port)), time.Minute)
	})
	return conn, time.Since(start), err
}
