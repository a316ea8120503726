package kith_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
	if err != nil || here != there || len(here) != 12 {
		t.Fatalf("check numbers %q and %q, %v", here, there, err)
	}
	wrong := []byte(here)
	wrong[11] = '0' + (wrong[11]-'0'+1)%10
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

// introduceAll introduces two devices and says yes on both.
func introduceAll(ctx context.Context, t *testing.T, s three) {
	t.Helper()
	if _, _, err := s.hub.Introduce("laptop", "phone"); err != nil {
		t.Fatal(err)
	}
	accept(t, s.laptop, asked(ctx, t, s.laptop))
	accept(t, s.at, asked(ctx, t, s.at))
	s.awaitPaired(ctx, t)
	untilKin(ctx, t, s.hub, "both sides paired", func() bool { given, _ := s.hub.Introductions(); return given[len(given)-1].Good() })
}

func (s three) awaitPaired(ctx context.Context, t *testing.T) {
	t.Helper()
	untilKin(ctx, t, s.laptop, "paired", func() bool { _, ok := pairedWith(s.laptop, "phone"); return ok })
	untilKin(ctx, t, s.at, "paired", func() bool { _, ok := pairedWith(s.at, "laptop"); return ok })
}

// endState waits until an end of the introducer's newest introduction has a state.
func endState(ctx context.Context, t *testing.T, by, end *kith.Node, want kin.EndState) {
	t.Helper()
	untilKin(ctx, t, by, "told "+want.String(), func() bool {
		given, _ := by.Introductions()
		for _, e := range given[len(given)-1].Ends {
			if e.ID == end.ID() {
				return e.State == want
			}
		}
		return false
	})
}

// TestRemovedNeverReturns holds, with whole nodes, that a device that was removed comes
// back by no introduction, also of an own device, until its user says so or pairs by a code.
func TestRemovedNeverReturns(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	introduceAll(ctx, t, s)
	if _, err := s.laptop.SetOwn("desk", true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.laptop.Unpair(ctx, "phone"); err != nil {
		t.Fatal(err)
	}
	untilKin(ctx, t, s.at, "unpaired", func() bool { _, ok := pairedWith(s.at, "laptop"); return !ok })
	if _, begun, err := s.hub.Introduce("laptop", "phone"); err != nil || !begun {
		t.Fatalf("begun %v, %v", begun, err)
	}
	endState(ctx, t, s.hub, s.laptop, kin.EndRemoved)
	if _, ok := pairedWith(s.laptop, "phone"); ok {
		t.Fatal("it came back")
	}
	// After a restart, too.
	dir := s.laptop.Dir()
	if err := s.laptop.Close(); err != nil {
		t.Fatal(err)
	}
	s.laptop = openNode(t, s.network, dir, "laptop")
	if list := s.laptop.Removed(); len(list) != 1 || list[0] != s.at.ID() {
		t.Fatalf("removed: %v", list)
	}
	if _, _, err := s.hub.Introduce("laptop", "phone"); err != nil {
		t.Fatal(err)
	}
	endState(ctx, t, s.hub, s.laptop, kin.EndRemoved)
	// Its user lets it.
	if id, err := s.laptop.Forget("phone"); err != nil || id != s.at.ID() {
		t.Fatalf("forget: %v, %v", id, err)
	}
	if _, begun, err := s.hub.Introduce("laptop", "phone"); err != nil || !begun {
		t.Fatalf("begun %v, %v", begun, err)
	}
	untilKin(ctx, t, s.at, "told of the new one alone", func() bool {
		_, list := s.at.Introductions()
		return len(list) == 4 && list[2].State == kin.EndWithdrawn && list[3].State == kin.EndDelivered
	})
	accept(t, s.at, asked(ctx, t, s.at)) // laptop accepts by itself: desk is its own
	s.awaitPaired(ctx, t)

	// Pairing by a code lifts it, too, and what was introduced is then paired by a code.
	if _, err := s.at.Unpair(ctx, "laptop"); err != nil {
		t.Fatal(err)
	}
	untilKin(ctx, t, s.laptop, "unpaired", func() bool { _, ok := pairedWith(s.laptop, "phone"); return !ok })
	quickPair(ctx, t, s.laptop, s.at)
	if d, ok := pairedWith(s.at, "laptop"); !ok || d.IntroducedBy != "" || len(s.at.Removed()) != 0 {
		t.Errorf("after a code: %+v, removed %v", d, s.at.Removed())
	}
}

// TestIntroducerGone holds that what was introduced stays when the introducer is unpaired,
// that the record still says who it was, and that its introductions under way end.
func TestIntroducerGone(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	introduceAll(ctx, t, s)
	tablet := openNode(t, s.network, stateDir(t), "tablet")
	quickPair(ctx, t, s.hub, tablet)
	if _, _, err := s.hub.Introduce("laptop", "tablet"); err != nil {
		t.Fatal(err)
	}
	r := asked(ctx, t, s.laptop)
	accept(t, s.laptop, r)
	vouched, err := s.laptop.VouchedFor("desk")
	if err != nil || len(vouched) != 1 || vouched[0].Name != "phone" {
		t.Errorf("vouched for %+v, %v", vouched, err)
	}
	if _, err := s.laptop.Unpair(ctx, "desk"); err != nil {
		t.Fatal(err)
	}
	untilKin(ctx, t, s.laptop, "over", func() bool {
		_, list := s.laptop.Introductions()
		return list[len(list)-1].State == kin.EndGone
	})
	endState(ctx, t, s.hub, s.laptop, kin.EndGone)
	if d, ok := pairedWith(s.laptop, "phone"); !ok || d.IntroducedBy != "desk" {
		t.Errorf("phone is %+v", d)
	}
	if _, err := s.laptop.Ping(ctx, "phone"); err != nil {
		t.Error(err)
	}
}

// TestIntroducedWhileAway holds that each side may come alone, with restarts between, and
// that the pairing needs the introducer no more once both have said yes.
func TestIntroducedWhileAway(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	dirs := map[string]string{"laptop": s.laptop.Dir(), "phone": s.at.Dir()}
	for _, n := range []*kith.Node{s.laptop, s.at} {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.hub.Introduce("laptop", "phone"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"laptop", "phone"} {
		n := openNode(t, s.network, dirs[name], name)
		accept(t, n, asked(ctx, t, n))
		endState(ctx, t, s.hub, n, kin.EndAccepted)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	hub := s.hub.Dir()
	if err := s.hub.Close(); err != nil {
		t.Fatal(err)
	}
	s.laptop, s.at = openNode(t, s.network, dirs["laptop"], "laptop"), openNode(t, s.network, dirs["phone"], "phone")
	s.awaitPaired(ctx, t)
	s.hub = openNode(t, s.network, hub, "desk")
	untilKin(ctx, t, s.hub, "both sides paired", func() bool { given, _ := s.hub.Introductions(); return given[0].Good() })
	if _, begun, err := s.hub.Introduce("laptop", "phone"); err != nil || !begun {
		t.Fatalf("begun %v, %v", begun, err)
	}
	endState(ctx, t, s.hub, s.laptop, kin.EndAlready)
}

// TestOwnDevices holds that a new pair of one device is seen on the other own one, that it
// undoes it, and that a device that is not marked learns nothing and may nothing.
func TestOwnDevices(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	for _, m := range []struct {
		on *kith.Node
		of string
	}{{s.hub, "laptop"}, {s.laptop, "desk"}} {
		if d, err := m.on.SetOwn(m.of, true); err != nil || !d.Own {
			t.Fatalf("own: %v, %v", d.Own, err)
		}
	}
	tablet := openNode(t, s.network, stateDir(t), "tablet")
	quickPair(ctx, t, s.laptop, tablet)
	var seen kith.NewPair
	untilKin(ctx, t, s.hub, "told of the tablet", func() bool {
		for _, p := range s.hub.Recent() {
			if p.Peer == tablet.ID() {
				seen = p
				return true
			}
		}
		return false
	})
	if seen.On != "laptop" || seen.Name != "tablet" || seen.Method != "words" || seen.Ended {
		t.Errorf("desk sees %+v", seen)
	}
	for _, p := range s.at.Recent() {
		if !p.OnID.IsZero() {
			t.Errorf("the phone, which is nobody's own, was told of %+v", p)
		}
	}
	if done, err := s.hub.Undo(ctx, seen.OnID, seen.ID); err != nil || !done {
		t.Fatalf("undo: %v, %v", done, err)
	}
	if _, ok := pairedWith(s.laptop, "tablet"); ok {
		t.Error("laptop is still paired with it")
	}
	untilKin(ctx, t, tablet, "told", func() bool { _, ok := pairedWith(tablet, "laptop"); return !ok })
	if list := s.laptop.Removed(); len(list) != 1 || list[0] != tablet.ID() {
		t.Errorf("removed there: %v", list)
	}
	// Not when laptop has not marked desk; and desk's own pairs without asking anybody.
	quickPair(ctx, t, s.laptop, tablet)
	untilKin(ctx, t, s.hub, "told again", func() bool {
		for _, p := range s.hub.Recent() {
			if p.Peer == tablet.ID() && !p.Ended {
				seen = p
				return true
			}
		}
		return false
	})
	if _, err := s.laptop.SetOwn("desk", false); err != nil {
		t.Fatal(err)
	}
	if done, err := s.hub.Undo(ctx, seen.OnID, seen.ID); done || !errors.Is(err, kin.ErrMay) {
		t.Errorf("undone without the right: %v, %v", done, err)
	}
	for _, p := range s.hub.Recent() {
		if p.OnID.IsZero() && p.Peer == s.at.ID() {
			if done, err := s.hub.Undo(ctx, p.OnID, p.ID); err != nil || !done {
				t.Errorf("undo here: %v, %v", done, err)
			}
		}
	}
	if _, ok := pairedWith(s.hub, "phone"); ok {
		t.Error("desk is still paired with the phone")
	}
}

// TestUndoWaits holds that a request to a device that is away is kept until it returns.
func TestUndoWaits(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	for _, m := range []struct {
		on *kith.Node
		of string
	}{{s.hub, "laptop"}, {s.laptop, "desk"}} {
		if _, err := m.on.SetOwn(m.of, true); err != nil {
			t.Fatal(err)
		}
	}
	tablet := openNode(t, s.network, stateDir(t), "tablet")
	quickPair(ctx, t, s.laptop, tablet)
	var id kin.ID
	untilKin(ctx, t, s.hub, "told of the tablet", func() bool {
		for _, p := range s.hub.Recent() {
			if p.Peer == tablet.ID() {
				id = p.ID
				return true
			}
		}
		return false
	})
	dir := s.laptop.Dir()
	if err := s.laptop.Close(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if done, err := s.hub.Undo(short, s.laptop.ID(), id); done || err != nil {
		t.Fatalf("undone by a device that is away: %v, %v", done, err)
	}
	hub := s.hub.Dir()
	if err := s.hub.Close(); err != nil {
		t.Fatal(err)
	}
	s.hub = openNode(t, s.network, hub, "desk")
	s.laptop = openNode(t, s.network, dir, "laptop")
	untilKin(ctx, t, s.laptop, "undone", func() bool { _, ok := pairedWith(s.laptop, "tablet"); return !ok })
	untilKin(ctx, t, s.hub, "told", func() bool {
		for _, p := range s.hub.Recent() {
			if p.ID == id {
				return p.Ended
			}
		}
		return false
	})
}

// TestIntroducedNames holds what an introduced device is called: as the introducer calls it,
// unless that name is taken here; what it calls itself is known, too.
func TestIntroducedNames(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	tablet := openNode(t, s.network, stateDir(t), "pixel")
	quickPair(ctx, t, s.laptop, tablet)
	if err := s.hub.Rename("phone", "pixel"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.hub.Introduce("laptop", "pixel"); err != nil {
		t.Fatal(err)
	}
	if err := s.hub.Rename("pixel", "mobile"); err != nil { // too late: it stands as it was signed, or is signed anew
		t.Fatal(err)
	}
	r := asked(ctx, t, s.laptop)
	accept(t, s.laptop, r)
	accept(t, s.at, asked(ctx, t, s.at))
	untilKin(ctx, t, s.laptop, "paired", func() bool { _, ok := pairedWith(s.laptop, s.at.ID().String()); return ok })
	d, _ := pairedWith(s.laptop, s.at.ID().String())
	if r.Name != "pixel" || d.Name != "pixel-2" || d.PeerName != "phone" || d.IntroducedBy != "desk" {
		t.Errorf("introduced as %q, known as %q, which calls itself %q, by %q", r.Name, d.Name, d.PeerName, d.IntroducedBy)
	}
	if err := s.laptop.Rename("desk", "table"); err != nil {
		t.Fatal(err)
	}
	if d, _ := pairedWith(s.laptop, "pixel-2"); d.IntroducedBy != "table" {
		t.Errorf("introduced by %q, want the name that the introducer has now", d.IntroducedBy)
	}
}

// TestTwoIntroducersAtOnce holds that two devices that are introduced by two others at the
// same time end with one pair.
func TestTwoIntroducersAtOnce(t *testing.T) {
	ctx := testContext(t)
	s := openThree(ctx, t)
	tablet := openNode(t, s.network, stateDir(t), "tablet")
	quickPair(ctx, t, tablet, s.laptop)
	quickPair(ctx, t, tablet, s.at)
	for _, m := range []struct {
		on *kith.Node
		of string
	}{{s.laptop, "desk"}, {s.laptop, "tablet"}, {s.at, "desk"}, {s.at, "tablet"}} {
		if _, err := m.on.SetOwn(m.of, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, by := range []*kith.Node{s.hub, tablet} {
		if _, _, err := by.Introduce("laptop", "phone"); err != nil {
			t.Fatal(err)
		}
	}
	s.awaitPaired(ctx, t)
	for _, by := range []*kith.Node{s.hub, tablet} {
		untilKin(ctx, t, by, "both sides paired", func() bool { given, _ := by.Introductions(); return given[0].Good() })
	}
	if _, err := s.laptop.Ping(ctx, "phone"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*kith.Node{s.laptop, s.at} {
		if len(n.Devices()) != 3 {
			t.Errorf("%s has %d devices, want 3: %+v", n.Name(), len(n.Devices()), n.Devices())
		}
	}
}

// TestDamagedBook holds that a file that cannot be read is kept aside and said, and that
// the node works on.
func TestDamagedBook(t *testing.T) {
	dir := stateDir(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	n := openNode(t, network, dir, "laptop")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kin.cbor"), []byte("no book"), 0o600); err != nil {
		t.Fatal(err)
	}
	n = openNode(t, network, dir, "laptop")
	if p := n.Problems(); len(p) != 1 || p[0].KeptAs == "" {
		t.Errorf("problems: %v", p)
	}
}
