package kith_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/link/relay"
)

// brokenNetworks are those with one fault each.
func brokenNetworks() []doctorCase {
	// home is a home of a kind, broken before the daemon starts.
	home := func(nat nettest.NAT, brk func(ctx context.Context, d *doctorLab)) func(ctx context.Context, d *doctorLab) {
		return func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nat)
			brk(ctx, d)
			d.start(ctx)
		}
	}
	easy := func(brk func(ctx context.Context, d *doctorLab)) func(ctx context.Context, d *doctorLab) {
		return home(nettest.NATEasy, brk)
	}
	// paired is two connected devices in one home, broken then.
	paired := func(brk func(ctx context.Context, d *doctorLab)) func(ctx context.Context, d *doctorLab) {
		return func(ctx context.Context, d *doctorLab) {
			d.both(ctx, nettest.NATEasy)
			brk(ctx, d)
		}
	}
	// joined is two connected devices in homes of their own, of which desk's is broken then.
	joined := func(brk func(ctx context.Context, d *doctorLab)) func(ctx context.Context, d *doctorLab) {
		return apart(func(ctx context.Context, d *doctorLab, _ *nettest.Site) { brk(ctx, d) })
	}
	nothing := func(context.Context, *doctorLab) {}
	return append([]doctorCase{
		// The device itself.
		{name: "Wi-Fi switched off", want: []string{"device.interfaces/none"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.desk.host.IP("link", "set", "eth0", "down")
		}), mend: func(_ context.Context, d *doctorLab) { d.reconnect() }},
		{name: "no cable, and a network of containers", want: []string{"device.interfaces/none"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.desk.host.Decoy("docker0", "172.17.0.1/16")
			d.desk.host.Unplug(true)
		}), mend: func(_ context.Context, d *doctorLab) { d.desk.host.Unplug(false) }},
		{name: "no address", want: []string{"device.addresses/linklocal"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.desk.host.IP("addr", "flush", "dev", "eth0", "scope", "global")
		}), mend: func(_ context.Context, d *doctorLab) { d.reconnect() }},
		{name: "no default route", want: []string{"device.routes/none"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.desk.host.IP("route", "del", "default")
		}), mend: func(_ context.Context, d *doctorLab) { d.desk.host.Route("default", "via", d.home.Gateway().String()) }},
		{name: "dead default route", quick: true, want: []string{"device.gateway/silent"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.desk.host.IP("route", "replace", "default", "via", d.home.Elsewhere().String())
		}), mend: func(_ context.Context, d *doctorLab) { d.reroute() }},
		{name: "no internet behind the router", want: []string{"device.outside/nothing"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.home.Cut(true)
		}), mend: func(_ context.Context, d *doctorLab) { d.home.Cut(false) }},
		{name: "no internet behind the router of both devices", note: true, want: []string{"device.outside/near"}, build: paired(func(_ context.Context, d *doctorLab) {
			d.home.Cut(true)
		})},
		{name: "captive portal", quick: true, want: []string{"device.portal/login"}, build: func(ctx context.Context, d *doctorLab) {
			d.withHub(ctx)
			d.home = d.inet.Site("left", nettest.NATEasy)
			d.desk = d.newIn(d.home, "desk")
			d.useHub(ctx, d.desk)
			d.afar(ctx, nettest.NATEasy)
			d.home.Portal(nettest.Names(d.names))
		}, mend: func(_ context.Context, d *doctorLab) { d.login() }},
		{name: "IPv6 half broken", want: []string{"device.ipv6/broken"}, build: easy(func(ctx context.Context, d *doctorLab) {
			d.timeServer() // one server alone says nothing of the network
			six := newStation(d.t, d.inet.Server("six"))
			at := six.host.Addrs()[2]
			six.start("hub", "--dht", "off", "--listen", ":443", "--host", at.String()).Await(ctx, "kith-hub:")
			d.home.DeadIPv6()
			for _, a := range []netip.Addr{at, d.inet.Server("seven").Addrs()[2]} { // of one alone it might be the fault
				d.desk.run(ctx, "config", "stun", netip.AddrPortFrom(a, 443).String())
			}
		}), mend: func(ctx context.Context, d *doctorLab) {
			d.desk.host.Output(ctx, "sysctl", "-w", "net.ipv6.conf.eth0.disable_ipv6=1")
		}},
		{name: "an MTU black hole at 1400", want: []string{"device.pmtu/hole"}, left: []string{"peers.path/mtu"}, build: joined(func(_ context.Context, d *doctorLab) { d.home.Hole(1400) }), mend: func(_ context.Context, d *doctorLab) {
			d.home.Router.IP("link", "set", "eth0", "mtu", "1400")
		}},
		{name: "a VPN that captures the default route", want: []string{"device.vpn/captures"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.desk.host.VPN("tun0", "10.8.0.2/24")
			d.desk.host.Route("0.0.0.0/1", "dev", "tun0").Route("128.0.0.0/1", "dev", "tun0")
		}), mend: func(_ context.Context, d *doctorLab) { d.desk.host.IP("link", "set", "tun0", "down") }},
		{name: "ten decoy interfaces", note: true, want: []string{"device.decoys/many"}, build: easy(func(_ context.Context, d *doctorLab) {
			for i := range 10 {
				d.desk.host.Decoy(fmt.Sprintf("decoy%d", i), fmt.Sprintf("10.77.%d.1/24", i))
			}
		})},
		{name: "a firewall on the device that drops answers", want: []string{"device.firewall/answers"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.desk.host.Nft("table inet f {\n chain in {\n type filter hook input priority 0; policy drop\n iif lo accept\n tcp dport 22 accept\n udp dport { 5353, 27491 } accept\n meta l4proto { icmp, icmpv6 } accept\n }\n}\n")
		}), mend: func(_ context.Context, d *doctorLab) {
			d.desk.host.Nft("insert rule inet f in ct state established,related accept\n")
		}},
		{name: "DNS dead, a broker known by name", needs: "mosquitto", want: []string{"device.dns/silent"}, build: func(ctx context.Context, d *doctorLab) {
			d.internet()
			d.home = d.inet.Site("left", nettest.NATEasy)
			d.desk = d.newIn(d.home, "desk")
			d.desk.host.Resolver(netip.MustParseAddr(nobody))
			d.broker(ctx, func(netip.Addr) string { return brokerConf(d.t) })
			d.home.Router.ServeDNS(d.home.Gateway(), nettest.Names(d.names))
			d.desk.run(ctx, "config", "mqtt", "mqtt://broker.test")
			d.start(ctx)
		}, mend: func(_ context.Context, d *doctorLab) { d.desk.host.Resolver(d.home.Gateway()) }},
		{name: "DNS that has the router's address for every name", want: []string{"device.dns/lies"}, says: "hub\\.test", build: falseDNS(func(d *doctorLab) func(string) netip.Addr {
			return func(string) netip.Addr { return d.home.Gateway() }
		}), mend: otherDNS},
		{name: "DNS that knows no names", want: []string{"device.dns/refuses"}, says: "not even example\\.com", build: falseDNS(func(d *doctorLab) func(string) netip.Addr {
			d.inet.Router.IP("route", "replace", "default", "dev", "lo") // so that it tells of packets that end there: it is the internet
			return nettest.Names(nil)
		}), mend: otherDNS},
		{name: "full disk", want: []string{"device.state/full"}, build: func(ctx context.Context, d *doctorLab) {
			d.withHub(ctx)
			d.home = d.house("left", nettest.NATEasy)
			d.desk = d.newIn(d.home, "desk")
			fill, free := d.lab.Disk(d.desk.home, 64<<20)
			d.undo = free
			d.desk.run(ctx, "config", "name", "desk")
			d.desk.run(ctx, "config", "rendezvous", "dht", "off")
			d.useHub(ctx, d.desk)
			d.afar(ctx, nettest.NATEasy)
			fill()
		}, mend: func(ctx context.Context, d *doctorLab) {
			d.undo()
			d.restart(ctx)
		}},
		{name: "another process on our port", want: []string{"device.ports/tunnel"}, build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.afar(ctx, nettest.NATEasy)
			d.desk.up.Stop()
			d.desk.up = nil
			d.desk.run(ctx, "config", "port", "41641")
			hold(d.t, d.desk.host, 41641) // kith up cannot start
		}, mend: func(ctx context.Context, d *doctorLab) {
			d.desk.run(ctx, "config", "port", "41642")
			d.desk.daemon(ctx)
		}},
		{name: "clock two days ahead", want: []string{"device.clock/wrong"}, build: clockOff(172800), mend: clockRight},
		{name: "clock two days behind", want: []string{"device.clock/wrong"}, build: clockOff(-172800), mend: clockRight},
		{name: "clock an hour behind", want: []string{"device.clock/off"}, build: clockOff(-3600), mend: clockRight},
		{name: "clock two days ahead, of which a time server tells", needs: "mosquitto", want: []string{"device.clock/wrong"}, build: func(ctx context.Context, d *doctorLab) {
			d.internet()
			d.timeServer()
			d.home = d.house("left", nettest.NATEasy)
			d.desk = d.newIn(d.home, "desk")
			d.broker(ctx, func(netip.Addr) string { return brokerConf(d.t) })
			d.desk.run(ctx, "config", "mqtt", "mqtt://broker.test")
			d.skew(172800)
			d.start(ctx)
		}, mend: clockRight},

		// The LAN.
		{name: "multicast dropped", want: []string{"meeting.lan.multicast/dropped"}, build: paired(func(_ context.Context, d *doctorLab) {
			d.home.LAN.DropMulticast()
		}), mend: func(_ context.Context, d *doctorLab) { d.home.LAN.PassMulticast() }},
		{name: "client isolation", want: []string{"meeting.lan.isolation/isolated"}, build: func(ctx context.Context, d *doctorLab) {
			d.atHome(ctx, nettest.NATEasy)
			d.laptop = d.newIn(d.home, "laptop")
			d.useHub(ctx, d.laptop)
			d.home.LAN.Isolate(d.desk.host, d.laptop.host)
			d.pair(ctx)
		}, mend: func(_ context.Context, d *doctorLab) { d.home.LAN.Reunite(d.desk.host, d.laptop.host) }},

		// The router.
		{name: "UDP blocked", quick: true, want: []string{"nat.udp/blocked"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.home.LetOut("meta l4proto != udp")
		}), mend: letOut},
		{name: "UDP blocked, and a DNS server beyond the router", want: []string{"nat.udp/blocked"}, build: easy(func(ctx context.Context, d *doctorLab) {
			otherDNS(ctx, d)
			d.desk.run(ctx, "config", "stun", "hub.test:443")
			d.home.LetOut("meta l4proto != udp")
		}), mend: letOut},
		{name: "only TCP 443", want: []string{"nat.web/only443"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.home.LetOut("tcp dport 443")
		}), mend: letOut},
		{name: "TCP blocked", want: []string{"nat.tcp/blocked"}, build: easy(func(ctx context.Context, d *doctorLab) {
			second := newHubServer(ctx, d.t, d.inet, "hub2")
			d.desk.run(ctx, "config", "hub", second.text)
			d.home.LetOut("meta l4proto != tcp")
		}), mend: letOut},
		{name: "hard NAT", want: []string{"nat.mapping/hard"}, build: home(nettest.NATHard, nothing)},
		{name: "hairpin missing, two networks behind one router", needs: "mosquitto", want: []string{"nat.hairpin/missing"}, build: hairpinMissing, mend: func(_ context.Context, d *doctorLab) {
			d.laptop.host.IP("link", "del", "eth0")
			d.home.Move(d.laptop.host)
			d.laptop.host.Resolver(d.home.Gateway())
		}},
		{name: "mappings forgotten after 10 s", want: []string{"nat.lifetime/short"}, build: easy(func(_ context.Context, d *doctorLab) {
			d.home.Forget(10 * time.Second)
		}), mend: func(_ context.Context, d *doctorLab) { d.home.Forget(time.Minute) }},
		{name: "UPnP lies", want: []string{"nat.upnp/lies"}, build: easy(func(_ context.Context, d *doctorLab) { d.home.LyingUPnP() }), mend: forwardPort(1900)},
		{name: "NAT-PMP lies", want: []string{"nat.natpmp/lies"}, build: easy(func(_ context.Context, d *doctorLab) { d.home.LyingNATPMP() }), mend: forwardPort(5351)},

		// Servers.
		{name: "hub down", quick: true, want: []string{"relays.tcp/hub"}, build: joined(func(_ context.Context, d *doctorLab) { d.hub.stop() }), mend: func(ctx context.Context, d *doctorLab) { d.hub.run(ctx) }},
		{name: "hub silent, and routers that say nothing", want: []string{"relays.tcp/hub-silent"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.home.Router.Mute()
			d.inet.Router.Mute()
			d.hub.swallow()
		}), mend: func(ctx context.Context, d *doctorLab) { d.hub.run(ctx) }},
		{name: "hub whose machine drops UDP", want: []string{"relays.udp/silent", "nat.udp/blocked", "nat.udp/silent"}, also: []string{"relays.echo/silent"}, says: "(?i)(this network.* or .*hub|hub.* or .*this network|machine.* or .*this network)", build: joined(func(_ context.Context, d *doctorLab) {
			d.hub.host.Nft(inbound("meta l4proto udp drop"))
		}), mend: letIn},
		{name: "hub whose machine drops UDP, and a time server", want: []string{"relays.udp/silent"}, also: []string{"relays.echo/silent"}, build: joined(func(_ context.Context, d *doctorLab) {
			d.timeServer()
			d.hub.host.Nft(inbound("meta l4proto udp drop"))
		}), mend: letIn},
		{name: "hub at an IPv4 address, and IPv6 alone", want: []string{"relays.resolve/family"}, build: home(nettest.NATv6Firewall, nothing)},
		{name: "another hub at the address", want: []string{"relays.tls/pin"}, build: easy(func(ctx context.Context, d *doctorLab) {
			d.hub.stop()
			other := newStation(d.t, d.hub.host)
			other.start(d.hub.args...).Await(ctx, "kith-hub:")
			d.server = other
		}), mend: func(ctx context.Context, d *doctorLab) {
			d.set(ctx, "hub", strings.TrimSpace(d.server.run(ctx, "hub", "address")))
		}},
		{name: "TURN quota used up", needs: "turnserver", want: []string{"relays.allocate/quota"}, build: turn("right", true), mend: undone},
		{name: "wrong TURN password", needs: "turnserver", want: []string{"relays.auth/refused"}, build: turn("wrong", false), mend: func(ctx context.Context, d *doctorLab) { d.setTURN(ctx, "right") }},
		{name: "broker down", needs: "mosquitto", want: []string{"meeting.broker/refused"}, build: easy(func(ctx context.Context, d *doctorLab) {
			at, p := d.broker(ctx, func(netip.Addr) string { return brokerConf(d.t) })
			d.desk.run(ctx, "config", "mqtt", "mqtt://"+at.String())
			p.Kill()
			d.undo = func() { d.serveBroker(ctx, brokerConf(d.t)) }
		}), mend: undone},
		{name: "wrong broker password", needs: "mosquitto_passwd", want: []string{"meeting.broker/credentials"}, build: easy(func(ctx context.Context, d *doctorLab) {
			at, _ := d.broker(ctx, func(netip.Addr) string { return brokerWithPassword(d.t, "anna", "right") })
			d.desk.run(ctx, "config", "mqtt", "mqtt://"+at.String(), "--user", "anna", "--password-file", fileWith(d.t, "wrong\n"))
		}), mend: func(ctx context.Context, d *doctorLab) {
			d.set(ctx, "mqtt", "mqtt://"+d.names["broker.test"].String(), "--user", "anna", "--password-file", fileWith(d.t, "right\n"))
		}},
		{name: "expired TLS certificate", needs: "mosquitto", want: []string{"meeting.broker/expired"}, build: easy(func(ctx context.Context, d *doctorLab) {
			var ca, renewed string
			at, p := d.broker(ctx, func(at netip.Addr) (conf string) {
				conf, renewed, ca = brokersWithTLS(d.t, at)
				return conf
			})
			d.desk.run(ctx, "config", "mqtt", "mqtts://"+netip.AddrPortFrom(at, 8883).String(), "--ca", ca)
			d.undo = func() {
				p.Kill()
				d.serveBroker(ctx, renewed)
			}
		}), mend: undone},
		{name: "DHT bootstrap dead", want: []string{"meeting.dht/silent"}, build: easy(func(ctx context.Context, d *doctorLab) {
			d.desk.run(ctx, "config", "dht", "bootstrap", nobody+":6881")
			d.desk.run(ctx, "config", "rendezvous", "dht", "on")
		}), mend: func(ctx context.Context, d *doctorLab) {
			d.hub.stop() // it has been told not to be such a node
			d.hub.args = slices.Concat([]string{"hub"}, d.hub.args[3:])
			d.hub.run(ctx)
			d.set(ctx, "dht", "bootstrap", d.hub.host.Addrs()[0].String()+":443")
		}},
		{name: "Waku node of another cluster", want: []string{"meeting.waku/cluster"}, build: easy(func(ctx context.Context, d *doctorLab) {
			d.hub.stop()
			d.hub.args = append(d.hub.args, "--waku")
			d.hub.run(ctx)
			d.desk.run(ctx, "config", "waku", "/ip4/"+d.hub.host.Addrs()[0].String()+"/tcp/60000", "--cluster", "77", "--shards", "8")
		}), mend: func(ctx context.Context, d *doctorLab) {
			d.set(ctx, "waku", "/ip4/"+d.hub.host.Addrs()[0].String()+"/tcp/60000", "--cluster", d.evidence("cluster ([0-9]+), not"), "--shards", "8")
		}},
	}, otherDevice()...)
}

// hold has another process's socket at a UDP port, until the end of the test.
func hold(t *testing.T, h *nettest.Host, port int) {
	t.Helper()
	var conn *net.UDPConn
	var err error
	h.Do(func() { conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}

// falseDNS has the home's router look names up in some way. The hub is known by its name.
func falseDNS(look func(d *doctorLab) func(name string) netip.Addr) func(ctx context.Context, d *doctorLab) {
	return func(ctx context.Context, d *doctorLab) {
		d.withHub(ctx)
		d.hub.text = strings.TrimSpace(d.hub.station.run(ctx, "hub", "address", "--host", "hub.test"))
		d.home = d.inet.Site("left", nettest.NATEasy)
		d.home.ServeDNS(look(d))
		d.desk = d.newIn(d.home, "desk")
		d.useHub(ctx, d.desk)
		d.start(ctx)
	}
}

// otherDNS gives the desk a DNS server of the internet that knows all.
func otherDNS(_ context.Context, d *doctorLab) {
	h := d.inet.Server("dns")
	d.names["hub.test"] = d.hub.host.Addrs()[0]
	h.ServeDNS(h.Addrs()[0], nettest.Names(d.names))
	d.desk.host.Resolver(h.Addrs()[0])
}

// fileWith is a file with a text.
func fileWith(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// clockOff has the desk's wall clock be wrong by some seconds when it starts again.
func clockOff(seconds int64) func(ctx context.Context, d *doctorLab) {
	return func(ctx context.Context, d *doctorLab) {
		d.atHome(ctx, nettest.NATEasy)
		d.skew(0)
		d.afar(ctx, nettest.NATEasy)
		d.setClock(seconds)
		d.restart(ctx)
	}
}

// clockRight sets the clock, under the running kith.
func clockRight(_ context.Context, d *doctorLab) { d.setClock(0) }

// letOut has the router let out all again.
func letOut(_ context.Context, d *doctorLab) { d.home.Router.Nft("delete table inet letout\n") }

// letIn opens the firewall of the hub's machine.
func letIn(_ context.Context, d *doctorLab) { d.hub.host.Nft("delete table inet fault\n") }

// forwardPort turns a protocol with that port off in the router, and forwards the tunnel's
// port by hand.
func forwardPort(port int) func(ctx context.Context, d *doctorLab) {
	return func(ctx context.Context, d *doctorLab) {
		kith := d.desk.tunnelPort(ctx)
		d.home.Router.Nft(fmt.Sprintf("table inet off {\n chain in {\n type filter hook input priority -5; policy accept\n udp dport %d drop\n }\n}\n"+
			"table ip forwarded {\n chain in {\n type nat hook prerouting priority -110; policy accept\n iifname \"eth0\" udp dport %d dnat to %s\n }\n}\n", port, kith, d.desk.host.Addrs()[0]))
	}
}

// hairpinMissing has two devices in separate networks of one router, which knows no
// hairpinning; no relay is to be had, and they meet at a broker.
func hairpinMissing(ctx context.Context, d *doctorLab) {
	d.internet()
	stun := newHubServer(ctx, d.t, d.inet, "stun")
	d.home = d.house("left", nettest.NATEasy)
	d.desk = d.newIn(d.home, "desk")
	guest := d.home.Guest("laptop")
	guest.Resolver(netip.MustParseAddr("10.65.0.1"))
	d.home.Router.ServeDNS(netip.MustParseAddr("10.65.0.1"), nettest.Names(d.names))
	d.laptop = newStation(d.t, guest)
	d.broker(ctx, func(netip.Addr) string { return brokerConf(d.t) })
	for _, s := range []*station{d.desk, d.laptop} {
		s.run(ctx, "config", "mqtt", "mqtt://broker.test")
		s.run(ctx, "config", "stun", stun.host.Addrs()[0].String()+":443")
		s.run(ctx, "config", "portmap", "off")
	}
	d.start(ctx)
	pairStations(ctx, d.t, d.desk, d.laptop, "words")
}

// turn gives the desk a TURN server beside the hub, with a password, and has another
// device use up its quota.
func turn(password string, quota bool) func(ctx context.Context, d *doctorLab) {
	return func(ctx context.Context, d *doctorLab) {
		d.atHome(ctx, nettest.NATEasy)
		h := d.inet.Server("turn")
		at, dir := h.Addrs()[0].String(), d.t.TempDir()
		p := h.Start("turnserver", "-n", "--listening-ip="+at, "--relay-ip="+at, "--no-cli", "--no-dtls", "--no-tls", "--relay-threads=1", "--lt-cred-mech", "--user=anna:right",
			"--realm=test", "--user-quota=1", "--log-file=stdout", "--simple-log", "--pidfile="+filepath.Join(dir, "pid"), "--userdb="+filepath.Join(dir, "db"))
		p.Await(ctx, "Total General servers")
		url := "turn:" + at + "?transport=tcp"
		if quota {
			other := d.inet.Server("other")
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				d.t.Fatal(err)
			}
			nettest.Distance(d.t, ln, func() (conn net.Conn, err error) {
				other.Do(func() { conn, err = net.Dial("tcp", net.JoinHostPort(at, "3478")) })
				return conn, err
			}, 0)
			r, err := relay.Dial(ctx, relay.Config{URL: "turn:" + ln.Addr().String() + "?transport=tcp", User: "anna", Password: "right"})
			if err != nil {
				d.t.Fatal(err)
			}
			end := sync.OnceFunc(func() { r.Close() })
			d.t.Cleanup(end)
			d.undo = end
		}
		d.turn = url
		d.setTURN(ctx, password)
		d.start(ctx)
	}
}

// setTURN sets the password for the TURN server.
func (d *doctorLab) setTURN(ctx context.Context, password string) {
	d.t.Helper()
	d.set(ctx, "turn", d.turn, "--user", "anna", "--password-file", fileWith(d.t, password+"\n"))
}

// brokerWithPassword is the configuration of a broker that knows one user.
func brokerWithPassword(t *testing.T, user, password string) string {
	t.Helper()
	users := fileWith(t, "")
	if out, err := exec.Command("mosquitto_passwd", "-b", users, user, password).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v: %s", err, out)
	}
	return fileWith(t, "listener 1883 0.0.0.0\nuser root\nallow_anonymous false\npassword_file "+users+"\n")
}

// brokersWithTLS are the configurations of a broker whose certificate has expired, and of
// the same with a new one, and the authority that made both.
func brokersWithTLS(t *testing.T, at netip.Addr) (expired, renewed, ca string) {
	t.Helper()
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := func(days int) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(int64(100 + days)), Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{at.AsSlice()},
			NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(0, 0, days), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
	}
	in := func(kind string, raw []byte) string {
		return fileWith(t, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw})))
	}
	var authority *ecdsa.PrivateKey
	var confs []string
	for i, c := range []*x509.Certificate{root, leaf(-3), leaf(30)} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			authority = key
		}
		made, err := x509.CreateCertificate(rand.Reader, c, root, &key.PublicKey, authority)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			ca = in("CERTIFICATE", made)
			continue
		}
		raw, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		confs = append(confs, fileWith(t, fmt.Sprintf("listener 8883 0.0.0.0\nuser root\nallow_anonymous true\ncertfile %s\nkeyfile %s\n", in("CERTIFICATE", made), in("PRIVATE KEY", raw))))
	}
	return confs[0], confs[1], ca
}
