package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/kithproject/kith/hub"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/link/relay"
	"github.com/kithproject/kith/signaling"
)

// The addresses of the homes and of the public segment, which must look public to
// the hub: a relay sends nowhere else.
const (
	serverHome, serverGateway = "192.168.1.2", "192.168.1.1"
	clientHome, clientGateway = "192.168.2.2", "192.168.2.1"

	hubPublic    = "11.1.0.1"
	serverPublic = "11.1.0.2"
	clientPublic = "11.1.0.3"

	hubPort = 443 // TCP and UDP
	// relayPort is the only one of relayed addresses, so that the server knows it
	// beforehand.
	relayPort = 50000
)

// homes returns arguments of ip that connect each end to a router, and both to the
// public segment: a bridge in the namespace where the hub runs.
func (l *lab) homes(mtu string) [][]string {
	steps := [][]string{
		{"netns", "add", l.public},
		{"-n", l.public, "link", "add", "br0", "type", "bridge"},
		{"-n", l.public, "addr", "add", hubPublic + "/24", "dev", "br0"},
		{"-n", l.public, "link", "set", "br0", "mtu", mtu, "up"},
		{"-n", l.public, "link", "set", "lo", "up"},
	}
	for _, h := range []struct{ end, router, home, gateway, public, port string }{
		{l.server, l.serverRouter, serverHome, serverGateway, serverPublic, "p0"},
		{l.client, l.clientRouter, clientHome, clientGateway, clientPublic, "p1"},
	} {
		steps = append(steps, [][]string{
			{"netns", "add", h.router},
			{"link", "add", "home", "netns", h.end, "mtu", mtu, "type", "veth", "peer", "name", "in", "netns", h.router, "mtu", mtu},
			{"link", "add", "out", "netns", h.router, "mtu", mtu, "type", "veth", "peer", "name", h.port, "netns", l.public, "mtu", mtu},
			{"-n", l.public, "link", "set", h.port, "master", "br0", "up"},
			{"-n", h.router, "addr", "add", h.gateway + "/24", "dev", "in"},
			{"-n", h.router, "addr", "add", h.public + "/24", "dev", "out"},
			{"-n", h.router, "link", "set", "in", "up"},
			{"-n", h.router, "link", "set", "out", "up"},
			{"-n", h.end, "addr", "add", h.home + "/24", "dev", "home"},
			{"-n", h.end, "link", "set", "home", "up"},
			{"-n", h.end, "route", "add", "default", "via", h.gateway},
			{"netns", "exec", h.router, "sysctl", "-qw", "net.ipv4.ip_forward=1"},
		}...)
	}
	return steps
}

// natRules are those of a router that keeps ports. What its firewall drops leaves
// no entry in the connection table: otherwise the other side's first probe would
// occupy the port that ours is to keep.
const natRules = `table inet fw {
	chain input {
		type filter hook input priority 0; policy drop
		ct state established,related accept
	}
	chain forward {
		type filter hook forward priority 0; policy drop
		ct state established,related accept
		ct status dnat accept
		iifname "in" oifname "out" accept
	}
}
table ip nat {
	chain pre {
		type nat hook prerouting priority -100; policy accept
		iifname "out" tcp dport %d dnat to %s
	}
	chain post {
		type nat hook postrouting priority 100; policy accept
		oifname "out" masquerade
	}
}
`

// routers loads the rules of both.
func (l *lab) routers() error {
	for ns, inside := range map[string]string{l.serverRouter: serverHome, l.clientRouter: clientHome} {
		cmd := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-") //nolint:noctx // done in milliseconds
		cmd.Stdin = strings.NewReader(fmt.Sprintf(natRules, port, inside))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("bench: nft: %w: %s", err, out)
		}
	}
	return nil
}

// openHub starts a hub on the public segment. Its directory is left to the system.
func openHub(ctx context.Context) (*hub.Hub, error) {
	dir, err := os.MkdirTemp("", "kithbench-hub")
	if err != nil {
		return nil, err
	}
	return hub.Open(ctx, hub.Config{
		Dir: dir, Host: hubPublic, Listen: hubPublic + ":" + strconv.Itoa(hubPort), AltPort: -1,
		RelayMin: relayPort, RelayMax: relayPort,
	})
}

// relays reports whether a side of a way opens a relay.
func relays(cfg sideConfig) bool {
	return cfg.Way == wayRelay && cfg.Side == sideClient || cfg.Way == wayRelayDown && cfg.Side == sideServer
}

// across returns where the other end is found from behind a NAT. The end that is to
// have a relay opens it, and sends through it alone.
func across(ctx context.Context, cfg sideConfig, socket *link.Socket, l *link.Link) (signaling.Candidate, error) {
	at := func(ip string, port uint16) signaling.Candidate {
		return signaling.Candidate{Kind: signaling.Host, Addr: netip.AddrPortFrom(netip.MustParseAddr(ip), port)}
	}
	switch {
	case relays(cfg):
		if err := openRelay(ctx, cfg.Hub, socket); err != nil {
			return signaling.Candidate{}, err
		}
		l.SetRelayOnly(true)
	case cfg.Hub != "":
		return at(hubPublic, relayPort), nil
	}
	if cfg.Side == sideServer {
		return at(clientPublic, udpPort), nil
	}
	return at(serverPublic, udpPort), nil
}

// openRelay attaches a relay of the hub to a socket, as a node does it.
func openRelay(ctx context.Context, address string, socket *link.Socket) error {
	a, err := hubaddr.Parse(address)
	if err != nil {
		return err
	}
	var to atomic.Pointer[link.Port]
	one, err := relay.Dial(ctx, relay.Config{
		URL: a.TURNURLs()[0], Secret: a.TURNSecret(),
		Receive: func(from netip.AddrPort, packet []byte) {
			if p := to.Load(); p != nil {
				p.Deliver(from, packet)
			}
		},
	})
	if err != nil {
		return err
	}
	if want := netip.AddrPortFrom(netip.MustParseAddr(hubPublic), relayPort); one.Addr() != want {
		return fmt.Errorf("bench: the relayed address is %s, not %s", one.Addr(), want)
	}
	to.Store(socket.AttachRelay(one, "hub", one.Addr()))
	return nil
}
