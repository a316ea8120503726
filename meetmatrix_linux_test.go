package kith_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// nobody is an address of the lab's internet that does not answer.
const nobody = "11.250.0.9"

// A service is a medium with its server, as the two devices are told of it.
type service struct {
	name string
	live [][]string // arguments of kith config
	dead [][]string // the same, for a server that nobody is
	far  [][]string // the same, for one that is 50 ms of round trip away; nil for none
}

// media are the names of the services.
var media = []string{"dht", "mqtt", "waku", "hub"}

// every is all services at once.
func every(all []service) (settings [][]string) {
	for _, s := range all {
		settings = append(settings, s.live...)
	}
	return settings
}

// services starts every kind of server on the lab's internet.
func services(ctx context.Context, t *testing.T, m *meetLab) []service {
	t.Helper()
	if _, err := exec.LookPath("mosquitto"); err != nil {
		nettest.Skip(t, "the command mosquitto is not installed")
	}
	tb := newTable(t, m.inet)
	brokerHost := m.inet.Server("broker")
	brokerHost.Start("mosquitto", "-v", "-c", brokerConf(t)).Await(ctx, "running")
	hub := newStation(t, m.inet.Server("hub"))
	at := hub.host.Addrs()
	up := hub.start("hub", "--dht", "off", "--waku", "--listen", at[0].String()+":443", "--host", at[0].String(), "--alt-ip", at[1].String())
	up.Await(ctx, "kith-hub:")
	text := strings.TrimSpace(hub.run(ctx, "hub", "address"))
	gone := strings.TrimSpace(hub.run(ctx, "hub", "address", "--host", nobody))
	// Where there is no hub, another server says how the devices look from outside.
	stun := []string{"stun", at[0].String() + ":443"}
	wakuAt := func(host string) string { return "/ip4/" + host + "/tcp/60000" }
	// away is a host whose TCP port leads to another's, and the way is long.
	away := func(name, to string) string {
		host := m.inet.Server(name)
		_, port, err := net.SplitHostPort(to)
		if err != nil {
			t.Fatal(err)
		}
		var ln net.Listener
		host.Do(func() { ln, err = net.Listen("tcp", net.JoinHostPort(host.Addrs()[0].String(), port)) })
		if err != nil {
			t.Fatal(err)
		}
		nettest.Distance(t, ln, func() (conn net.Conn, err error) {
			host.Do(func() { conn, err = net.Dial("tcp", to) })
			return conn, err
		}, 50*time.Millisecond)
		return host.Addrs()[0].String()
	}
	broker := brokerHost.Addrs()[0].String()
	farBroker, farWaku := away("farbroker", broker+":1883"), away("farwaku", at[0].String()+":60000")
	return []service{
		{media[0], [][]string{{"dht", "bootstrap", tb.first()}, {"rendezvous", "dht", "on"}}, [][]string{{"dht", "bootstrap", nobody + ":6881"}, {"rendezvous", "dht", "on"}}, nil},
		{media[1], [][]string{{"mqtt", "mqtt://" + broker}, stun}, [][]string{{"mqtt", "mqtt://" + nobody}}, [][]string{{"mqtt", "mqtt://" + farBroker}, stun}},
		{media[2], [][]string{{"waku", wakuAt(at[0].String())}, stun}, [][]string{{"waku", wakuAt(nobody)}}, [][]string{{"waku", wakuAt(farWaku)}, stun}},
		{media[3], [][]string{{"hub", text}}, [][]string{{"hub", gone}}, nil},
	}
}

// brokerConf is the file that a broker for everybody is configured with.
func brokerConf(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(file, []byte("listener 1883 0.0.0.0\nallow_anonymous true\nuser root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// fresh makes both devices new, with the settings of a run.
func (m *meetLab) fresh(ctx context.Context, settings [][]string) {
	m.t.Helper()
	for _, s := range m.nodes {
		if err := os.RemoveAll(s.home); err != nil {
			m.t.Fatal(err)
		}
		s.run(ctx, "config", "name", s.host.Name)
		s.run(ctx, "config", "rendezvous", "lan", "off")
		s.run(ctx, "config", "rendezvous", "dht", "off")
		for _, args := range settings {
			s.run(ctx, append([]string{"config"}, args...)...)
		}
	}
}

// A meeting is how one run went.
type meeting struct{ paired, connected, moved time.Duration }

// meet pairs two new devices by words alone, connects them, and connects them again
// after one has moved, both have restarted, and both routers have forgotten everything.
func (m *meetLab) meet(ctx context.Context, settings [][]string) (r meeting) {
	m.t.Helper()
	m.fresh(ctx, settings)
	r.paired = m.pair(ctx)
	r.connected = m.connect(ctx)
	m.stop()
	m.scatter(m.spare)
	r.moved = m.connect(ctx)
	m.stop()
	m.sites[1].Move(m.nodes[1].host)
	return r
}

// alone are the settings for one service, with the others dead or left out.
func alone(all []service, i int, others bool) (settings [][]string) {
	for k, s := range all {
		switch {
		case k == i:
			settings = append(settings, s.live...)
		case others:
			settings = append(settings, s.dead...)
		}
	}
	return settings
}

// TestNetworkMeet holds that each medium alone is enough, although all others that are
// configured are dead.
func TestNetworkMeet(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*netTimeout)
	defer cancel()
	m := newMeetLab(ctx, t, nettest.NATEasy)
	all := services(ctx, t, m)
	for i, s := range all {
		r := m.meet(ctx, alone(all, i, true))
		t.Logf("%s, the others dead: paired %v, connected %v, moved %v", s.name,
			r.paired.Round(time.Millisecond), r.connected.Round(time.Millisecond), r.moved.Round(time.Millisecond))
	}
}

// TestMeetMatrix measures each medium many times and writes a table in Markdown: make
// rendezvous-matrix. KITH_MEET is the number of runs, and KITH_MEET_FILE the file;
// without the first it is skipped.
func TestMeetMatrix(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("KITH_MEET"))
	if err != nil || runs < 1 {
		t.Skip("it takes many minutes: make rendezvous-matrix runs it")
	}
	var table strings.Builder
	table.WriteString("| medium | others | runs | paired: median | 95 % | connected: median | 95 % | moved: median | 95 % |\n|---|---|---|---|---|---|---|---|---|\n")
	// Each row has a lab of its own: a site has a new address for each move.
	in := func(name string, f func(ctx context.Context, m *meetLab, all []service)) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			m := newMeetLab(ctx, t, nettest.NATEasy)
			f(ctx, m, services(ctx, t, m))
		})
	}
	row := func(name, others string, choose func(all []service) [][]string) {
		in(name+", others "+others, func(ctx context.Context, m *meetLab, all []service) {
			var paired, connected, moved []time.Duration
			for range runs {
				r := m.meet(ctx, choose(all))
				paired, connected, moved = append(paired, r.paired), append(connected, r.connected), append(moved, r.moved)
			}
			line := fmt.Sprintf("| %s | %s | %d | %s | %s | %s | %s | %s | %s |\n", name, others, runs, quantile(paired, 50), quantile(paired, 95),
				quantile(connected, 50), quantile(connected, 95), quantile(moved, 50), quantile(moved, 95))
			table.WriteString(line)
			m.t.Log(line)
		})
	}
	for i, name := range media {
		row(name, "none", func(all []service) [][]string { return alone(all, i, false) })
		row(name, "dead", func(all []service) [][]string { return alone(all, i, true) })
	}
	row("mqtt, 50 ms away", "none", func(all []service) [][]string { return all[1].far })
	row("waku, 50 ms away", "none", func(all []service) [][]string { return all[2].far })
	row("all", "-", every)
	var idle string
	in("idle", func(ctx context.Context, m *meetLab, all []service) { idle = m.idle(ctx, every(all)) })
	file := os.Getenv("KITH_MEET_FILE")
	if file == "" || t.Failed() {
		t.Log("\n" + table.String())
		return
	}
	text := "# Who meets where, and how fast\n\nTwo new devices behind separate NATs with endpoint-independent mapping, in network namespaces\n" +
		"on one machine, with no delay on the wires. The words alone are entered; \"paired\" runs from\n" +
		"there until the device that entered them is paired, \"connected\" from starting both daemons\n" +
		"until a ping through the tunnel is back, \"moved\" the same after both have stopped, one has\n" +
		"moved to another network, and both routers have new mappings and one a new address. The DHT\n" +
		"has 40 nodes of its own. \"50 ms away\" is the round trip to the server, but for\nopening the connection. \"dead\" means that all other media are configured, too, and their\n" +
		"servers do not answer. `make rendezvous-matrix` writes this table.\n\n" + table.String() + "\n" + idle
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// idle connects two devices that use every medium, also the LAN, leaves them alone, and
// says what the first of them costs.
func (m *meetLab) idle(ctx context.Context, settings [][]string) string {
	m.t.Helper()
	m.fresh(ctx, append(settings, []string{"rendezvous", "lan", "on"}))
	m.pair(ctx)
	m.connect(ctx)
	defer m.stop()
	rest(ctx, m.t, idleQuiet)
	pid, own := m.nodes[0].up.PID(), m.nodes[0].host.Addrs()[0]
	before, rec := cpuTime(m.t, pid), m.sites[0].LAN.Record()
	rest(ctx, m.t, idleWatch)
	frames, busy := rec.Stop(), cpuTime(m.t, pid)-before
	var sent, received load
	for _, f := range frames {
		p, ok := nettest.ParseFrame(f)
		switch {
		case !ok:
		case p.Src.Addr() == own:
			sent.add(p)
		case p.Dst.Addr() == own:
			received.add(p)
		}
	}
	rate := float64(sent.bytes+received.bytes) / idleWatch.Seconds()
	if rate > 1000 {
		m.t.Errorf("an idle device with every medium moves %.0f bytes/s, more than 1000", rate)
	}
	text := fmt.Sprintf("One device that has every medium on, the LAN too, and is connected and idle: %.0f bytes/s sent and\n"+
		"%.0f received, with IP headers, and %.2f %% of a core, over %v.\n",
		float64(sent.bytes)/idleWatch.Seconds(), float64(received.bytes)/idleWatch.Seconds(), 100*busy.Seconds()/idleWatch.Seconds(), idleWatch)
	m.t.Log(text)
	return text
}
