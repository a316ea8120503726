package kith_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/kithproject/kith/internal/nettest"
)

// TestNetworkMostLikely has kith ping fail in two homes with a hub, and reads what it says
// is most likely in the way: what is, and nothing where the other device is switched off.
// All rows are in make doctor-matrix.
func TestNetworkMostLikely(t *testing.T) {
	const says = "most likely: "
	for _, row := range []struct {
		name  string
		often bool        // part of the ordinary tests
		nat   nettest.NAT // of the desk's home
		hub   string      // its name; "": it has an address alone
		brk   func(ctx context.Context, d *doctorLab)
		want  string // what the message has; "": it names nothing
	}{
		{"UDP blocked, no relays", true, nettest.NATEasy, "", func(ctx context.Context, d *doctorLab) {
			d.desk.run(ctx, "config", "relay", "never")
			d.home.LetOut("meta l4proto != udp")
			d.desk.again(ctx)
		}, says + "UDP does not get through"},
		{"DNS dead", false, nettest.NATEasy, "hub.test", func(ctx context.Context, d *doctorLab) {
			d.desk.host.Resolver(netip.MustParseAddr(nobody))
			d.strangers(ctx)
		}, says + "No DNS server answers"},
		{"hub silent", false, nettest.NATEasy, "", func(ctx context.Context, d *doctorLab) {
			d.hub.swallow()
			d.strangers(ctx)
		}, says + "The hub "},
		{"laptop off", false, nettest.NATEasy, "", func(_ context.Context, d *doctorLab) {
			d.laptop.up.Stop()
		}, ""},
		{"laptop off, hard NAT", true, nettest.NATHard, "", func(_ context.Context, d *doctorLab) {
			d.laptop.up.Kill()
		}, ""},
	} {
		if !row.often && !wholeMatrix() {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), doctorBuild)
			defer cancel()
			d := &doctorLab{t: t, lab: nettest.New(t)}
			d.withHub(ctx)
			if row.hub != "" {
				d.hub.name(ctx, row.hub)
				d.names[row.hub] = d.hub.host.Addrs()[0]
			}
			d.home = d.house("left", row.nat)
			d.desk = d.newIn(d.home, "desk")
			d.useHub(ctx, d.desk)
			d.afar(ctx, nettest.NATEasy)
			row.brk(ctx, d)
			status, out := d.desk.try(ctx, "", "ping", "-c", "1", "laptop")
			t.Log(out)
			if status == 0 {
				t.Error("the two are connected")
			}
			if row.want == "" && strings.Contains(out, says) || !strings.Contains(out, row.want) {
				t.Errorf("want %q", row.want)
			}
		})
	}
}

// name has the hub be known by a name.
func (h *hubServer) name(ctx context.Context, name string) {
	h.stop()
	for i, arg := range h.args {
		if arg == "--host" {
			h.args[i+1] = name
		}
	}
	h.run(ctx)
	h.text = strings.TrimSpace(h.station.run(ctx, "hub", "address"))
}

// strangers starts both devices anew at ports that the other one does not remember, so that
// they need a medium to find each other.
func (d *doctorLab) strangers(ctx context.Context) {
	for i, s := range []*station{d.desk, d.laptop} {
		s.up.Kill()
		s.up.Wait(ctx)
		s.run(ctx, "config", "port", fmt.Sprint(41001+i))
		s.daemon(ctx)
	}
}
