package waku

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	connectTimeout   = 5 * time.Second // to have a connection: TCP, WebSocket, Noise, Yamux
	operationLimit   = 10 * time.Second
	keepAlive        = time.Minute // of a node towards its clients
	clientStreams    = 64          // that a node may have open to a client, and
	nodeStreams      = 16          // that a client may have open to a node
	windowSize       = 256 << 10   // bytes of a stream that may be under way
	largestAddress   = 512         // bytes of a multiaddr's text
	agentVersion     = "kith"
	identifyProtocol = "ipfs/0.1.0"
)

// A host is one libp2p identity with the means to open connections.
type host struct {
	key    crypto.PrivKey
	public []byte
	id     peer.ID
	known  transport.Upgrader // insists on the peer that is named
	anyone transport.Upgrader // takes whoever answers
	tls    *tls.Config
	memory *budget // nil: not limited beyond what a connection may have open
}

// newHost makes a host of an Ed25519 seed, or of a random key if seed is nil. A
// node has a memory that its connections share; a client has none.
func newHost(seed []byte, memory *budget, tlsCfg *tls.Config) (*host, error) {
	if seed == nil {
		seed = make([]byte, ed25519.SeedSize)
		if _, err := rand.Read(seed); err != nil {
			return nil, fmt.Errorf("waku: make a key: %w", err)
		}
	}
	h := &host{tls: tlsCfg, memory: memory}
	var err error
	if h.key, err = crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed)); err != nil {
		return nil, fmt.Errorf("waku: key: %w", err)
	}
	if h.id, err = peer.IDFromPrivateKey(h.key); err != nil {
		return nil, fmt.Errorf("waku: key: %w", err)
	}
	if h.public, err = crypto.MarshalPublicKey(h.key.GetPublic()); err != nil {
		return nil, fmt.Errorf("waku: key: %w", err)
	}
	muxers := []tptu.StreamMuxer{{ID: yamux.ID, Muxer: muxer(memory != nil)}}
	if memory != nil {
		muxers = append(muxers, tptu.StreamMuxer{ID: mplexID, Muxer: mplex{}})
	}
	n, err := noise.New(noise.ID, h.key, muxers)
	if err != nil {
		return nil, fmt.Errorf("waku: noise: %w", err)
	}
	unchecked, err := n.WithSessionOptions(noise.DisablePeerIDCheck())
	if err != nil {
		return nil, fmt.Errorf("waku: noise: %w", err)
	}
	var errKnown, errAnyone error
	h.known, errKnown = tptu.New([]sec.SecureTransport{n}, muxers, nil, nil, nil)
	h.anyone, errAnyone = tptu.New([]sec.SecureTransport{unchecked}, muxers, nil, nil, nil)
	if err := errors.Join(errKnown, errAnyone); err != nil {
		return nil, fmt.Errorf("waku: %w", err)
	}
	return h, nil
}

// muxer is Yamux with small limits. A client asks its nodes whether they are
// there by filter, which proves more than Yamux's own pings; a node has to notice
// clients that are gone.
func muxer(node bool) *yamux.Transport {
	cfg := *yamux.DefaultTransport
	cfg.EnableKeepAlive = node
	cfg.KeepAliveInterval = keepAlive
	cfg.MeasureRTTInterval = 24 * time.Hour // only needed for windows that grow
	cfg.MaxIncomingStreams = clientStreams
	if node {
		cfg.MaxIncomingStreams = nodeStreams
	}
	cfg.AcceptBacklog = int(cfg.MaxIncomingStreams)
	cfg.InitialStreamWindowSize, cfg.MaxStreamWindowSize = windowSize, windowSize
	return &cfg
}

// An address is a node's multiaddr, taken apart.
type address struct {
	text    string
	raw     ma.Multiaddr // without the peer
	network string       // tcp, tcp4 or tcp6; empty for a WebSocket
	host    string       // and port, for TCP
	peer    peer.ID      // empty: whoever answers
}

// parseAddress takes /ip4, /ip6, /dns, /dns4 or /dns6 with /tcp, then nothing,
// /ws, /wss or /tls/ws, and /p2p with the node's ID or not.
func parseAddress(s string) (address, error) {
	bad := func(why string) (address, error) {
		return address{}, fmt.Errorf("%w: %s", ErrConfig, why)
	}
	if len(s) > largestAddress || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return bad("an address is too long or has strange characters")
	}
	m, err := ma.NewMultiaddr(s)
	if err != nil {
		return bad(err.Error())
	}
	a := address{text: s}
	transport, last := ma.SplitLast(m)
	if last != nil && last.Protocol().Code == ma.P_P2P {
		if a.peer, err = peer.IDFromBytes(last.RawValue()); err != nil {
			return bad(err.Error())
		}
	} else {
		transport = m
	}
	a.raw = transport
	names := make([]string, 0, len(transport))
	for _, c := range transport {
		names = append(names, c.Protocol().Name)
	}
	if len(names) < 2 || names[1] != "tcp" {
		return bad("a node's address begins with /ip4, /ip6 or /dns4, and /tcp: " + s)
	}
	var ok bool
	if a.network, ok = map[string]string{"ip4": "tcp4", "ip6": "tcp6", "dns": "tcp", "dns4": "tcp4", "dns6": "tcp6"}[names[0]]; !ok {
		return bad("a node's address begins with /ip4, /ip6 or /dns4: " + s)
	}
	a.host = net.JoinHostPort(transport[0].Value(), transport[1].Value())
	switch strings.Join(names[2:], "/") {
	case "":
	case "ws", "wss", "tls/ws", "tls/sni/ws":
		a.network = ""
	default:
		return bad("only TCP and WebSocket are spoken: " + s)
	}
	return a, nil
}

// dial connects to a node.
func (h *host) dial(ctx context.Context, a address) (transport.CapableConn, error) {
	up, p := h.known, a.peer
	if p == "" {
		up, p = h.anyone, h.id // any: it is not compared
	}
	if a.network == "" {
		cfg := h.tls.Clone() // nil for nil
		if cfg == nil {
			cfg = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		t, err := websocket.New(up, &manager{budget: h.memory}, nil, websocket.WithTLSClientConfig(cfg), websocket.WithHandshakeTimeout(connectTimeout))
		if err != nil {
			return nil, err
		}
		return t.Dial(ctx, a.raw, p)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, a.network, a.host)
	if err != nil {
		return nil, err
	}
	return h.upgrade(ctx, up, conn, network.DirOutbound, p)
}

// accept makes a libp2p connection of one that came in.
func (h *host) accept(ctx context.Context, conn net.Conn) (transport.CapableConn, error) {
	return h.upgrade(ctx, h.known, conn, network.DirInbound, "")
}

func (h *host) upgrade(ctx context.Context, up transport.Upgrader, conn net.Conn, dir network.Direction, p peer.ID) (transport.CapableConn, error) {
	mc := &rawConn{Conn: conn}
	return up.Upgrade(ctx, nil, mc, dir, p, &scope{budget: h.memory})
}

// A rawConn gives any connection multiaddrs, also one whose addresses are none of
// TCP (what a WebSocket library hands over).
type rawConn struct{ net.Conn }

var _ manet.Conn = (*rawConn)(nil)

func (c *rawConn) LocalMultiaddr() ma.Multiaddr  { return multiaddr(c.LocalAddr()) }
func (c *rawConn) RemoteMultiaddr() ma.Multiaddr { return multiaddr(c.RemoteAddr()) }

func multiaddr(a net.Addr) ma.Multiaddr {
	ap := addrPort(a)
	m, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(ap))
	if err != nil {
		return nil
	}
	return m
}

// addrPort returns an address as numbers, or 0.0.0.0:0 if it is none.
func addrPort(a net.Addr) netip.AddrPort {
	none := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if a == nil {
		return none
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return none
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
