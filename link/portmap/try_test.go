package portmap

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestTry asks gateways by each protocol alone.
func TestTry(t *testing.T) {
	udp := func(g *fakeGateway) func(t *testing.T) *Mapper {
		return func(t *testing.T) *Mapper {
			g.external, g.boot = public, time.Now()
			return onLoopback(g.serve(t), netip.AddrPort{})
		}
	}
	igd := func(change func(*fakeIGD)) func(t *testing.T) *Mapper {
		return func(t *testing.T) *Mapper {
			return onLoopback(netip.MustParseAddrPort("127.0.0.1:9"), newFakeIGD(t, change).ssdp)
		}
	}
	for name, test := range map[string]struct {
		mapper func(t *testing.T) *Mapper
		by     map[string]error
	}{
		"pcp":           {udp(&fakeGateway{pcp: true}), map[string]error{"pcp": nil, "nat-pmp": ErrAbsent, "upnp": ErrAbsent}},
		"nat-pmp":       {udp(&fakeGateway{pmp: true, pmpReject: true}), map[string]error{"pcp": ErrAbsent, "nat-pmp": nil}},
		"both":          {udp(&fakeGateway{pcp: true, pmp: true}), map[string]error{"pcp": nil, "nat-pmp": nil}},
		"pcp refuses":   {udp(&fakeGateway{pcp: true, pcpError: 2, pcpErrorLife: 60}), map[string]error{"pcp": ErrRefused}},
		"pmp refuses":   {udp(&fakeGateway{pmp: true, pmpError: 2}), map[string]error{"nat-pmp": ErrRefused}},
		"mute":          {udp(&fakeGateway{pcp: true, pmp: true, mute: true}), map[string]error{"pcp": ErrAbsent, "nat-pmp": ErrAbsent}},
		"another's":     {udp(&fakeGateway{pcp: true, badNonce: true}), map[string]error{"pcp": ErrRefused}},
		"upnp":          {igd(func(*fakeIGD) {}), map[string]error{"upnp": nil, "pcp": ErrAbsent}},
		"no leases":     {igd(func(f *fakeIGD) { f.permanent = true }), map[string]error{"upnp": nil}},
		"port is taken": {igd(func(f *fakeIGD) { f.table["41641"] = tableEntry{"127.0.0.9", "1", "x", "0"} }), map[string]error{"upnp": nil}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := test.mapper(t)
			for by, want := range test.by {
				var got []Mapping
				err := m.Try(t.Context(), by, ourPort, func(x Mapping) { got = append(got, x) })
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", by, err, want)
				}
				if want != nil {
					if len(got) > 0 {
						t.Errorf("%s: mapped %v all the same", by, got)
					}
					continue
				}
				if len(got) != 1 || got[0].Protocol != by || got[0].External.Addr() != public || got[0].Internal != ourPort || got[0].DoubleNAT {
					t.Errorf("%s: %+v", by, got)
				}
			}
		})
	}
}

// TestTryRemoves: what was tried is not left behind.
func TestTryRemoves(t *testing.T) {
	g := &fakeGateway{pcp: true, pmp: true, external: netip.MustParseAddr("192.168.0.2"), boot: time.Now()}
	f := newFakeIGD(t, func(*fakeIGD) {})
	m := onLoopback(g.serve(t), f.ssdp)
	for _, by := range Protocols() {
		err := m.Try(t.Context(), by, ourPort, func(x Mapping) {
			if port, _ := g.state(); port == 0 && len(f.entries()) == 0 {
				t.Errorf("%s: there is no mapping", by)
			}
			if x.DoubleNAT != (by != "upnp") {
				t.Errorf("%s: double NAT %v at %s", by, x.DoubleNAT, x.External)
			}
		})
		if err != nil {
			t.Fatalf("%s: %v", by, err)
		}
		if port, _ := g.state(); port != 0 || len(f.entries()) != 0 {
			t.Errorf("%s: port %d and %v are left behind", by, port, f.entries())
		}
	}
	if !slices.Equal(Protocols(), []string{"pcp", "nat-pmp", "upnp"}) {
		t.Errorf("protocols %v", Protocols())
	}
}

func TestTryEnds(t *testing.T) {
	m := onLoopback((&fakeGateway{mute: true}).serve(t), netip.AddrPort{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Try(ctx, "pcp", ourPort, func(Mapping) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for _, by := range []string{"", "smoke"} {
		if err := m.Try(t.Context(), by, ourPort, func(Mapping) {}); !errors.Is(err, ErrConfig) {
			t.Errorf("%q: %v", by, err)
		}
	}
	if err := m.Try(t.Context(), "pcp", 0, func(Mapping) {}); !errors.Is(err, ErrConfig) {
		t.Errorf("port 0: %v", err)
	}
	none := New(Config{Gateway: func() (gw, self netip.Addr, ok bool) { return }})
	if err := none.Try(t.Context(), "upnp", ourPort, func(Mapping) {}); !errors.Is(err, ErrAbsent) {
		t.Errorf("no gateway: %v", err)
	}
}
