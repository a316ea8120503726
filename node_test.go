package kith_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// nodePatience bounds every wait of a test with whole nodes.
const nodePatience = 30 * time.Second

// stateDir is a directory for a node to make.
func stateDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "state")
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), nodePatience)
	t.Cleanup(cancel)
	return ctx
}

// openNode opens a node that meets others on a medium in memory and reaches them
// over loopback.
func openNode(t *testing.T, network *rendezvoustest.Network, dir, name string) *kith.Node {
	t.Helper()
	return openNodeAs(t, network, name, func(c *kith.Config) { c.Dir = dir })
}

// openNodeAs is openNode with a configuration that change has changed.
func openNodeAs(t *testing.T, network *rendezvoustest.Network, name string, change func(*kith.Config)) *kith.Node {
	t.Helper()
	cfg := kith.Config{
		Dir: stateDir(t), Name: name, NoLAN: true, NoDHT: true, Loopback: true, Exchanges: []rendezvous.Exchange{network.Exchange("memory")},
	}
	change(&cfg)
	n, err := kith.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// check waits for the question for the check number.
func awaitCheck(ctx context.Context, t *testing.T, p *kith.Pairing) kith.PairEvent {
	t.Helper()
	for {
		select {
		case ev, ok := <-p.Events():
			if !ok || ev.Kind == pairing.EventFailed {
				t.Fatalf("the pairing ended before the check: %+v", ev)
			}
			if ev.Kind == pairing.EventCheck {
				return ev
			}
		case <-ctx.Done():
			t.Fatal("no check number")
		}
	}
}

func pairNodes(ctx context.Context, t *testing.T, a, b *kith.Node, method code.Method) {
	t.Helper()
	offer, err := a.Offer(ctx, kith.OfferConfig{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	text := offer.Code().Words()
	switch method {
	case code.MethodQR:
		text = offer.Code().URI()
	case code.MethodNumber:
		text = offer.Code().Number()
	}
	c, err := code.Parse(text, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	join, err := b.Join(ctx, c, kith.JoinConfig{})
	if err != nil {
		t.Fatal(err)
	}
	shown := awaitCheck(ctx, t, join)
	asked := awaitCheck(ctx, t, offer)
	if !asked.Ask || len(asked.Choices) != 4 {
		t.Errorf("the offering side is not asked: %+v", asked)
	}
	if shown.Ask != (method != code.MethodQR) {
		t.Errorf("the joining side is asked: %v, with method %v", shown.Ask, method)
	}
	if err := offer.Accept("000"); !errors.Is(err, kith.ErrCheck) {
		t.Errorf("wrong digits: %v", err)
	}
	if shown.Ask {
		if err := join.Accept(""); err != nil {
			t.Fatal(err)
		}
	}
	if err := offer.Accept(shown.Check); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*kith.Pairing{offer, join} {
		d, err := p.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if d.State != kith.Paired {
			t.Errorf("%s is %s", d.Name, d.State)
		}
	}
}

func TestNodesPairConnectAndUnpair(t *testing.T) {
	for _, method := range []code.Method{code.MethodWords, code.MethodQR, code.MethodNumber} {
		t.Run(method.String(), func(t *testing.T) {
			ctx := testContext(t)
			network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{Loss: 0.2, Duplicate: 0.2, MaxDelay: 5 * time.Millisecond})
			a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
			pairNodes(ctx, t, a, b, method)
			for _, n := range []struct {
				node *kith.Node
				to   string
			}{{a, "laptop"}, {b, "desk"}} {
				if _, err := n.node.Ping(ctx, n.to); err != nil {
					t.Fatal(err)
				}
			}
			echoThrough(ctx, t, a, b)
			told, err := a.Unpair(ctx, "laptop")
			if err != nil || !told {
				t.Fatalf("unpair: told %v, %v", told, err)
			}
			if len(a.Devices())+len(b.Devices()) != 0 {
				t.Errorf("devices are left: %v, %v", a.Devices(), b.Devices())
			}
			if _, err := b.Dial(ctx, "tcp", "desk:7"); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("dial after unpair: %v", err)
			}
		})
	}
}

// echoThrough listens on b and talks from a.
func echoThrough(ctx context.Context, t *testing.T, a, b *kith.Node) {
	t.Helper()
	ln, err := b.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if d, err := b.WhoIs(conn.RemoteAddr()); err != nil || d.ID != a.ID() {
			t.Errorf("WhoIs: %v, %v", d.Name, err)
		}
		_, _ = io.Copy(conn, conn)
	}()
	conn, err := a.Dial(ctx, "tcp", "laptop.kith:7")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("echo")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "echo" {
		t.Fatalf("got %q, %v", buf, err)
	}
}

func TestPortsAreDeniedUntilAllowed(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
	pairNodes(ctx, t, a, b, code.MethodWords)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	address := net.JoinHostPort("laptop", strings.TrimPrefix(ln.Addr().String(), "127.0.0.1:"))
	if conn, err := a.Dial(ctx, "tcp", address); err == nil {
		conn.Close()
		t.Fatal("a port was reached that nobody allowed")
	}
	if err := b.Allow("desk", port); err != nil {
		t.Fatal(err)
	}
	conn, err := a.Dial(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	// Withdrawing the right ends the connection, too.
	if err := b.Deny("desk", port); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(nodePatience)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection lives on after the right was withdrawn: %v", err)
	}
}

func TestRestartFindsTheOtherAgain(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	dirs := []string{stateDir(t), stateDir(t)}
	a, b := openNode(t, network, dirs[0], "desk"), openNode(t, network, dirs[1], "laptop")
	pairNodes(ctx, t, a, b, code.MethodWords)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openNode(t, network, dirs[1], "laptop")
	if _, err := b.Ping(ctx, "desk"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Ping(ctx, "laptop"); err != nil {
		t.Fatal(err)
	}
	// Paired devices stay when both restart.
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	a, b = openNode(t, network, dirs[0], "desk"), openNode(t, network, dirs[1], "laptop")
	if _, err := a.Ping(ctx, "laptop"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ping(ctx, "desk"); err != nil {
		t.Fatal(err)
	}
}

// TestUnpairWhileTheOtherIsAway tells it when it comes back.
func TestUnpairWhileTheOtherIsAway(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	dir := stateDir(t)
	a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, dir, "laptop")
	pairNodes(ctx, t, a, b, code.MethodWords)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if told, err := a.Unpair(short, "laptop"); err != nil || told {
		t.Fatalf("unpair of a device that is away: told %v, %v", told, err)
	}
	b = openNode(t, network, dir, "laptop")
	events, stop := b.Events()
	defer stop()
	for len(b.Devices()) > 0 {
		select {
		case <-events:
		case <-ctx.Done():
			t.Fatal("the other device has not learned of it")
		}
	}
}

func TestOpenRefusesWhatCannotBeUsed(t *testing.T) {
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	dir := stateDir(t)
	openNode(t, network, dir, "desk")
	open := func(dir string) error {
		n, err := kith.Open(t.Context(), kith.Config{Dir: dir, NoLAN: true, NoDHT: true, Exchanges: []rendezvous.Exchange{network.Exchange("memory")}})
		if err == nil {
			n.Close()
		}
		return err
	}
	if err := open(dir); !errors.Is(err, kith.ErrInUse) {
		t.Errorf("two nodes on one directory: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if open(file) == nil {
		t.Error("a file was taken for a directory")
	}
	if runtime.GOOS == "windows" {
		return
	}
	wide := t.TempDir()
	if err := os.Chmod(wide, 0o755); err != nil {
		t.Fatal(err)
	}
	var mode *identity.PermissionError
	if err := open(wide); !errors.As(err, &mode) {
		t.Errorf("a directory that others can read: %v", err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
	pairNodes(ctx, t, a, b, code.MethodWords)
	c := openNode(t, network, stateDir(t), "stranger")
	if _, err := c.Dial(ctx, "tcp", a.Addr().String()+":7"); err == nil {
		t.Error("a stranger reached a device")
	}
	if len(c.Devices()) != 0 || len(a.Devices()) != 1 {
		t.Error("somebody was paired without a code")
	}
}

func TestCancelTellsTheOtherSide(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
	offer, err := a.Offer(ctx, kith.OfferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.Parse(offer.Code().Words(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	join, err := b.Join(ctx, c, kith.JoinConfig{})
	if err != nil {
		t.Fatal(err)
	}
	awaitCheck(ctx, t, offer)
	offer.Cancel()
	var failed *kith.PairError
	if _, err := join.Wait(ctx); !errors.As(err, &failed) || failed.Reason != pairing.Refused {
		t.Errorf("the joining side: %v", err)
	}
	if _, err := offer.Wait(ctx); !errors.As(err, &failed) || failed.Reason != pairing.Cancelled {
		t.Errorf("the offering side: %v", err)
	}
	if len(a.Devices())+len(b.Devices()) != 0 {
		t.Error("a cancelled pairing left a device")
	}
}

// TestOldKeysAreForgotten: once both devices have said their day, the key chain of
// an older pair moves forward on both disks to the day before, and the pair goes on.
func TestOldKeysAreForgotten(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	dirs := []string{stateDir(t), stateDir(t)}
	a, b := openNode(t, network, dirs[0], "desk"), openNode(t, network, dirs[1], "laptop")
	pairNodes(ctx, t, a, b, code.MethodWords)
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	today := time.Now().Unix() / (24 * 60 * 60)
	record := func(dir string, change func(*registry.Device)) registry.Device {
		store, err := registry.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		d, err := store.Update(store.List()[0].PairID, change)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, dir := range dirs {
		record(dir, func(d *registry.Device) {
			d.Chain, d.ChainDay, d.LastSeen = [32]byte{7}, today-30, time.Time{}
		})
	}
	// A ping may get through before both have heard the other's day.
	pingUntilSeen := func(n *kith.Node, ref string) {
		t.Helper()
		for seen := false; !seen; {
			if _, err := n.Ping(ctx, ref); err != nil {
				t.Fatal(err)
			}
			d, err := n.Device(ref)
			if err != nil {
				t.Fatal(err)
			}
			seen = !d.LastSeen.IsZero()
		}
	}
	for range 2 {
		a, b = openNode(t, network, dirs[0], "desk"), openNode(t, network, dirs[1], "laptop")
		pingUntilSeen(a, "laptop")
		pingUntilSeen(b, "desk")
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
		for i, dir := range dirs {
			d := record(dir, func(*registry.Device) {})
			if d.ChainDay < today-1 || d.Chain == [32]byte{7} {
				t.Errorf("node %d keeps the chain of day %d, today is %d", i, d.ChainDay, today)
			}
		}
	}
}
