package kith_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/internal/wan"
)

// apart is two connected devices in homes of their own, broken then.
func apart(brk func(ctx context.Context, d *doctorLab, right *nettest.Site)) func(ctx context.Context, d *doctorLab) {
	return func(ctx context.Context, d *doctorLab) {
		d.atHome(ctx, nettest.NATEasy)
		brk(ctx, d, d.afar(ctx, nettest.NATEasy))
	}
}

// off stops the laptop, orderly, once it knows that it is connected.
func off(ctx context.Context, d *doctorLab, _ *nettest.Site) {
	d.laptop.run(ctx, "ping", "-c", "1", "desk")
	d.laptop.up.Stop()
}

// on starts it again.
func on(ctx context.Context, d *doctorLab) { d.laptop.daemon(ctx) }

// unpaired has the laptop end the pair while the desk is off and does not hear of it.
func unpaired(ctx context.Context, d *doctorLab, _ *nettest.Site) {
	d.desk.up.Stop()
	d.laptop.start("unpair", "desk")
	d.laptop.up.Await(ctx, `"event":"unpaired"`)
	d.desk.daemon(ctx)
}

// pairedAgain pairs the two as a user would.
func pairedAgain(ctx context.Context, d *doctorLab) {
	pairStations(ctx, d.t, d.desk, d.laptop, "words")
}

// lossy has three of ten packets to the laptop's home get lost.
func lossy(_ context.Context, d *doctorLab, right *nettest.Site) {
	right.Router.Nft("table inet loss {\n chain pass {\n type filter hook forward priority -20; policy accept\n iifname \"eth0\" numgen random mod 10 < 3 drop\n }\n}\n")
	d.undo = func() { right.Router.Nft("delete table inet loss\n") }
}

// otherDevice are networks in which something is wrong with the other device, or on the
// way to it.
func otherDevice() []doctorCase {
	faults := []doctorCase{
		{name: "peer off", quick: true, want: []string{"peers.heard/left"}, build: apart(off), mend: on},
		{name: "peer unpaired us", want: []string{"peers.unpaired/unpaired", "peers.known/ended"}, build: apart(unpaired), mend: pairedAgain},
		{name: "30 % loss", want: []string{"peers.loss/lossy"}, build: apart(lossy), mend: undone},
		{name: "peer lost its power", want: []string{"peers.heard/gone"}, build: apart(func(_ context.Context, d *doctorLab, _ *nettest.Site) {
			d.laptop.up.Kill()
		}), mend: on},
		{name: "peer blocked here", want: []string{"peers.known/blocked"}, build: apart(func(ctx context.Context, d *doctorLab, _ *nettest.Site) {
			d.desk.run(ctx, "block", "laptop")
		}), mend: func(ctx context.Context, d *doctorLab) { d.desk.run(ctx, "unblock", "laptop") }},
		{name: "peer's daemon old", want: []string{"peers.version/old"}, build: oldPeer, mend: func(ctx context.Context, d *doctorLab) {
			d.laptop.up.Stop()
			d.laptop.kith = d.desk.kith
			d.laptop.daemon(ctx)
		}},
		{name: "2 s latency", want: []string{"peers.latency/late"}, build: farAway},
		{name: "a firewall at the other side lets nothing in", want: []string{"peers.candidates/out", "peers.candidates/nothing", "peers.remote/network"}, build: func(ctx context.Context, d *doctorLab) {
			d.internet() // of which they have no need
			d.home = d.house("left", nettest.NATEasy)
			d.desk, d.laptop = d.newIn(d.home, "desk"), d.newIn(d.home, "laptop")
			d.pair(ctx)
			d.laptop.breaks(ctx, "drop")
			d.laptop.up.Kill()
			d.laptop.daemon(ctx)
		}, mend: func(_ context.Context, d *doctorLab) { d.laptop.host.Nft("delete table inet fault\n") }},
	}
	// What is wrong with the other device comes before what the NAT makes harder.
	for _, nat := range []struct {
		name string
		home func(ctx context.Context, d *doctorLab)
		also []string
	}{
		{"carrier NAT", func(ctx context.Context, d *doctorLab) { d.atHome(ctx, nettest.NATCGN) }, nil},
		{"hard NAT", func(ctx context.Context, d *doctorLab) { d.atHome(ctx, nettest.NATHard) }, []string{"nat.mapping/hard"}},
		{"double NAT", func(ctx context.Context, d *doctorLab) { d.behindTwo(ctx) }, nil},
	} {
		for _, c := range []struct {
			doctorCase
			brk func(ctx context.Context, d *doctorLab, right *nettest.Site)
		}{{faults[0], off}, {faults[1], unpaired}, {faults[2], lossy}} {
			one := c.doctorCase
			one.name, one.quick, one.also, one.mend = nat.name+", and "+one.name, false, nat.also, nil
			if one.want[0] == "peers.heard/left" {
				one.want = []string{"peers.heard/left", "peers.heard/gone"} // the goodbye may get lost
			}
			one.build = func(ctx context.Context, d *doctorLab) {
				nat.home(ctx, d)
				c.brk(ctx, d, d.afar(ctx, nettest.NATEasy))
			}
			faults = append(faults, one)
		}
	}
	for i := range faults {
		faults[i].device = "laptop"
	}
	return faults
}

// behindTwo makes the desk behind two routers, with a hub.
func (d *doctorLab) behindTwo(ctx context.Context) {
	d.t.Helper()
	d.withHub(ctx)
	d.home = d.house("left", nettest.NATEasy)
	h, _ := d.home.Behind("desk")
	h.Resolver(d.home.Gateway())
	d.desk = newStation(d.t, h)
	d.useHub(ctx, d.desk)
}

// farAway has the two meet on a LAN and reach each other only over a way of 2 s there and
// back.
func farAway(ctx context.Context, d *doctorLab) {
	d.onLAN(ctx)
	both := []*station{d.desk, d.laptop}
	for _, s := range both {
		port := s.tunnelPort(ctx)
		s.run(ctx, "config", "port", fmt.Sprint(port))
		s.host.Nft(inbound(fmt.Sprintf("iifname != \"far0\" udp dport %d drop", port)))
		s.up.Stop()
	}
	way, err := wan.Join(ctx, wan.End{Namespace: d.desk.host.Namespace(), Interface: "far0", Address: "10.9.0.1/24"},
		wan.End{Namespace: d.laptop.host.Namespace(), Interface: "far0", Address: "10.9.0.2/24"}, wan.Config{Delay: time.Second})
	if err != nil {
		nettest.Skip(d.t, err.Error())
	}
	d.t.Cleanup(func() { way.Close() })
	for _, s := range both {
		s.daemon(ctx)
	}
	d.desk.up.Await(ctx, `"event":"connected"`)
}

// beforeDoctor is a commit before devices could be asked.
const beforeDoctor = "358d39e"

// oldBinary builds the command of that commit, if the history is there.
var oldBinary = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // built once, as binary is
	dir, err := os.MkdirTemp("", "kith-bin-")
	if err != nil {
		return "", err
	}
	script := `set -e; mkdir "$0/src"; git archive ` + beforeDoctor + ` | tar -x -C "$0/src"; cd "$0/src"; go build -o "$0/kith" ./cmd/kith; rm -r "$0/src"`
	if out, err := exec.Command("sh", "-c", script, dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return filepath.Join(dir, "kith"), nil
})

// oldPeer has the laptop run kith as it was before.
func oldPeer(ctx context.Context, d *doctorLab) {
	old, err := oldBinary()
	if err != nil {
		d.t.Skip("the commit " + beforeDoctor + " cannot be built, as in a copy without history: " + err.Error())
	}
	d.atHome(ctx, nettest.NATEasy)
	d.laptop = d.newIn(d.house("right", nettest.NATEasy), "laptop")
	d.laptop.kith = old
	d.useHub(ctx, d.laptop)
	d.pair(ctx)
}
