package lane

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// asked is what somebody knows who asked a device for a lane.
type asked struct {
	from   *device
	tun    net.Conn
	ours   *invite
	theirs offered
	sleep  func(time.Duration)
}

// askFor asks a device for a lane by hand, and offers endpoints.
func askFor(t *testing.T, from, to *device, endpoints ...netip.AddrPort) asked {
	t.Helper()
	tun, err := from.ask(t.Context(), to.id)
	if err != nil {
		t.Fatal(err)
	}
	inv, err := newInvite(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a := ask{kind: "files", invite: inv.offer(endpoints)}
	if err := writeMessage(tun, a.encode()); err != nil {
		t.Fatal(err)
	}
	raw, err := readMessage(tun)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseAnswer(raw)
	if err != nil || got.status != statusOK {
		t.Fatalf("%v, status %d", err, got.status)
	}
	inv.setPin(got.invite.key)
	go func() { _, _ = io.Copy(io.Discard, tun) }() // reports; it ends with tun
	return asked{from: from, tun: tun, ours: inv, theirs: got.invite}
}

// connect makes a TLS session as the invited device would; change may spoil that.
func (a asked) connect(t *testing.T, change func(*tls.Config)) (*session, error) {
	t.Helper()
	cfg := clientConfig(a.ours, a.theirs)
	if change != nil {
		change(cfg)
	}
	conn, err := a.from.dialTCP(t.Context(), a.theirs.to[0])
	if err != nil {
		return nil, err
	}
	return clientSession(t.Context(), &base{Conn: conn}, cfg)
}

// lane chooses a session, with a proof that change may spoil, and reports whether
// the other side accepts.
func (a asked) lane(s *session, change func(proof []byte)) error {
	p := s.proof(a.theirs.token, proofChosen)
	if change != nil {
		change(p)
	}
	if _, err := s.t.Write(p); err != nil {
		return err
	}
	return s.check(a.theirs.token, proofAccepted)
}

// TestInvitation tries what comes near to a right answer to an invitation.
func TestInvitation(t *testing.T) {
	other, err := newInvite(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// Each errs if it gets no lane.
	for name, try := range map[string]func(t *testing.T, a asked) error{
		"another server name": func(t *testing.T, a asked) error {
			_, err := a.connect(t, func(c *tls.Config) { c.ServerName = nameOf([tokenSize]byte{1}) })
			return err
		},
		"no server name": func(t *testing.T, a asked) error {
			_, err := a.connect(t, func(c *tls.Config) { c.ServerName = "" })
			return err
		},
		"no certificate": func(t *testing.T, a asked) error {
			s, err := a.connect(t, func(c *tls.Config) { c.Certificates = nil })
			if err != nil {
				return err
			}
			return a.lane(s, nil)
		},
		"another key": func(t *testing.T, a asked) error {
			s, err := a.connect(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{other.cert} })
			if err != nil {
				return err
			}
			return a.lane(s, nil)
		},
		"the right certificate with another private key": func(t *testing.T, a asked) error {
			s, err := a.connect(t, func(c *tls.Config) {
				c.Certificates = []tls.Certificate{{Certificate: a.ours.cert.Certificate, PrivateKey: other.cert.PrivateKey}}
			})
			if err != nil {
				return err
			}
			return a.lane(s, nil)
		},
		"TLS 1.2": func(t *testing.T, a asked) error {
			_, err := a.connect(t, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
			return err
		},
		"a key exchange that quantum computers break": func(t *testing.T, a asked) error {
			_, err := a.connect(t, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} })
			return err
		},
		"a wrong token": func(t *testing.T, a asked) error {
			s, err := a.connect(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			return a.lane(s, func(p []byte) { p[31] ^= 1 })
		},
		"the token itself": func(t *testing.T, a asked) error {
			s, err := a.connect(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			return a.lane(s, func(p []byte) { copy(p, a.theirs.token[:]) })
		},
		"a proof for something else": func(t *testing.T, a asked) error {
			s, err := a.connect(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			return a.lane(s, func(p []byte) { copy(p, s.proof(a.theirs.token, proofAccepted)) })
		},
		"a proof of another connection": func(t *testing.T, a asked) error {
			first, err := a.connect(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer first.close()
			s, err := a.connect(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			return a.lane(s, func(p []byte) { copy(p, first.proof(a.theirs.token, proofChosen)) })
		},
		"an expired token": func(t *testing.T, a asked) error {
			a.sleep(inviteLife)
			_, err := a.connect(t, nil)
			return err
		},
		"a token that expires on the way": func(t *testing.T, a asked) error {
			a.sleep(inviteLife - time.Second)
			s, err := a.connect(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			a.sleep(time.Second)
			return a.lane(s, nil)
		},
		"an ask that was given up": func(t *testing.T, a asked) error {
			a.tun.Close()
			synctest.Wait()
			_, err := a.connect(t, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				a := w.device(t, 1, nil, "192.168.7.1")
				b := w.device(t, 2, nil, "192.168.7.2")
				know := askFor(t, a, b)
				defer know.tun.Close()
				know.sleep = func(d time.Duration) { time.Sleep(d) }
				if err := try(t, know); err == nil {
					t.Error("accepted")
				}
				if len(b.got) != 0 || b.Lanes() != 0 {
					t.Error("there is a lane")
				}
				near, far := mustOpen(t, a, b, "files") // and it harms no other
				near.Close()
				far.Close()
			})
		})
	}
}

// TestTokenIsUsedOnce replays a token after its lane, and beside it.
func TestTokenIsUsedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		know := askFor(t, a, b)
		defer know.tun.Close()
		first, err := know.connect(t, nil)
		if err != nil {
			t.Fatal(err)
		}
		second, err := know.connect(t, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := know.lane(first, nil); err != nil {
			t.Fatalf("the right proof: %v", err)
		}
		c := <-b.got
		if err := know.lane(second, nil); err == nil {
			t.Error("a token was used twice")
		}
		if _, err := know.connect(t, nil); err == nil {
			t.Error("a used invitation is still known by its name")
		}
		if b.Lanes() != 1 || len(b.got) != 0 {
			t.Errorf("%d lanes", b.Lanes())
		}
		first.close()
		c.Close()
	})
}

// TestNobodyIsAskedTooOften holds that whoever copies the name of an invitation from
// the wire cannot make the device compute more than a few handshakes.
func TestNobodyIsAskedTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		know := askFor(t, a, b)
		defer know.tun.Close()
		stranger, err := newInvite(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		var key ed25519.PublicKey
		for range 3 * maxCalls {
			s, err := know.connect(t, func(c *tls.Config) {
				c.Certificates = []tls.Certificate{stranger.cert}
				c.VerifyConnection = func(state tls.ConnectionState) error {
					seen++
					cert := state.PeerCertificates[0]
					key = cert.PublicKey.(ed25519.PublicKey)
					if cert.Subject.String() != "" || cert.SerialNumber.Int64() != 1 || cert.NotBefore.Year() != 2000 {
						t.Errorf("the certificate says %v, %v, %v", cert.Subject, cert.SerialNumber, cert.NotBefore)
					}
					return nil
				}
			})
			if err == nil {
				s.close()
			}
		}
		if seen != maxCalls {
			t.Errorf("%d handshakes", seen)
		}
		if bytes.Equal(key, b.id[:]) || !bytes.Equal(key, know.theirs.key[:]) {
			t.Error("a stranger was shown another key than the invitation's")
		}
	})
}

// TestStrangersLearnNothing connects without an invitation: not a byte comes back.
func TestStrangersLearnNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		near, far := mustOpen(t, a, b, "files") // the door is open for a minute
		defer near.Close()
		defer far.Close()
		to := netip.AddrPortFrom(b.addrs[0], b.told()[0])
		hello := helloOf(t, "192.168.7.2")
		for name, say := range map[string][]byte{
			"silence": nil, "HTTP": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "zeros": make([]byte, 1000),
			"a hello": hello, "half a hello": hello[:len(hello)/2], "an alert": {21, 3, 3, 0, 2, 1, 0},
			"a huge record": append([]byte{22, 3, 1, 0xff, 0xff}, make([]byte, 70000)...),
		} {
			c, err := a.dialTCP(t.Context(), to)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			go func() { _, _ = c.Write(say) }() // the other side may not want all of it
			got, _ := io.ReadAll(c)
			if len(got) != 0 || time.Since(start) > helloTime {
				t.Errorf("%s: %d bytes came back, after %v", name, len(got), time.Since(start))
			}
			c.Close()
		}
	})
}

// helloOf returns the first record of a TLS client.
func helloOf(t *testing.T, name string) []byte {
	t.Helper()
	near, far := net.Pipe()
	go func() {
		c := tls.Client(near, &tls.Config{ServerName: name, MinVersion: tls.VersionTLS13})
		_ = c.Handshake()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(far, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(far, body); err != nil {
		t.Fatal(err)
	}
	near.Close()
	far.Close()
	return append(head, body...)
}

// TestFloodOfStrangers holds that silent connections are bounded, from one address
// and from many, and that lanes open meanwhile.
func TestFloodOfStrangers(t *testing.T) {
	for name, from := range map[string]func(i int) netip.Addr{
		"one address":    func(int) netip.Addr { return netip.MustParseAddr("192.168.7.66") },
		"many addresses": func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				a := w.device(t, 1, nil, "192.168.7.1")
				b := w.device(t, 2, nil, "192.168.7.2")
				near, far := mustOpen(t, a, b, "files")
				near.Close()
				far.Close()
				var conns []net.Conn
				flood := func(n int) {
					for range n {
						c, err := b.socket().dial(t.Context(), tcpAddr(from(len(conns)), 7))
						if err != nil {
							t.Fatal(err)
						}
						conns = append(conns, c)
					}
					synctest.Wait()
				}
				waiting := func() int {
					b.door.mu.Lock()
					defer b.door.mu.Unlock()
					return len(b.door.calls)
				}
				flood(500)
				want := maxHellos
				if name == "one address" {
					want = maxHellosOne
				}
				if got := waiting(); got != want {
					t.Errorf("%d strangers wait, want %d", got, want)
				}
				w.setHole(at("192.168.7.1")) // only b's door is left
				near, far = mustOpen(t, a, b, "files")
				echo(t, near, far)
				near.Close()
				far.Close()
				time.Sleep(helloTime)
				synctest.Wait()
				if got := waiting(); got != 0 {
					t.Errorf("%d strangers wait after %v", got, helloTime)
				}
				flood(1)
				b.Close() // with one of them at the door
				for _, c := range conns {
					c.Close()
				}
			})
		})
	}
}

// TestEndpointsThatAreNotDialed holds what a paired device cannot make this one dial.
func TestEndpointsThatAreNotDialed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		var bad []netip.AddrPort
		for _, to := range []string{
			"127.0.0.1:6379", "[::1]:6379", "0.0.0.0:6379", "[::]:6379", "224.0.0.251:5353", "255.255.255.255:9999",
			"169.254.169.254:8080", "192.168.7.1:1023",
		} {
			bad = append(bad, netip.MustParseAddrPort(to))
		}
		know := askFor(t, a, b, bad...)
		time.Sleep(time.Second)
		if n := b.dialed(); n != 0 {
			t.Errorf("%d were dialed", n)
		}
		know.tun.Close()
		know = askFor(t, a, b, netip.AddrPortFrom(a.id.Addr(), 9999), netip.MustParseAddrPort("192.168.7.9:1024"))
		time.Sleep(time.Second)
		if n := b.dialed(); n != 1 {
			t.Errorf("%d dials; the last endpoint is a good one", n)
		}
		know.tun.Close()
		// Nor are they offered.
		if got := b.endpoints(9999); len(got) != 1 {
			t.Errorf("offered %v", got)
		}
		b.addrs = append(b.addrs, netip.MustParseAddr("::ffff:192.168.7.2"), netip.IPv6Unspecified(), netip.MustParseAddr("fe80::1%eth0"), b.id.Addr())
		if got := b.endpoints(9999); len(got) != 1 {
			t.Errorf("offered %v", got)
		}
	})
}

// TestFloodInsideTheTunnel holds that a paired device has a bounded number of lanes
// in the making, whatever it sends.
func TestFloodInsideTheTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		c := w.device(t, 3, nil, "192.168.7.3")
		var conns []net.Conn
		for range maxMakingOne { // it asks nothing
			tun, err := a.ask(t.Context(), b.id)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, tun)
		}
		synctest.Wait()
		if _, err := a.Open(t.Context(), b.id, "x"); !errors.Is(err, ErrBusy) {
			t.Errorf("one more: %v", err)
		}
		if len(conns) != maxMakingOne || b.makings() != maxMakingOne {
			t.Errorf("%d are in the making", b.makings())
		}
		near, far := mustOpen(t, c, b, "x") // another device
		near.Close()
		far.Close()
		near, far = mustOpen(t, b, a, "x") // and back
		near.Close()
		far.Close()
		time.Sleep(askTime)
		synctest.Wait()
		if b.makings() != 0 {
			t.Errorf("%d are left", b.makings())
		}
		near, far = mustOpen(t, a, b, "x")
		near.Close()
		far.Close()
		for _, tun := range conns {
			tun.Close()
		}
		// Messages that are none, and another version.
		for _, say := range [][]byte{{0, 0}, {0, 1, 1}, {0xff, 0xff}, {0, 3, 1, 1, ' '}, {0, 2, 1, 200}} {
			tun, err := a.ask(t.Context(), b.id)
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = tun.Write(say) }()
			if got, _ := io.ReadAll(tun); len(got) != 0 {
				t.Errorf("%x was answered with %x", say, got)
			}
			tun.Close()
		}
		tun, err := a.ask(t.Context(), b.id)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = tun.Write([]byte{0, 2, 2, 0}) }()
		if got, _ := io.ReadAll(tun); !bytes.Equal(got, []byte{0, 1, statusVersion}) {
			t.Errorf("version 2 was answered with %x", got)
		}
		tun.Close()
	})
}

// TestManyOpensWaitTheirTurn holds that many callers pay once for a path that is not
// there.
func TestManyOpensWaitTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		w.setHole(at("192.168.7.1", "192.168.7.2"))
		start := time.Now()
		var wg sync.WaitGroup
		for range maxMakingOne {
			wg.Go(func() {
				if _, err := a.Open(t.Context(), b.id, "x"); !errors.Is(err, ErrNoLane) {
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > raceTime || a.dialed() > maxRaces {
			t.Errorf("%v, %d dials", took, a.dialed())
		}
	})
}

// TestLanesOfOneDeviceAreBounded holds that a paired device cannot use up all sockets.
func TestLanesOfOneDeviceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		c := w.device(t, 3, nil, "192.168.7.3")
		var conns []*Conn
		for range maxOpenOne {
			near, far := mustOpen(t, a, b, "x")
			conns = append(conns, near, far)
			synctest.Wait() // b has forgotten the making
		}
		if _, err := a.Open(t.Context(), b.id, "x"); !errors.Is(err, ErrBusy) {
			t.Errorf("one more: %v", err)
		}
		for from, to := range map[*device]*device{b: a, c: b} {
			near, far := mustOpen(t, from, to, "x")
			conns = append(conns, near, far)
		}
		conns[0].Close()
		conns[1].Close()
		near, far := mustOpen(t, a, b, "x")
		for _, c := range append(conns, near, far) {
			c.base.abort()
			c.Close()
		}
	})
}
