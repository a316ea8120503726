package kith_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/nettest"
)

// diagnose runs kith doctor, of some groups, and returns its report.
func (s *station) diagnose(ctx context.Context, only string) doctor.Report {
	s.t.Helper()
	out, err := s.host.Command(ctx, s.kith, s.args("doctor", "--json", "--only", only)...).Output()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		s.t.Fatal(err)
	}
	var r doctor.Report
	if err := json.Unmarshal(out, &r); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return r
}

// A natRow is a network, and what the doctor says of it.
type natRow struct {
	name string
	nat  nettest.NAT
	// change breaks something, before the doctor looks.
	change func(ctx context.Context, s *nettest.Site, at *station, hub *hubServer)
	// host makes the device, if it is not just one of the site's LAN.
	host func(lab *nettest.Lab, s *nettest.Site) *nettest.Host
	// cause is the first cause that is no note; "" where nobody is to be accused.
	cause string
	// note is the first cause where that is a note.
	note string
	// holds are answers that stand in the report: code/finding, or the code of a yes, and
	// perhaps ": " and a line of its evidence.
	holds []string
	// often has it be part of the ordinary tests.
	often bool
	// whole has the doctor also wait through the silence of nat.lifetime.
	whole bool
}

// withoutSilence are the checks but for the one that waits for ten seconds.
const withoutSilence = "address,nat.tcp,nat.web,nat.udp,nat.mapping,nat.preserve,nat.filtering,nat.hairpin,nat.upnp,nat.pcp,nat.natpmp,nat.carrier,nat.double,relays"

// dialBackClosed is said where others cannot connect, which is as usual.
const dialBackClosed = "address.dialback: only answers come in from outside, as usual behind a router or firewall"

func natRows() []natRow {
	return []natRow{
		{name: "easy", often: true, nat: nettest.NATEasy, holds: []string{"address.discovery", dialBackClosed, "nat.mapping", "nat.lifetime", "nat.double", "nat.carrier", "nat.hairpin", "relays.echo"}},
		{name: "public", nat: nettest.NATNone, holds: []string{"address.dialback", "nat.mapping", "nat.lifetime", "relays.echo"}},
		{name: "eim", nat: nettest.NATEIM, holds: []string{"nat.mapping", "nat.preserve"}},
		{name: "fullcone", nat: nettest.NATFullCone, holds: []string{"nat.filtering"}},
		{name: "upnp", often: true, nat: nettest.NATUPnP, holds: []string{"address.dialback", "nat.upnp", "nat.pcp", "nat.natpmp", "nat.double"}},
		{name: "v6", often: true, nat: nettest.NATv6Firewall, change: listenV6, holds: []string{dialBackClosed, "nat.lifetime", "relays.echo"}},
		{name: "no hub", often: true, nat: nettest.NATEasy, change: noHub},
		{name: "hard", often: true, nat: nettest.NATHard, cause: "nat.mapping/hard"},
		{name: "carrier", nat: nettest.NATCGN, note: "nat.carrier/shared"},
		{name: "hard carrier", nat: nettest.NATCGNHard, cause: "nat.carrier/hard"},
		{name: "double", often: true, nat: nettest.NATEasy, host: behindAnother, note: "nat.double/second"},
		{name: "double upnp", nat: nettest.NATUPnP, host: behindAnother, note: "nat.double/second"},
		{name: "udp blocked", nat: nettest.NATEasy, cause: "nat.udp/blocked", change: func(_ context.Context, s *nettest.Site, _ *station, _ *hubServer) { s.DropUDP(true) }},
		{name: "only 443", nat: nettest.NATUDPBlocked, cause: "nat.web/only443"},
		{name: "lifetime", nat: nettest.NATEasy, cause: "nat.lifetime/short", change: func(ctx context.Context, s *nettest.Site, _ *station, _ *hubServer) {
			for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
				s.Router.Output(ctx, "sysctl", "-w", "net.netfilter."+name+"=10")
			}
		}},
		{name: "lying upnp", often: true, nat: nettest.NATUPnP, cause: "nat.upnp/lies", change: func(_ context.Context, s *nettest.Site, _ *station, _ *hubServer) {
			s.Router.Nft("table inet lie {\n chain forward { type filter hook forward priority -5; policy accept\n iifname \"eth0\" ct state new drop\n }\n}\n")
		}},
		{name: "upnp and own firewall", often: true, nat: nettest.NATUPnP, holds: []string{dialBackClosed, "nat.upnp", "nat.pcp"}, change: func(_ context.Context, _ *nettest.Site, at *station, _ *hubServer) {
			at.host.Nft(ownFirewall)
		}},
		{name: "public with firewall", nat: nettest.NATNone, holds: []string{dialBackClosed, "nat.mapping", "nat.lifetime", "relays.echo"}, change: func(_ context.Context, _ *nettest.Site, at *station, _ *hubServer) {
			at.host.Nft(ownFirewall)
		}},
		{name: "loss", nat: nettest.NATEasy, whole: true, change: func(_ context.Context, s *nettest.Site, _ *station, _ *hubServer) {
			s.Router.Nft("table inet loss {\n chain pre { type filter hook prerouting priority -390; policy accept\n meta l4proto udp numgen random mod 100 < 30 drop\n }\n}\n")
		}},
		{name: "hub down", nat: nettest.NATEasy, cause: "relays.tcp/hub", change: func(_ context.Context, _ *nettest.Site, _ *station, h *hubServer) { h.stop() }},
		{name: "hub gone", nat: nettest.NATEasy, cause: "relays.tcp/hub-silent", change: func(_ context.Context, _ *nettest.Site, _ *station, h *hubServer) { h.swallow() }},
		{name: "hub pin", nat: nettest.NATEasy, cause: "relays.tls/pin", change: otherHub},
	}
}

// ownFirewall is a firewall of the device itself, as many systems have: answers alone.
const ownFirewall = "table inet own {\n chain in { type filter hook input priority 0; policy drop\n ct state established,related accept\n iif lo accept\n meta l4proto icmp accept\n }\n}\n"

// behindAnother puts a device behind a router of its own in the site's LAN.
func behindAnother(lab *nettest.Lab, s *nettest.Site) *nettest.Host {
	inner, b := s.Host("inner").Router(), lab.Bridge("inner")
	inner.Attach(b, "10.9.0.1/24")
	inner.Nft("table ip nat {\n chain post { type nat hook postrouting priority 100; policy accept\n oifname \"eth0\" masquerade\n }\n}\n")
	return lab.Host("desk").Attach(b, "10.9.0.2/24").Route("default", "via", "10.9.0.1")
}

// listenV6 has the hub listen at the server's IPv6 address.
func listenV6(ctx context.Context, _ *nettest.Site, at *station, h *hubServer) {
	h.stop()
	h.args = []string{"hub", "--dht", "off", "--listen", "[" + h.host.Addrs()[2].String() + "]:443", "--host", h.host.Addrs()[2].String()}
	h.run(ctx)
	h.text = strings.TrimSpace(h.station.run(ctx, "hub", "address"))
	at.run(ctx, "config", "hub", "--remove", "all")
	at.run(ctx, "config", "hub", h.text)
}

func noHub(ctx context.Context, _ *nettest.Site, at *station, _ *hubServer) {
	at.run(ctx, "config", "hub", "--remove", "all")
}

// otherHub has a hub with another key at the same address.
func otherHub(ctx context.Context, _ *nettest.Site, _ *station, h *hubServer) {
	h.stop()
	h.home += "-other"
	h.run(ctx)
}

// TestNetworkDiagnoseNAT breaks networks, and compares what the doctor names first: all
// of them in make doctor-matrix.
func TestNetworkDiagnoseNAT(t *testing.T) {
	for _, row := range natRows() {
		if !row.often && !wholeMatrix() {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			lab := nettest.New(t)
			inet := lab.Internet()
			hub := newHubServer(ctx, t, inet, "hub")
			site := inet.Site("home", row.nat)
			if row.host == nil {
				row.host = func(_ *nettest.Lab, s *nettest.Site) *nettest.Host { return s.Host("desk") }
			}
			at := newStation(t, row.host(lab, site))
			at.run(ctx, "config", "hub", hub.text)
			if row.change != nil {
				row.change(ctx, site, at, hub)
			}
			only := withoutSilence
			if row.whole || slices.Contains(row.holds, "nat.lifetime") || row.cause == "nat.lifetime/short" {
				only = "address,nat,relays"
			}
			r := at.diagnose(ctx, only)
			row.compare(t, r)
			t.Logf("took %v: %s", r.Took.Round(time.Millisecond), r.Verdict)
		})
	}
}

// compare checks a report against the row.
func (row natRow) compare(t *testing.T, r doctor.Report) {
	t.Helper()
	var first, note string
	for _, c := range r.Causes {
		switch {
		case c.Code.Group() == doctor.DeviceGroup:
		case c.Severity > doctor.Note && first == "":
			first = c.Name()
		case c.Severity == doctor.Note && note == "":
			note = c.Name()
		}
	}
	if first != row.cause || row.note != "" && note != row.note {
		t.Errorf("the first cause is %q, the first note %q, want %q %q", first, note, row.cause, row.note)
	}
	for _, want := range row.holds {
		name, line, _ := strings.Cut(want, ": ")
		if !slices.ContainsFunc(r.Results, func(x doctor.Result) bool {
			return x.Name() == name && (x.State == doctor.Yes || x.State == doctor.No) && (line == "" || slices.Contains(x.Evidence, line))
		}) {
			t.Errorf("the report does not say %s", want)
		}
	}
	if t.Failed() || testing.Verbose() {
		for _, x := range r.Results {
			t.Logf("%-8s %-26s %-20s %6d ms %s %q", x.State, x.Name(), x.Subject, x.Took.Milliseconds(), x.Because, x.Evidence)
		}
	}
}

// TestNetworkDiagnoseOwnQuota: what the daemon itself has of a TURN server that gives each
// user one address is no fault.
func TestNetworkDiagnoseOwnQuota(t *testing.T) {
	if _, err := exec.LookPath("turnserver"); err != nil {
		nettest.Skip(t, "the command turnserver is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	d := &doctorLab{t: t, lab: nettest.New(t)}
	turn("right", false)(ctx, d)
	d.desk.up.Stop()
	d.desk.run(ctx, "config", "relay", "always") // so that it asks for an address
	d.desk.daemon(ctx)
	d.afar(ctx, nettest.NATEasy)
	r := d.desk.diagnose(ctx, "relays.allocate")
	i := slices.IndexFunc(r.Results, func(x doctor.Result) bool {
		return x.Code == "relays.allocate" && strings.HasPrefix(x.Subject, "turn:")
	})
	if i < 0 || r.Results[i].State != doctor.Yes || !strings.Contains(strings.Join(r.Results[i].Evidence, "\n"), "kith has an address there already") {
		t.Errorf("%+v", r.Results)
	}
}

// TestNetworkDiagnoseInspected: what answers in place of the hub with a certificate of its
// own is named, once, and nobody is told to believe it.
func TestNetworkDiagnoseInspected(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), doctorBuild)
	defer cancel()
	d := &doctorLab{t: t, lab: nettest.New(t)}
	d.atHome(ctx, nettest.NATEasy)
	d.hub.stop()
	cert, key := certificateOf(t, "firewall")
	newStation(t, d.hub.host).start(append(d.hub.args, "--tls-cert", cert, "--tls-key", key)...).Await(ctx, "kith-hub:")
	d.start(ctx)
	e := d.examine(ctx, "")
	if e.first() != "relays.tls/inspected" || !strings.Contains(e.Causes[0].Fix, "use another network") {
		t.Errorf("%s: %s", e.first(), e.Verdict)
	}
	i := slices.IndexFunc(e.Results, func(r doctor.Result) bool { return r.Name() == "meeting.broker/inspected" })
	if i < 0 || e.Results[i].Because != "relays.tls/inspected" {
		t.Errorf("the hub's broker: %+v", e.Results)
	}
	for _, c := range e.Causes[1:] {
		if c.Severity > doctor.Note {
			t.Errorf("also accused: %s", c.Name())
		}
	}
}

// certificateOf makes a certificate that is signed by itself.
func certificateOf(t *testing.T, name string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, of, of, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	in := func(kind string, raw []byte) string {
		return fileWith(t, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw})))
	}
	return in("CERTIFICATE", der), in("PRIVATE KEY", raw)
}
