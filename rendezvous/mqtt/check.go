package mqtt

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/kithproject/kith/rendezvous"
)

// dial connects as the client does by itself, and remembers from which address.
func (e *Exchange) dial(ctx context.Context, cc autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	e.mu.Lock()
	e.dialed = time.Now()
	e.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		e.mu.Lock()
		e.local = a.AddrPort().Addr().Unmap()
		e.mu.Unlock()
	}
	if u.Scheme == "mqtt" {
		return conn, nil
	}
	cfg := cc.TlsCfg.Clone()
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		cfg.ServerName = u.Hostname()
	}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close() // it may be closed by now
		return nil, err
	}
	return packets.NewThreadSafeConn(secure), nil
}

// gone reports whether the connection's own address is none of ours any more.
func gone(local netip.Addr) bool {
	if !local.IsValid() {
		return false
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == local.WithZone("")
	})
}

// Check asks the broker whether it is still there, and connects anew if it does
// not answer soon, or if the address that the connection has is gone: TCP itself
// may take minutes to notice. It does not block.
func (e *Exchange) Check() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.up || e.asking || e.closed {
		return
	}
	e.asking = true
	e.wg.Go(e.check)
}

func (e *Exchange) check() {
	e.mu.Lock()
	local, wait := e.local, min(max(e.took, checkLeast), checkMost)
	e.mu.Unlock()
	if gone(local) {
		wait = 0
	}
	ctx, cancel := context.WithTimeout(e.ctx, wait)
	defer cancel()
	// The client sends PINGREQ only by its own clock, but SUBSCRIBE has an answer,
	// too. Nobody publishes to this topic.
	_, err := e.conn.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: e.echo}}})
	if errors.Is(err, context.DeadlineExceeded) {
		e.log.Info("broker does not answer", "exchange", e.Name())
		e.conn.TerminateConnectionForTest() // the only way to have it dropped
	}
	e.mu.Lock()
	e.asking = false
	e.mu.Unlock()
}

// Another connects to the same broker once more. It errs as New does.
func (e *Exchange) Another() (rendezvous.Exchange, error) {
	cfg := e.cfg
	cfg.Again = nil
	return New(cfg)
}

// Servers returns the broker's host:port, unless a proxy is used.
func (e *Exchange) Servers() []string {
	u, err := brokerURL(e.cfg.URL)
	if err != nil || os.Getenv("all_proxy") != "" {
		return nil
	}
	port := map[string]string{"ws": "80", "wss": "443"}[u.Scheme]
	return []string{net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))}
}

func randomTopic() string {
	var b [20]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}
