package hub

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/coder/websocket"

	"github.com/kithproject/kith/rendezvous/waku"
)

const (
	// DefaultWakuPort is the TCP port at which Waku nodes are looked for, a number.
	DefaultWakuPort = 60000

	// WakuPath is where the hub's main port speaks Waku over WebSocket, besides "/",
	// which is where a multiaddr leads.
	WakuPath = "/waku"

	maxWakuMessage = 1 << 20 // bytes of a WebSocket message, which is read piece by piece
)

// wakuSeed derives what the identity of the hub's Waku node is made of, so that its
// peer ID stays.
func (s *state) wakuSeed() [32]byte {
	key, err := hkdf.Key(sha256.New, s.key[:], nil, "kith/1 hub waku", 32)
	if err != nil {
		panic(err) // only for an output of more than 8160 bytes
	}
	return [32]byte(key)
}

// startWaku makes the hub a Waku node, with a port of its own and at the main one.
func (h *Hub) startWaku(ctx context.Context, seed [32]byte) error {
	if !h.cfg.Waku {
		return nil
	}
	svc, err := waku.NewService(waku.ServiceConfig{Seed: seed, Peers: h.cfg.WakuPeers, Logger: h.log})
	if errors.Is(err, waku.ErrConfig) {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	h.waku, h.mux.waku, h.web.waku = svc, svc, svc
	host, _, err := splitListen(h.cfg.Listen)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(h.cfg.WakuPort))))
	if err != nil {
		return fmt.Errorf("%w for Waku: %w", ErrListen, err)
	}
	h.wakuPort = addrOf(ln.Addr()).Port()
	h.m.set.RegisterMetricsWriter(func(w io.Writer) { writeWaku(w, svc.Stats()) })
	h.wg.Go(func() {
		if err := svc.Serve(ln); !errors.Is(err, net.ErrClosed) {
			h.fail(err)
		}
	})
	return nil
}

// fail ends Serve with the first error that it is given.
func (h *Hub) fail(err error) {
	select {
	case h.failed <- err:
	default:
	}
}

// WakuAddress returns the multiaddr under which Waku clients find the hub, and its
// TCP port; "" and 0 if it is no Waku node.
func (h *Hub) WakuAddress() (multiaddr string, port uint16) {
	if h.waku == nil {
		return "", 0
	}
	return h.waku.Multiaddr(h.addr.Host, h.wakuPort, ""), h.wakuPort
}

// spawn runs f in a goroutine that ends before the hub does; it reports false if the
// hub is closing.
func (x *mux) spawn(f func()) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		return false
	}
	x.wg.Go(f)
	return true
}

// serveWaku speaks libp2p over a connection of the main port until it ends.
func (x *mux) serveWaku(c net.Conn) {
	_ = c.SetReadDeadline(time.Time{}) // the node has its own
	if err := x.waku.ServeConn(c); err != nil {
		x.log.Debug("waku client not served", "err", err)
	}
}

// serveWaku speaks libp2p inside binary messages. Pages from anywhere may do that: the
// node asks nobody who they are.
func (w *web) serveWaku(x *mux) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		raw, ok := r.Context().Value(connKey{}).(net.Conn)
		if w.waku == nil || !ok {
			http.NotFound(rw, r)
			return
		}
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			w.m.drop("websocket")
			return
		}
		c.SetReadLimit(maxWakuMessage)
		w.m.connect("waku", "websocket")
		conn := &wsConn{Conn: raw, ws: c}
		// In a goroutine of its own, as that of HTTP keeps a large stack.
		if !x.spawn(func() { x.serveWaku(conn) }) {
			_ = conn.Close()
		}
	}
}

// writeWaku writes what the Waku node counts.
func writeWaku(w io.Writer, s waku.Stats) {
	for _, g := range []struct {
		name  string
		value int
	}{
		{"kith_hub_waku_clients", s.Clients}, {"kith_hub_waku_subscriptions", s.Subscriptions}, {"kith_hub_waku_peers", s.Peers},
		{"kith_hub_waku_stored", s.Stored}, {"kith_hub_waku_stored_bytes", s.StoredBytes},
	} {
		metrics.WriteGaugeUint64(w, g.name, uint64(max(g.value, 0)))
	}
	for _, c := range []struct {
		name  string
		value uint64
	}{
		{"received", s.Received}, {"duplicates", s.Duplicates}, {"pushed", s.Pushed}, {"forwarded", s.Forwarded},
		{"dropped", s.Dropped}, {"refused", s.Refused}, {"invalid", s.Invalid},
	} {
		metrics.WriteCounterUint64(w, "kith_hub_waku_"+c.name+"_total", c.value)
	}
}
