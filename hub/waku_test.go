package hub

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/rendezvous/waku"
)

// wakuSession is a light client at one node, which has joined a topic.
func wakuSession(ctx context.Context, t *testing.T, h *Hub, node string, topic rendezvous.Topic) rendezvous.Session {
	t.Helper()
	ex, err := waku.New(waku.Config{Nodes: []string{node}, TLS: h.Address().TLSConfig()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ex.Close() })
	await(t, "the client at "+node, func() bool { return ex.Health().Ready })
	s, err := ex.Join(ctx, rendezvous.Point{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// passes publishes a frame until it arrives.
func passes(t *testing.T, from, to rendezvous.Session, fill byte) {
	t.Helper()
	rendezvoustest.UntilArrives(t, from, to, rendezvoustest.Frame(fill), 50*time.Millisecond)
}

func withWaku(peers ...string) func(*Config) {
	return func(cfg *Config) { cfg.Waku, cfg.WakuPeers = true, peers }
}

// TestWakuNetwork has two hubs of which one names the other, and a device at each.
func TestWakuNetwork(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := open(t, withWaku())
	at, _ := first.WakuAddress()
	second := open(t, withWaku(at))
	other, _ := second.WakuAddress()
	await(t, "the hubs know each other", func() bool { return metric(second, "kith_hub_waku_peers") == 1 })
	topic := rendezvous.Topic{1, 2, 3}
	a, b := wakuSession(ctx, t, first, at, topic), wakuSession(ctx, t, second, other, topic)
	passes(t, a, b, 0xa1)
	passes(t, b, a, 0xb2)
	for _, h := range []*Hub{first, second} {
		for _, name := range []string{"received_total", "pushed_total", "clients", "stored", "subscriptions"} {
			await(t, name+" is counted", func() bool { return metric(h, "kith_hub_waku_"+name) > 0 })
		}
	}
	await(t, "what was forwarded is counted", func() bool { return metric(second, "kith_hub_waku_forwarded_total") > 0 })
}

// TestWakuMainPort meets at the hub's main port, over TCP and WebSocket, also in TLS.
func TestWakuMainPort(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h := open(t, withWaku())
	topic := rendezvous.Topic{4, 5, 6}
	var all []rendezvous.Session
	for _, kind := range []string{"", "ws", "wss"} {
		all = append(all, wakuSession(ctx, t, h, h.waku.Multiaddr(h.addr.Host, h.addr.Port, kind), topic))
	}
	for i, from := range all {
		passes(t, from, all[(i+1)%len(all)], byte(0xa1+i))
	}
	for via, want := range map[string]float64{"tcp": 1, "websocket": 2} {
		if got := metric(h, `kith_hub_connects_total{protocol="waku",via="`+via+`"}`); got != want {
			t.Errorf("%v connections by %s, want %v", got, via, want)
		}
	}
	if got := metric(h, "kith_hub_connections"); got != 3 {
		t.Errorf("%v connections are counted", got)
	}
}

// TestWakuAddressLimit counts clients of all ways in by their address.
func TestWakuAddressLimit(t *testing.T) {
	h := open(t, withWaku())
	for range 20 {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", h.hostPort())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte(waku.Preface)); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "those that are too many refused", func() bool { return metric(h, "kith_hub_waku_refused_total") >= 4 })
}

// TestWakuStays holds that a hub's peer ID outlives it, is not another hub's, and
// that the port is freed.
func TestWakuStays(t *testing.T) {
	dir := t.TempDir()
	h := open(t, func(cfg *Config) { cfg.Dir, cfg.Waku = dir, true })
	id := h.waku.ID()
	at, port := h.WakuAddress()
	if !strings.HasSuffix(at, "/p2p/"+id) || !strings.HasPrefix(at, "/ip4/127.0.0.1/tcp/") {
		t.Errorf("address %s", at)
	}
	if err := waku.CheckAddress(at); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, func(cfg *Config) { cfg.Dir, cfg.Waku, cfg.WakuPort = dir, true, port })
	if now, _ := again.WakuAddress(); now != at {
		t.Errorf("%s, before %s", now, at)
	}
	if open(t, withWaku()).waku.ID() == id {
		t.Error("two hubs have one ID")
	}
	_, err := Open(t.Context(), Config{Dir: t.TempDir() + "/hub", Listen: "127.0.0.1:0", Waku: true, WakuPort: port})
	if !errors.Is(err, ErrListen) {
		t.Errorf("a port that is taken: %v", err)
	}
	_, err = Open(t.Context(), Config{Dir: t.TempDir() + "/hub", Listen: "127.0.0.1:0", Waku: true, WakuPeers: []string{"nowhere"}})
	if !errors.Is(err, ErrConfig) {
		t.Errorf("a peer that is none: %v", err)
	}
}

// TestWakuOff holds that a hub speaks Waku only if it is told to.
func TestWakuOff(t *testing.T) {
	h := open(t, nil)
	if at, port := h.WakuAddress(); at != "" || port != 0 {
		t.Errorf("%q, %d", at, port)
	}
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", h.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(waku.Preface)); err != nil {
		t.Fatal(err)
	}
	await(t, "it is dropped", func() bool { return metric(h, `kith_hub_drops_total{reason="garbage"}`) == 1 })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+h.hostPort()+WakuPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("status %d", res.StatusCode)
	}
}
