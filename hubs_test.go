package kith

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/hub"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/relay"
	"github.com/kithproject/kith/pairing"
)

// openHubAt runs a hub with a key of its own on loopback.
func openHubAt(t *testing.T, port uint16) *hub.Hub {
	t.Helper()
	h, err := hub.Open(t.Context(), hub.Config{
		Dir: filepath.Join(t.TempDir(), "hub"), Listen: net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))), AltPort: -1,
		DHT: hub.DHTOff, AllowPrivate: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// openAtHub opens a node that meets others at a hub alone.
func openAtHub(t *testing.T, name string, h hubaddr.Address) *Node {
	t.Helper()
	return openAlone(t, Config{Dir: filepath.Join(t.TempDir(), name), Name: name, NoPortMapping: true, Hubs: []hubaddr.Address{h}})
}

// TestUseHubWithAnotherKey: a hub that has got another key is used in place of the one
// before, also by what goes on; what a code names is used besides.
func TestUseHubWithAnotherKey(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	old := openHubAt(t, 0)
	a := openAtHub(t, "desk", old.Address())
	offer, err := a.Offer(ctx, OfferConfig{Method: code.MethodQR})
	if err != nil {
		t.Fatal(err)
	}
	one := func() bool { s := a.Status().Rendezvous; return len(s) == 1 && s[0].Ready }
	until(ctx, t, "the first hub", one)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	now := openHubAt(t, old.Address().Port)
	until(ctx, t, "the first hub is gone", func() bool { return !one() })
	for range 2 { // the second does nothing
		if err := a.UseHub(now.Address()); err != nil {
			t.Fatal(err)
		}
	}
	until(ctx, t, "one hub, which is the second", one)
	if hubs := a.MailHubs(); len(hubs) != 1 {
		t.Errorf("it uses %q", hubs)
	}
	if env, err := a.doctorEnv(DiagnoseConfig{}); err != nil || len(env.Hubs) != 1 || env.Hubs[0] != now.Address() || len(env.Media) != 1 {
		t.Errorf("the doctor looks at %v", env.Hubs)
	}
	b := openAtHub(t, "laptop", now.Address())
	join, err := b.Join(ctx, offer.Code(), JoinConfig{}) // it names the first hub
	if err != nil {
		t.Fatal(err)
	}
	for ev := range join.Events() {
		if ev.Kind == pairing.EventCheck {
			break
		}
	}
	if got := len(b.Status().Rendezvous); got != 2 {
		t.Errorf("%d hubs, want the one of the settings and that of the code", got)
	}
}

// TestUseHubRelay: the relay of a hub that is not used any more is given up at once.
func TestUseHubRelay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	old, now := openHubAt(t, 0), openHubAt(t, 0)
	n := openAtHub(t, "desk", old.Address())
	r := n.reach.relays
	r.want(new(peer), true)
	opened := func() *relay.Relay {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.open[old.Address().Host]
	}
	until(ctx, t, "a relay at the first hub", func() bool { return opened() != nil })
	first := opened()
	if err := n.UseHub(now.Address()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
	case <-ctx.Done():
		t.Fatal("the relay at the first hub stays")
	}
	until(ctx, t, "a relay at the second", func() bool { one := opened(); return one != nil && one != first })
}
