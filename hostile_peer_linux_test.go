package kith_test

import (
	"context"
	"crypto/rand"
	bytesof "encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous/lan"
	"github.com/kithproject/kith/signaling"
)

// A paired device that means harm is the test binary itself, on a host of the lab,
// with the state directory of a device that was paired before.
const (
	hostileMode   = "KITH_HOSTILE"        // what it does: names, rotates, restarts, chats or probes
	hostileHome   = "KITH_HOSTILE_HOME"   // the state directory
	hostileTarget = "KITH_HOSTILE_TARGET" // where the honest device's socket is
	hostileNames  = "KITH_HOSTILE_NAMES"  // the addresses to name, between spaces
)

// TestHostilePeer is such a device, until it is killed.
func TestHostilePeer(t *testing.T) {
	mode := os.Getenv(hostileMode)
	if mode == "" {
		t.Skip("this is a part of TestNetworkHostilePeer and TestNetworkFloods")
	}
	h := newHostile(t)
	fmt.Println("hostile:", mode)
	switch mode {
	case "names": // one list, and again
		h.announce(t, 50*time.Millisecond, func(int) signaling.Presence { return h.presence(0, "evil") })
	case "rotates": // ever new lists
		h.announce(t, time.Millisecond, func(i int) signaling.Presence { return h.presence(i, "evil") })
	case "chats": // ever new names, as fast as it can
		h.announce(t, 0, func(i int) signaling.Presence { return h.presence(i, fmt.Sprint("evil ", i)) })
	case "restarts":
		h.restart(t)
	case "probes":
		h.probe(t)
	}
}

type hostile struct {
	ctx   context.Context //nolint:containedctx // of the test
	id    identity.DeviceID
	dev   registry.Device
	ex    *lan.Exchange
	names []netip.AddrPort
}

func newHostile(t *testing.T) *hostile {
	t.Helper()
	home := os.Getenv(hostileHome)
	id, err := identity.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	store, err := registry.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	ex, err := lan.New(lan.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ex.Close() })
	h := &hostile{ctx: t.Context(), id: id.ID(), dev: store.List()[0], ex: ex}
	for _, text := range strings.Fields(os.Getenv(hostileNames)) {
		h.names = append(h.names, netip.MustParseAddrPort(text))
	}
	return h
}

func (h *hostile) chain() pairing.Chain { return pairing.Chain{Key: h.dev.Chain, Day: h.dev.ChainDay} }

func (h *hostile) role() pairing.Role {
	if h.dev.Joiner {
		return pairing.Joiner
	}
	return pairing.Offerer
}

// presence names the i-th 20 addresses.
func (h *hostile) presence(i int, name string) signaling.Presence {
	p := signaling.Presence{Name: name, Version: "1"}
	for k := range min(len(h.names), 20) {
		addr := h.names[(20*i+k)%len(h.names)]
		p.Candidates = append(p.Candidates, signaling.Candidate{Kind: signaling.Host, Addr: addr, Priority: uint32(1000 - k)})
	}
	return p
}

// hostilePatience is how long a run waits to be known before it goes on anyway.
const hostilePatience = time.Second

// open starts a run of the device and waits until the honest one knows it.
func (h *hostile) open(t *testing.T, first signaling.Presence) *signaling.Channel {
	t.Helper()
	known := make(chan struct{}, 1)
	var boot signaling.BootID
	_, _ = rand.Read(boot[:])
	ch, err := signaling.Open(h.ctx, signaling.Config{
		Exchange: h.ex, Self: h.id, Joiner: h.dev.Joiner, Chain: h.chain(), BootID: boot,
		Events: func(ev signaling.Event) {
			if ev.Kind == signaling.PresenceEvent {
				select {
				case known <- struct{}{}:
				default:
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ch.Announce(first)
	select {
	case <-known:
	case <-time.After(hostilePatience):
	}
	return ch
}

// announce sends presences until the end, one after each wait.
func (h *hostile) announce(t *testing.T, wait time.Duration, next func(i int) signaling.Presence) {
	t.Helper()
	ch := h.open(t, next(0))
	fmt.Println("hostile: known")
	tick := time.NewTicker(max(wait, 100*time.Microsecond))
	defer tick.Stop()
	for i := 1; ; i++ {
		ch.Announce(next(i))
		if i == 1000 {
			fmt.Println("hostile: 1000 presences")
		}
		<-tick.C
	}
}

// restart is a new run again and again, with another list each time.
func (h *hostile) restart(t *testing.T) {
	t.Helper()
	for i := 0; ; i++ {
		ch := h.open(t, h.presence(i, "evil"))
		if i == 0 {
			fmt.Println("hostile: known")
		}
		if i == 20 {
			fmt.Println("hostile: 20 runs")
		}
		if err := ch.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// probe sends sealed pings from many ports, all new and valid.
func (h *hostile) probe(t *testing.T) {
	t.Helper()
	to := netip.MustParseAddrPort(os.Getenv(hostileTarget))
	day, err := h.chain().At(max(wire.Day(time.Now()), h.dev.ChainDay))
	if err != nil {
		t.Fatal(err)
	}
	key := day.ProbeKey(h.role())
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		t.Fatal(err)
	}
	head := append([]byte{0xeb, 0x6b, 0x70, 0x01}, wire.Expand(key[:], "probe tag")[:8]...)
	ad := append([]byte(wire.Label("probe")), head...)
	var socks []*net.UDPConn
	for range 64 {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			t.Fatal(err)
		}
		socks = append(socks, c)
	}
	fmt.Println("hostile: known")
	plain := make([]byte, 128-len(head)-chacha20poly1305.NonceSizeX-chacha20poly1305.Overhead)
	plain[0], plain[1] = 1, 1 // a ping on the selected path
	for i := uint64(1); ; i++ {
		bytesof.BigEndian.PutUint64(plain[2:], 99)
		bytesof.BigEndian.PutUint64(plain[10:], i)
		_, _ = rand.Read(plain[18:30])
		out := append([]byte(nil), head...)
		nonce := make([]byte, chacha20poly1305.NonceSizeX)
		_, _ = rand.Read(nonce)
		out = append(out, nonce...)
		_, _ = socks[i%64].Write(aead.Seal(out, nonce, plain, ad)) // what is refused is lost
		if i == 10_000 {
			fmt.Println("hostile: 10000 probes")
		}
	}
}
