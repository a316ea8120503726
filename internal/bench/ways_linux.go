package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/signaling"
	"github.com/kithproject/kith/tunnel"
)

const (
	port       = 5000  // TCP
	udpPort    = 51820 // WireGuard
	tunName    = "kithbench0"
	kernelMTU  = 1420 // WireGuard's own default
	tunPrefix  = "10.77.0.0/24"
	tunServer  = "10.77.0.1"
	tunClient  = "10.77.0.2"
	benchPSK   = 7
	serverSeed = 8 // the low three bits of an X25519 key do not count
	clientSeed = 16
)

type dialFunc func(context.Context) (net.Conn, error)

// A node is one end of a tunnel: what listens and dials through it.
type node struct {
	listen func() (net.Listener, error)
	dial   dialFunc
}

func listen(ctx context.Context, cfg sideConfig) (net.Listener, error) {
	at := netip.AddrPortFrom(netip.MustParseAddr(serverIP), port)
	switch cfg.Way {
	case wayTCPNATs:
		at = netip.AddrPortFrom(netip.MustParseAddr(serverHome), port)
		fallthrough
	case wayTCP:
		return (&net.ListenConfig{}).Listen(ctx, "tcp", at.String())
	case wayTLS:
		cfg, err := certificate()
		if err != nil {
			return nil, err
		}
		return tls.Listen("tcp", at.String(), cfg)
	}
	n, err := newNode(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return n.listen()
}

func dialer(ctx context.Context, cfg sideConfig) (dialFunc, error) {
	to := netip.AddrPortFrom(netip.MustParseAddr(serverIP), port).String()
	switch cfg.Way {
	case wayTCPNATs:
		to = netip.AddrPortFrom(netip.MustParseAddr(serverPublic), port).String()
		fallthrough
	case wayTCP:
		return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", to) }, nil
	case wayTLS:
		d := &tls.Dialer{Config: &tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // only its speed matters here
			MinVersion:         tls.VersionTLS13,
		}}
		return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", to) }, nil
	}
	n, err := newNode(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return n.dial, nil
}

func certificate() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}, nil
}

// identities returns this end's identity and the other's. The seeds are no
// secret: these keys live as long as a measurement.
func identities(server bool) (own, other *identity.Identity, err error) {
	a, err := identity.FromSeeds([32]byte{serverSeed}, [32]byte{serverSeed})
	if err != nil {
		return nil, nil, err
	}
	b, err := identity.FromSeeds([32]byte{clientSeed}, [32]byte{clientSeed})
	if server {
		return a, b, err
	}
	return b, a, err
}

func newNode(ctx context.Context, cfg sideConfig) (*node, error) {
	server := cfg.Side == sideServer
	own, other, err := identities(server)
	if err != nil {
		return nil, err
	}
	switch cfg.Way {
	case wayKernel:
		return kernelNode(ctx, own, other, server)
	case wayStock:
		return stockNode(own, other, server)
	case wayStdUDP:
		bind := conn.NewDefaultBind()
		ep, err := bind.ParseEndpoint(remoteUDP(server).String())
		if err != nil {
			return nil, err
		}
		return tunnelNode(own, other, bind, ep)
	}
	// As a node does it: one socket for probes and WireGuard, a Link as endpoint.
	socket := link.NewSocket(link.SocketConfig{Port: udpPort})
	keys := [2][32]byte{{1}, {2}}
	if server {
		keys[0], keys[1] = keys[1], keys[0]
	}
	up := make(chan struct{}, 1)
	l, err := socket.NewLink(link.Config{
		Peer: other.ID(),
		Keys: func(int64) (send, receive [32]byte, err error) { return keys[0], keys[1], nil },
		Events: func(link.Event) {
			select {
			case up <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		return nil, err
	}
	n, err := tunnelNode(own, other, socket, l)
	if err != nil {
		return nil, err
	}
	remote := signaling.Candidate{Kind: signaling.Host, Addr: remoteUDP(server)}
	if behindNATs(cfg.Way) {
		if remote, err = across(ctx, cfg, socket, l); err != nil {
			return nil, err
		}
	}
	l.SetRemote([]signaling.Candidate{remote})
	if server {
		return n, nil
	}
	select {
	case <-up:
	case <-ctx.Done():
		return nil, fmt.Errorf("bench: no path: %w", ctx.Err())
	}
	if p, ok := l.Path(); !ok || p.Remote != remote.Addr || relays(cfg) && p.Kind != link.Relay {
		return nil, fmt.Errorf("bench: the path is %s, not to %s", p, remote.Addr)
	}
	return n, nil
}

// remoteUDP is where the other end's socket is.
func remoteUDP(server bool) netip.AddrPort {
	ip := serverIP
	if server {
		ip = clientIP
	}
	return netip.AddrPortFrom(netip.MustParseAddr(ip), udpPort)
}

func tunnelNode(own, other *identity.Identity, bind conn.Bind, ep conn.Endpoint) (*node, error) {
	t, err := tunnel.New(tunnel.Config{Identity: own, Bind: bind, Port: udpPort})
	if err != nil {
		return nil, err
	}
	err = t.AddPeer(tunnel.Peer{ID: other.ID(), WireGuard: other.WireGuardPublic(), PSK: [32]byte{benchPSK}, Endpoint: ep})
	if err != nil {
		return nil, err
	}
	return &node{
		listen: func() (net.Listener, error) { return t.Listen("tcp", port) },
		dial: func(ctx context.Context) (net.Conn, error) {
			return t.DialContext(ctx, "tcp", netip.AddrPortFrom(other.ID().Addr(), port))
		},
	}, nil
}

// startDevice runs plain wireguard-go over a TUN device.
func startDevice(td tun.Device, own, other *identity.Identity, server bool) error {
	logger := &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { fmt.Fprintf(os.Stderr, "wireguard: "+format+"\n", args...) },
	}
	d := device.NewDevice(td, conn.NewDefaultBind(), logger)
	text := fmt.Sprintf("private_key=%x\nlisten_port=%d\npublic_key=%x\npreshared_key=%x\nallowed_ip=%s\n",
		own.WireGuardPrivate(), udpPort, other.WireGuardPublic(), [32]byte{benchPSK}, tunPrefix)
	if !server {
		text += "endpoint=" + remoteUDP(server).String() + "\n"
	}
	if err := d.IpcSet(text); err != nil {
		return err
	}
	return d.Up()
}

func tunAddr(server bool) string {
	if server {
		return tunServer
	}
	return tunClient
}

func kernelNode(ctx context.Context, own, other *identity.Identity, server bool) (*node, error) {
	td, err := tun.CreateTUN(tunName, kernelMTU)
	if err != nil {
		return nil, fmt.Errorf("bench: kernel TUN: %w", err)
	}
	for _, line := range []string{"addr add " + tunAddr(server) + "/24 dev " + tunName, "link set " + tunName + " up"} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("bench: ip %s: %w: %s", line, err, out)
		}
	}
	if err := startDevice(td, own, other, server); err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(netip.MustParseAddr(tunServer), port).String()
	return &node{
		listen: func() (net.Listener, error) { return (&net.ListenConfig{}).Listen(ctx, "tcp", to) },
		dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to)
		},
	}, nil
}

func stockNode(own, other *identity.Identity, server bool) (*node, error) {
	td, stack, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr(tunAddr(server))}, nil, kernelMTU)
	if err != nil {
		return nil, err
	}
	if err := startDevice(td, own, other, server); err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(netip.MustParseAddr(tunServer), port)
	return &node{
		listen: func() (net.Listener, error) { return stack.ListenTCPAddrPort(to) },
		dial: func(ctx context.Context) (net.Conn, error) {
			return stack.DialContextTCPAddrPort(ctx, to)
		},
	}, nil
}
