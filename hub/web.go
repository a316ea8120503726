package hub

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/rendezvous/waku"
)

const (
	maxHeader    = 8 << 10 // bytes of an HTTP request's header
	maxWSMessage = 8 << 10 // bytes of a WebSocket message
)

// web serves HTTP: /healthz, and MQTT and Waku over WebSocket.
type web struct {
	ln     *handoff
	srv    *http.Server
	broker *broker
	waku   *waku.Service // nil if the hub is no node
	m      *meters
}

type connKey struct{}

func newWeb(b *broker, m *meters, x *mux, addr net.Addr) *web {
	w := &web{ln: newHandoff(addr), broker: b, m: m}
	handler := http.NewServeMux()
	handler.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, "ok\n") // nobody to tell if the client is gone
	})
	handler.HandleFunc("GET "+hubaddr.MQTTPath, w.mqtt)
	handler.HandleFunc("GET /{$}", w.serveWaku(x))
	handler.HandleFunc("GET "+WakuPath, w.serveWaku(x))
	w.srv = &http.Server{
		Handler: handler, ReadTimeout: sniffTimeout, WriteTimeout: sniffTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	w.srv.SetKeepAlivesEnabled(false) // one request a connection
	return w
}

func (w *web) serve()           { _ = w.srv.Serve(w.ln) } // ends with close
func (w *web) accept(c *stream) { w.ln.offer(c) }
func (w *web) close() error     { return w.srv.Close() }

// mqtt speaks MQTT inside binary messages (MQTT 5 section 6).
func (w *web) mqtt(rw http.ResponseWriter, r *http.Request) {
	raw, ok := r.Context().Value(connKey{}).(net.Conn)
	if !ok {
		http.Error(rw, "no connection", http.StatusInternalServerError)
		return
	}
	c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		w.m.drop("websocket")
		return
	}
	c.SetReadLimit(maxWSMessage)
	_ = raw.SetReadDeadline(time.Now().Add(sniffTimeout))
	w.m.connect("mqtt", "websocket")
	// In a goroutine of its own, as that of HTTP keeps a large stack.
	w.broker.spawn(&wsConn{Conn: raw, ws: c})
}

// wsConn is a connection whose bytes travel in WebSocket messages. Deadlines are
// those of the connection below.
type wsConn struct {
	net.Conn
	ws *websocket.Conn
	r  io.Reader // of the message that is being read
	mu sync.Mutex
}

// Read reads from the next binary message; another kind is an error.
func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.r == nil {
			kind, r, err := c.ws.Reader(context.Background())
			if err != nil {
				return 0, err
			}
			if kind != websocket.MessageBinary {
				return 0, http.ErrNotSupported
			}
			c.r = r
		}
		n, err := c.r.Read(p)
		if err == io.EOF {
			c.r, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write writes one binary message.
func (c *wsConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close closes without a closing handshake: the last MQTT message was the
// farewell.
func (c *wsConn) Close() error { return c.ws.CloseNow() }
