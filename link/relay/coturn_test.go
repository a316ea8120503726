package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// A coturn is a process of that TURN server on loopback, for what no test against
// pion's server shows: that ours is not the only reading of the RFCs.
type coturn struct {
	args  []string
	ports [3]uint16 // by transport
	tls   *tls.Config
	stop  func()
}

const coturnSecret = "shared by both"

// newCoturn starts one. It skips the test where there is none.
func newCoturn(t *testing.T, more ...string) *coturn {
	t.Helper()
	if _, err := exec.LookPath("turnserver"); err != nil {
		t.Skip("no coturn here: Debian's package coturn has it (make deps, as root)")
	}
	dir := t.TempDir()
	c := &coturn{tls: certificate(t, "127.0.0.1")}
	cert := c.tls.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.ports = [3]uint16{overUDP: freePort(t), overTLS: freePort(t)}
	c.ports[overTCP] = c.ports[overUDP]
	c.args = append([]string{
		"-n", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--allow-loopback-peers", "--no-cli", "--no-dtls", "--relay-threads=1",
		fmt.Sprintf("--listening-port=%d", c.ports[overUDP]), fmt.Sprintf("--tls-listening-port=%d", c.ports[overTLS]),
		"--realm=" + testRealm, "--log-file=stdout", "--simple-log",
		"--pidfile=" + filepath.Join(dir, "pid"), "--userdb=" + filepath.Join(dir, "db"),
		"--cert=" + filepath.Join(dir, "cert.pem"), "--pkey=" + filepath.Join(dir, "key.pem"),
	}, more...)
	c.start(t)
	t.Cleanup(func() { c.stop() })
	return c
}

// freePort is a port that nobody uses at the moment, over UDP and TCP.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp4", ln.Addr().String())
		_ = ln.Close()
		if err == nil {
			_ = pc.Close()
			return uint16(pc.LocalAddr().(*net.UDPAddr).Port)
		}
	}
	t.Fatal("no free port")
	return 0
}

// start runs the process; whoever dials waits until it listens.
func (c *coturn) start(t *testing.T) {
	t.Helper()
	cmd := exec.Command("turnserver", c.args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log tail
	read := make(chan struct{})
	go func() {
		defer close(read)
		log.read(out)
	}()
	c.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it has ended already
		<-read
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("coturn said:\n%s", log.lines)
		}
	})
}

// A tail keeps the last lines of a log.
type tail struct{ lines []string }

func (l *tail) read(r io.Reader) {
	for s := bufio.NewScanner(r); s.Scan(); {
		if l.lines = append(l.lines, s.Text()+"\n"); len(l.lines) > 40 {
			l.lines = l.lines[1:]
		}
	}
}

// config is that of a client.
func (c *coturn) config(via transport) Config {
	host := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(c.ports[via])))
	pool := x509.NewCertPool()
	pool.AddCert(c.tls.Certificates[0].Leaf)
	return Config{
		URL:  [...]string{"turn:" + host, "turn:" + host + "?transport=tcp", "turns:" + host}[via],
		User: testUser, Password: testPassword, TLS: &tls.Config{RootCAs: pool},
	}
}

// TestCoturn allocates and sends in both directions, over everything and with both
// kinds of credentials.
func TestCoturn(t *testing.T) {
	for _, kind := range []struct {
		name string
		args []string
		cfg  func(*Config)
	}{
		{"user and password", []string{"--lt-cred-mech", "--user=" + testUser + ":" + testPassword}, func(*Config) {}},
		{"secret", []string{"--use-auth-secret", "--static-auth-secret=" + coturnSecret}, func(c *Config) {
			c.User, c.Password, c.Secret = "", "", []byte(coturnSecret)
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			s := newCoturn(t, kind.args...)
			for _, via := range transports {
				t.Run(via.String(), func(t *testing.T) {
					cfg := s.config(via)
					kind.cfg(&cfg)
					r, in := open(t, cfg, nil)
					talk(t, r, in)
					if !r.refresh(time.Now(), r.proofs.Load()) {
						t.Errorf("not refreshed: %v", r.Err())
					}
					wrong := cfg
					if wrong.Password = "wrong"; wrong.Secret != nil {
						wrong.Secret = []byte("wrong")
					}
					if r, err := Dial(t.Context(), wrong); !errors.Is(err, ErrCredentials) {
						t.Errorf("with wrong credentials: %v, %v", r, err)
					}
				})
			}
		})
	}
}

// talk sends to a peer and back: by a channel, and by indications as where the
// server has no channel.
func talk(t *testing.T, r *Relay, in inbox) {
	t.Helper()
	for _, size := range []int{1, 1432} {
		for _, channel := range []bool{true, false} {
			peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			addr := peer.LocalAddr().(*net.UDPAddr).AddrPort()
			p := opened(t, r, addr)
			if way := p.way.Load(); way != wayChannel {
				t.Fatalf("no channel but %d", way)
			}
			if !channel {
				p.way.Store(wayIndication)
			}
			there, back := make([]byte, size), make([]byte, size)
			there[0], back[0] = 't', 'b'
			send(t, r, addr, there)
			buf := make([]byte, 2048)
			if err := peer.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, from, err := peer.ReadFromUDPAddrPort(buf)
			if err != nil || string(buf[:n]) != string(there) || from != r.Addr() {
				t.Fatalf("%d bytes from %v, want %d from %v: %v", n, from, size, r.Addr(), err)
			}
			if _, err := peer.WriteToUDPAddrPort(back, from); err != nil {
				t.Fatal(err)
			}
			if got := in.next(t); got.from != addr || string(got.packet) != string(back) {
				t.Errorf("%d bytes from %v", len(got.packet), got.from)
			}
		}
	}
}

// TestCoturnStaleNonce: the server wants another nonce every second.
func TestCoturnStaleNonce(t *testing.T) {
	s := newCoturn(t, "--lt-cred-mech", "--user="+testUser+":"+testPassword, "--stale-nonce=1")
	cfg := s.config(overUDP)
	p := newProxy(t, &testServer{ip: netip.MustParseAddr("127.0.0.1"), ports: s.ports})
	cfg.URL = p.url()
	r, in := open(t, cfg, nil)
	stale := make(chan struct{}, 1)
	p.filter(func(b []byte, up bool) bool {
		m := new(stun.Message)
		if !up && isSTUN(b) && stun.Decode(b, m) == nil && errorCode(m) == int(stun.CodeStaleNonce) {
			poke(stale)
		}
		return false
	})
	end := time.NewTimer(10 * time.Second)
	defer end.Stop()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for range 2 {
		for over := false; !over; {
			select {
			case <-stale:
				over = true
			case <-ticker.C:
				if !r.refresh(time.Now(), r.proofs.Load()) {
					t.Fatal(r.Err())
				}
			case <-end.C:
				t.Fatal("no nonce became stale")
			}
		}
	}
	talk(t, r, in)
}

// TestCoturnRestarted: the loss is found by asking (at once, as the server says that
// it does not know us), and by the system's word while it is down.
func TestCoturnRestarted(t *testing.T) {
	s := newCoturn(t, "--lt-cred-mech", "--user="+testUser+":"+testPassword)
	for _, asked := range []bool{true, false} {
		t.Run(map[bool]string{true: "asked", false: "in use"}[asked], func(t *testing.T) {
			r, _ := open(t, s.config(overUDP), func(tm *timing) { tm.gap = 0 })
			to := netip.MustParseAddrPort("127.0.0.1:9")
			opened(t, r, to)
			s.stop()
			if !asked {
				send(t, r, to, []byte("is anybody there?"))
				if took := await(t, r, 5*time.Second); took > 2*time.Second {
					t.Errorf("lost after %v", took)
				}
			}
			s.start(t)
			again, in := open(t, s.config(overUDP), nil)
			if asked {
				r.Check()
				took := await(t, r, 5*time.Second)
				t.Logf("lost %v after the question: %v", took, r.Err())
				if codeOf(r.Err()) != int(stun.CodeAllocMismatch) || took > 2*time.Second {
					t.Errorf("lost after %v: %v", took, r.Err())
				}
			}
			talk(t, again, in)
		})
	}
}

// TestCoturnClockAhead: the server's clock is two days ahead of ours.
func TestCoturnClockAhead(t *testing.T) {
	s := newCoturn(t, "--use-auth-secret", "--static-auth-secret="+coturnSecret)
	cfg := s.config(overUDP)
	cfg.Secret = []byte(coturnSecret)
	for _, off := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		server, err := parseURL(cfg.URL)
		if err != nil {
			t.Fatal(err)
		}
		times := timingOf(overUDP)
		times.clock = func() time.Time { return time.Now().Add(off) }
		r, err := dial(ctx, cfg, server, times, systemLookup)
		if err != nil {
			t.Errorf("our clock is %v off: %v", off, err)
			continue
		}
		if !r.refresh(time.Now(), r.proofs.Load()) {
			t.Errorf("our clock is %v off: %v", off, r.Err())
		}
		_ = r.Close()
	}
}
