package kith

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/dht"
	"github.com/kithproject/kith/rendezvous/lan"
	"github.com/kithproject/kith/rendezvous/waku"
	"github.com/kithproject/kith/signaling"
)

// openMedia opens all media to meet on.
func (n *Node) openMedia() (err error) {
	exchanges := slices.Clone(n.cfg.Exchanges)
	n.media = rendezvous.Race(exchanges...) // which closes them
	for _, h := range n.reach.hubs {
		if err := n.reach.addHubMedium(h); err != nil {
			return err
		}
	}
	if !n.cfg.NoLAN {
		if n.lan, err = lan.New(lan.Config{Logger: n.cfg.Logger, Monitor: n.mon, IncludeLoopback: n.cfg.Loopback}); err != nil {
			return err
		}
		if err := n.addMedium(n.lan); err != nil {
			return err
		}
	}
	if len(n.cfg.Waku) > 0 {
		ex, err := waku.New(waku.Config{Nodes: n.cfg.Waku, Network: n.cfg.WakuNetwork, Again: n.reach.doubt, Logger: n.cfg.Logger})
		if err != nil {
			return fmt.Errorf("kith: %w", err)
		}
		if err := n.addMedium(ex); err != nil {
			return err
		}
	}
	if n.cfg.NoDHT {
		return nil
	}
	if n.dht, err = dht.New(n.dhtConfig()); err != nil {
		return fmt.Errorf("kith: dht: %w", err)
	}
	return n.addMedium(n.dht)
}

func (n *Node) addMedium(ex rendezvous.Exchange) error {
	if err := n.media.Add(ex); err != nil {
		return errors.Join(fmt.Errorf("kith: %s: %w", ex.Name(), err), ex.Close())
	}
	return nil
}

func (n *Node) dhtConfig() dht.Config {
	cfg := dht.Config{
		Bootstrap: slices.Clone(n.cfg.DHT), Private: len(n.cfg.DHT) > 0, Serve: len(n.cfg.DHT) > 0,
		NoShortcut: n.cfg.Relay == RelayAlways, // a peer does not learn our address
		NodesFile:  filepath.Join(n.cfg.Dir, "dht-nodes"), Logger: n.cfg.Logger,
	}
	if !cfg.Private {
		cfg.Bootstrap = dht.DefaultBootstrap()
	}
	for _, h := range n.reach.hubs {
		cfg.Bootstrap = append(cfg.Bootstrap, dhtNode(h))
	}
	return cfg
}

// dhtNode is where a hub serves the distributed hash table.
func dhtNode(h hubaddr.Address) string {
	return net.JoinHostPort(h.Host, strconv.Itoa(hubaddr.DHTPort))
}

// learnHub takes a hub as a node of the DHT.
func (n *Node) learnHub(h hubaddr.Address) {
	if n.dht == nil {
		return
	}
	addrs, err := resolve(n.ctx, dhtNode(h))
	if err != nil {
		n.cfg.Logger.Debug("hub not found for the dht", "err", err)
		return
	}
	n.dht.AddNodes(addrs...)
}

// askedPublic tells the DHT whether others can reach this device: then it serves
// them, too.
func (n *Node) askedPublic() {
	if n.dht != nil && len(n.cfg.DHT) == 0 {
		n.dht.SetPublic(n.socket.NAT().Mapping == punch.None)
	}
}

// dhtNodes are what a peer is told of the DHT, so that it finds its way in when
// those nodes are gone with which programs begin.
func (n *Node) dhtNodes() []netip.AddrPort {
	if n.dht == nil || n.cfg.Relay == RelayAlways {
		return nil
	}
	const known = 4
	out := n.dht.Nodes(known)
	if own := n.dht.Addrs(); len(own) > 0 && (len(n.cfg.DHT) > 0 || n.socket.NAT().Mapping == punch.None) {
		for _, c := range n.socket.Local() {
			if c.Kind == signaling.Host && c.Addr.Addr().Is4() == own[0].Addr().Is4() {
				return append([]netip.AddrPort{netip.AddrPortFrom(c.Addr.Addr(), own[0].Port())}, out...)
			}
		}
	}
	return out
}

const (
	// nodesSoon is how often it is looked whether nodes of the DHT are known, and
	// nodesLater how often others of them are taken after that.
	nodesSoon  = 250 * time.Millisecond
	nodesLater = 5 * time.Minute
	askedNodes = 4 // how many show us from outside
)

// askNodes has nodes of the DHT say how this device's tunnel looks from outside.
func (n *Node) askNodes() {
	wait := nodesSoon
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(wait):
		}
		if nodes := n.dht.Nodes(askedNodes); len(nodes) > 1 {
			n.socket.SetNodes(nodes)
			wait = nodesLater
		}
	}
}

// nodesPause is how often nodes that one peer names count.
const nodesPause = time.Minute

// learnNodes takes the nodes that the peer knows. Members of a room are strangers, who
// would choose whom this device asks.
func (p *peer) learnNodes(nodes []netip.AddrPort) {
	if p.n.dht == nil || p.rec.Member() || len(nodes) == 0 || time.Since(p.learned) < nodesPause {
		return
	}
	p.learned = time.Now()
	p.n.dht.AddNodes(nodes...)
}
