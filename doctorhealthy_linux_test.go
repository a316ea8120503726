package kith_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/internal/wan"
)

// asUser has the station begin anew as a user without rights.
func (s *station) asUser(ctx context.Context) {
	s.t.Helper()
	const nobody = 65534
	dir, err := os.MkdirTemp("", "kn")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	raw, err := os.ReadFile(s.kith)
	s.home = filepath.Join(dir, s.host.Name)
	script := fmt.Sprintf("#!/bin/sh\nexec setpriv --reuid %d --regid %d --clear-groups %s/kith \"$@\"\n", nobody, nobody, dir)
	for _, err := range []error{
		err, os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "kith"), raw, 0o755), os.WriteFile(filepath.Join(dir, "run"), []byte(script), 0o755),
		os.Mkdir(s.home, 0o700), os.Chown(s.home, nobody, nobody),
	} {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.kith = filepath.Join(dir, "run")
	s.run(ctx, "config", "name", s.host.Name)
	s.run(ctx, "config", "rendezvous", "dht", "off")
}

// hubAt has the hub be at another one of its addresses.
func (d *doctorLab) hubAt(ctx context.Context, addr string) {
	d.t.Helper()
	d.hub.stop()
	d.hub.args = []string{"hub", "--dht", "off", "--listen", ":443", "--host", addr}
	d.hub.run(ctx)
	d.hub.text = strings.TrimSpace(d.hub.station.run(ctx, "hub", "address"))
}

// healthyNetworks are those where nothing is wrong, though some are unusual.
func healthyNetworks() []doctorCase {
	home := func(nat nettest.NAT) func(ctx context.Context, d *doctorLab) {
		return func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nat)
			d.start(ctx)
		}
	}
	return []doctorCase{
		{name: "a home router with a NAT", quick: true, build: home(nettest.NATEasy)},
		{name: "a home router with a NAT, without root", user: true, needs: "setpriv", build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.desk.asUser(ctx)
			d.useHub(ctx, d.desk)
			d.start(ctx)
		}},
		{name: "a home router with UPnP", needs: "miniupnpd", build: home(nettest.NATUPnP)},
		{name: "a router that changes ports", build: home(nettest.NATEIM)},
		{name: "a router that lets everybody in", build: home(nettest.NATFullCone)},
		{name: "a host with public addresses", build: func(ctx context.Context, d *doctorLab) {
			d.withHub(ctx)
			at := d.hub.host.Addrs()[0]
			d.hub.host.ServeDNS(at, nettest.Names(d.names))
			h := d.inet.Server("desk")
			h.Resolver(at)
			d.desk = newStation(d.t, h)
			d.useHub(ctx, d.desk)
			d.start(ctx)
		}},
		{name: "IPv6 alone, behind a firewall", build: func(ctx context.Context, d *doctorLab) {
			d.withHub(ctx)
			d.hubAt(ctx, d.hub.host.Addrs()[2].String())
			d.home = d.house("left", nettest.NATv6Firewall)
			d.desk = d.newIn(d.home, "desk")
			d.useHub(ctx, d.desk)
			d.start(ctx)
		}},
		{name: "a carrier's NAT", note: true, want: []string{"nat.carrier/shared"}, build: home(nettest.NATCGN)},
		{name: "two routers, each with a NAT", note: true, want: []string{"nat.double/second"}, build: func(ctx context.Context, d *doctorLab) {
			d.behindTwo(ctx)
			d.start(ctx)
		}},
		{name: "a hub in a VPN for networks of its own", build: func(ctx context.Context, d *doctorLab) {
			d.internet()
			d.hub = newHubServer(ctx, d.t, d.inet, "hub")
			const in = "100.100.0.2"
			d.home = d.house("left", nettest.NATEasy)
			d.desk = d.newIn(d.home, "desk")
			way, err := wan.Join(ctx, wan.End{Namespace: d.desk.host.Namespace(), Interface: "tailscale0", Address: "100.100.0.1/24"},
				wan.End{Namespace: d.hub.host.Namespace(), Interface: "tailscale0", Address: in + "/24"}, wan.Config{})
			if err != nil {
				nettest.Skip(d.t, err.Error())
			}
			d.t.Cleanup(func() { way.Close() })
			d.hubAt(ctx, in)
			d.useHub(ctx, d.desk)
			d.start(ctx)
		}},
		{name: "two devices at home, and networks of containers", build: func(ctx context.Context, d *doctorLab) {
			d.both(ctx, nettest.NATEasy)
			d.desk.host.Decoy("docker0", "172.17.0.1/16")
			d.desk.host.Decoy("virbr0", "192.168.122.1/24")
		}},
		{name: "a LAN without any server or router", quick: true, build: func(ctx context.Context, d *doctorLab) { d.onLAN(ctx) }},
		{name: "the first device on a LAN without a router", build: func(ctx context.Context, d *doctorLab) {
			d.desk = newStation(d.t, d.lab.Host("desk").Attach(d.lab.Bridge("lan"), "10.0.0.1/24"))
			d.desk.host.Resolver()
			d.start(ctx)
		}},
		{name: "a VPN for a network of its own", build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.desk.host.VPN("wg0", "10.8.0.2/24")
			d.desk.host.Route("10.9.0.0/16", "dev", "wg0")
			d.start(ctx)
		}},
		{name: "two networks at once", build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			second := d.house("mobile", nettest.NATEasy)
			d.desk.host.Attach(second.LAN, second.Elsewhere().String()+"/24").Route("default", "via", second.Gateway().String(), "metric", "600")
			d.start(ctx)
		}},
		{name: "no server but a broker and one of time", needs: "mosquitto", build: func(ctx context.Context, d *doctorLab) {
			d.internet()
			d.timeServer()
			d.home = d.house("left", nettest.NATEasy)
			d.desk = d.newIn(d.home, "desk")
			d.broker(ctx, func(netip.Addr) string { return brokerConf(d.t) })
			d.desk.run(ctx, "config", "mqtt", "mqtt://broker.test")
			d.start(ctx)
		}},
		{name: "no server but a distributed hash table", build: func(ctx context.Context, d *doctorLab) {
			d.internet()
			d.tableOnly(ctx)
		}},
		{name: "no internet, and nodes of a table beyond the router that are known from before", build: func(ctx context.Context, d *doctorLab) {
			d.internet()
			d.inet.Router.IP("route", "replace", "unreachable", "default", "metric", "0")
			d.tableOnly(ctx)
			d.calm()
			d.set(ctx, "dht", "bootstrap", "gone.test:6881")
		}},
		{name: "no relays wanted", build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.desk.run(ctx, "config", "relay", "never")
			d.afar(ctx, nettest.NATEasy)
		}},
		{name: "relays alone wanted", build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.desk.run(ctx, "config", "relay", "always")
			d.afar(ctx, nettest.NATEasy)
		}},
		{name: "two homes, asked about the other device", device: "laptop", quick: true, build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.afar(ctx, nettest.NATEasy)
		}},
		{name: "members of a room", build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.laptop = d.newIn(d.house("right", nettest.NATEasy), "laptop")
			d.useHub(ctx, d.laptop)
			d.start(ctx)
			secret := fileWith(d.t, "correct horse\n")
			var made struct{ Words string }
			if err := json.Unmarshal([]byte(d.desk.run(ctx, "room", "create", "friends", "--password-file", secret, "--json")), &made); err != nil {
				d.t.Fatal(err)
			}
			d.laptop.run(ctx, "room", "join", "--code-file", fileWith(d.t, made.Words), "--password-file", secret)
			d.desk.untilRoom(ctx, d.t, "both there", everybody(2))
		}},
		{name: "a firewall that lets in answers and what the LAN asks", build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.desk.host.Nft("table inet f {\n chain in {\n type filter hook input priority 0; policy drop\n ct state established,related accept\n iif lo accept\n" +
				"meta l4proto { icmp, icmpv6 } accept\n udp dport { 5353, 27491 } accept\n }\n}\n")
			d.start(ctx)
		}},
	}
}

// tableOnly is a home whose device meets others at a distributed hash table alone.
func (d *doctorLab) tableOnly(ctx context.Context) {
	tb := newTable(d.t, d.inet)
	d.home = d.house("left", nettest.NATEasy)
	d.desk = d.newIn(d.home, "desk")
	d.desk.run(ctx, "config", "dht", "bootstrap", tb.first())
	d.desk.run(ctx, "config", "rendezvous", "dht", "on")
	d.start(ctx)
}
