package lan

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/rendezvous"
)

// A device is an Exchange on a host of a lab.
type device struct {
	*Exchange
	t    testing.TB
	host *nettest.Host
	mon  *netmon.Monitor
}

// monitor watches the interfaces of a host. It is not running.
func monitor(h *nettest.Host) *netmon.Monitor {
	return netmon.New(netmon.Config{
		Poll: 50 * time.Millisecond,
		Source: func() (list []netmon.Interface, err error) {
			h.Do(func() { list, err = netmon.Interfaces() })
			return list, err
		},
	})
}

// open opens an Exchange on a host, with a monitor that runs.
func open(t testing.TB, h *nettest.Host, cfg Config) *device {
	t.Helper()
	mon := monitor(h)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = mon.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	cfg.Monitor = mon
	return openWith(t, h, cfg)
}

func openWith(t testing.TB, h *nettest.Host, cfg Config) *device {
	t.Helper()
	d := &device{t: t, host: h, mon: cfg.Monitor}
	var err error
	h.Do(func() { d.Exchange, err = New(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// join opens a session in the host's namespace.
func (d *device) join(p rendezvous.Point) rendezvous.Session {
	d.t.Helper()
	var s rendezvous.Session
	var err error
	d.host.Do(func() { s, err = d.Join(d.t.Context(), p) })
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// await waits until the device's state is as wanted; the monitor tells when to
// look.
func (d *device) await(what string, ok func() bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-ctx.Done():
			d.t.Fatalf("%s: never %s; %+v; %+v", d.host.Name, what, d.Health(), d.Multicast())
		}
	}
}

func whole1340(fill byte) []byte { return bytes.Repeat([]byte{fill}, rendezvous.FrameSize) }

// passes publishes a frame every 20 ms until it arrives or the time is over, and
// returns the message and how long it took.
func passes(t testing.TB, from, to rendezvous.Session, fill byte, limit time.Duration) (rendezvous.Message, time.Duration, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	start := time.Now()
	wg.Go(func() {
		again := time.NewTicker(20 * time.Millisecond)
		defer again.Stop()
		for {
			if err := from.Publish(ctx, whole1340(fill)); err != nil && !errors.Is(err, rendezvous.ErrUnreachable) && ctx.Err() == nil {
				t.Errorf("publish: %v", err)
			}
			select {
			case <-again.C:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		m, err := to.Receive(ctx)
		if err != nil {
			return m, 0, false
		}
		if m.Frame[0] == fill {
			cancel()
			return m, time.Since(start), true
		}
	}
}

// both sends a frame each way.
func both(t testing.TB, a, b rendezvous.Session, fill byte) {
	t.Helper()
	for i, s := range [][2]rendezvous.Session{{a, b}, {b, a}} {
		if _, _, ok := passes(t, s[0], s[1], fill+byte(i), 20*time.Second); !ok {
			t.Fatalf("a frame did not arrive, direction %d", i)
		}
	}
}

// unicastBlocked drops all that is not multicast, but for what finds neighbours.
const unicastBlocked = `table inet blocked { chain in { type filter hook input priority 0;
	ip daddr != 224.0.0.0/4 drop
	icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
	ip6 daddr != ff00::/8 drop
}; }`

// ipv4Only turns IPv6 off on a host that has no interface yet.
func ipv4Only(t testing.TB, h *nettest.Host) {
	t.Helper()
	h.Output(t.Context(), "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
}

// A packet is the part of a recorded frame that tests look at.
type packet struct {
	to      netip.Addr
	port    uint16
	payload []byte
}

// udpPackets returns the UDP datagrams of a recording.
func udpPackets(frames [][]byte) []packet {
	var out []packet
	for _, f := range frames {
		if len(f) < 14 {
			continue
		}
		p := f[14:]
		var to netip.Addr
		switch binary.BigEndian.Uint16(f[12:]) {
		case 0x0800:
			if len(p) < 20 || p[9] != 17 {
				continue
			}
			to = netip.AddrFrom4([4]byte(p[16:20]))
			p = p[min(len(p), int(p[0]&15)*4):]
		case 0x86dd:
			if len(p) < 40 || p[6] != 17 {
				continue
			}
			to = netip.AddrFrom16([16]byte(p[24:40]))
			p = p[40:]
		default:
			continue
		}
		if len(p) >= 8 {
			out = append(out, packet{to, binary.BigEndian.Uint16(p[2:]), p[8:]})
		}
	}
	return out
}

func median(d []time.Duration) (middle, worst time.Duration) {
	slices.Sort(d)
	return d[len(d)/2], d[len(d)-1]
}
