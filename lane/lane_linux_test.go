package lane

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// on lets a device use the kernel's TCP on a host of a lab.
func on(h *nettest.Host) func(*device, *Config) {
	return func(_ *device, cfg *Config) {
		cfg.ListenTCP = func(ctx context.Context) (ln net.Listener, err error) {
			h.Do(func() { ln, err = listenTCP(ctx) })
			return ln, err
		}
		cfg.DialTCP = func(ctx context.Context, to netip.AddrPort) (c net.Conn, err error) {
			h.Do(func() { c, err = dialTCP(ctx, to) })
			return c, err
		}
	}
}

// input is a firewall's rule for what comes in; dropIn and refuseIn let no TCP
// connection in.
func input(rule string) string {
	return "table inet lane {\nchain in {\ntype filter hook input priority 0\n" + rule + "\n}\n}\n"
}

const (
	dropIn   = "tcp flags & (syn|ack) == syn drop"
	refuseIn = "tcp flags & (syn|ack) == syn reject with tcp reset"
)

// TestFirewalls opens lanes between two hosts of one LAN that let connections in or not.
func TestFirewalls(t *testing.T) {
	for name, c := range map[string]struct {
		rules  [2]string // of the asker and the asked
		lane   bool
		dialed bool // by the asker, where a firewall leaves one way
	}{
		"none":                      {lane: true},
		"before the asked":          {rules: [2]string{"", dropIn}, lane: true},
		"before the asker":          {rules: [2]string{dropIn, ""}, lane: true, dialed: true},
		"before the asked, refuses": {rules: [2]string{"", refuseIn}, lane: true},
		"before both, refuse":       {rules: [2]string{refuseIn, refuseIn}},
	} {
		t.Run(name, func(t *testing.T) {
			lab := nettest.New(t)
			lan := lab.Bridge("lan")
			hosts := [2]*nettest.Host{lab.Host("a").Attach(lan, "10.0.0.1/24"), lab.Host("b").Attach(lan, "10.0.0.2/24")}
			for i, to := range []string{"10.0.0.2:1", "10.0.0.1:1"} { // when it is refused, the switch is up
				var err error
				hosts[i].Do(func() { _, err = net.DialTimeout("tcp", to, 20*time.Second) })
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatal(err)
				}
			}
			for i, rules := range c.rules {
				if rules != "" {
					hosts[i].Nft(input(rules))
				}
			}
			w := newWorld()
			a := w.device(t, 1, on(hosts[0]), "10.0.0.1")
			b := w.device(t, 2, on(hosts[1]), "10.0.0.99", "10.0.0.2") // nobody has the first address
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			start := time.Now()
			near, err := a.Open(ctx, b.id, "files")
			took := time.Since(start)
			if !c.lane {
				var no *NoLaneError
				if !errors.As(err, &no) || len(no.Tries) != 3 {
					t.Fatalf("got %v", err)
				}
				for _, try := range no.Tries {
					if try.To.Addr().String() != "10.0.0.99" && try.Reason != ReasonRefused {
						t.Errorf("%v", try)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if took > raceTime/2 {
				t.Errorf("it took %v", took)
			}
			t.Logf("%v, dialed by the asker: %v", took, near.Dialed())
			far := <-b.got
			if c.rules != [2]string{} && near.Dialed() != c.dialed {
				t.Errorf("dialed by the asker: %v", near.Dialed())
			}
			echo(t, near, far)
			near.Close()
			far.Close()
		})
	}
}

// TestSilentPeer holds that a lane whose cable is pulled ends in time, with data on
// the way and without.
func TestSilentPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for 20 s of the kernel's time")
	}
	t.Parallel()
	lab := nettest.New(t)
	lan := lab.Bridge("lan")
	ha, hb := lab.Host("a").Attach(lan, "10.0.0.1/24"), lab.Host("b").Attach(lan, "10.0.0.2/24")
	w := newWorld()
	a := w.device(t, 1, on(ha), "10.0.0.1")
	b := w.device(t, 2, on(hb), "10.0.0.2")
	near, far := mustOpen(t, a, b, "files")
	defer near.Close()
	defer far.Close()
	ha.Nft(input("tcp sport >= 1024 drop"))
	hb.Nft(input("tcp sport >= 1024 drop"))
	start := time.Now()
	if _, err := near.Write([]byte("into the void")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Conn{"which sent": near, "which waits": far} {
		if err := c.SetReadDeadline(start.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		var ne net.Error
		took := time.Since(start)
		t.Logf("the side %s: %v after %v", name, err, took)
		if err == nil || took > silence+15*time.Second || errors.As(err, &ne) && ne.Timeout() && took > 50*time.Second {
			t.Errorf("the side %s: %v after %v", name, err, took)
		}
	}
}
