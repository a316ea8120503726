package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"github.com/pion/turn/v5"
)

// down is for how long the servers of these tests are not there.
const down = 300 * time.Millisecond

// TestRestartInUse: a server is started again while packets go through it. The
// loss is known as soon as the system tells of it, and who dials at once is served
// as soon as the server is.
func TestRestartInUse(t *testing.T) {
	var lost, back []time.Duration
	for range 5 {
		s := newServer(t, "127.0.0.1", nil)
		r, _ := open(t, s.config(overUDP), func(tm *timing) { tm.gap = 0 })
		to := netip.MustParseAddrPort("127.0.0.1:9")
		opened(t, r, to)
		s.kill()
		killed := time.Now()
		ticker := time.NewTicker(10 * time.Millisecond)
		for gone := false; !gone; {
			select {
			case <-ticker.C:
				_ = r.Send([][]byte{{1}}, to)
			case <-r.Done():
				gone = true
			}
		}
		ticker.Stop()
		lost = append(lost, time.Since(killed))
		if !errors.Is(r.Err(), ErrLost) {
			t.Fatal(r.Err())
		}
		dialed := make(chan error, 1)
		go func() {
			r, err := Dial(t.Context(), s.config(overUDP))
			if err == nil {
				_ = r.Close()
			}
			dialed <- err
		}()
		select {
		case <-time.After(down - time.Since(killed)):
		case err := <-dialed:
			t.Fatalf("dialed while nobody is there: %v", err)
		}
		newServerAt(t, "127.0.0.1", s.ports[overUDP], nil)
		again := time.Now()
		if err := <-dialed; err != nil {
			t.Fatal(err)
		}
		back = append(back, time.Since(again))
	}
	slices.Sort(lost)
	slices.Sort(back)
	t.Logf("lost after %v; served again after %v", lost, back)
	if lost[2] > 250*time.Millisecond {
		t.Errorf("the loss was noticed after %v", lost)
	}
	if back[2] > 400*time.Millisecond {
		t.Errorf("served again after %v", back)
	}
}

// TestRefusedForAWhile: over TCP, too, a server that comes back is found soon.
func TestRefusedForAWhile(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	p := timingOf(overTCP).request
	hints := 0
	opened := make(chan net.Listener, 1)
	timer := time.AfterFunc(down, func() {
		again, err := net.Listen("tcp4", addr)
		if err != nil {
			t.Error(err)
		}
		opened <- again
	})
	defer timer.Stop()
	start := time.Now()
	c, err := reach(t.Context(), "tcp4", netip.MustParseAddrPort(addr), p, func() { hints++ })
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if took := time.Since(start); took > 2*time.Second || hints != 1 {
		t.Errorf("after %v, %d hints", took, hints)
	}
	again := <-opened
	_ = again.Close()
	p.patience = 0
	if _, err := reach(t.Context(), "tcp4", netip.MustParseAddrPort(addr), p, func() {}); !isRefused(err) {
		t.Errorf("without patience: %v", err)
	}
	// Without an end: until ctx ends.
	ctx, cancel := context.WithCancel(t.Context())
	p.patience = time.Hour
	if _, err := reach(ctx, "tcp4", netip.MustParseAddrPort(addr), p, cancel); err == nil {
		t.Error("connected to nobody")
	}
}

// TestOneRefusalIsNotTheEnd: the system tells of a closed port once, and the server
// answers the next request.
func TestOneRefusalIsNotTheEnd(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	r, _ := open(t, cfg, nil)
	refuse := func(times int) {
		p.filter(func(b []byte, up bool) bool {
			if !up || !is(b, stun.MethodRefresh) || times == 0 {
				return false
			}
			times--
			r.waiting.refused() // as the reader does
			return true
		})
	}
	refuse(1)
	if !r.refresh(time.Now(), r.proofs.Load()) {
		t.Errorf("lost: %v", r.Err())
	}
	refuse(100)
	start := time.Now()
	if r.refresh(time.Now(), r.proofs.Load()) || !errors.Is(r.Err(), ErrLost) || !errors.Is(r.Err(), errRefused) {
		t.Errorf("after %v: %v", time.Since(start), r.Err())
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("lost after %v", took)
	}
}

// TestClockIsBehind: the server's clock is days ahead of ours, so that credentials
// of the usual length have ended before they are made.
func TestClockIsBehind(t *testing.T) {
	const ahead = 48 * time.Hour
	secret := []byte("shared by both")
	s := newServer(t, "127.0.0.1", func(c *turn.ServerConfig) {
		c.AuthHandler = timeLimitedAuth(secret, func() time.Time { return time.Now().Add(ahead) })
	})
	for _, via := range transports {
		cfg := s.config(via)
		cfg.Secret = secret
		r, _ := open(t, cfg, nil)
		if !r.alive.Load() {
			t.Errorf("%s: no allocation", via)
		}
		if !r.refresh(time.Now(), 0) {
			t.Errorf("%s: %v", via, r.Err())
		}
	}
	cfg := s.config(overUDP)
	cfg.Secret = []byte("another one")
	if r, err := Dial(t.Context(), cfg); !errors.Is(err, ErrCredentials) {
		t.Errorf("a wrong secret: %v, %v", r, err)
	}
}

// timeLimitedAuth is what a server does whose clock is not ours.
func timeLimitedAuth(secret []byte, now func() time.Time) turn.AuthHandler {
	return func(ra *turn.RequestAttributes) (string, []byte, bool) {
		end, id, ok := strings.Cut(ra.Username, ":")
		seconds, err := strconv.ParseInt(end, 10, 64)
		if !ok || err != nil || time.Unix(seconds, 0).Before(now()) {
			return "", nil, false
		}
		user, password := timeLimited(secret, id, time.Unix(seconds, 0))
		return user, turn.GenerateAuthKey(user, ra.Realm, password), user == ra.Username
	}
}
