package kith_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// three are three nodes: the middle one is paired with both others, by codes.
type three struct {
	network         *rendezvoustest.Network
	laptop, hub, at *kith.Node // laptop and at ("phone") do not know each other
}

func openThree(ctx context.Context, t *testing.T) three {
	t.Helper()
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	s := three{
		network: network, laptop: openNode(t, network, stateDir(t), "laptop"),
		hub: openNode(t, network, stateDir(t), "desk"), at: openNode(t, network, stateDir(t), "phone"),
	}
	quickPair(ctx, t, s.hub, s.laptop)
	quickPair(ctx, t, s.hub, s.at)
	return s
}

// quickPair pairs two nodes by words, without the check number.
func quickPair(ctx context.Context, t *testing.T, a, b *kith.Node) {
	t.Helper()
	offer, err := a.Offer(ctx, kith.OfferConfig{AutoAccept: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.Parse(offer.Code().Words(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	join, err := b.Join(ctx, c, kith.JoinConfig{AutoAccept: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*kith.Pairing{offer, join} {
		if _, err := p.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// until waits until a node's introductions, notices or pairs fit.
func untilKin(ctx context.Context, t *testing.T, n *kith.Node, what string, fit func() bool) {
	t.Helper()
	changes, end := n.WatchIntroductions()
	defer end()
	events, stop := n.Events()
	defer stop()
	tick := time.NewTicker(50 * time.Millisecond) // pairs change without a sign here
	defer tick.Stop()
	for !fit() {
		select {
		case <-changes:
		case <-events:
		case <-tick.C:
		case <-ctx.Done():
			given, received := n.Introductions()
			t.Fatalf("%s: never %s; given %+v, received %+v, devices %+v", n.Name(), what, given, received, n.Devices())
		}
	}
}

// asked waits for an introduction that waits for its user, and returns its number.
func asked(ctx context.Context, t *testing.T, n *kith.Node) kin.Received {
	t.Helper()
	var got kin.Received
	untilKin(ctx, t, n, "asked", func() bool {
		_, received := n.Introductions()
		for _, r := range received {
			if r.State == kin.EndDelivered {
				got = r
				return true
			}
		}
		return false
	})
	return got
}

func pairedWith(n *kith.Node, name string) (kith.Device, bool) {
	d, err := n.Device(name)
	return d, err == nil && d.State == kith.Paired
}

func accept(t *testing.T, n *kith.Node, r kin.Received) {
	t.Helper()
	if _, err := n.AcceptIntroduction(r.Number); err != nil {
		t.Fatal(err)
	}
}

// TestIntroduce holds the ordinary way: both are asked, both say yes, they are paired
// with rights of their own and know who introduced them; the introducer hears of it.
func TestIntroduce(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	g, begun, err := s.hub.Introduce("laptop", "phone")
	if err != nil || !begun {
		t.Fatalf("begun %v, %v", begun, err)
	}
	if again, begun, err := s.hub.Introduce("phone", "laptop"); err != nil || begun || again.ID != g.ID {
		t.Errorf("the other way round: %v, begun %v, %v", again, begun, err)
	}
	r := asked(ctx, t, s.laptop)
	if r.Name != "phone" || r.By != s.hub.ID() || r.Other != s.at.ID() || r.Auto {
		t.Errorf("laptop was told %+v", r)
	}
	if _, known := pairedWith(s.laptop, "phone"); known {
		t.Error("paired without a yes")
	}
	accept(t, s.laptop, r)
	accept(t, s.at, asked(ctx, t, s.at))
	for _, n := range []struct {
		node *kith.Node
		name string
	}{{s.laptop, "phone"}, {s.at, "laptop"}} {
		untilKin(ctx, t, n.node, "paired with "+n.name, func() bool { _, ok := pairedWith(n.node, n.name); return ok })
		d, _ := pairedWith(n.node, n.name)
		if d.IntroducedBy != "desk" || d.VouchedBy != s.hub.ID() || d.Verified || len(d.Rights.TCP) > 0 {
			t.Errorf("%s knows %+v", n.node.Name(), d)
		}
		if _, err := n.node.Ping(ctx, n.name); err != nil {
			t.Error(err)
		}
	}
	untilKin(ctx, t, s.hub, "both sides paired", func() bool { given, _ := s.hub.Introductions(); return given[0].Good() })
	verify(t, s.laptop, s.at)
	oneHop(ctx, t, s)
}

// verify compares the check numbers of an introduced pair.
func verify(t *testing.T, laptop, phone *kith.Node) {
	t.Helper()
	_, here, err := laptop.CheckNumber("phone")
	if err != nil {
		t.Fatal(err)
	}
	_, there, err := phone.CheckNumber("laptop")
	if err != nil || here != there || len(here) != 6 {
		t.Fatalf("check numbers %q and %q, %v", here, there, err)
	}
	wrong := []byte(here)
	wrong[5] = '0' + (wrong[5]-'0'+1)%10
	if d, err := laptop.Verify("phone", string(wrong)); !errors.Is(err, kith.ErrNumber) || d.Verified {
		t.Errorf("a wrong number: %v, %v", d.Verified, err)
	}
	if d, err := laptop.Verify("phone", here[:3]+" "+here[3:]); err != nil || !d.Verified || d.IntroducedBy == "" {
		t.Errorf("verified %v, introduced by %q, %v", d.Verified, d.IntroducedBy, err)
	}
}

// oneHop holds that a device that was introduced cannot introduce others, nor be
// introduced.
func oneHop(ctx context.Context, t *testing.T, s three) {
	t.Helper()
	tablet := openNode(t, s.network, stateDir(t), "tablet")
	quickPair(ctx, t, s.laptop, tablet)
	for _, pair := range [][2]string{{"phone", "tablet"}, {"tablet", "phone"}} {
		if _, _, err := s.laptop.Introduce(pair[0], pair[1]); !errors.Is(err, kin.ErrMay) {
			t.Errorf("introduce %v: %v, want ErrMay", pair, err)
		}
	}
	for _, pair := range [][2]string{{"tablet", "tablet"}} {
		if _, _, err := s.laptop.Introduce(pair[0], pair[1]); !errors.Is(err, kin.ErrMay) {
			t.Errorf("introduce %v: %v, want ErrMay", pair, err)
		}
	}
}
