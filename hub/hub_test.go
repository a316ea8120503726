package hub

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/pion/turn/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if benchChild() || forwardChild() {
		return
	}
	goleak.VerifyTestMain(m)
}

const testLimit = 20 * time.Second // for anything a test waits for

// open starts a hub on the loopback interface; it is closed with the test.
func open(t testing.TB, change func(*Config)) *Hub {
	t.Helper()
	cfg := Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", AllowPrivate: true}
	if change != nil {
		change(&cfg)
	}
	if err := chmod700(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	h, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

func (h *Hub) hostPort() string { return net.JoinHostPort(h.addr.Host, strconv.Itoa(int(h.addr.Port))) }

// metric returns the value of one metric, or 0.
func metric(h *Hub, name string) float64 {
	var b bytes.Buffer
	h.WriteMetrics(&b)
	for line := range strings.Lines(b.String()) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

// await calls f until it is true.
func await(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(testLimit)
	for !f() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("never: " + what)
		}
	}
}

func randomTopic() string {
	var b [topicDigits / 2]byte
	_, _ = rand.Read(b[:])
	return topicPrefix + hex.EncodeToString(b[:])
}

// mqttClient is a client of the broker.
type mqttClient struct {
	*autopaho.ConnectionManager
	got  chan *paho.Publish
	gone chan byte // reason codes of disconnects by the hub
}

// dialMQTT connects; change may be nil.
func dialMQTT(t testing.TB, h *Hub, rawURL string, change func(*autopaho.ClientConfig)) *mqttClient {
	t.Helper()
	c, errs := startMQTT(t, h, rawURL, change)
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	if err := c.AwaitConnection(ctx); err != nil {
		t.Fatalf("%s: %v (%v)", rawURL, err, drain(errs))
	}
	return c
}

func drain(errs chan error) error {
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func startMQTT(t testing.TB, h *Hub, rawURL string, change func(*autopaho.ClientConfig)) (*mqttClient, chan error) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	c := &mqttClient{got: make(chan *paho.Publish, 1024), gone: make(chan byte, 16)}
	errs := make(chan error, 1)
	cfg := autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, TlsCfg: h.Address().TLSConfig(), KeepAlive: 30, CleanStartOnInitialConnection: true,
		ConnectUsername: "kith", ConnectPassword: []byte(h.Address().MQTTPassword()), ConnectTimeout: testLimit,
		OnConnectError: func(err error) {
			select {
			case errs <- err:
			default:
			}
		},
		ReconnectBackoff: func(n int) time.Duration {
			if n == 0 {
				return 0
			}
			return time.Hour
		},
		ClientConfig: paho.ClientConfig{
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				c.got <- p.Packet
				return true, nil
			}},
			OnServerDisconnect: func(d *paho.Disconnect) { c.gone <- d.ReasonCode },
		},
	}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if c.ConnectionManager, err = autopaho.NewConnection(ctx, cfg); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		<-c.Done()
	})
	return c, errs
}

func (c *mqttClient) subscribe(t testing.TB, topics ...string) []byte {
	t.Helper()
	s := &paho.Subscribe{}
	for _, topic := range topics {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: topic})
	}
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	ack, err := c.Subscribe(ctx, s)
	if ack == nil {
		t.Fatalf("subscribe: %v", err)
	}
	return ack.Reasons
}

func (c *mqttClient) publish(t testing.TB, topic string, payload []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	if _, err := c.Publish(ctx, &paho.Publish{Topic: topic, Payload: payload}); err != nil {
		t.Fatalf("publish: %v", err)
	}
}

func (c *mqttClient) receive(t testing.TB) *paho.Publish {
	t.Helper()
	select {
	case p := <-c.got:
		return p
	case <-time.After(testLimit):
		t.Fatal("no message came")
		return nil
	}
}

// TestMQTT holds that messages pass between all ways to the broker, on one port.
func TestMQTT(t *testing.T) {
	h := open(t, nil)
	a := h.Address()
	ways := append([]string{"mqtt://" + h.hostPort(), "ws://" + h.hostPort() + "/mqtt"}, a.MQTTURLs()...)
	var clients []*mqttClient
	topic := randomTopic()
	for _, way := range ways {
		c := dialMQTT(t, h, way, nil)
		if codes := c.subscribe(t, topic); codes[0] != 0 {
			t.Fatalf("%s: subscribe: %#x", way, codes[0])
		}
		clients = append(clients, c)
	}
	for i, c := range clients {
		want := []byte(ways[i])
		c.publish(t, topic, want)
		for j, to := range clients {
			if got := to.receive(t); got.Topic != topic || !bytes.Equal(got.Payload, want) {
				t.Fatalf("from %s to %s: got %q on %s", ways[i], ways[j], got.Payload, got.Topic)
			}
		}
	}
	if got := metric(h, "kith_hub_clients"); got != 4 {
		t.Errorf("clients: %v", got)
	}
	await(t, "four messages counted", func() bool { return metric(h, "kith_hub_publishes_total") == 4 })
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		select {
		case code := <-c.gone:
			if code != 0x8b { // server shutting down
				t.Errorf("%s: disconnected with %#x", ways[i], code)
			}
		case <-time.After(testLimit):
			t.Errorf("%s: no farewell", ways[i])
		}
	}
}

// TestHealth asks /healthz over both ways.
func TestHealth(t *testing.T) {
	h := open(t, nil)
	tr := &http.Transport{TLSClientConfig: h.Address().TLSConfig()}
	defer tr.CloseIdleConnections()
	for _, scheme := range []string{"http://", "https://"} {
		for path, want := range map[string]int{"/healthz": 200, "/": 404, "/metrics": 404, "/mqtt": 426} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+h.hostPort()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatalf("%s%s: %v", scheme, path, err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s%s: %d, want %d", scheme, path, resp.StatusCode, want)
			}
		}
	}
}

// turnUser returns credentials of the hub.
func turnUser(h *Hub, client string, expires time.Duration) (string, string) {
	user := fmt.Sprintf("%d:%s", time.Now().Add(expires).Unix(), client)
	return user, turnPassword(h.Address().TURNSecret(), user)
}

// turnDial makes a client of the relay over "udp", "tcp" or "tls".
func turnDial(t testing.TB, h *Hub, via, user, password string) *turn.Client {
	t.Helper()
	var pc net.PacketConn
	server := h.hostPort()
	switch via {
	case "udp":
		var lc net.ListenConfig
		c, err := lc.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc = c
	default:
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		if via == "tls" {
			tc := tls.Client(c, h.Address().TLSConfig())
			if err := tc.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			c = tc
		}
		pc = turn.NewSTUNConn(c)
	}
	c, err := turn.NewClient(&turn.ClientConfig{
		STUNServerAddr: server, TURNServerAddr: server, Conn: pc, Username: user, Password: password, Realm: turnRealm,
		LoggerFactory: quietTURN{}, RTO: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		_ = pc.Close()
	})
	return c
}

func allocate(t testing.TB, c *turn.Client) net.PacketConn {
	t.Helper()
	relay, err := c.Allocate()
	if err != nil {
		t.Fatalf("allocate: %v", err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	return relay
}

// exchange sends a packet and expects it at the other end.
func exchange(t testing.TB, from net.PacketConn, to net.Addr, at net.PacketConn, payload []byte) net.Addr {
	t.Helper()
	buf := make([]byte, 2048)
	for range 20 { // UDP: a packet may be lost
		if _, err := from.WriteTo(payload, to); err != nil {
			t.Fatalf("send to %v: %v", to, err)
		}
		if err := at.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n, src, err := at.ReadFrom(buf)
		if err == nil && bytes.Equal(buf[:n], payload) {
			return src
		}
	}
	t.Fatalf("no packet from %v to %v", from.LocalAddr(), to)
	return nil
}

// TestTURN moves bytes both ways over each transport, to a peer and to another
// allocation of the same hub.
func TestTURN(t *testing.T) {
	h := open(t, nil)
	var lc net.ListenConfig
	peer, err := lc.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	user, password := turnUser(h, "other", time.Hour)
	other := allocate(t, turnDial(t, h, "udp", user, password))
	for _, via := range []string{"udp", "tcp", "tls"} {
		t.Run(via, func(t *testing.T) {
			user, password := turnUser(h, "desk", time.Hour)
			c := turnDial(t, h, via, user, password)
			relay := allocate(t, c)
			for _, size := range []int{1, 32, 333, 1200, 1400} {
				payload := bytes.Repeat([]byte{byte(size)}, size)
				src := exchange(t, relay, peer.LocalAddr(), peer, payload)
				if src.String() != relay.LocalAddr().String() {
					t.Errorf("peer saw %v, want %v", src, relay.LocalAddr())
				}
				if size >= 32 { // the library waits for more than five bytes on TCP
					exchange(t, peer, relay.LocalAddr(), relay, payload)
				}
			}
			// Both ends need a permission, which the first packet makes.
			if _, err := other.WriteTo([]byte("hello"), relay.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			src := exchange(t, relay, other.LocalAddr(), other, []byte("from one allocation to another"))
			if src.String() != relay.LocalAddr().String() {
				t.Errorf("allocation saw %v, want %v", src, relay.LocalAddr())
			}
			exchange(t, other, relay.LocalAddr(), relay, []byte("and back"))
		})
	}
	if metric(h, `kith_hub_relayed_bytes_total{to="peer"}`) < 3000 || metric(h, `kith_hub_relayed_bytes_total{to="client"}`) < 3000 {
		t.Error("relayed bytes were not counted")
	}
	await(t, "one allocation left", func() bool { return metric(h, "kith_hub_allocations") == 1 })
}

// TestTURNCredentials refuses what is wrong or expired.
func TestTURNCredentials(t *testing.T) {
	h := open(t, nil)
	good := func(user string) (string, string) { return user, turnPassword(h.Address().TURNSecret(), user) }
	stamp := func(d time.Duration) string { return strconv.FormatInt(time.Now().Add(d).Unix(), 10) }
	for name, try := range map[string]func() (string, string){
		"wrong password": func() (string, string) { u, _ := turnUser(h, "desk", time.Hour); return u, "wrong" },
		"expired":        func() (string, string) { return turnUser(h, "desk", -clockSlack-time.Minute) },
		"no client":      func() (string, string) { return good(stamp(time.Hour)) },
		"empty client":   func() (string, string) { return good(stamp(time.Hour) + ":") },
		"no number":      func() (string, string) { return good("soon:desk") },
		"plus":           func() (string, string) { return good("+" + stamp(time.Hour) + ":desk") },
		"long":           func() (string, string) { return good(stamp(time.Hour) + ":" + strings.Repeat("x", 200)) },
	} {
		t.Run(name, func(t *testing.T) {
			user, password := try()
			c := turnDial(t, h, "udp", user, password)
			if relay, err := c.Allocate(); err == nil {
				_ = relay.Close()
				t.Error("an allocation was made")
			}
		})
	}
	if metric(h, `kith_hub_turn_logins_total{result="refused"}`) < 7 {
		t.Error("refusals were not counted")
	}
}

// TestQuotas bounds allocations by client, by address and in all, and gives
// places back.
func TestQuotas(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		names  [3]string
		reason string
	}{
		"client":  {func(c *Config) { c.AllocationsPerClient = 2 }, [3]string{"a", "a", "a"}, "alloc_per_client"},
		"address": {func(c *Config) { c.AllocationsPerIP = 2 }, [3]string{"a", "b", "c"}, "alloc_per_ip"},
		"all":     {func(c *Config) { c.MaxAllocations = 2 }, [3]string{"a", "b", "c"}, "alloc_full"},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, c.change)
			var relays []net.PacketConn
			for i, client := range c.names {
				user, password := turnUser(h, client, time.Hour)
				relay, err := turnDial(t, h, []string{"udp", "tcp"}[i%2], user, password).Allocate()
				if i < 2 {
					if err != nil {
						t.Fatal(err)
					}
					relays = append(relays, relay)
				} else if err == nil {
					_ = relay.Close()
					t.Fatal("an allocation too many")
				}
			}
			if metric(h, fmt.Sprintf("kith_hub_drops_total{reason=%q}", c.reason)) == 0 {
				t.Errorf("%s was not counted", c.reason)
			}
			for _, r := range relays {
				_ = r.Close()
			}
			await(t, "places given back", func() bool { return metric(h, "kith_hub_allocations") == 0 })
			user, password := turnUser(h, c.names[2], time.Hour)
			allocate(t, turnDial(t, h, "udp", user, password))
		})
	}
}

// TestRelayPorts keeps to the range of ports, and gives places back where none is
// free.
func TestRelayPorts(t *testing.T) {
	free := udpConn(t, "127.0.0.1:0")
	port := addrOf(free.LocalAddr()).Port()
	h := open(t, func(c *Config) { c.RelayMin, c.RelayMax = port, port })
	user, password := turnUser(h, "desk", time.Hour)
	if relay, err := turnDial(t, h, "udp", user, password).Allocate(); err == nil {
		_ = relay.Close()
		t.Fatal("a port that is taken was given")
	}
	await(t, "the place given back", func() bool { return metric(h, "kith_hub_allocations") == 0 })
	_ = free.Close()
	relay := allocate(t, turnDial(t, h, "udp", user, password))
	if got := addrOf(relay.LocalAddr()).Port(); got != port {
		t.Errorf("port %d, want %d", got, port)
	}
}

// TestBandwidth drops what exceeds a client's share.
func TestBandwidth(t *testing.T) {
	h := open(t, func(c *Config) { c.Bandwidth = 1000 })
	var lc net.ListenConfig
	peer, err := lc.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	user, password := turnUser(h, "desk", time.Hour)
	relay := allocate(t, turnDial(t, h, "udp", user, password))
	for range 200 { // 200 kB, where 64 kB and 1 kB a second may pass
		if _, err := relay.WriteTo(make([]byte, 1000), peer.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "packets dropped", func() bool { return metric(h, `kith_hub_drops_total{reason="bandwidth"}`) > 0 })
	if got := metric(h, `kith_hub_relayed_bytes_total{to="peer"}`); got > minBandwidthBurst+20000 {
		t.Errorf("%v bytes passed", got)
	}
}

// TestPrivatePeers holds that the relay is no way into the hub's networks.
func TestPrivatePeers(t *testing.T) {
	h := open(t, func(c *Config) { c.AllowPrivate = false })
	var lc net.ListenConfig
	victim, err := lc.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	user, password := turnUser(h, "desk", time.Hour)
	c := turnDial(t, h, "tcp", user, password)
	relay := allocate(t, c)
	for _, ip := range []string{"127.0.0.2", "10.0.0.1", "192.168.1.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "0.0.0.0", "100.64.0.1"} {
		if _, err := relay.WriteTo([]byte("hello"), &net.UDPAddr{IP: net.ParseIP(ip), Port: 53}); err == nil {
			t.Errorf("%s: was let through", ip)
		}
	}
	// The hub's own relayed address is reachable, but only where allocations are.
	if _, err := relay.WriteTo([]byte("hello"), victim.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	await(t, "packet to this machine dropped", func() bool { return metric(h, `kith_hub_drops_total{reason="peer"}`) >= 9 })
	if got := metric(h, `kith_hub_relayed_bytes_total{to="peer"}`); got != 0 {
		t.Errorf("%v bytes reached this machine", got)
	}
	user, password = turnUser(h, "other", time.Hour)
	other := allocate(t, turnDial(t, h, "udp", user, password))
	if _, err := other.WriteTo([]byte("x"), relay.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	exchange(t, relay, other.LocalAddr(), other, []byte("from one allocation to another"))
}

// TestSettings restarts a hub: the address stays.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	h := open(t, func(c *Config) { c.Dir, c.Host = dir, "Hub.Example.org" })
	a := h.Address()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	last, err := LastAddress(dir, "")
	if err != nil || last != a || a.Host != "hub.example.org" {
		t.Fatalf("%v %v, want %v", last, err, a)
	}
	h = open(t, func(c *Config) {
		c.Dir, c.Listen, c.AltPort = dir, "127.0.0.1:"+strconv.Itoa(int(a.Port)), int(a.AltPort)
	})
	if h.Address() != a {
		t.Errorf("after the restart: %v, want %v", h.Address(), a)
	}
	if _, err := LastAddress(t.TempDir(), ""); err == nil {
		t.Error("an empty directory has an address")
	}
	if got, err := LastAddress(dir, "192.0.2.7"); err != nil || got.Host != "192.0.2.7" {
		t.Errorf("%v %v", got, err)
	}
}

// TestBadConfig holds that mistakes are told.
func TestBadConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no directory": func(c *Config) { c.Dir = "" },
		"listen":       func(c *Config) { c.Listen = "443" },
		"listen name":  func(c *Config) { c.Listen = "example.org:443" },
		"port":         func(c *Config) { c.Listen = ":99999" },
		"host":         func(c *Config) { c.Host = "two words" },
		"host port":    func(c *Config) { c.Host = "example.org:443" },
		"range":        func(c *Config) { c.RelayMin, c.RelayMax = 2000, 1000 },
		"half a cert":  func(c *Config) { c.CertFile = "x.pem" },
		"no cert":      func(c *Config) { c.CertFile, c.KeyFile = "missing.pem", "missing.key" },
		"alt address":  func(c *Config) { c.Listen, c.AltIP = ":0", netip.MustParseAddr("127.0.0.2") },
		"bandwidth":    func(c *Config) { c.Bandwidth = -1 },
	} {
		cfg := Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}
		if err := chmod700(cfg.Dir); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		h, err := Open(t.Context(), cfg)
		if err == nil {
			_ = h.Close()
		}
		if !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := open(t, nil)
	dir := t.TempDir()
	if err := chmod700(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Listen: h.hostPort()}); !errors.Is(err, ErrListen) {
		t.Errorf("a port in use: %v", err)
	}
}

// TestMetrics reads the metrics over HTTP.
func TestMetrics(t *testing.T) {
	h := open(t, func(c *Config) { c.Metrics = "127.0.0.1:0" })
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+h.MetricsAddr()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(body, []byte("kith_hub_allocations 0")) {
		t.Errorf("%v:\n%s", err, body)
	}
}
